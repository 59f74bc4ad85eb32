"""The section of docs/performance.md on a GPU, from what `make verify-gpu` has measured."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.markdown import table

MODES = ("textbook", "eager", "captured", "captured, graph", "compiled", "limit, graph")
WHOLE = ("textbook", "eager", "captured", "graphed", "graphed_compiled", "limit")
HOW = """## On a GPU

On CUDA `training.critic_step=auto` replays a CUDA graph: the critic steps, the generator step, both
optimisers and the moving average, captured once
([`graphed_step.py`](../training/engine/graphed_step.py)). `tests/test_graphed_step.py` simulates it
on a CPU:

- a stand-in records the kernels of a whole step and repeats them in the same memory, as a graph
  does; runs of 12 steps are compared with captured critic steps, under each constraint with each
  kind of network;
- two processes with gloo exchange gradients between such parts of a step, and have the weights of
  eager steps after 12;
- on torch's device without numbers (`meta`), where reading one is an error, no step reads any, and
  what is copied to the device in a step is the numbers of its items, with the items themselves if
  it does not hold them.

With torch 2.11 the tests of steps, graphs and constraints were run too, by its build for CUDA on
Python 3.12, which machines with a GPU have, and every stage of `make verify-gpu` on the CPU with
tiny sizes. With a stand-in for CUDA's libraries that computes nothing, the same build captured and
replayed whole steps, made no call that waits for the device between logs, held no more memory from
step to step, and went on after a capture that was broken off. That says nothing of numbers and
times.
"""
UNMEASURED = """**Nothing of this was measured: no GPU was at hand, and the capture itself has not
run on one.** Where there is one, `make verify-gpu` tests it and measures in at most eight minutes,
and this section is then made from its results: what a copy and a product reach, the critic's step
and the whole generator step by mode and precision, beside a textbook's, samples a second,
`wgan train`, the time to quality on mnist5k, and the service. Only that can show that CUDA captures
each of these kernels, how fast they are, how a run goes on after a capture that CUDA breaks off,
and that items are fetched meanwhile.
"""


def gpu_part(result: dict[str, Any] | None) -> str:
    """The section; it says that nothing was measured if there are no results."""
    if result is None:
        return f"{HOW}\n{UNMEASURED}\n{asked({})}"
    stages = {name: stage.get("figures", {}) for name, stage in result["stages"].items()}
    ended = [
        f"{name}: {stage['ended']}"
        for name, stage in result["stages"].items()
        if stage["ended"] != "done"
    ]
    parts = [
        HOW,
        f"`{result['command']}` on one {result['card']}, {result['date']}, with torch "
        f"{result['torch']}. " + (f"Not complete: {'; '.join(ended)}." if ended else ""),
        *(
            make(stages[name])
            for name, make in SECTIONS.items()
            if stages.get(name) and "skipped" not in stages[name]
        ),
        asked(stages),
    ]
    return "\n\n".join(part.strip() for part in parts)


def asked(stages: dict[str, Any]) -> str:
    """What was aimed at before a card was at hand, beside what was measured."""
    whole, quality = stages.get("whole", {}), stages.get("quality", {}).get("mnist5k ours")
    seconds = None
    if quality and quality["reached"]:
        seconds = quality["reached"]["seconds"] - quality["start_up"]["seconds"]
    elif quality:
        seconds = math.inf
    service = stages.get("service", {})
    waits = [service.get(kind, {}).get("1 samples, median ms") for kind in ("cuda", "cpu")]
    over_cpu = waits[0] / waits[1] if all(waits) else None
    samples = stages.get("samples", {}).items()
    in_bf16 = [row["bytes_per_s"] for name, row in samples if name.startswith("bf16")]
    aims: list[tuple[str, float | None, float, bool]] = [
        *(
            (f"{name}, {mode} over graphed", over_graphed(whole.get(name, {}), mode), least, True)
            for name, mode, least in (
                ("mnist5k tf32", "textbook", 4),
                ("dcgan28 tf32", "textbook", 4),
                ("dcgan28 tf32", "limit", 0.6),
                ("resnet64 tf32", "limit", 0.8),
            )
        ),
        ("28x28 samples a second, bf16", max(in_bf16, default=None), 1_000_000, True),
        ("mnist5k, seconds from its first step to its target", seconds, 2, False),
        ("one sample over HTTP, over the CPU's", over_cpu, 1, False),
    ]
    cells = []
    for name, value, bound, at_least in aims:
        cell, reached = "not measured", "-"
        if value is not None:
            is_reached = value >= bound if at_least else value <= bound
            cell, reached = f"{value:,.2f}", "yes" if is_reached else "no"
        cells.append([name, cell, f"{'at least' if at_least else 'at most'} {bound:,}", reached])
    return "Asked of a card, and found:\n\n" + table(["figure", "found", "asked", "reached"], cells)


def over_graphed(row: dict[str, Any], mode: str) -> float | None:
    """A mode's milliseconds over those of a graphed step; None if one of them is not there."""
    if mode not in row or row.get("graphed", {}).get("mode") != "graphed":
        return None
    ratio: float = row[mode]["device_ms"] / row["graphed"]["device_ms"]
    return ratio


def ceilings(found: dict[str, Any]) -> str:
    """What the card reaches at best."""
    rows = [[name.replace("_", " "), f"{value:.0f}"] for name, value in found.items()]
    return "What the card reached:\n\n" + table(["", ""], rows)


def tests(found: dict[str, Any]) -> str:
    """How many tests of the mark `gpu` passed."""
    failed = found.get("failed", [])
    passed, skipped = (found.get(name, 0) for name in ("passed", "skipped"))
    left = found["tests"] - passed - skipped - len(failed)
    return (
        f"Of {found['tests']} tests marked `gpu`, {passed} passed and {skipped} were skipped"
        + (f"; {left} were not reached" if left else "")
        + (f"; failed: {', '.join(failed)}." if failed else ".")
    )


def step(found: dict[str, Any]) -> str:
    """Milliseconds of the critic's step with its optimiser."""
    rows = [
        [name, *(f"{row[m]['device_ms']:.3f}" if m in row else "-" for m in MODES)]
        for name, row in found.items()
    ]
    return (
        "Milliseconds of one critic step and its optimiser; `graph`: replayed as one CUDA graph; "
        "`limit`: its convolutions and products alone.\n\n"
        + table(["network", *MODES], rows)
        + failures(found)
    )


def failures(found: dict[str, Any]) -> str:
    """A line on the modes that failed; empty if there are none."""
    failed = [
        f"{name}, {key.removesuffix(', error')}: {text}"
        for name, row in found.items()
        for key, text in row.items()
        if key.endswith(", error")
    ]
    return f"\n\nFailed: {'; '.join(failed)}." if failed else ""


def whole(found: dict[str, Any]) -> str:
    """Milliseconds of the whole generator step."""

    def ratio(row: dict[str, Any], mode: str) -> str:
        found = over_graphed(row, mode)
        return "-" if found is None else f"{found:.2f}"

    rows = [
        [
            name,
            *(f"{row[m]['device_ms']:.3f}" if m in row else "-" for m in WHOLE),
            *(f"{row[m]['host_ms']:.3f}" if m in row else "-" for m in ("textbook", "graphed")),
            ratio(row, "textbook"),
            ratio(row, "limit"),
        ]
        for name, row in found.items()
    ]
    header = [
        "network", *WHOLE, "textbook, host", "graphed, host", "graphed over textbook",
        "of the limit",
    ]  # fmt: skip
    others = [
        f"{name}, {mode}: {row[mode]['mode']}"
        for name, row in found.items()
        for mode in WHOLE
        if row.get(mode, {}).get("mode", mode) != mode
    ]
    return (
        "Milliseconds of a generator step with its critic steps (five; two of mnist5k), all of our "
        "training loop, beside a loop in plain torch at the same precision. `host`: until the "
        "processor has asked for it. `limit`: its convolutions and products alone, as one CUDA "
        "graph.\n\n"
        + table(header, rows)
        + (f"\n\nIn another mode than asked: {'; '.join(others)}." if others else "")
        + failures(found)
    )


def samples(found: dict[str, Any]) -> str:
    """Samples a second by rows of a forward."""
    rows = [
        [name, f"{row['forward_per_s']:,.0f}", f"{row['bytes_per_s']:,.0f}"]
        for name, row in found.items()
    ]
    header = ["precision, rows of a forward", "the forward alone", "from latents to bytes"]
    return "28x28 samples a second:\n\n" + table(header, rows)


def train(found: dict[str, Any]) -> str:
    """Seconds of `wgan train`."""
    rows = [
        [name, f"failed: {row['error']}", "-", "-"]
        if "error" in row
        else [name, str(row["steps"]), f"{row['training_seconds']:.1f}", f"{row['seconds']:.1f}"]
        for name, row in found.items()
    ]
    header = ["preset", "generator steps", "seconds of training", "of the whole command"]
    return "`wgan train`:\n\n" + table(header, rows)


def quality(found: dict[str, Any]) -> str:
    """Seconds until the target is met."""
    rows = [
        [name, f"{row['reached']['seconds']:.2f}" if row["reached"] else f"not: {row['ended']}"]
        for name, row in found.items()
    ]
    return table(["time to quality", "seconds by the clock"], rows)


def service(found: dict[str, Any]) -> str:
    """Milliseconds of a request."""
    rows = [
        [kind, what, value if what == "error" else f"{value:.2f}"]
        for kind, row in found.items()
        for what, value in row.items()
    ]
    return "The service:\n\n" + table(["device", "request", "ms"], rows)


SECTIONS = {f.__name__: f for f in (ceilings, tests, step, whole, samples, train, quality, service)}
