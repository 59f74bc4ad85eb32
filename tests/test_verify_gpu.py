"""`make verify-gpu`: it skips where there is no card, and an interruption loses nothing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_pack, gpu_stages, performance_gpu
from benchmarks.gpu import LIMITS, run_stage

NETWORKS = {f"{n} fp32" for n in ("mlp", "dcgan28", "mnist5k", "resnet32", "resnet64")}
ROOT = Path(__file__).parent.parent
SCRIPT = [sys.executable, "-m", "benchmarks.gpu"]


def test_it_takes_eight_minutes_at_most() -> None:
    assert sum(LIMITS.values()) <= 8 * 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_it_says_so_and_measures_nothing(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [*SCRIPT, "--out", out], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0
    said = "skipped: torch sees no CUDA device, so nothing was measured on one\n"
    assert done.stdout == said
    assert not out.exists()


def figures(stage: str) -> dict[str, Any]:
    """What a stage finds on the CPU, with tiny sizes."""
    found = dict[str, Any]()
    gpu_stages.STAGES[stage](torch.device("cpu"), True, found.__setitem__)
    return found


def test_every_stage_has_a_limit() -> None:
    assert gpu_stages.STAGES.keys() == LIMITS.keys()


def test_the_ceilings_are_measured() -> None:
    assert figures("ceilings")["product_fp32_tflop_per_s"] > 0


def test_the_step_is_timed_in_each_mode() -> None:
    found = figures("step")
    assert found.keys() == NETWORKS
    for row in found.values():
        assert row.keys() == {"textbook", "eager", "captured", "limit"}


@pytest.mark.slow
def test_the_whole_step_is_timed_in_each_mode() -> None:
    found = figures("whole")
    assert found.keys() == NETWORKS
    for row in found.values():
        assert row.keys() == {"textbook", "eager", "captured", "graphed", "limit"}
        assert row["graphed"]["mode"] == "graphed"
        assert all(times["device_ms"] > 0 for times in row.values())
    assert "| mlp fp32 |" in performance_gpu.whole(found)


TESTS = """
import time
from pathlib import Path

def test_passes(): pass

def test_fails(): assert False

def test_waits():
    for _ in range(300):
        if Path("seen").exists():
            return
        time.sleep(0.1)
    assert False, "nobody has seen the other one fail"
"""


def test_tests_are_counted_while_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a limit loses none of those that are done."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_gpu.py").write_text(TESTS)
    monkeypatch.setattr(gpu_stages, "ROOT", tmp_path)
    found = dict[str, Any]()

    def keep(name: str, figure: Any) -> None:
        found[name] = figure
        if name == "failed":
            (tmp_path / "seen").touch()

    with pytest.raises(SystemExit):
        gpu_stages.tests(torch.device("cpu"), True, keep)
    assert found == {"tests": 3, "passed": 2, "failed": ["test_fails"]}
    shown = performance_gpu.tests({**found, "tests": 5})
    assert shown == (
        "Of 5 tests marked `gpu`, 2 passed and 0 were skipped; 2 were not reached; "
        "failed: test_fails."
    )


def test_samples_are_counted_by_rows_of_a_forward() -> None:
    found = figures("samples")
    assert found.keys() == {"fp32 16", "bf16 16"}
    assert all(row["bytes_per_s"] > 0 for row in found.values())


def test_time_to_quality_is_taken() -> None:
    assert figures("quality")["25gaussians ours"]["ended"] == "budget"


def test_a_service_that_does_not_start_is_told_and_costs_no_other_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(*arguments: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], returncode=0)

    monkeypatch.setattr(gpu_stages, "trained", nothing)
    found = figures("service")
    assert found == {"cpu": {"error": "the service did not start; its log is above"}}
    assert "error: " in capsys.readouterr().out
    assert "| cpu | error | the service did not start" in performance_gpu.service(found)


def test_a_stage_over_its_limit_is_stopped_and_keeps_what_it_had(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_text('{"figures": {"copy_gb_per_s": 1.0}}')
    found = run_stage("tests", 0.2, part, ["--device", "cpu", "--quick"])
    assert found["ended"] == "stopped after its 0.2 s"
    assert found["figures"] == {"copy_gb_per_s": 1.0}


def test_an_interruption_loses_no_finished_stage(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    with subprocess.Popen(
        [*SCRIPT, "--device", "cpu", "--quick", "--out", out, "--stages", "ceilings", "tests"],
        cwd=ROOT,
    ) as script:
        while not out.exists() and script.poll() is None:
            time.sleep(0.1)
        script.terminate()
    assert script.returncode == 128 + signal.SIGTERM
    found = json.loads(out.read_text())["stages"]
    assert found["ceilings"]["ended"] == "done"
    assert found.get("tests", {"ended": "interrupted"})["ended"] == "interrupted"


def test_what_is_packed_is_locked_and_mlflow_is_not_packed() -> None:
    names = gpu_pack.packed()
    assert {"bentoml", "h11", "pot", "pydantic-core", "rich", "typer"} <= {*names}  # h11: uvicorn's
    assert not {"alembic", "mlflow-skinny", "numpy", "sqlalchemy", "torch"} & {*names}
    entries = gpu_pack.locked(names)
    assert all(f"{name}==" in entries for name in names)
    with pytest.raises(ValueError, match=r"not in requirements/dev\.txt: nowhere"):
        gpu_pack.locked(["nowhere"])
