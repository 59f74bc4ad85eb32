"""W1 between two sets in whatever form they come: loaded, measured, shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from models.command_line import require_data_settings
from models.config import DataConfig, flatten
from models.distance import Distance
from models.outputs import require_file, save
from models.trained import TrainedModel
from training.lab.changes import Change, changes_of_items, changes_of_table
from training.lab.differences import SIGNIFICANCE, column_names, kind_of
from training.lab.samples import Sets, require_whole
from training.lab.sets import load_sets
from training.lab.two_samples import Tested, two_sample_test
from training.lab.w1 import estimate
from training.lab.w1_page import w1_page
from training.presets import build_config

MISSED = 0.01
"""A p-value of the two-sample test up to this one is told where a critic found no difference."""


def load(a: Any, b: Any, settings: Mapping[str, Any], count: int | None, seed: int) -> Sets:
    """Load two sets that Python code hands over; see `wgan.wasserstein_1`.

    Raises:
        UserError: they cannot be read, do not fit each other, or a setting is none of data,
            or the seed or the count is out of range.
    """
    require_whole("seed", seed, 0)
    if count is not None:
        require_whole("count", count, 1)
    a, b = (
        x.model if isinstance(x, TrainedModel) else str(x) if isinstance(x, Path) else x
        for x in (a, b)
    )
    dotted = flatten(dict(settings))
    require_data_settings(dotted)
    return load_sets(a, b, data_config(a, dotted), count, seed)


def data_config(source: Any, settings: Mapping[str, Any]) -> DataConfig:
    """Build the configuration by which two sets are read.

    Args:
        source: A, in whatever form.
        settings: of data alone; dotted, such as ``{"data.size": 32}``.
    """
    given = source if isinstance(source, str) else "data in memory"
    return build_config("table", given, None, dict(settings)).data


def changes(sets: Sets) -> list[Change]:
    """Compare the columns of two sets one by one, what changed most first."""
    if sets.tables is not None:
        return changes_of_table(*sets.tables, sets.columns)
    names = sets.names
    if not names and kind_of(sets.a.shape[1:]) == "vector":
        names = column_names(sets.a.shape[1:])
    return changes_of_items(sets.a, sets.b, names)


def measure(
    sets: Sets, kind: str | None = None, tested: Tested | None = None, **options: Any
) -> Distance:
    """Estimate W1 between two sets, and say what was compared and what changed.

    Args:
        sets: as `training.lab.sets.load_sets` brings them.
        kind: the constraint's; see `training.lab.w1.estimate`.
        tested: result of `two_sample_test` of the two; None: it is made here.
        **options: others of `training.lab.w1.estimate`.

    Returns:
        What `estimate` finds, with ``two_sample_p_value``, ``units``, ``read``, ``changes`` and, of
        a table, ``columns`` in the report. Rows that it names are numbered as in their sources.
    """
    report, gradient = estimate(sets.a, sets.b, kind, names=sets.names, **options)
    p_value = (tested or two_sample_test(sets.a, sets.b, options.get("seed", 0))).p_value
    cautions = [*sets.cautions]
    if p_value <= MISSED and report["p_value"] > SIGNIFICANCE:
        cautions.append(
            "the critic's held-out scores show no difference, but a two-sample test of all samples "
            f"does (p {p_value:.2g}): A and B differ, by less than the critic could learn"
        )
    typical = [
        rows if drawn is None else drawn[rows].tolist()
        for rows, drawn in zip(report["typical"], sets.rows, strict=True)
    ]
    report |= {
        "cautions": [*cautions, *report["cautions"]],
        "two_sample_p_value": p_value,
        "typical": typical,
        "units": sets.units,
        "read": sets.said,
        "changes": [change._asdict() for change in changes(sets)],
    }
    if sets.names:
        report["columns"] = sets.names
    return Distance(report["w1"], report["lower"], report["verdict"], report, gradient)


def page_for(out: str | Path | None) -> Callable[[Distance, Sets], None]:
    """Make what saves a page; without a file, it saves nothing.

    Raises:
        UserError: the file cannot be written.
    """
    path = None if out is None else Path(out)
    require_file(path)

    def save_page(found: Distance, sets: Sets) -> None:
        if path is not None:
            save(path, w1_page(found.report, sets, "A", "B"))

    return save_page
