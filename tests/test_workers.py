"""Several processes against one: the same draws, gradients, weights; stops and resumes."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store

import wgan_cli
from models.artifact import load_artifact
from models.constraints import (
    AnyConstraint,
    Constraint,
    Dragan,
    GradientPenalty,
    MaxGradientPenalty,
)
from models.errors import ConfigError, UserError
from models.networks import CriticConfig, build_critic
from models.networks.parts import MinibatchStatistics
from models.outputs import sole_writer
from tests.artifacts import tiny_config
from tests.runs import forked
from tests.servers import free_port
from training import torchrun
from training.data.batches import TrainingItems
from training.data.dataset import load_data
from training.engine.checkpoint import load_checkpoint, newest_checkpoint
from training.engine.runs import begin as start_run
from training.engine.split import Split
from training.engine.step import CriticStep
from training.engine.whole_step import PlainStep, WholeStep
from training.engine.workers import ALONE, Workers, join_workers
from training.progress import never, silent
from training.retraining.begin import begin
from training.retraining.config import RetrainConfig
from training.retraining.outcomes import Decision

ROOT, CPU = Path(__file__).parent.parent, torch.device("cpu")

DRAWS: dict[str, Callable[[int], Tensor]] = {
    "rand": lambda n: torch.rand((n, 1, 1), dtype=torch.float64),
    "rand, by axes": lambda n: torch.rand(n, 3),
    "randn": lambda n: torch.randn(n, 40, device="cpu"),
    "randn, by size": lambda n: torch.randn(size=(n, 2)),
    "rand_like": lambda n: torch.rand_like(torch.zeros(n, 5)),
    "randn_like": lambda n: torch.randn_like(torch.zeros(n, 5, dtype=torch.float64)),
    "uniform_": lambda n: torch.zeros(n).uniform_(2.0, 3.0),
    "normal_": lambda n: torch.zeros(n, 7).normal_(),
    "dropout": lambda n: nn.Dropout(0.3)(torch.ones(n, 50)),
    "no dropout": lambda n: nn.Dropout(0.3).eval()(torch.ones(n, 50)),
    "dropout by default": lambda n: nn.functional.dropout(torch.ones(n, 50)),
    "dropout of images": lambda n: nn.Dropout(0.3)(torch.ones(n, 3, 4, 5)),
    "dropout, channels last": lambda n: nn.Dropout(0.3)(
        torch.ones(n, 3, 4, 5).to(memory_format=torch.channels_last)
    ),
    "real and fake together": lambda n: torch.randn_like(torch.zeros(2 * n, 3)),
    "two after each other": lambda n: torch.randn(n, 3) + torch.rand(n, 3),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("count", [2, 4])
def test_processes_draw_together_what_one_draws(name: str, count: int) -> None:
    torch.manual_seed(0)
    whole = DRAWS[name](8).unflatten(0, (-1, 8))
    parts = []
    for rank in range(count):
        torch.manual_seed(0)
        with Workers(rank, count).draws(8):
            parts.append(DRAWS[name](8 // count).unflatten(0, (-1, 8 // count)))
    assert torch.equal(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randperm(4),
        lambda: torch.rand(3),
        lambda: nn.Dropout2d()(torch.ones(2, 2, 2, 2)),
    ],
)
def test_what_cannot_be_divided_is_refused(draw: Callable[[], Tensor]) -> None:
    says = r"cannot be divided|no multiple"
    with Workers(0, 2).draws(4), pytest.raises(RuntimeError, match=says):
        draw()


# Every constraint but those that need the other processes' samples: see `PRESETS`.
KINDS = [
    kind
    for kind in get_args(get_args(AnyConstraint)[0])
    if kind.penalty is not Constraint.penalty and kind not in (Dragan, MaxGradientPenalty)
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_the_penalties_is_the_penalty(kind: type[Constraint]) -> None:
    torch.manual_seed(0)
    constraint = kind()
    dropout = 0.5 if constraint.needs_dropout else 0.0
    critic = build_critic(CriticConfig(width=8, dropout=dropout), (3,)).double()
    for parameter in critic.parameters():  # steep enough for one-sided penalties
        parameter.data *= 4
    real, fake = torch.randn(2, 8, 3, dtype=torch.float64)

    def value(real: Tensor, fake: Tensor) -> float:
        torch.manual_seed(1)
        found = constraint.penalty(critic, real, fake)
        assert found is not None
        return found.item()

    parts = []
    for rank in range(2):
        workers = Workers(rank, 2)
        rows = workers.rows(8)
        with workers.draws(8):
            parts.append(value(real[rows], fake[rows]))
    assert sum(parts) / 2 == pytest.approx(value(real, fake), rel=1e-6)
    assert parts[0] != pytest.approx(parts[1], rel=1e-3)


@pytest.mark.parametrize("mode", ["eager", "captured"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_mean_of_the_critic_s_gradients_is_the_gradient(mode: str, dropout: float) -> None:
    torch.manual_seed(0)
    critic = build_critic(CriticConfig(width=8, dropout=dropout), (3,)).double()
    real, fake = torch.randn(2, 8, 3, dtype=torch.float64)

    def gradients(workers: Workers) -> list[Tensor]:
        split = Split(draws=workers.draws(8))
        find = CriticStep(mode, critic, GradientPenalty(), split=split, say=pytest.fail)
        rows = workers.rows(8)
        torch.manual_seed(1)
        find(real[rows], fake[rows], [], 0)
        return [p.grad for p in critic.parameters() if p.grad is not None]

    parts = [gradients(Workers(rank, 2)) for rank in range(2)]
    for whole, *own in zip(gradients(ALONE), *parts, strict=True):
        torch.testing.assert_close(sum(own) / 2, whole, rtol=1e-6, atol=1e-6)


class Cancelled(Workers):
    """One of two processes, of which the other has found the opposite of every gradient."""

    def __init__(self) -> None:
        super().__init__(1, 2)
        self.sizes = list[int]()

    def add_up(self, values: Tensor) -> None:
        self.sizes.append(len(values))
        values.zero_()


def test_optimisers_step_by_what_all_processes_have_found(tmp_path: Path) -> None:
    """Of each critic step and of the generator's: with gradients that cancel nothing moves."""
    config = tiny_config("vector", constraint={"kind": "none"}, training={"batch_size": 8})
    data = load_data(config.data)
    state, workers = start_run(config, data, tmp_path, CPU, None).state, Cancelled()
    critic, generator = (sum(p.numel() for p in n.parameters()) for n in state[1::-1])
    find = CriticStep("eager", state.critic, config.constraint)
    whole = WholeStep(config, data, state, find, CPU, workers, nullcontext())
    before = {name: tensor.clone() for name, tensor in state.live().items()}
    PlainStep(whole, TrainingItems(data, CPU))([np.arange(4)] * 2, 0, 0)
    assert whole.count == 4, "this process's half"
    assert workers.sizes == [critic, critic, generator]
    assert all(torch.equal(state.live()[name], tensor) for name, tensor in before.items())


def test_a_batch_must_divide() -> None:
    with pytest.raises(ConfigError, match="set a multiple of 3"):
        Workers(0, 3).rows(64)
    assert ALONE.rows(7) == slice(0, 7)
    assert [Workers(rank, 3).rows(6) for rank in range(3)] == [
        slice(0, 2),
        slice(2, 4),
        slice(4, 6),
    ]


@pytest.fixture
def group() -> Iterator[Store]:
    """A group of this process alone: sums over it are its own values."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield store
    if dist.is_initialized():
        dist.destroy_process_group()


def test_means_are_sums_over_the_number_of_processes(group: Store) -> None:
    two, value = Workers(0, 2), torch.tensor(6.0, requires_grad=True)
    assert two.mean(value).item() == 3
    assert not two.mean(value).requires_grad
    assert value.item() == 6, "what is given stays"
    assert ALONE.mean(value) is value
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    for number, weights in enumerate(network.parameters()):
        weights.grad = torch.full_like(weights, 2.0 + number)
    network[0].bias.grad = None  # a weight that the loss does not depend on
    assert not list(ALONE.averaged(network))
    for flat in two.averaged(network):
        assert flat.tolist() == [2.0] * 6 + [4.0] * 3 + [5.0]
        two.add_up(flat)
    assert network[0].bias.grad is None
    for weights, mean in ((network[0].weight, 1.0), (network[1].weight, 2.0)):
        assert torch.equal(weights.grad, torch.full_like(weights, mean))
    assert network[1].bias.grad.tolist() == [2.5]


def test_a_refusal_of_the_main_process_ends_all(group: Store) -> None:
    two, entered = Workers(0, 2), list[str]()

    @contextmanager
    def held() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    def refuse() -> None:
        raise UserError("in use")

    for workers in (two, ALONE):
        assert (workers.any(True), workers.any(False)) == (True, False)
        with workers.main_holds(held()):
            assert entered.pop() == "in"
        assert entered.pop() == "out"
        workers.wait()
    with Workers(1, 2).main_holds(held()):
        assert not entered, "the main process alone holds it"
    with pytest.raises(UserError, match="in use"):
        ALONE.main_checks(refuse)
    assert dist.is_initialized()
    with pytest.raises(UserError, match="in use"):
        two.main_checks(refuse)
    assert not dist.is_initialized(), "no exchange is left behind"


def test_the_others_are_told_that_the_main_process_cannot_begin(
    group: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Workers(1, 2)
    monkeypatch.setattr(dist, "all_reduce", lambda flags, how: flags.fill_(1))  # what it answers
    with pytest.raises(UserError, match="main process cannot begin, and says why"):
        other.main_checks(pytest.fail)
    assert not dist.is_initialized()


def test_all_end_with_the_code_of_the_main_process() -> None:
    assert ALONE.end_alike(3) == 3
    store = dist.HashStore()
    main, other = (Workers(rank, 2, store=store) for rank in range(2))
    assert other.end_alike(0, lambda: True) == 75, "it was asked to stop, and knows no code"
    assert other.end_alike(4) == 4, "its own fault is its own"
    asked = iter([False, False, True])
    assert other.end_alike(0, lambda: next(asked)) == 75
    assert main.end_alike(1) == 1
    assert other.end_alike(0) == 1
    assert main.end_alike(0) == 0
    assert other.end_alike(0) == 0


class Gone:
    """The store of a main process that has gone without a code."""

    def check(self, keys: list[str]) -> bool:
        raise dist.DistNetworkError("connection reset")


def test_a_process_whose_main_one_has_gone_can_be_started_again() -> None:
    assert Workers(1, 2, store=Gone()).end_alike(0) == 75  # type: ignore[arg-type]


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (None, "1"):
        if count:
            monkeypatch.setenv("WORLD_SIZE", count)
        else:
            monkeypatch.delenv("WORLD_SIZE", raising=False)
        workers = join_workers("cpu")
        assert workers == ALONE
        assert (workers.is_alone, workers.is_main) == (True, True)
    if not torch.cuda.is_available():
        assert join_workers().device == torch.device("cpu")


def test_a_process_joins_those_that_torchrun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = (
        "from training.engine.workers import join_workers; import torch; w = join_workers('cpu');"
        "assert (w.rank, w.count) == (1, 2); assert w.mean(torch.tensor(4.0)) == 3; w.leave()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "RANK": "1"})
    try:
        monkeypatch.setenv("RANK", "0")
        workers = join_workers("cpu")
        assert workers.mean(torch.tensor(2.0)).item() == 3
        workers.leave()
        assert other.wait(60) == 0
    finally:
        other.kill()
        other.wait()
    assert (workers.rank, workers.count, workers.is_alone) == (0, 2, False)
    assert workers.is_main
    assert not dist.is_initialized()


def test_minibatch_statistics_are_of_one_process() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), MinibatchStatistics())
    assert ALONE.prepare(network) is network
    with pytest.raises(ConfigError, match="train in one process"):
        Workers(0, 2).prepare(network)
    plain = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    assert Workers(0, 2).prepare(plain) is plain


def test_batch_norm_needs_cuda() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert ALONE.prepare(network) is network
    with pytest.raises(ConfigError, match="CUDA"):
        Workers(0, 2).prepare(network)
    cuda = Workers(0, 2, torch.device("cuda"))
    assert isinstance(cuda.prepare(network)[1], nn.SyncBatchNorm)  # type: ignore[index]
    per_sample = nn.Sequential(nn.InstanceNorm2d(2), nn.GroupNorm(1, 2))
    assert Workers(0, 2).prepare(per_sample) is per_sample


# From here on, the command in several processes, with gloo; where torchrun matters, under it.

TRAIN = [
    "train", "--steps", "12", "--no-register", "--set", "training.batch_size=16",
    "--set", "training.checkpoint_every=4", "--set", "evaluation.samples=100",
    "--set", "training.log_every=6",
]  # fmt: skip
PRESETS = {
    "a penalty": ["--preset", "8gaussians", "--set", "critic.width=16"],
    "clipping, rmsprop": ["--preset", "8gaussians", "--constraint", "weight_clipping"],
    "the noise of a batch": ["--preset", "8gaussians", "--constraint", "dragan"],
    "the steepest of a batch": ["--preset", "8gaussians", "--constraint", "max_gradient_penalty"],
    "conditional images, spectral norm": [
        "--preset", "digits", "--constraint", "spectral_norm", "--set", "conditional=true",
        "--set", "generator.normalization=layer", "--set", "critic.width=8",
    ],
    "extragradient, two rates, a lazy penalty": [
        "--preset", "8gaussians", "--set", "training.optimizer=extragradient",
        "--set", "training.critic_learning_rate=0.004", "--set", "constraint.every=3",
        "--set", "constraint.rescale_adam=true",
    ],
    "optimistic Adam, a cosine": [
        "--preset", "8gaussians", "--set", "training.optimizer=optimistic_adam",
        "--set", "training.schedule=cosine",
    ],
    "augmented images": [
        "--preset", "digits", "--set", "generator.normalization=layer", "--set", "critic.width=8",
        "--set", "augmentation.strength=0.7",
    ],
    "micro-batches": [
        "--preset", "digits", "--set", "generator.normalization=layer", "--set", "critic.width=8",
        "--set", "training.micro_batch_size=3", "--set", "training.activation_checkpointing=true",
    ],
}  # fmt: skip


def start(out: Path, processes: int, *more: str) -> list[ForkServerProcess]:
    """Start the command in processes that have the variables which torchrun gives its workers."""
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    group["MASTER_PORT"] = str(free_port())
    command = [*TRAIN, "--out", out, *more]
    return [
        forked(
            wgan_cli.main,
            command,
            out.with_name(f"log-{rank}"),
            draws=False,
            RANK=str(rank),
            **group,
        )
        for rank in range(processes)
    ]


def finish(processes: list[ForkServerProcess], out: Path, code: int = 0) -> str:
    """Wait for all to end with ``code``: what they said."""
    for process in processes:
        process.join(280)
        process.kill()
    said = [out.with_name(f"log-{rank}").read_text() for rank in range(len(processes))]
    assert [process.exitcode for process in processes] == [code] * len(processes), said
    return "".join(said)


def final(out: Path) -> dict[str, Tensor]:
    path = newest_checkpoint(out / "checkpoints")
    assert path is not None
    return load_checkpoint(path).tensors


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal but for float32's rounding, which sums of halves do otherwise than one sum."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name.startswith(("generator.", "critic.", "ema.")):
            torch.testing.assert_close(
                found[name], tensor, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize(
    "preset", [p if p == "a penalty" else pytest.param(p, marks=pytest.mark.slow) for p in PRESETS]
)
def test_two_processes_equal_one_and_take_over_from_it(preset: str, tmp_path: Path) -> None:
    finish(start(tmp_path / "1", 1, *PRESETS[preset]), tmp_path / "1")
    output = finish(start(tmp_path / "2", 2, *PRESETS[preset]), tmp_path / "2")
    assert_close(final(tmp_path / "2"), final(tmp_path / "1"))
    assert output.count("artifact:") == 1  # one process writes and speaks
    runs = [load_artifact(tmp_path / n / "artifact").run for n in ("1", "2")]
    for rows in zip(*(run.history for run in runs), strict=True):
        for key in ("critic_gap", "critic_loss", "gradient_norm"):
            assert rows[0][key] == pytest.approx(rows[1][key], rel=1e-3, abs=1e-4)

    # Another number of processes goes on where one was after step 8.
    shutil.copytree(tmp_path / "1" / "checkpoints", tmp_path / "3" / "checkpoints")
    (tmp_path / "3" / "checkpoints" / "step-00000012.safetensors").unlink()
    finish(start(tmp_path / "3", 2, *PRESETS[preset], "--resume"), tmp_path / "3")
    assert_close(final(tmp_path / "3"), final(tmp_path / "1"))


@pytest.mark.slow
def test_two_processes_measure_the_overfitting_of_one(tmp_path: Path) -> None:
    options = [
        "--preset", "digits", "--set", "generator.normalization=layer", "--set", "critic.width=8",
        "--set", "augmentation.target=0.01", "--set", "augmentation.ramp=10000",
        "--set", "data.validation_fraction=0.2", "--steps", "40",
    ]  # fmt: skip
    for count in (1, 2):
        finish(start(tmp_path / str(count), count, *options), tmp_path / str(count))
    one, two = (final(tmp_path / n) for n in ("1", "2"))
    names = ("augmentation.strength", "augmentation.overfitting")
    assert 0 < one[names[0]].item() < 1
    for name in names:
        assert two[name].item() == pytest.approx(one[name].item(), rel=1e-2), name


@pytest.mark.slow
def test_two_processes_draw_the_conditions_of_one(tmp_path: Path) -> None:
    lines = [f"{k % 7 * 1.5},{'abc'[k % 3]},{k * k % 101}" for k in range(400)]
    (tmp_path / "rows.csv").write_text("\n".join(["number,letter,square", *lines]) + "\n")
    options = [
        "--preset",
        "table",
        "--data",
        str(tmp_path / "rows.csv"),
        "--set",
        "critic.width=16",
        "--set",
        "generator.normalization=layer",
    ]
    for count in (1, 2):
        finish(start(tmp_path / str(count), count, *options), tmp_path / str(count))
    assert_close(final(tmp_path / "2"), final(tmp_path / "1"))


ENDED = """
import sys
from pathlib import Path
import torch
from training.engine.workers import join_workers

workers = join_workers("cpu")
workers.mean(torch.ones(()))
import torch.distributed.nn  # as a captured step does
workers.leave()
tasks = Path("/proc/self/task").iterdir()
names = [(task / "comm").read_text().strip() for task in tasks]
sys.exit(str(names) if any("gloo" in name for name in names) else 0)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists threads as Linux does")
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    (tmp_path / "ended.py").write_text(ENDED)
    command = ["--standalone", "--nproc-per-node", "2", tmp_path / "ended.py"]
    process = forked(torchrun.main, command, tmp_path / "log", PYTHONPATH=str(ROOT))
    process.join(200)
    assert process.exitcode == 0, (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_stop_of_one_stops_all(tmp_path: Path) -> None:
    out, more = tmp_path / "run", [*PRESETS["a penalty"], "--steps", "600"]
    processes = start(out, 2, *more)
    for _ in range(6000):
        if newest_checkpoint(out / "checkpoints"):
            break
        assert [process.exitcode for process in processes] == [None, None]
        time.sleep(0.01)
    processes[1].terminate()
    assert finish(processes, out, 75).count("--resume") == 2
    path = newest_checkpoint(out / "checkpoints")
    assert path is not None
    assert 0 < load_checkpoint(path).step < 600
    finish(start(out, 1, *more, "--resume"), out)
    run = load_artifact(out / "artifact").run
    assert [row["step"] for row in run.history] == list(range(6, 601, 6))


def test_a_folder_in_use_ends_all_alike(tmp_path: Path) -> None:
    """The main process alone holds the lock; the others waited for it, and ended by a traceback."""
    out = tmp_path / "run"
    with sole_writer(out):
        said = finish(start(out, 2, *PRESETS["a penalty"]), out, 2)
    assert said.count("is in use by process") == 1
    assert "run_training" not in said
    assert not out.exists()


WORKER = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
if sys.argv[1] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("ready", flush=True)
    time.sleep(60)
if sys.argv[1] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[1]) if rank == 0 else 0)
"""


@pytest.mark.parametrize(("word", "code"), [("0", 0), ("3", 3), ("75", 75), ("die", 1)])
def test_torchrun_ends_as_its_workers_do(word: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    command, log = [tmp_path / "worker.py", word], tmp_path / "log"
    done = forked(torchrun.main, command, log, PET_NPROC_PER_NODE="2", PET_NNODES="1")
    done.join(60)
    assert done.exitcode == code, log.read_text()


def test_torchrun_passes_a_request_to_stop_on(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "training.torchrun", tmp_path / "worker.py", "wait"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(timeout=60) == 75


ALIKE = """
import os, signal, sys, time
from pathlib import Path
from training.engine.workers import join_workers

workers = join_workers("cpu")
workers.wait()
workers.leave()
Path(f"ready-{workers.rank}").touch()
code = 0
if workers.is_main:
    while not Path("end").exists():
        time.sleep(0.05)
    word = Path("end").read_text()
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    code = int(word)
sys.exit(workers.end_alike(code))
"""


def pods(folder: Path, *command: str, port: int, **more: str) -> list[ForkServerProcess]:
    """Two pods of one Job, as the chart starts them, but on one machine; each writes a log."""
    job = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "PYTHONPATH": str(ROOT),
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        **more,
    }
    return [
        forked(
            torchrun.main,
            command,
            folder / f"log-{index}",
            folder,
            PET_NODE_RANK=str(index),
            **job,
        )
        for index in range(2)
    ]


def ended(pods: list[ForkServerProcess], timeout: float) -> list[int | None]:
    """Wait for all pods; their exit codes."""
    for pod in pods:
        pod.join(timeout)
    return [pod.exitcode for pod in pods]


@pytest.mark.parametrize(
    ("word", "codes"),
    [
        ("75", [{75}, {75}]),
        ("die", [{1}, {75}]),
        # As the first: which code they end with is tested above, without processes.
        pytest.param("0", [{0}, {0}], marks=pytest.mark.slow),
        pytest.param("3", [{3}, {3, 75}], marks=pytest.mark.slow),
    ],
)
def test_pods_end_as_the_first_does(word: str, codes: list[set[int]], tmp_path: Path) -> None:
    """Never before it, nor well if it did not: else only it would be started again, and wait.

    On 3 the whole Job ends; a pod that does not hear of it in time takes it for an interruption.
    """
    (tmp_path / "worker.py").write_text(ALIKE)
    started = pods(tmp_path, "worker.py", port=free_port())
    try:
        deadline = time.monotonic() + 200
        while len(list(tmp_path.glob("ready-*"))) < 2:
            assert time.monotonic() < deadline
            assert [pod.exitcode for pod in started] == [None, None]
            time.sleep(0.05)
        time.sleep(1)
        assert [pod.exitcode for pod in started] == [None, None], "they wait for the first"
        (tmp_path / "end.part").write_text(word)
        (tmp_path / "end.part").rename(tmp_path / "end")
        found = ended(started, 120)
    finally:
        for pod in started:
            pod.kill()
            pod.join()
    assert all(code in expected for code, expected in zip(found, codes, strict=True)), found


def test_pods_are_interrupted_alike_before_the_training(tmp_path: Path) -> None:
    """The first has a decision to carry out, and the registry is away; the other comes to train."""
    values = {"preset": "8gaussians", "folder": str(tmp_path / "runs")}
    (tmp_path / "retrain.json").write_text(json.dumps(values))
    settings = RetrainConfig.model_validate(values)
    cycle = begin(settings, settings.build(), silent, never, ALONE)
    cycle.folder.mkdir(parents=True)
    Decision(
        model=cycle.config.name,
        outcome="promoted",
        reason="",
        who="",
        when="",
        key=cycle.key,
        challenger="1",
        champion=None,
        best="1",
        data={},
        extractor=None,
        loss=cycle.loss,
        gates=[],
    ).write(cycle.folder)
    command = ["-m", "wgan_cli", "retrain", "--config=retrain.json", "--device=cpu"]
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    started = pods(tmp_path, *command, port=free_port(), **away)
    try:
        found = ended(started, 280)
    finally:
        for pod in started:
            pod.kill()
            pod.join()
    assert found == [75, 75], [(tmp_path / f"log-{i}").read_text()[-2000:] for i in range(2)]
    (line,) = (tmp_path / "runs" / "outcomes.jsonl").read_text().splitlines()
    assert json.loads(line)["outcome"] == "interrupted"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several processes, on a machine that may be busy
def test_pods_take_up_an_interrupted_judging_together(tmp_path: Path) -> None:
    """SIGTERM to the first pod while it judges ends both alike; started again, both end well."""
    (tmp_path / "retrain.json").write_text(
        json.dumps(
            {
                "preset": "8gaussians",
                "folder": str(tmp_path / "runs"),
                "set": {"training.steps": 500, "evaluation.samples": 1200},
            }
        )
    )
    command = ["-m", "wgan_cli", "retrain", "--config=retrain.json", "--device=cpu"]
    for codes in ([75, 75], [0, 0]):
        started = pods(tmp_path, *command, port=free_port())
        try:
            if codes[0] == 75:
                deadline = time.monotonic() + 900
                while "judging on held-out data" not in (tmp_path / "log-0").read_text():
                    assert time.monotonic() < deadline
                    assert [pod.exitcode for pod in started] == [None, None]
                    time.sleep(0.05)
                started[0].terminate()
            found = ended(started, 900)
        finally:
            for pod in started:
                pod.kill()
                pod.join()
        assert found == codes, [(tmp_path / f"log-{i}").read_text()[-2000:] for i in range(2)]
    lines = (tmp_path / "runs" / "outcomes.jsonl").read_text().splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["interrupted", "promoted"]
