"""Write docs/performance.md and its pictures from the results that are checked in.

python -m benchmarks.performance
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.gpu import RESULTS as GPU_RESULTS
from benchmarks.markdown import load_note, table, with_quartiles
from benchmarks.performance_gpu import gpu_part
from benchmarks.performance_quality import SOLVER_LABELS, quality_part
from benchmarks.performance_scale import scale_part
from training.reporting.charts import COLOURS, horizontal_bars

ROOT = Path(__file__).parent.parent
RESULTS, DOCS = ROOT / "benchmarks/results", ROOT / "docs"
PAGE = "performance.md"
OURS, LIMIT = COLOURS[0], "#b0b0b0"
NETWORKS = {
    "mlp": "3x512 MLP, batch 256",
    "dcgan28": "DCGAN 28x28, batch 64",
    "resnet32": "ResNet 32x32, batch 64",
}


def measured_precisions(step: dict[str, Any]) -> list[str]:
    """The precisions that the processor had."""
    return [p for p in ("fp32", "bf16") if "skipped" not in step[p]]


def asked(step: dict[str, Any], serve: dict[str, Any], quality: dict[str, Any]) -> str:
    """The section on what the project asks for, beside what was measured."""
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
            for precision in measured_precisions(step)
            for name, label in list(NETWORKS.items())[1:]
        ),
        *(
            (
                f"{label}, share of the limit, {precision}",
                step[precision][name]["ratio"] / step[precision][name]["limit"],
                0.9,
                True,
            )
            for precision in measured_precisions(step)
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
        ("refusals without Retry-After", beyond["without_retry_after"], 0, False),
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
    for precision, name in itertools.product(measured_precisions(step), NETWORKS):
        found, label = step[precision][name], f"{NETWORKS[name]}, {precision}"
        rows.append(
            [
                label,
                with_quartiles(found),
                *(f"{found['modes'][mode]:.2f}" for mode in ("eager", "compiled")),
                f"{found['same_memory']:.2f}",
                f"{found['limit']:.2f}",
                f"{found['ratio'] / found['limit']:.2f}",
            ]
        )
        drawn += [(label, found["ratio"], OURS), ("limit", found["limit"], LIMIT)]
    pictures["performance-step.svg"] = horizontal_bars(
        "Critic step: times faster than textbook eager", drawn, 1.0
    )
    modes = ["ours, captured", "eager", "compiled"]
    header = ["network", *modes, "same memory", "limit", "of the limit"]
    swept = step["sweep8"]
    pictures["performance-sweep.svg"] = horizontal_bars(
        "Eight critics at once: times faster than eight in turn",
        [(name, found["ratio"], OURS) for name, found in swept.items()],
        1.0,
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
{load_note(step)}

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
                [name, with_quartiles(f), f"{f['same_memory']:.2f}", f"{f['alone']:.2f}"]
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
        [label, with_quartiles(found["npz"]), with_quartiles(found["png"])]
        for found, label in (
            *((serve[key], label) for key, label in names.items() if key in serve),
            *((half[key], f"bf16, {label}") for key, label in names.items() if key in half),
        )
    ]
    pictures["performance-serve.svg"] = horizontal_bars(
        "Samples over HTTP: npz",
        [(label, serve[key]["npz"]["ratio"], OURS) for key, label in names.items() if key in serve],
        1.0,
    )
    engine, tail, beyond = serve["engine"], serve["tail"], serve["beyond_saturation"]
    forward, half_forward = (with_quartiles(r["engine_over_eager"]) for r in (serve, half))
    small = with_quartiles(serve["small_sample_cpu_over_bare_starlette"])
    usage = [
        [name, f"{serve['start_cpu_seconds'][name]:.1f}", f"{serve['resident_mb'][name]:.0f}"]
        for name in serve["resident_mb"]
    ]
    return f"""## Samples over HTTP

`{serve["command"]}` serves a DCGAN generator of 28x28 images, {serve["images_a_request"]} of them a
request, from one core, with the client on another. Throughput of ours, as a ratio: the median over
{serve["rounds"]} rounds, with quartiles. The engine is `{engine["name"]}`, in parts of
{engine["chunk"]}; its own forward is {forward} times the eager one of
{serve["images_a_request"]} at once, in bf16 {half_forward} times.
{load_note(serve)}

{table(["ours", "npz", "PNG grid"], rows)}
![Bars of the npz column](performance-serve.svg)

One small sample of a small model costs {small} times the processor time
of a bare Starlette application that does the same. At
{tail["arrivals_of_saturation"]:.0%} of saturation, at a constant arrival rate, p99 is
{tail["p99_over_p50"]:.2f} times p50 ({tail["answers"]} answers, {tail["refused"]} refused). At
{beyond["arrivals_of_saturation"]:.1f} times saturation {beyond["throughput_kept"]:.0%} of the
throughput stays; {beyond["refused"]} requests were refused,
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


def page() -> dict[str, str]:
    """The page and its pictures, by file name."""
    pictures: dict[str, str] = {}
    parts = [
        "# Performance",
        "Made by `python -m benchmarks.performance` from what is checked in under "
        "`benchmarks/results`. But for those of scale, figures are ratios of two things done in "
        "turn on one machine; above 1, ours is the faster. Believe them for a machine like that "
        "one, and run the commands for yours.",
    ]
    step, serve, batching, quality, scale = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("step", "serve", "batching", "quality", "scale")
    )
    parts += [step_part(step, pictures), serve_part(serve, pictures), batching_part(batching)]
    parts += [quality_part(quality, pictures), scale_part(scale, serve, pictures)]
    gpu = json.loads(GPU_RESULTS.read_text()) if GPU_RESULTS.exists() else None
    parts += [gpu_part(gpu), asked(step, serve, quality)]
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return {PAGE: text, **pictures}


def main() -> None:
    for name, content in page().items():
        (DOCS / name).write_text(content)


if __name__ == "__main__":
    main()
