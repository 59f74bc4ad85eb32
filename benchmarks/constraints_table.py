"""Ranks the constraints by the results of `benchmarks.constraints_tuned`, for docs/constraints.md.

python -m benchmarks.constraints_table
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from benchmarks.markdown import table

RESULTS = Path(__file__).with_name("results") / "constraints_tuned.json"
PAGE = Path(__file__).parents[1] / "docs" / "constraints.md"
BEGIN, END = "<!-- by benchmarks.constraints_table -->\n", "<!-- until here -->\n"
REPLICATES = 10_000
LEVELS = (2.5, 97.5)
"""Percentiles of the interval."""
NOT_BEHIND = 0.05
"""A constraint that is ahead of the first in this share of replicates is not told from it."""
Values = dict[str, Any]
Array = np.ndarray


def main() -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + section(json.loads(RESULTS.read_text())) + END + after)


# ---- ranks --------------------------------------------------------------------------------------


def ranks(values: Array) -> Array:
    """Mean rank of each constraint over data sets and seeds; 1 is best, equal values share theirs.

    Args:
        values: ``(..., data sets, seeds, constraints)``, lower is better; infinite if diverged.

    Returns:
        ``(..., constraints)``
    """
    mean: Array = rankdata(values, axis=-1).mean(axis=(-3, -2))
    return mean


def replicates(values: Array, count: int = REPLICATES, seed: int = 0) -> Array:
    """Mean ranks of resampled results: data sets, and in each every constraint's own seeds.

    Args:
        values: as for `ranks`.

    Returns:
        ``(count, constraints)``
    """
    rng = np.random.default_rng(seed)
    tasks, seeds, constraints = values.shape
    task = rng.integers(tasks, size=(count, tasks, 1, 1))
    own = rng.integers(seeds, size=(count, *values.shape))
    return ranks(values[task, own, np.arange(constraints)])


def values_of(results: Values) -> Array:
    """The reported values, ``(data sets, seeds, constraints)``; infinite for what diverged."""
    found = [
        [[row["value"] for row in run["rows"]] for run in of.values()]
        for of in results["reported"].values()
    ]
    known = np.array(found, dtype=float).transpose(0, 2, 1)  # None becomes NaN
    return np.where(np.isnan(known), np.inf, known)


# ---- the section --------------------------------------------------------------------------------


def section(results: Values) -> str:
    """The answer, the table of ranks, and a table of settings and critics for each data set."""
    tasks, recipes = results["tasks"], list(next(iter(results["reported"].values())))
    values = values_of(results)
    mean, resampled = ranks(values), replicates(values)
    low, high = np.percentile(resampled, LEVELS, axis=0)
    order = np.argsort(mean, kind="stable")
    ahead = (resampled < resampled[:, order[:1]]).mean(axis=0)
    within = [ranks(one[None]) for one in values]

    lines = []
    for i in order:
        figures = [
            f"{spread([row['value'] for row in of[recipes[i]]['rows']])}; {own[i]:.1f}"
            for of, own in zip(results["reported"].values(), within, strict=True)
        ]
        rank = f"{mean[i]:.1f} ({low[i]:.1f} to {high[i]:.1f})"
        share = "" if i == order[0] else f"{ahead[i]:.0%}"
        lines.append([named(recipes[i]), rank, share, *figures])
    lines.append(["real against real", "", "", *(f"{t['floor']:.3g}" for t in tasks.values())])
    header = ["constraint", "mean rank", "ahead of the first"]
    header += [f"`{name}`: {task['figure']}; rank" for name, task in tasks.items()]
    parts = [answer(recipes, mean, ahead, order), table(header, lines)]
    parts += [later(results)] if "later" in results else []
    parts += [critics(results, task) for task in tasks]
    return "\n".join(parts)


def answer(recipes: Sequence[str], mean: Array, ahead: Array, order: Array) -> str:
    """A paragraph: the constraint of the lowest mean rank, and those that it may not beat."""
    first, *others = order
    rivals = [named(recipes[i]) for i in others if ahead[i] >= NOT_BEHIND]
    told = f"{named(recipes[first])} has the lowest mean rank, {mean[first]:.1f} of {len(recipes)}."
    if rivals:
        told += (
            f" {', '.join(rivals)} are ahead of it in {NOT_BEHIND:.0%} of the resampled results or "
            "more: these data do not tell them apart."
        )
    return f"{told} The other {len(others) - len(rivals)} are ahead of it in fewer.\n"


def later(results: Values) -> str:
    """A table of constraints that came after the ranking, on data sets that are still the same."""
    tasks = list(next(iter(results["later"].values())))
    lines = [
        [named(recipe), *(spread([row["value"] for row in of[task]["rows"]]) for task in tasks)]
        for recipe, of in results["later"].items()
    ]
    header = [f"`{task}`: {results['tasks'][task]['figure']}" for task in tasks]
    return table(["tuned alike, later", *header], lines)


def critics(results: Values, task: str) -> str:
    """The chosen settings of each constraint on a data set, and its critics; medians over seeds."""
    lines = []
    for recipe, run in results["reported"][task].items():
        tried = results["trials"][task][recipe]
        certified = [row.get("certified") for row in run["rows"]]
        best = min(trial["value"] for trial in tried)
        lines.append(
            [
                named(recipe),
                settings_of(run, tried),
                f"{tried[0]['value']:.3g} to {best:.3g}",
                spread([row.get("sampled") for row in run["rows"]]),
                "none" if None in certified else spread(certified),
                spread([row.get("gradient_norm") for row in run["rows"]]),
                f"{run['ms']:.1f}",
            ]
        )
    header = [f"`{task}`", "chosen settings", "tuning", "steepest slope", "certified"]
    return table([*header, "gradient norm", "ms"], lines)


def settings_of(run: Values, tried: Sequence[Values]) -> str:
    """The settings of a run that trials differ in."""
    training = run["settings"]["training"]
    number = training["num_critic_steps"]
    parts = [f"rate {training['learning_rate']:g}", f"{number} critic step{'s' * (number > 1)}"]
    parts.append(f"beta {training['betas'][0]:g}")
    for field in tried[-1]["settings"]["constraint"].keys() - {"kind"}:
        value = run["constraint"][field]
        parts.append(f"{field} {value if isinstance(value, str) else f'{value:g}'}")
    is_equal = run["settings"] == tried[0]["settings"]
    return ", ".join(parts) + (" (equal settings)" if is_equal else "")


def named(recipe: str) -> str:
    """The name of a recipe in a page."""
    return "`weight_clipping` with a target" if "," in recipe else f"`{recipe}`"


def spread(found: Sequence[float | None]) -> str:
    """The median and, in brackets, the lowest and the highest."""
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        return f"{len(found) - len(known)} of {len(found)} diverged"
    low, middle, high = (f"{f(known):.3g}" for f in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
