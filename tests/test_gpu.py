"""What needs a CUDA device, compared with a CPU: `make verify-gpu`."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import csv
from torch import Tensor

from models.artifact import load_artifact
from models.constraints import GradientPenalty
from models.device import multiply_in_float32
from models.networks import CriticConfig, build_critic
from models.run_folder import ARTIFACT
from tests.artifacts import make_artifact, tiny_config
from tests.exact import distance_from, exact_steps
from tests.mixed import people
from training.data import batches
from training.data.dataset import Dataset, load_data
from training.engine import whole_step
from training.engine.checkpoint import TrainingState, load_checkpoint, newest_checkpoint
from training.engine.loop import train
from training.engine.runs import Interrupted
from training.judging.doctor.diagnosis import diagnose_run
from training.judging.evaluate import evaluate_artifact
from training.judging.intervals import kernel_distance_margin
from training.judging.metrics import kernel_distance, precision_recall_density_coverage
from training.judging.neighbours import nearest_distances
from training.lab.w1 import estimate
from training.run import run_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    # Torch warns, once, if the thread of its backwards begins with a matrix product.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
]
GPU = torch.device("cuda")
ROOT = Path(__file__).parent.parent
CRITICS: dict[str, tuple[tuple[int, ...], str]] = {
    "mlp": ((3,), "layer"),
    "dcgan": ((1, 12, 9), "layer"),
    "resnet": ((1, 12, 9), "layer"),
    "gru": ((6, 2), "none"),
    "lstm": ((6, 2), "none"),
}


@pytest.fixture(autouse=True)
def in_full_float32() -> None:
    """As on a CPU, whatever is torch's default or left by a test before; runs set their own."""
    multiply_in_float32()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data(tiny_config().data)


def run(
    data: Dataset,
    folder: Path,
    steps: int = 8,
    stop_after: int | None = None,
    **changes: dict[str, Any],
) -> TrainingState:
    changes["training"] = {"steps": steps, "log_every": 2, **changes.get("training", {})}
    asked = iter(range(1, 10**6))
    state, _ = train(
        tiny_config(**changes),
        data,
        folder,
        GPU,
        stop_requested=lambda: next(asked) == stop_after,
    )
    return state


def mode_of(folder: Path) -> str:
    """How the steps of a run were made."""
    path = newest_checkpoint(folder)
    assert path is not None
    return load_checkpoint(path).critic_step


def slopes(critic: torch.nn.Module, shape: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """The gradients of a penalty at points that are the same on each device."""
    real = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = real.to(device, next(critic.parameters()).dtype)
    GradientPenalty().penalty(critic, points, points).backward()  # type: ignore[union-attr]
    return [p.grad.double().cpu() for p in critic.parameters() if p.grad is not None]


@pytest.mark.parametrize("architecture", CRITICS)
@pytest.mark.parametrize("bf16", [False, True])
def test_a_penalty_has_the_gradients_that_it_has_on_a_cpu(architecture: str, bf16: bool) -> None:
    """Recurrent critics too, which cuDNN's own cells cannot do."""
    torch.manual_seed(0)
    shape, normalization = CRITICS[architecture]
    config = CriticConfig(
        architecture=architecture,  # type: ignore[arg-type]
        width=16,
        depth=2,
        activation="softplus",
        normalization=normalization,  # type: ignore[arg-type]
    )
    exact = build_critic(config, shape).double()
    critic = copy.deepcopy(exact).float().to(GPU)
    with torch.autocast(GPU.type, torch.bfloat16, bf16):
        found = slopes(critic, shape, GPU)
    expected = slopes(exact, shape, torch.device("cpu"))
    distance = sum((a - b).square().sum() for a, b in zip(found, expected, strict=True))
    size = sum(b.square().sum() for b in expected)
    assert (distance / size) ** 0.5 < (0.1 if bf16 else 1e-3)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_resumed_run_goes_on_as_an_uninterrupted_one(
    precision: str, digits: Dataset, tmp_path: Path
) -> None:
    changes = {"training": {"precision": precision, "learning_rate": 1e-5}}
    whole = run(digits, tmp_path / "whole", **changes)
    with pytest.raises(Interrupted):
        run(digits, tmp_path / "parts", stop_after=5, **changes)
    parts = run(digits, tmp_path / "parts", **changes)
    # CUDA may sum in another order each time: equal but for rounding, and Adam's reply to it.
    for name, tensor in whole.tensors().items():
        if name.startswith(("generator.", "critic.", "ema.")):
            torch.testing.assert_close(parts.tensors()[name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", ["image", "sequence"])
def test_memory_does_not_grow(kind: str, tmp_path: Path) -> None:
    latent = 32 if kind == "sequence" else 4
    data = load_data(tiny_config(kind).data)
    config = tiny_config(kind, generator={"latent_size": latent}, training={"steps": 60})
    allocated: list[int] = []

    def look() -> bool:
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
        return False

    train(config, data, tmp_path, GPU, stop_requested=look)
    assert allocated[-1] <= 1.01 * allocated[9]


def test_graphed_steps_are_captured_ones(digits: Dataset, tmp_path: Path) -> None:
    states = []
    for mode in ("captured", "graphed"):
        changes = {"training": {"critic_step": mode, "learning_rate": 1e-5}}
        states.append(run(digits, tmp_path / mode, **changes).tensors())
        assert mode_of(tmp_path / mode) == mode
    for name, tensor in states[0].items():
        if name.startswith(("generator.", "critic.", "ema.")):
            torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("mode", ["captured", "graphed"])
@pytest.mark.parametrize("kind", ["vector", "image"])
def test_steps_are_those_of_float64(kind: str, mode: str, tmp_path: Path) -> None:
    config = tiny_config(kind, training={"steps": 8, "critic_step": mode, "learning_rate": 1e-3})
    data = load_data(config.data)
    start, exact = exact_steps(config, data, GPU, tmp_path)
    found = train(config, data, tmp_path, GPU)[0].tensors()
    assert mode_of(tmp_path) == mode
    for part in ("generator", "critic", "ema"):
        assert distance_from(exact, start, found, part) < 1e-2


RANKS = """
import os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from tests.artifacts import tiny_config
from training.data.dataset import load_data
from training.engine.loop import train
from training.engine.workers import Workers

class Exchanging(Workers):
    is_alone = False  # one process exchanges with itself

backend, device, folder = sys.argv[1], torch.device(sys.argv[2]), Path(sys.argv[3])
rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group(backend)
said = []
training = {"steps": 8, "log_every": 2, "critic_step": "graphed", "learning_rate": 1e-5}
config = tiny_config(training=training)
workers = Exchanging(rank, count, device)
train(config, load_data(config.data), folder, device, workers=workers, say=said.append)
assert not [line for line in said if "not graphed" in line], said
workers.leave()
"""


@pytest.mark.parametrize(
    ("backend", "count"), [("cpu:gloo,cuda:nccl", 1), ("gloo", 2)], ids=["nccl", "gloo"]
)
def test_processes_on_one_card_equal_one(
    backend: str, count: int, digits: Dataset, tmp_path: Path
) -> None:
    """With the exchanges between their graphs; NCCL lets no two processes share a card."""
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*command, f"--nproc-per-node={count}", tmp_path / "ranks.py", backend, GPU.type,
         tmp_path / "many"],
        check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=100,
    )  # fmt: skip
    assert mode_of(tmp_path / "many") == "graphed"
    path = newest_checkpoint(tmp_path / "many")
    assert path is not None
    many = load_checkpoint(path).tensors
    training = {"critic_step": "graphed", "learning_rate": 1e-5}
    for name, tensor in run(digits, tmp_path / "one", training=training).tensors().items():
        if name.startswith(("generator.", "critic.", "ema.")):
            torch.testing.assert_close(many[name], tensor, rtol=1e-3, atol=2e-5)


def break_a_capture_off(folder: str) -> None:
    """Make two runs, in the first of which reading a number breaks the capture off."""
    data, plain = load_data(tiny_config().data), whole_step.update_average

    def read_a_number(*arguments: Any) -> None:
        torch.zeros(1, device=GPU).item()
        plain(*arguments)

    for name, function in (("first", read_a_number), ("second", plain)):
        whole_step.update_average = function
        run(data, Path(folder) / name, training={"critic_step": "graphed"})
        print(mode_of(Path(folder) / name))


def test_a_run_goes_on_after_a_capture_that_cuda_breaks_off_and_the_next_is_graphed(
    tmp_path: Path,
) -> None:
    """In a process of its own, which it might leave broken."""
    script = "import sys; from tests import test_gpu; test_gpu.break_a_capture_off(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
    )
    assert done.stdout.split() == ["captured", "graphed"]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("mode", ["captured", "graphed"])
def test_no_step_waits_for_the_device_between_logs(
    mode: str, on_device: bool, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not on_device:
        monkeypatch.setattr(batches, "MAX_BYTES_ON_DEVICE", 0)
    config = tiny_config(training={"steps": 8, "log_every": 8, "critic_step": mode})

    def watch(step: int, state: TrainingState) -> None:
        """Make it an error to wait for the device, from the second step to that before the log."""
        torch.cuda.set_sync_debug_mode("error" if step < 7 else "default")

    try:
        train(config, digits, tmp_path, GPU, watch=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert mode_of(tmp_path) == mode


def test_pinned_memory_is_bounded_between_logs(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_BYTES_ON_DEVICE", 0)
    config = tiny_config(training={"steps": 400, "log_every": 400, "critic_step": "graphed"})
    pinned: list[int] = []

    def watch(step: int, state: TrainingState) -> None:
        pinned.append(torch.cuda.host_memory_stats()["allocated_bytes.current"])

    train(config, digits, tmp_path, GPU, watch=watch)
    assert mode_of(tmp_path) == "graphed"
    assert pinned[9] > 0
    assert max(pinned[9:399]) == pinned[9]


def test_a_model_gives_the_same_on_both_devices(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "a", "vector")
    on_cpu, on_gpu = load_artifact(folder), load_artifact(folder, GPU)
    samples = on_cpu.sample(3, 40)
    torch.testing.assert_close(
        torch.from_numpy(on_gpu.sample(3, 40)), torch.from_numpy(samples), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        torch.from_numpy(on_gpu.score(samples)),
        torch.from_numpy(on_cpu.score(samples)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_seed_gives_the_same_bytes_whatever_else_is_asked_for(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "a"), GPU)
    whole = model.sample(7, 100)
    assert np.array_equal(model.sample(7, 100), whole)
    assert np.array_equal(np.concatenate(list(model.samples(7, 13, 40))), whole[40:53])


def test_judging_gives_the_figures_of_a_cpu(tmp_path: Path) -> None:
    """Over pairs of points in float64; with a model's own rounding, nearly."""
    real, fake = np.random.default_rng(0).normal(size=(2, 1000, 64))
    for compute in (kernel_distance, kernel_distance_margin):
        assert compute(real, fake, device=GPU) == pytest.approx(compute(real, fake), rel=1e-9)
    assert precision_recall_density_coverage(
        real, fake, device=GPU
    ) == precision_recall_density_coverage(real, fake)
    np.testing.assert_allclose(
        nearest_distances(real, fake, device=GPU), nearest_distances(real, fake), rtol=1e-9
    )
    folder = make_artifact(tmp_path / "a")
    on_cpu, on_gpu = (evaluate_artifact(folder, device=device) for device in ("cpu", "cuda"))
    for name, figure in on_cpu.figures.items():
        assert on_gpu.figures[name].value == pytest.approx(figure.value, rel=0.01, abs=0.01)


@pytest.mark.parametrize("kind", ["conditional images", "rows"])
def test_classes_and_rows_are_judged_as_on_a_cpu(kind: str, tmp_path: Path) -> None:
    """Distances of rows are in float64. A classifier's rounding grows over its 400 steps, and it
    knows nothing of samples like these; of real items, whose share is the floor, it does.
    """
    if kind == "rows":
        csv.write_csv(people(400), tmp_path / "people.csv")
        of_data = {"source": str(tmp_path / "people.csv")}
        config = tiny_config("rows", data=of_data, evaluation={"samples": 100})
    else:
        config = tiny_config(conditional=True, evaluation={"samples": 100})
    run_training(config, tmp_path / "run", GPU, register=False)
    folder = tmp_path / "run" / ARTIFACT
    on_cpu, on_gpu = (evaluate_artifact(folder, device=device) for device in ("cpu", "cuda"))
    assert on_cpu.figures.keys() == on_gpu.figures.keys()
    for name, figure in on_cpu.figures.items():
        found = on_gpu.figures[name]
        if name == "class_accuracy":
            assert found.floor == pytest.approx(figure.floor, abs=0.03)
        elif name != "lowest_class_accuracy":
            assert found.value == pytest.approx(figure.value, rel=0.02, abs=0.02), name


def test_a_run_is_judged_where_it_is_trained_and_diagnosed_where_one_asks(tmp_path: Path) -> None:
    run_training(tiny_config(evaluation={"samples": 100}), tmp_path, GPU, register=False)
    there, here = (diagnose_run(tmp_path, device) for device in ("cuda", "cpu"))
    assert [finding.name for finding in there] == [finding.name for finding in here]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two CUDA devices")
def test_two_devices_equal_one_with_batch_norm(tmp_path: Path) -> None:
    train_it = [
        "-m", "wgan_cli", "train", "--preset", "digits", "--constraint", "spectral_norm",
        "--steps", "6", "--no-register", "--set", "critic.normalization=batch",
        "--set", "evaluation.samples=100", "--set", "training.learning_rate=1e-5",
    ]  # fmt: skip
    both = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, command in (("1", [sys.executable, *train_it]), ("2", [*both, *train_it])):
        subprocess.run(
            [*command, "--out", str(tmp_path / name)], check=True, env={**os.environ}, timeout=280
        )
    paths = [newest_checkpoint(tmp_path / name / "checkpoints") for name in ("1", "2")]
    one, two = (load_checkpoint(path).tensors for path in paths if path is not None)
    for name, tensor in one.items():
        if name.startswith(("generator.", "critic.", "ema.")):
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("kind", [None, "gradient_penalty", "bjorck"])
def test_a_distance_is_that_of_a_cpu(kind: str | None) -> None:
    """But for the random numbers of each device: copies of cones, points of a penalty."""
    a, b = np.random.default_rng(0).normal(size=(2, 2000, 3))
    a[:, 1] += 2
    on_cpu, on_gpu = (
        estimate(a, b, kind, steps=300, batch_size=128, device=device) for device in ("cpu", "cuda")
    )
    for key in ("w1", "lower", "plug_in"):
        assert on_gpu.report[key] == pytest.approx(on_cpu.report[key], rel=0.03)
    assert on_gpu.report["blame"][1] > 0.95
    np.testing.assert_allclose(on_gpu.gradient(a[:50]), on_cpu.gradient(a[:50]), atol=0.3)
