"""Bounds of critics' slopes beside the slopes that are found, and the seconds that they take.

    python -m benchmarks.certificates --out runs/certificates

Each critic is one of `wgan train`, with few steps: enough for weights that have left their initial
values. Runs that are complete are not repeated. The product is that of the layers' norms, what
versions up to 0.2 certified.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.markdown import put_between, table, written
from benchmarks.presets import finish
from models.artifact import load_artifact
from models.lipschitz import certify, operator_norm

RESULTS = Path(__file__).with_name("results") / "certificates.json"
PAGE = Path(__file__).parents[1] / "docs" / "constraints.md"
BEGIN, END = "<!-- made by benchmarks.certificates -->", "<!-- end of certificates -->"


MOST = 1e6
"""The largest number that is written out."""


class Case(NamedTuple):
    """A critic of the table."""

    name: str
    preset: str
    steps: int
    settings: tuple[str, ...] = ()


CASES = [
    Case("mlp, 3 layers of 128, relu", "8gaussians", 300),
    Case("mlp, 6 layers of 128, relu", "8gaussians", 300, ("critic.depth=6",)),
    Case("mlp, 3 layers, leaky_relu", "8gaussians", 300, ("critic.activation=leaky_relu",)),
    Case("mlp, 3 layers of 64, abs", "25gaussians", 300),
    Case(
        "mlp, bjorck, groupsort",
        "8gaussians",
        300,
        ("constraint.kind=bjorck", "critic.activation=groupsort"),
    ),
    Case("dcgan 8 x 8, leaky_relu", "digits", 150),
    Case("dcgan 8 x 8, spectral_norm", "digits", 150, ("constraint.kind=spectral_norm",)),
    Case("dcgan 28 x 28, abs", "mnist5k", 100),
    Case("dcgan 32 x 32, abs, skips", "emoji32", 40, ("constraint.every=1",)),
    Case(
        "resnet 8 x 8, 5 layers, relu",
        "digits",
        150,
        ("critic.architecture=resnet", "critic.depth=5", "critic.activation=relu"),
    ),
    Case(
        "resnet 32 x 32, 7 layers, relu",
        "emoji32",
        30,
        (
            "critic.architecture=resnet",
            "critic.depth=7",
            "critic.activation=relu",
            "critic.skips=false",
            "critic.width=16",
            "constraint.every=1",
        ),
    ),
    Case("dcgan, layer norm", "digits", 30, ("critic.normalization=layer",)),
    Case("dcgan, instance norm", "digits", 30, ("critic.normalization=instance",)),
    Case("gru, 32 steps", "ar2", 30),
    Case("lstm, 32 steps", "ar2", 30, ("critic.architecture=lstm",)),
]


def measure(case: Case, out: Path) -> dict[str, Any]:
    """Train a critic, if that was not done before, and bound its slope in both ways."""
    name = case.name.replace(", ", "-").replace(" ", "-")
    settings = [f"training.steps={case.steps}", "evaluation.samples=500", *case.settings]
    run = finish(out / name, case.preset, 0, settings)
    model = load_artifact(out / name / "artifact")
    critic = model.critic.double().eval()
    began = time.process_time()
    bound, reason = certify(critic, shape=model.shape)
    seconds = time.process_time() - began
    product, _ = certify(critic, operator_norm)
    return {
        "critic": case.name,
        "preset": case.preset,
        "steps": case.steps,
        "settings": case.settings,
        "product": product,
        "certified": bound,
        "reason": reason,
        "sampled": run["lipschitz"]["sampled"],
        "cpu_seconds": seconds,
    }


def shown(rows: list[dict[str, Any]]) -> str:
    """The table of the page."""
    header = ["critic", "product of norms", "certified", "steepest slope found", "CPU seconds"]
    lines = []
    for row in rows:
        bounds = [row["product"], row["certified"], row["sampled"]]
        cells = ["none" if value is None else _written(value) for value in bounds]
        lines.append([row["critic"], *cells, f"{row['cpu_seconds']:.1f}"])
    return table(header, lines)


def _written(value: float) -> str:
    return f"{value:.0e}" if value > MOST else written(value, "{:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    options = parser.parse_args()
    rows = []
    for case in CASES:
        rows.append(measure(case, options.out))
        print(json.dumps(rows[-1]), flush=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    put_between(PAGE, BEGIN, END, shown(rows))


if __name__ == "__main__":
    main()
