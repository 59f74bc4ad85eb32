"""Train, judge and use Wasserstein GANs from Python.

From a table to new rows, in ten lines::

    import wgan

    model = wgan.train("people.csv", constraint="gradient_penalty", steps=3000, out="runs/people")
    rows = model.sample(seed=7, count=1000)         # a DataFrame; where={"age": 40} asks for some
    scores = model.score(rows)                      # higher is more like real rows
    print(model.columns, model.figures["column_shapes"].value)

    same = wgan.load("runs/people/artifact")        # or a registry name: "people@champion"
    print(wgan.evaluate(same).figures)              # judged on held-out rows again
    for finding in wgan.diagnose("runs/people"):    # what goes wrong with the critic
        print(finding.name, finding.severity, finding.evidence, finding.remedy)

A constraint also works alone, in somebody else's training loop:

>>> import torch, wgan
>>> critic = torch.nn.Linear(2, 1)
>>> real, fake = torch.zeros(8, 2), torch.ones(8, 2)
>>> loss = wgan.GradientPenalty(strength=10).penalty(critic, real, fake)
>>> loss.backward()

Importing this module is quick: each function imports what it needs when it is called. Loading,
sampling and scoring work in every installation; what trains or judges needs
``pip install 'wgan-foundry[train]'``, and says so.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from models.distance import Distance, DistributionsDiffer
from models.errors import UserError, needs

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from models.constraints import *  # noqa: F403 # re-exported, at run time by __getattr__
    from models.constraints import AnyConstraint
    from models.record import ConstraintCard, Finding, Results
    from models.trained import TrainedModel

    Array: TypeAlias = np.ndarray
    Data: TypeAlias = str | Path | np.ndarray | pd.DataFrame | pa.Table
    Items: TypeAlias = Data | TrainedModel

__all__ = [
    "Distance",
    "DistributionsDiffer",
    "UserError",
    "assert_same_distribution",
    "compare",
    "constraints",
    "diagnose",
    "evaluate",
    "load",
    "presets",
    "train",
    "wasserstein_1",
]


def _say_nothing(line: str) -> None:
    """Say nothing: the default of every ``say``."""


def load(model: str | Path, device: str = "cpu") -> TrainedModel:
    """Load a model, with ``sample``, ``score``, ``figures`` and more.

    Args:
        model: the folder of a run or an artifact, or a registry name such as ``digits@champion``.
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: there is no such model or device, or its artifact is broken.
    """
    from models.trained import load

    return load(str(model), device)


@needs("train")
def train(
    data: Data | None = None,
    *,
    preset: str | None = None,
    start: TrainedModel | str | Path | None = None,
    constraint: str | AnyConstraint | None = None,
    steps: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    register: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = _say_nothing,
    **settings: Any,
) -> TrainedModel:
    """Train, judge and save a model, as ``wgan train`` does.

    Args:
        data: a built-in name, file, folder or URL (docs/data.md); an array of images, uint8
            ``(N, H, W)`` or ``(N, H, W, C)``, vectors ``(N, D)`` or sequences ``(N, T, D)``; or a
            DataFrame or `pyarrow.Table`. By default the preset's own.
        preset: settings to start from, see `presets`; by default those that suit the data.
        start: in place of a preset, a trained model, whose weights and settings it begins with.
        constraint: a kind (see `constraints`), or one such as ``wgan.GradientPenalty(strength=1)``.
        steps: generator steps.
        seed: seed of everything random.
        out: folder of the run; by default a temporary one that goes with the model.
        device: ``cpu`` or ``cuda``; by default CUDA if there is one.
        register: write the run to MLflow and register a version; of data in memory, give ``name``.
        resume: continue the run in ``out``.
        say: takes a line for people, such as ``print``.
        **settings: any others, a section each or dotted: ``training={"batch_size": 32}``,
            ``conditional=True``, ``**{"data.size": 32}``.

    Raises:
        UserError: the data or the settings cannot be used.
        training.engine.runs.Diverged: training failed; the last good checkpoint is kept.
    """
    from training.call import train_called

    return train_called(
        data,
        preset=preset,
        start=start,
        constraint=constraint,
        steps=steps,
        seed=seed,
        out=out,
        device=device,
        register=register,
        resume=resume,
        say=say,
        settings=settings,
    )


@needs("train")
def evaluate(model: TrainedModel | str | Path, data: Data | None = None) -> Results:
    """Judge a model on held-out data again, as ``wgan evaluate`` does.

    Args:
        model: a model, an artifact folder or a registry name.
        data: data as `train` takes them; by default those of the training.

    Returns:
        ``figures``, by name, and the ``extractor`` that images were judged over.

    Raises:
        UserError: the data cannot be used, or do not fit the model.
    """
    from training.data.given import source_of
    from training.judging.evaluate import evaluate_artifact

    with _artifact(model) as artifact, tempfile.TemporaryDirectory() as folder:
        return evaluate_artifact(artifact, None if data is None else source_of(data, Path(folder)))


@needs("train")
def diagnose(run: TrainedModel | str | Path) -> list[Finding]:
    """Measure what goes wrong with a critic, and say what to do, as ``wgan diagnose`` does.

    Args:
        run: the folder of a run, finished or not, an artifact folder, a registry name or a model.

    Returns:
        Every finding that applies, present or not: docs/doctor.md describes them.

    Raises:
        UserError: there is no such run, or its data cannot be loaded.
    """
    from training.judging.doctor.diagnosis import diagnose_run

    with _artifact(run) as folder:
        return diagnose_run(folder)


@needs("train")
def compare(
    data: Data,
    constraints: Sequence[str],
    *,
    seeds: int = 3,
    out: str | Path | None = None,
    preset: str | None = None,
    steps: int | None = None,
    budget_seconds: float | None = None,
    jobs: int = 1,
    track: bool = False,
    say: Callable[[str], None] = _say_nothing,
    **settings: Any,
) -> dict[str, Any]:
    """Train several constraints alike and say which suits the data, as ``wgan compare`` does.

    Args:
        data: data as `train` takes them.
        constraints: two kinds or more.
        seeds: number of runs of each constraint and budget.
        out: folder of the runs and of ``report.html``; what is done in it already is not done
            again. By default a temporary one, and only the summary is kept.
        preset: settings to start from; by default what suits the data.
        steps: generator steps.
        budget_seconds: seconds of training for each run, instead of ``steps``.
        jobs: runs at once.
        track: write each run to MLflow.
        say: takes a line for people.
        **settings: settings as `train` takes them.

    Returns:
        The summary (docs/compare.md): ``recommendation``, a dict with ``constraint``, ``reason``
        and ``confidence``, and ``rows``, one for each constraint and budget.

    Raises:
        UserError: the data or the settings cannot be used.
        training.engine.runs.Diverged: a run of every constraint did.
    """
    from models.config import flatten
    from training.call import folder_for
    from training.data.given import source_of
    from training.lab.comparison import compare as run_comparison

    with contextlib.ExitStack() as stack:
        folder = folder_for(out, stack)
        return run_comparison(
            source_of(data, folder),
            constraints,
            seeds,
            folder,
            preset=preset,
            budget_seconds=budget_seconds,
            steps=steps,
            overrides=flatten(settings),
            processes=jobs,
            track=track,
            say=say,
        )


@needs("train")
def wasserstein_1(
    a: Items,
    b: Items,
    constraint: str | None = None,
    *,
    seed: int = 0,
    steps: int | None = None,
    seconds: float | None = None,
    until_converged: bool = False,
    batch_size: int = 512,
    count: int | None = None,
    device: str = "cpu",
    out: str | Path | None = None,
    **settings: Any,
) -> Distance:
    """Measure the Wasserstein-1 distance between two sets of samples, as ``wgan w1`` does.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(2, 500, 2))
        >>> distance = wasserstein_1(a + [3, 0], b, steps=100)
        >>> abs(distance.value - 3) < 0.3
        True

    Args:
        a: an array: ``(N, D)``, sequences ``(N, T, D)``, or images ``(N, H, W)`` or
            ``(N, H, W, C)``; a DataFrame or a `pyarrow.Table`; a path, URL or name, as the command
            takes them (docs/w1.md); or a model, which makes samples.
        b: likewise, of the same form.
        constraint: kind of the critic's constraint; by default what was found best.
        seed: seed of everything random.
        steps: steps of the critic; by default 4,000.
        seconds: time for fitting, instead of ``steps``.
        until_converged: double the steps until that brings nothing, or ``seconds`` are over.
        batch_size: samples of each step, from each set.
        count: samples of a model; by default as many as the other side has.
        device: ``cpu`` or ``cuda``, where the critic is fitted.
        out: file of an HTML page that shows what differs.
        **settings: how data are read, such as ``**{"data.size": 32}``.

    Raises:
        UserError: the samples do not fit each other or are too few, or options contradict.
    """
    from training.lab.measure import load, measure, page_for

    save_page = page_for(out)
    fit: dict[str, Any] = {"steps": steps, "seconds": seconds, "until_converged": until_converged}
    sets = load(a, b, settings, count, seed)
    found = measure(sets, constraint, seed=seed, batch_size=batch_size, device=device, **fit)
    save_page(found, sets)
    return found


@needs("train")
def assert_same_distribution(
    a: Items,
    b: Items,
    *,
    level: float = 0.01,
    tolerance: float = 0.0,
    seed: int = 0,
    count: int | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> None:
    """Fail if two sets of independent samples are shown to differ; for a suite of tests.

    A permutation test decides (docs/w1.md): of pairs of one distribution a share of at most
    ``level`` fails all the same. Passing does not show that the sets are alike: few samples show
    only large differences, and columns that are left out have no part: free text, lists,
    identifiers, those without a value. The same data and seed give the same answer.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(2, 500, 2))
        >>> assert_same_distribution(a, b)

    Args:
        a: samples as `wasserstein_1` takes them.
        b: likewise.
        level: the share of alike pairs that may fail, at least 0.001.
        tolerance: the W1 that is allowed. Above 0, sets fail only if W1 is shown to be larger: if
            its lower bound is, at a confidence of ``1 - level``.
        seed: seed of everything random.
        count: samples of a model; by default as many as the other side has.
        out: file of an HTML page that shows what differs, written if they do.
        **settings: how data are read, such as ``**{"data.size": 32}``.

    Raises:
        DistributionsDiffer: they differ; the message says in what, and by how much.
        UserError: the samples do not fit each other or are too few, or an option is out of range.
    """
    from training.lab.measure import load
    from training.lab.sameness import require_same

    require_same(load(a, b, settings, count, seed), level, tolerance, seed, out)


@needs("train")
def presets() -> dict[str, dict[str, Any]]:
    """Name the presets, each with its settings.

    Example:
        >>> presets()["digits"]["data"]
        {'source': 'digits'}
    """
    import copy

    from training.presets import PRESETS

    return copy.deepcopy(PRESETS)


def constraints() -> list[ConstraintCard]:
    """Describe the constraints: ``kind``, ``guarantee``, and ``hyperparameters`` with defaults.

    Example:
        >>> [card.hyperparameters for card in constraints() if card.kind == "norm_clipping"]
        [{'max_norm': 1.0}]
    """
    from models.record import constraint_cards

    return constraint_cards()


def __getattr__(name: str) -> Any:
    """Import a constraint's class when it is first asked for."""
    import models.constraints

    if name in models.constraints.__all__:
        return getattr(models.constraints, name)
    raise AttributeError(f"module 'wgan' has no attribute {name!r}")


def _artifact(model: TrainedModel | str | Path) -> contextlib.AbstractContextManager[Path]:
    """Give the folder of a model's artifact; one from the registry goes when the block ends."""
    from models.trained import TrainedModel, artifact_folder

    if isinstance(model, TrainedModel):
        return contextlib.nullcontext(model.artifact)
    return artifact_folder(str(model))
