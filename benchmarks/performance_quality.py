"""The section of docs/performance.md on time to quality."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import table
from models.record import Chart, Line
from training.reporting.charts import svg

SOLVER_LABELS = {
    "ours": "our preset",
    "published": "published recipe, our engine",
    "published, strength 0.1": "the same, strength 0.1",
    "textbook": "published recipe, textbook loop",
    "torchgan": "published recipe, torchgan",
}
TASKS = {
    "25gaussians": ("high_quality_share", "share of samples within 3 sd of a mode"),
    "digits": ("kernel_distance", "kernel distance, on a logarithmic scale"),
    "mnist5k": ("kernel_distance", "kernel distance, on a logarithmic scale"),
}
"""The figure that is drawn, and its name."""


def seconds_by_seed(found: dict[str, Any], unit: str = "cpu_seconds") -> str:
    """Seconds seed by seed; what a run spent that did not get there is a lower bound."""
    pairs = zip(found[unit], found["reached"], strict=True)
    return ", ".join(f"{seconds:.0f}" if got else f"> {seconds:.0f}" for seconds, got in pairs)


def over(found: dict[str, Any], unit: str = "cpu_seconds") -> str:
    """The ratio of the medians, and seed by seed; a dash where ours did not get there."""
    if f"ratio_{unit}" not in found:
        return "none: ours did not get there"
    single = ", ".join(
        "-" if ratio is None else f"{ratio:.1f}" if got else f"> {ratio:.1f}"
        for ratio, got in zip(found[f"ratios_{unit}"], found["reached"], strict=True)
    )
    ratio = found[f"ratio_{unit}"]
    return f"{'> ' if found['is_lower_bound'] else ''}{ratio:.1f} ({single})"


def quality_task(quality: dict[str, Any], task: str, pictures: dict[str, str]) -> str:
    found, runs = quality["tasks"][task], [r for r in quality["runs"] if r["task"] == task]
    shown, figure = TASKS[task]
    bounds = runs[0]["bounds"]
    names = [solver for solver in SOLVER_LABELS if solver in found]
    picture = f"performance-quality-{task}.svg"
    sign, bound = bounds[shown]
    log = sign == "<="
    curves = [
        Line(name="target", x=[0.0, max(r["spent"]["cpu_seconds"] for r in runs)], y=[bound] * 2)
    ]
    for solver in names:
        x, y = list[float](), list[float | None]()
        for r in runs:
            if r["solver"] == solver:
                for row in r["trajectory"]:
                    x.append(row["cpu_seconds"])
                    y.append(max(row[shown], bound / 100) if log else row[shown])
                x, y = [*x, 0.0], [*y, None]  # the next seed's curve begins anew
        curves.append(Line(name=SOLVER_LABELS[solver], x=x, y=y))
    chart = Chart(
        title=f"{task}: {figure}",
        x_label="processor seconds",
        y_label=shown.replace("_", " "),
        lines=curves,
        log_y=log,
    )
    pictures[picture] = svg(chart, 640) + "\n"
    target = " and ".join(
        f"{name.replace('_', ' ')} {sign} {bound:.4g}" for name, (sign, bound) in bounds.items()
    )
    floor = ", ".join(
        f"{name.replace('_', ' ')} {value:.3g}" for name, value in runs[0]["floor"].items()
    )
    rows = [
        [
            SOLVER_LABELS[solver],
            seconds_by_seed(found[solver]),
            "" if solver == "ours" else over(found[solver]),
            seconds_by_seed(found[solver], "seconds"),
            f"{found[solver]['start_up_cpu_seconds']:.1f}",
        ]
        for solver in names
    ]
    header = ["solver", "processor seconds", "over ours", "seconds by the clock", "start-up"]
    return f"""### `{task}`

Target: {target}{f" (real training items have: {floor})" if floor else ""}.

{table(header, rows)}
![{figure.capitalize()} against processor seconds]({picture})
"""


def ablation_part(quality: dict[str, Any], task: str) -> str:
    found = quality["ablations"][task]
    seeds = ", ".join(map(str, found["ours"]["seeds"]))
    rows = [
        [
            SOLVER_LABELS.get(name, f"ours, but with: {name}"),
            seconds_by_seed(part),
            "" if name == "ours" else over(part),
        ]
        for name, part in found.items()
    ]
    return f"""### Which change brought what to `{task}`

Our preset less one thing each, seeds {seeds}. A run ends with its schedule or budget: what did not
get there has a lower bound.

{table(["solver", "processor seconds", "over ours"], rows)}
"""


def quality_part(quality: dict[str, Any], pictures: dict[str, str]) -> str:
    budgets: dict[str, set[float]] = {}
    for r in quality["runs"]:
        budgets.setdefault(r["task"], set()).add(r["budget"])
    spans = ", ".join(
        f"{task}: {' or '.join(f'{seconds:.0f}' for seconds in sorted(each))} s"
        for task, each in budgets.items()
    )
    loads = [r["load_average"] for r in quality["runs"]]
    parts = [quality_task(quality, task, pictures) for task in quality["tasks"]]
    parts += [ablation_part(quality, task) for task in quality["ablations"]]
    joined = "\n\n".join(parts)
    return f"""## Time to quality

`{quality["command"]}` trains until the samples have met a target in {quality["sustained"]}
evaluations in a row, and gives the time until the first of these. The targets were committed before
anything was run. All train with one thread; evaluations, the same for all and after as many
generator steps, do not count, start-up does. The processor's seconds are what counts, for others
worked on the machine (load averages of {min(loads):.0f} to {max(loads):.0f} as runs began): that
stretches the clock, and the processor's seconds less. `>` is what a run had spent when its budget
({spans}) or its schedule ended
before the target was reached, and a ratio that follows from it. Ratios are of the medians, and in
brackets seed by seed (a dash where ours did not get there); times begin with seed 0.

The published recipe is the two-sided penalty at strength 10, Adam at 1e-4 with betas 0.5 and 0.9,
five critic steps, no average, no decay; it has the preset's own networks
and the batch of the authors' code.
torch-mimicry 0.1.16 could not be run: importing it needs `torch._six`, which torch no longer has,
and its penalty takes only images of three channels. What a table leaves out was not run.
{quality.get("note", "")}

{joined}
"""
