"""Write docs/performance.md and its pictures from the results that are checked in.

python -m benchmarks.performance
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from models.record import Chart, Line
from training.reporting.charts import svg

ROOT = Path(__file__).parent.parent
RESULTS, DOCS = ROOT / "benchmarks/results", ROOT / "docs"
PAGE = "performance.md"
WIDTH, BAR, LABEL = 640, 22, 220
FILL = {"ours": "#2a6f97", "limit": "#b0b0b0"}
NETWORKS = {
    "mlp": "3x512 MLP, batch 256",
    "dcgan28": "DCGAN 28x28, batch 64",
    "resnet32": "ResNet 32x32, batch 64",
}


def bars(title: str, rows: list[tuple[str, float, str]]) -> str:
    """Draw labelled bars from 0, with a line at 1.

    Args:
        title: above them.
        rows: label, value, and a key of `FILL`.

    Returns:
        An SVG.
    """
    scale = (WIDTH - LABEL - 60) / max(1.0, *(value for _, value, _ in rows))
    height = 40 + BAR * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    for i, (label, value, kind) in enumerate(rows):
        y = 32 + BAR * i
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LABEL}" y="{y + 2}" width="{value * scale:.1f}" height="{BAR - 6}" '
            f'fill="{FILL[kind]}"/>',
            f'<text x="{LABEL + value * scale + 6:.1f}" y="{y + 14}">{value:.2f}</text>',
        ]
    one = LABEL + scale
    parts.append(f'<path d="M{one:.1f} 30V{height - 6}" stroke="#c1121f" stroke-dasharray="3 3"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def span(found: dict[str, Any]) -> str:
    low, high = found["spread"]
    return f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"


def loaded(result: dict[str, Any]) -> str:
    return (
        f"The load average when it began was {result['load_average'][0]:.1f}; others at work on "
        f"the two cores make ratios spread. {result.get('note', '').strip()}"
    ).rstrip()


def measured(step: dict[str, Any]) -> list[str]:
    """Precisions that the processor had."""
    return [p for p in ("fp32", "bf16") if "skipped" not in step[p]]


def asked(step: dict[str, Any], serve: dict[str, Any], quality: dict[str, Any]) -> str:
    """What the project asks for, beside what was found."""
    tail, beyond = serve["tail"], serve["beyond_saturation"]
    eager, own = serve["over_eager_forward"], serve["over_own_forward"]
    rows = [
        *(
            (
                f"{label} step over textbook, {precision}",
                step[precision][name]["ratio"],
                {"fp32": 1.25, "bf16": 2.0}[precision],
                True,
            )
            for precision in measured(step)
            for name, label in list(NETWORKS.items())[1:]
        ),
        *(
            (
                f"{label}, share of the limit, {precision}",
                step[precision][name]["ratio"] / step[precision][name]["limit"],
                0.9,
                True,
            )
            for precision in measured(step)
            for name, label in NETWORKS.items()
        ),
        ("eight 3x64 critics at once", step["sweep8"]["3x64"]["ratio"], 2.5, True),
        ("npz over the eager forward", eager["npz"]["ratio"], 1.2, True),
        ("PNG over the eager forward", eager["png"]["ratio"], 1.1, True),
        *(
            (f"{format} over the engine's own forward", own[format]["ratio"], 0.85, True)
            for format in ("npz", "png")
        ),
        (
            "small sample's processor time over bare Starlette",
            serve["small_sample_cpu_over_bare_starlette"]["ratio"],
            1.3,
            False,
        ),
        ("p99 over p50 at 70% of saturation", tail["p99_over_p50"], 3.0, False),
        ("throughput kept at twice saturation", beyond["throughput_kept"], 0.8, True),
        ("503 without Retry-After", beyond["without_retry_after"], 0, False),
        *(
            (
                f"time to quality, {task}: {label}, over ours"
                + (" (lower bound)" if ratio and found[solver]["is_lower_bound"] else ""),
                ratio or math.nan,  # which reaches nothing: ours did not from half of the seeds
                3.0,
                True,
            )
            for task, found in quality["tasks"].items()
            for solver, label in SOLVER_LABELS.items()
            if solver != "ours" and solver in found
            for ratio in [found[solver].get("ratio_cpu_seconds")]
        ),
    ]
    cells = [
        [
            name,
            f"{value:.2f}" if math.isfinite(value) else "none",
            f"{'at least' if at_least else 'at most'} {bound}",
            "yes" if (value >= bound if at_least else value <= bound) else "no",
        ]
        for name, value, bound, at_least in rows
    ]
    return "## Asked and found\n\n" + table(["figure", "found", "asked", "reached"], cells)


def step_part(step: dict[str, Any], pictures: dict[str, str]) -> str:
    rows, drawn = [], []
    for precision, name in itertools.product(measured(step), NETWORKS):
        found, label = step[precision][name], f"{NETWORKS[name]}, {precision}"
        rows.append(
            [
                label,
                span(found),
                *(f"{found['modes'][mode]:.2f}" for mode in ("eager", "compiled")),
                f"{found['same_memory']:.2f}",
                f"{found['limit']:.2f}",
                f"{found['ratio'] / found['limit']:.2f}",
            ]
        )
        drawn += [(label, found["ratio"], "ours"), ("limit", found["limit"], "limit")]
    pictures["performance-step.svg"] = bars("Critic step: times faster than textbook eager", drawn)
    modes = ["ours, captured", "eager", "compiled"]
    header = ["network", *modes, "same memory", "limit", "of the limit"]
    swept = step["sweep8"]
    pictures["performance-sweep.svg"] = bars(
        "Eight critics at once: times faster than eight in turn",
        [(name, found["ratio"], "ours") for name, found in swept.items()],
    )
    skipped = step["bf16"].get("skipped")
    return f"""## The critic's step

`{step["command"]}` trains critics under the two-sided gradient penalty, beside a textbook step with
torch's own layers and optimiser, in fp32. Times are taken in turn, with one thread. Each figure is
the median over rounds of textbook over ours, with its quartiles; `limit` is the textbook over our
convolutions and matrix products alone, each with memory of its own: a step that overwrites what it
has read can be a little faster. The textbook has a process of its own, with the allocator as it
comes; ours keeps freed memory, as `wgan train` does: else pages are mapped anew at each step.
`same memory` is the ratio to a textbook whose process does so too. torch {step["torch"]},
{step["processor"]}.
{loaded(step)}

{table(header, rows)}
![Bars of the table's ratios and limits](performance-step.svg)

{f"In bf16 nothing was measured: {skipped}." if skipped else ""}

## Eight critics at once

Critics of three hidden layers, batch 64, each with weights, data and random numbers of its own. The
textbook's eight in turn, and our own eight in turn, over ours over stacked weights:

{
        table(
            ["critics", "over the textbook in turn", "same memory", "over ours in turn"],
            [
                [name, span(f), f"{f['same_memory']:.2f}", f"{f['alone']:.2f}"]
                for name, f in swept.items()
            ],
        )
    }
![Bars of the first column](performance-sweep.svg)

What is left at 3x512 is little, for there the matrix products themselves fill the core; so
[`wgan compare`](compare.md) stacks networks up to a width of 256.
"""


def serve_part(serve: dict[str, Any], pictures: dict[str, str]) -> str:
    names = {
        "over_eager_forward": "over the eager forward alone",
        "over_own_forward": "over the engine's own forward",
        "over_fastapi": "over plain FastAPI",
        "over_litserve": "over LitServe",
    }
    half = serve["bf16"]
    rows = [
        [label, span(found["npz"]), span(found["png"])]
        for found, label in (
            *((serve[key], label) for key, label in names.items() if key in serve),
            *((half[key], f"bf16, {label}") for key, label in names.items() if key in half),
        )
    ]
    pictures["performance-serve.svg"] = bars(
        "Samples over HTTP: npz",
        [
            (label, serve[key]["npz"]["ratio"], "ours")
            for key, label in names.items()
            if key in serve
        ],
    )
    engine, tail, beyond = serve["engine"], serve["tail"], serve["beyond_saturation"]
    small = span(serve["small_sample_cpu_over_bare_starlette"])
    usage = [
        [name, f"{serve['start_cpu_seconds'][name]:.1f}", f"{serve['resident_mb'][name]:.0f}"]
        for name in serve["resident_mb"]
    ]
    return f"""## Samples over HTTP

`{serve["command"]}` serves a DCGAN generator of 28x28 images, {serve["images_a_request"]} of them a
request, from one core, with the client on another. Throughput of ours, as a ratio: the median over
{serve["rounds"]} rounds, with quartiles. The engine is `{engine["name"]}`, in parts of
{engine["chunk"]}; its own forward is {span(serve["engine_over_eager"])} times the eager one of
{serve["images_a_request"]} at once, in bf16 {span(half["engine_over_eager"])} times.
{loaded(serve)}

{table(["ours", "npz", "PNG grid"], rows)}
![Bars of the npz column](performance-serve.svg)

One small sample of a small model costs {small} times the processor time
of a bare Starlette application that does the same. At
{tail["arrivals_of_saturation"]:.0%} of saturation, at a constant arrival rate, p99 is
{tail["p99_over_p50"]:.2f} times p50 ({tail["answers"]} answers, {tail["refused"]} refused). At
{beyond["arrivals_of_saturation"]:.1f} times saturation {beyond["throughput_kept"]:.0%} of the
throughput stays; {beyond["answered_503"]} requests were answered with 503,
{beyond["without_retry_after"]} of them without Retry-After.

{table(["server", "processor seconds until its first answer", "resident MB"], usage)}
Resident memory is of all processes of a server; `half` is ours in bf16, `small` ours with the small
model, `bare` the bare Starlette application. Of ours, two processes import BentoML, and one torch.
"""


def batching_part(batching: dict[str, Any]) -> str:
    labels = {
        "own": "ours",
        "single": "BentoML, each by itself",
        "gathered": "BentoML, adaptive batching",
    }
    rows = [
        [
            clients,
            *(
                f"{found[name]['rate_over_single']:.2f}, "
                f"{found[name]['median_wait_over_single']:.2f}"
                for name in labels
            ),
        ]
        for clients, found in batching["clients"].items()
    ]
    return f"""## Scores of one image a request

`{batching["command"]}` asks three services of one critic, in turn: ours, and two of BentoML's that
differ in `batchable` alone. Answers a second, and the median wait, over those of the one that
scores each request by itself ({batching["rounds"]} rounds):

{table(["clients at once", *labels.values()], rows)}
BentoML's batches wait for company: that pays where many ask and costs a lone client dearly. A turn
of ours takes along who waits by then ([`service/scoring.py`](../service/scoring.py)).
"""


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


def times(found: dict[str, Any], unit: str = "cpu_seconds") -> str:
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
    pictures[picture] = svg(chart, WIDTH) + "\n"
    target = " and ".join(
        f"{name.replace('_', ' ')} {sign} {bound:.4g}" for name, (sign, bound) in bounds.items()
    )
    floor = ", ".join(
        f"{name.replace('_', ' ')} {value:.3g}" for name, value in runs[0]["floor"].items()
    )
    rows = [
        [
            SOLVER_LABELS[solver],
            times(found[solver]),
            "" if solver == "ours" else over(found[solver]),
            times(found[solver], "seconds"),
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
            times(part),
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


OPERATIONS = 2 * (14 * 14 * 64 * 16 + 7 * 7 * 128 * 64 * 16 + 7 * 7 * 128)
"""Of one forward of the 28x28 DCGAN critic of width 64, a sample."""
WEIGHTS = 4 * (64 * 17 + 128 * (64 * 16 + 1) + 7 * 7 * 128 + 1)
"""Its bytes."""


def paper(gpus: int, batch: int, *, tree: bool = False) -> float:
    """Seconds of a generator step of it, by the formulas of the page, with the page's numbers."""
    compute = (10 * 2 + 4) * OPERATIONS * batch / gpus / 30e12
    hops = math.log2(gpus) if tree else gpus - 1
    return compute + 3 * (2 * (gpus - 1) / gpus * WEIGHTS / 50e9 + 2 * hops * 5e-6)


def slope(rows: list[dict[str, Any]], of: str) -> float:
    """The power of the work that the cost grew with, between the last two."""
    (a, b) = rows[-2:]
    return math.log(b["cpu_seconds"] / a["cpu_seconds"]) / math.log(b[of] / a[of])


def scale_part(scale: dict[str, Any], serve: dict[str, Any], pictures: dict[str, str]) -> str:
    """What was measured, and what follows from it on paper."""

    def curves(name: str, found: dict[str, list[dict[str, Any]]], of: str, label: str) -> None:
        series = [
            Line(
                name=network,
                x=[row[of] for row in rows],
                y=[1000 * row["cpu_seconds"] for row in rows],
            )
            for network, rows in found.items()
        ]
        title = f"{series[0].name if len(series) == 1 else 'Critic step'} against {label}"
        chart = Chart(
            title=title, x_label=label, y_label="milliseconds", lines=series, log_x=True, log_y=True
        )
        pictures[f"performance-scale-{name}.svg"] = svg(chart) + "\n"

    curves("parameters", scale["parameters"], "parameters", "parameters")
    curves("batch", scale["batch"], "batch", "batch")
    curves("samples", {"Request": scale["samples"]}, "count", "samples a request")
    curves("retraining", {"Retraining": scale["retraining"]}, "rows", "images of data")
    constraints = scale["constraints"]
    none = constraints["none"]["cpu_seconds"]
    costs = {kind: row["cpu_seconds"] / none for kind, row in constraints.items()}
    pictures["performance-scale-constraints.svg"] = bars(
        "Critic step: times the cost without a constraint",
        [(kind, cost, "ours") for kind, cost in sorted(costs.items(), key=lambda kv: kv[1])],
    )
    growth = [
        [
            network,
            f"{slope(scale['parameters'][network], 'parameters'):.2f}",
            f"{slope(scale['batch'][network], 'batch'):.2f}",
        ]
        for network in scale["parameters"]
    ]
    alone = paper(1, 64)
    best = min(range(1, 1001), key=lambda gpus: paper(gpus, 64))
    single, many = scale["samples"][0], scale["samples"][-1]
    rate = many["count"] / many["cpu_seconds"]
    one, two = scale["workers"]["1"], scale["workers"]["2"]
    small, *_, middle, large = scale["retraining"]
    more = large["cpu_seconds"] - middle["cpu_seconds"]
    million = 1e6 * more / (large["rows"] - middle["rows"])
    first, each = 1000 * single["cpu_seconds"], 1000 / rate
    most, owned, ratio = many["count"], scale["cores"], two / one
    operations, weights = OPERATIONS / 1e6, WEIGHTS / 1e6
    faster, kept = alone / paper(best, 64), alone / paper(1000, 64_000, tree=True)
    own = serve["over_own_forward"]["npz"]["ratio"]
    cores = [1e6 / rate, 1e6 / rate * (1 / own - 1), 1000 * first]
    return f"""## Scale

`{scale["command"]}`, one thread, in the processor's seconds but for samples over HTTP.
{loaded(scale)}

**The critic's step** under the gradient penalty, a 28x28 DCGAN (batch 64) and an MLP (batch 256)
of growing width, and of growing batch at one width. Once the matrices fill the core, cost grows
with the power of the work that the table tells (of the last two points); below that, the step's
fixed costs are what is seen.

{table(["network", "power of parameters", "power of batch"], growth)}
![Milliseconds against parameters](performance-scale-parameters.svg)
![Milliseconds against batch](performance-scale-batch.svg)

**Constraints**, each with its own defaults, on the DCGAN of width 32: a step's cost over that
without any. It includes what the constraint does after the optimiser's step.

![Times the cost without a constraint](performance-scale-constraints.svg)

**Samples** of the generator of `make bench-serve`: {first:.1f} ms for one, for a forward is
always of 16 rows, and {each:.2f} ms each for {most}. Over HTTP, 64 a request, npz: {one:.0f}
samples a second from one process on one core, the client on another, and {two:.0f} from two
processes on all {owned} cores, the client among them ({ratio:.2f} times).

![Milliseconds against samples a request](performance-scale-samples.svg)

**Retraining** on arrays of 28x28 images, {large["steps"]} steps, a small network:
{small["cpu_seconds"]:.0f} s of the processor for {small["rows"]:,} images and
{large["cpu_seconds"]:.0f} s for {large["rows"]:,}. The last step of the curve is
{million:.0f} s for each further million: reading, hashing and checking them. Before it, the
held-out items that models are judged on grew too, up to their bound. Training itself costs by the
step.

![Milliseconds against images of data](performance-scale-retraining.svg)

### To 1,000 GPUs, on paper

Nothing here was run: no GPU was at hand. With C floating-point operations of one critic forward a
sample, k critic steps, batch B, G GPUs of P operations a second in practice, W bytes of weights,
links of bandwidth b and delay d, a generator step takes

    compute   (10 k + 4) C B / (G P)
    exchange  (k + 1) (2 (G - 1) / G W / b + 2 (G - 1) d)     a ring; a tree has 2 log2(G) d

for a penalised critic step runs ten forwards' worth of kernels (three forwards, the slope, its
own forward, three gradients by weights, two by inputs), and a generator step as large a generator
and critic, forward and back, some four. Take the 28x28 DCGAN of width 64, C = {operations:.1f}
million, W = {weights:.2f} MB, with k = 2, B = 64, P = 30e12, b = 50e9 and d = 5e-6. At that batch
a ring is at its best with {best} GPUs, {faster:.1f} times as fast as one: **the exchange ends
first**, and such a model should stay on one. With a batch of 64 for each GPU and a tree, a
thousand keep {kept:.0%} of their speed; but beyond the critical batch (McCandlish et al. 2018)
more samples a step save no steps: **the batch ends second**. Larger maps help both, for C grows
with them and W does not.

A thousand GPUs are well used by what needs no exchange: seeds, constraints and models, one GPU
each, as `wgan compare` and the chart's sweep run them. There they share one MLflow server, which
takes G S / (L t) numbers a second, S of them every L steps of t seconds: 10 numbers every 100
steps of 10 ms are 10,000. **The tracking server ends first**; `training.log_every` is what to
raise.

### To a million samples a second, on paper

With r samples a second of a core's forward ({rate:.0f} here, in requests of {most}; a GPU has its
own) and a share s of that over HTTP ({own:.2f}, above), R samples a second take R / (r s) cores. So
R = 1,000,000 takes

- in requests of 64: {cores[0]:.0f} cores for forwards and {cores[1]:.0f} for HTTP and encoding;
- one by one: {cores[2]:.0f} for forwards alone, for each is of 16 rows, and HTTP for each besides:
  **asking for one sample at a time ends first**.

In npz a 28x28 image is 784 bytes, 6.3 Gbit/s in all: one load balancer's link, from 64x64 in
colour on (12 kB, 98 Gbit/s) ten of them: the network ends second. A thousand replicas poll the
registry every 60 s, 17 questions a second, which MLflow with PostgreSQL answers, with SQLite may
not; a new version is fetched by all within one poll, 1,000 times the artifact's size from the
store. Prometheus reads some hundreds of series from each replica: below a million in all, one
server.
"""


def page() -> dict[str, str]:
    """The page and its pictures, by file name."""
    pictures: dict[str, str] = {}
    parts = [
        "# Performance",
        "Made by `python -m benchmarks.performance` from what is checked in under "
        "`benchmarks/results`. But for those of scale, figures are ratios of two things done in "
        "turn on one machine; above 1, ours is the faster. Believe them for a machine like that "
        "one, and run the commands for yours. No GPU was measured.",
    ]
    step, serve, batching, quality, scale = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("step", "serve", "batching", "quality", "scale")
    )
    parts += [step_part(step, pictures), serve_part(serve, pictures), batching_part(batching)]
    parts += [quality_part(quality, pictures), scale_part(scale, serve, pictures)]
    parts.append(asked(step, serve, quality))
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return {PAGE: text, **pictures}


def main() -> None:
    for name, content in page().items():
        (DOCS / name).write_text(content)


if __name__ == "__main__":
    main()
