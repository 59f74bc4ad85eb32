"""The section of docs/performance.md on scale: how costs grow, measured and on paper."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.markdown import load_note, table
from models.record import Chart, Line
from training.reporting.charts import COLOURS, horizontal_bars, svg

OPERATIONS = 2 * (14 * 14 * 64 * 16 + 7 * 7 * 128 * 64 * 16 + 7 * 7 * 128)
"""Operations of one forward of the 28x28 DCGAN critic of width 64, a sample."""
WEIGHTS = 4 * (64 * 17 + 128 * (64 * 16 + 1) + 7 * 7 * 128 + 1)
"""Bytes of that critic's weights."""


def seconds_on_paper(gpus: int, batch: int, *, tree: bool = False) -> float:
    """Seconds of a generator step of that DCGAN, by the page's formulas and numbers."""
    compute = (10 * 2 + 4) * OPERATIONS * batch / gpus / 30e12
    hops = math.log2(gpus) if tree else gpus - 1
    return compute + 3 * (2 * (gpus - 1) / gpus * WEIGHTS / 50e9 + 2 * hops * 5e-6)


def slope(rows: list[dict[str, Any]], of: str) -> float:
    """The power of the work with which the cost grew, between the last two measurements."""
    (a, b) = rows[-2:]
    return math.log(b["cpu_seconds"] / a["cpu_seconds"]) / math.log(b[of] / a[of])


def scale_part(scale: dict[str, Any], serve: dict[str, Any], pictures: dict[str, str]) -> str:
    """The section: what was measured, and what follows from it on paper."""

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
    pictures["performance-scale-constraints.svg"] = horizontal_bars(
        "Critic step: times the cost without a constraint",
        [(kind, cost, COLOURS[0]) for kind, cost in sorted(costs.items(), key=lambda kv: kv[1])],
        1.0,
    )
    growth = [
        [
            network,
            f"{slope(scale['parameters'][network], 'parameters'):.2f}",
            f"{slope(scale['batch'][network], 'batch'):.2f}",
        ]
        for network in scale["parameters"]
    ]
    alone = seconds_on_paper(1, 64)
    best = min(range(1, 1001), key=lambda gpus: seconds_on_paper(gpus, 64))
    single, many = scale["samples"][0], scale["samples"][-1]
    rate = many["count"] / many["cpu_seconds"]
    one, two = scale["workers"]["1"], scale["workers"]["2"]
    small, *_, middle, large = scale["retraining"]
    more = large["cpu_seconds"] - middle["cpu_seconds"]
    million = 1e6 * more / (large["rows"] - middle["rows"])
    first, each = 1000 * single["cpu_seconds"], 1000 / rate
    most, owned, ratio = many["count"], scale["cores"], two / one
    operations, weights = OPERATIONS / 1e6, WEIGHTS / 1e6
    faster, kept = (
        alone / seconds_on_paper(best, 64),
        alone / seconds_on_paper(1000, 64_000, tree=True),
    )
    own = serve["over_own_forward"]["npz"]["ratio"]
    cores = [1e6 / rate, 1e6 / rate * (1 / own - 1), 1000 * first]
    return f"""## Scale

`{scale["command"]}`, one thread, in the processor's seconds but for samples over HTTP.
{load_note(scale)}

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
