"""Kill a retraining at some system calls, and run it again.

`python -m tests.killing HOME STRIDE FIRST` kills it at the call FIRST and each STRIDE-th after it.

HOME holds the data and an empty registry. A retraining elsewhere imports everything; each further
one is a fork. killing.c must be preloaded. Charts are built, and not written, which took longest.
Prints a line of JSON: how many calls there are, and for each kill the exit codes until the end and
what is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import wgan_cli
from models import artifact, registry, registry_files
from models.durable import read_lines
from tests.test_retrain import steps, values
from training.reporting import charts
from training.retraining import cycle, outcomes

PRELOADED = ctypes.CDLL(None)
MOST_RUNS = 3
"""Runs after a kill until the retraining must have ended."""


def in_child(work: Callable[[], int], out: Path) -> int:
    """Run in a fork; returns its exit code, or 137 if it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        with out.open("a") as file, contextlib.redirect_stdout(file):
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                code = work()
            except Exception:
                traceback.print_exc(file=file)
            file.flush()
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    return 137 if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def retrain(home: Path) -> int:
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{home / 'mlflow.db'}"
    return wgan_cli.main(["retrain", "--config", str(home / "retrain.yaml"), "--device", "cpu"])


def state(home: Path) -> dict[str, Any]:
    """What is left at the end."""
    runs = home / "runs"
    told: list[str] = []
    lines = read_lines(runs / "outcomes.jsonl", told.append)
    tags = registry.client().get_registered_model("corners").tags
    champion = registry.champion("corners")
    with contextlib.redirect_stderr(io.StringIO()):
        fetched = registry_files.download("corners@champion", home / "fetched")
    (decided,) = [
        decision
        for path in runs.glob("corners-*")
        if (decision := outcomes.Decision.read(path)) and decision.champion
    ]
    version = registry.version("corners", str(champion))
    return {
        "champion": champion,
        "versions": [row["version"] for row in registry.versions("corners")],
        "history": [[c["action"], c["from"], c["to"]] for c in registry.history("corners")],
        "recorded": sum("pending" in v for k, v in tags.items() if k.startswith("promotion.")),
        "sound": artifact.verify(fetched) == version[registry.DIGEST_TAG],
        "tags": {key: version.get(key) for key in (cycle.OUTCOME_TAG, cycle.COMPARED_TAG)},
        "decision": [decided.outcome, decided.recorded, decided.challenger],
        "best": version.get(cycle.BEST_TAG),
        "left": sorted(p.name for p in runs.rglob("*") if p.name.startswith(".")),
        "checkpoints": len(list(runs.glob("*/checkpoints"))),
        "broken lines": len(told),
        "outcomes": [line["outcome"] for line in lines],
    }


def main(home: Path, stride: int, first: int) -> None:
    kept, left, out, elsewhere = (home.with_name(n) for n in ("kept", "left", "out", "elsewhere"))
    shutil.copytree(home, elsewhere)
    for folder in (elsewhere, home):
        (folder / "retrain.yaml").write_text(yaml.safe_dump(values(folder)))
    charts._to_svg = lambda figure, title: "<svg></svg>"
    with out.open("a") as file, contextlib.redirect_stdout(file):
        assert retrain(elsewhere) == 0
    config = home / "retrain.yaml"
    assert in_child(lambda: retrain(home), out) == 0, out.read_text()
    again = values(home, set=steps(2, seed=1), gates={"margin": 10.0})
    config.write_text(yaml.safe_dump(again))
    home.rename(kept)

    def run(kill_at: int) -> int:
        """Retrain, and tell what is left at the end; 0 never kills."""
        PRELOADED.arm(f"{home}/".encode(), ctypes.c_long(kill_at), kill_at % 2)
        code = retrain(home)
        calls = PRELOADED.calls()
        if code == 0:
            left.write_text(json.dumps({"calls": calls, **state(home)}))
        return code

    def end(kill_at: int) -> dict[str, Any]:
        """Begin where the first champion is, be killed, and run until it has ended."""
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(kept, home)
        left.unlink(missing_ok=True)
        codes = [in_child(lambda: run(kill_at), out)] if kill_at else []
        while len(codes) <= MOST_RUNS and not left.exists():
            codes.append(in_child(lambda: run(0), out))
        assert left.exists(), f"{kill_at}: {codes}\n{out.read_text()[-3000:]}"
        return {"at": kill_at, "codes": codes, **json.loads(left.read_text())}

    undisturbed = end(0)
    print(json.dumps(undisturbed), flush=True)
    for kill_at in range(first, undisturbed["calls"] + 1, stride):
        print(json.dumps(end(kill_at)), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
