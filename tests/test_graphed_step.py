"""Whole steps by graphs: on a CPU with a stand-in that repeats the kernels it recorded."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import csv
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from models.config import Config, parse_config
from models.constraints import CONSTRAINTS
from tests.artifacts import tiny_config
from tests.exact import distance_from, exact_steps
from tests.mixed import people
from tests.runs import forked
from tests.servers import free_port
from training.data import batches
from training.data.batches import TrainingItems
from training.data.dataset import Dataset, load_data
from training.engine import loop
from training.engine import step as step_module
from training.engine.checkpoint import TrainingState, load_checkpoint, newest_checkpoint
from training.engine.cuda_graphs import (
    Exchange,
    Graphs,
    NoGraphs,
    Parts,
    Replay,
    captured_in_parts,
    graphs_on,
)
from training.engine.graphed_step import GraphedStep, _difference, graph_obstacle
from training.engine.optimisers import OPTIMIZERS
from training.engine.pinned import AHEAD, PinnedRing
from training.engine.runs import Interrupted, begin
from training.engine.step import CriticStep
from training.engine.whole_step import Outcome, PlainStep, WholeStep
from training.engine.workers import ALONE, Workers, join_workers

CPU = torch.device("cpu")


class Recorded(TorchDispatchMode):
    """Records the kernels of a function, and repeats them in the memory that they used.

    As a CUDA graph does: what Python computed is frozen, random numbers are drawn anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(
                    pytree.tree_leaves(result), pytree.tree_leaves(again), strict=True
                ):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class RecordedGraphs:
    """A stand-in for CUDA graphs."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def run(self, function: Callable[[], None]) -> None:
        function()

    def capture(self, parts: Parts, exchange: Exchange) -> Replay:
        return captured_in_parts(self.capture_one, parts(), exchange)

    def capture_one(self, function: Callable[[], None]) -> Replay:
        self.captured += 1
        recorded = Recorded()
        with recorded:
            function()

        def replay() -> None:
            self.replayed += 1
            recorded.replay()

        return replay


def test_parts_are_captured_one_by_one_and_exchanged_in_between() -> None:
    x, y, seen = torch.zeros(1), torch.ones(1), list[object]()

    def parts() -> Iterator[Tensor]:
        for name, exchanged in (("a", x), ("b", y)):
            seen.append(name)
            yield exchanged
        seen.append("c")

    def capture(function: Callable[[], None]) -> Replay:
        before = len(seen)
        function()
        captured = seen[before:]
        return lambda: seen.extend(captured)

    replay = captured_in_parts(capture, parts(), seen.append)
    assert seen == ["a", "b", "c"], "nothing is exchanged by the capture"
    without = NoGraphs().capture(parts, seen.append)
    for again in (replay, replay, without, without):
        seen.clear()
        again()
        assert seen == ["a", x, "b", y, "c"]
    seen.clear()
    NoGraphs().run(lambda: seen.append("run"))
    assert seen == ["run"]
    assert isinstance(graphs_on(CPU), NoGraphs)


def trained(
    config: Config, data: Dataset, folder: Path, stop_after: int | None = None
) -> tuple[TrainingState, list[dict[str, float]], list[str]]:
    said: list[str] = []
    asked = iter(range(1, 10**6))
    state, history = loop.train(
        config, data, folder, CPU, stop_requested=lambda: next(asked) == stop_after, say=said.append
    )
    return state, history, said


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> RecordedGraphs:
    stand_in = RecordedGraphs()
    monkeypatch.setattr(loop, "graphs_on", lambda device: stand_in)
    return stand_in


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    found = {kind: load_data(tiny_config(kind).data) for kind in ("image", "vector", "sequence")}
    path = tmp_path_factory.mktemp("table") / "people.csv"
    csv.write_csv(people(200), path)
    found["rows"] = load_data(tiny_config("rows", data={"source": str(path)}).data)
    return found


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("vector", {}),
    "dcgan": ("image", {}),
    "resnet": ("image", {"architecture": "resnet", "width": 4}),
    "gru": ("sequence", {}),
    "conditional": ("image", {}),
    "rows": ("rows", {}),
}
QUICK_FIRST = [n if n == "mlp" else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
SIGN_ONLY = {
    ("weight_normalization", "gru"): "critic.body.0.input.parametrizations.weight.original",
    ("sandwich", "mlp"): "critic.body.2.parametrizations.weight.0.log_psi",
}
"""Weights of which only the sign counts: normalised by row, with one number in each; and scales of
units that are active at every item of a batch, which move all scores alike. The gradient is
rounding, of which Adam makes whole steps: a learning rate larger by 1e-7 of itself moves them as
far apart."""


def config_of(
    kind: str, network: str, data: dict[str, Dataset], mode: str, **training: Any
) -> Config:
    of_data, settings = NETWORKS[network]
    own = {"optimizer": "adam", "learning_rate": 1e-3, "num_critic_steps": 2, "betas": (0.5, 0.9)}
    return tiny_config(
        of_data,
        conditional=network == "conditional",
        data={"source": data[of_data].card.source},
        constraint={"kind": kind},
        generator={**settings, "latent_size": 32 if network == "gru" else 4},
        critic={**settings, "dropout": 0.2 if kind == "consistency" else 0.0},
        training={**own, "steps": 12, "log_every": 6, "critic_step": mode, **training},
    )


def assert_alike(
    mine: dict[str, Tensor], its: dict[str, Tensor], start: dict[str, Tensor], but: str = ""
) -> None:
    """The same but for rounding, relative to how far each network has gone, and for one weight.

    Adam makes whole steps of gradients that are nearly zero, so rounding grows.
    """
    assert mine.keys() == its.keys()
    compared = {n for n in mine if mine[n].is_floating_point()} - {but}
    for part in ("generator.", "critic.", "ema."):
        names = [n for n in compared if n.startswith(part)]
        apart = sum((mine[n] - its[n]).square().sum().item() for n in names) ** 0.5
        moved = sum((mine[n] - start[n]).square().sum().item() for n in names) ** 0.5
        assert moved > 0
        assert apart <= 1e-2 * moved, (part, apart, moved)


def initial(config: Config, data: Dataset, folder: Path) -> dict[str, Tensor]:
    return begin(config, data, folder, CPU, None).state.tensors()


@pytest.mark.parametrize(
    ("device", "mode", "chosen", "says"),
    [
        ("cuda", "auto", (True, "auto"), ""),
        ("cuda", "graphed", (True, "auto"), ""),
        ("cuda", "graphed_compiled", (True, "compiled"), ""),
        ("cuda", "captured", (False, "captured"), ""),
        ("cuda", "eager", (False, "eager"), ""),
        ("cpu", "auto", (False, "auto"), ""),
        ("cpu", "captured", (False, "captured"), ""),
        ("cpu", "graphed", (True, "auto"), "on CUDA devices only"),
        ("private, cuda", "auto", (False, "auto"), ""),
        ("private, cuda", "graphed", (False, "auto"), "a private step's batches vary in size"),
        ("private, cpu", "graphed_compiled", (False, "compiled"), "a private step's batches vary"),
    ],
)
def test_auto_graphs_whole_steps_on_cuda_alone(
    device: str, mode: str, chosen: tuple[bool, str], says: str
) -> None:
    """What is set is done on a processor too, or else it is said why not, in one line."""
    private = {"privacy": {"noise_multiplier": 1.0}, "constraint": {"kind": "none"}}
    config = tiny_config("vector", **(private if "private" in device else {}))
    on, said = torch.device(device.removeprefix("private, ")), list[str]()
    assert loop._graphed(mode, config, on, ALONE, said.append) == chosen
    assert len(said) == bool(says)
    assert says in "".join(said)


def test_auto_graphs_no_step_whose_penalty_asks_other_processes() -> None:
    config = tiny_config("vector", constraint={"kind": "max_gradient_penalty"})
    two, cuda = Workers(0, 2), torch.device("cuda")
    assert loop._graphed("auto", config, cuda, two, print) == (False, "auto")


@pytest.mark.sampled
@pytest.mark.parametrize("network", QUICK_FIRST)
@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_graphed_steps_are_those_of_the_loop(
    kind: str, network: str, data: dict[str, Dataset], graphs: RecordedGraphs, tmp_path: Path
) -> None:
    of_data = data[NETWORKS[network][0]]
    plain = config_of(kind, network, data, "captured")
    expected, history, _ = trained(plain, of_data, tmp_path / "plain")
    found, graphed, said = trained(
        config_of(kind, network, data, "graphed"), of_data, tmp_path / "graphed"
    )
    assert [line for line in said if "whole step is not" in line] == []
    assert (graphs.captured, graphs.replayed) == (1, 12)
    but = SIGN_ONLY.get((kind, network), "")
    assert_alike(found.tensors(), expected.tensors(), initial(plain, of_data, tmp_path), but)
    for mine, its in zip(graphed, history, strict=True):
        for name in ("critic_gap", "critic_loss", "gradient_norm"):
            assert mine[name] == pytest.approx(its[name], rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("kind", ["gradient_penalty", "zero_centered_penalty", "spectral_norm"])
def test_graphed_steps_of_networks_with_every_option_are_those_of_the_loop(
    kind: str, data: dict[str, Dataset], graphs: RecordedGraphs, tmp_path: Path
) -> None:
    """Statistics of the batch where the constraint takes them: such a critic step is eager."""
    states, both = [], {"architecture": "resnet", "width": 4, "skips": True, "equalized": True}
    for mode in ("captured", "graphed"):
        config = config_of(kind, "resnet", data, mode)
        generator = {**both, "self_modulation": True, "normalization": "batch"}
        critic = {**both, "minibatch_statistics": kind != "gradient_penalty"}
        values = config.model_dump(mode="json")
        values["generator"] |= generator
        values["critic"] |= critic
        config = parse_config(values)
        state, _, said = trained(config, data["image"], tmp_path / mode)
        assert [line for line in said if "whole step is not" in line] == []
        states.append(state.tensors())
    assert (graphs.captured, graphs.replayed) == (1, 12)
    assert_alike(states[1], states[0], initial(config, data["image"], tmp_path))


@pytest.mark.parametrize("mode", ["captured", "graphed"])
@pytest.mark.parametrize("network", ["mlp", "dcgan", pytest.param("gru", marks=pytest.mark.slow)])
def test_steps_are_those_of_float64(
    network: str, mode: str, data: dict[str, Dataset], graphs: RecordedGraphs, tmp_path: Path
) -> None:
    of_data = data[NETWORKS[network][0]]
    config = config_of("gradient_penalty", network, data, mode)
    start, exact = exact_steps(config, of_data, CPU, tmp_path)
    found = trained(config, of_data, tmp_path)[0].tensors()
    for part in ("generator", "critic", "ema"):
        assert distance_from(exact, start, found, part) < 1e-3


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("network", "changes"),
    [
        ("dcgan", {"decay_from": 0.2}),
        ("conditional", {"decay_from": 0.2}),
        ("mlp", {"optimizer": "rmsprop"}),
        ("mlp", {"optimizer": "optimistic_adam", "decay_from": 0.2}),
        ("mlp", {"optimizer": "extragradient", "num_critic_steps": 3}),
        ("mlp", {"critic_learning_rate": 4e-3, "decay_from": 0.2, "schedule": "cosine"}),
        ("mlp", {"precision": "bf16"}),
    ],
)
@pytest.mark.parametrize("on_device", [True, False])
def test_what_changes_from_step_to_step_lies_in_buffers(
    network: str,
    changes: dict[str, Any],
    on_device: bool,
    data: dict[str, Dataset],
    graphs: RecordedGraphs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rates that fall, numbers of items, and items that the device does not hold."""
    if not on_device:
        monkeypatch.setattr(batches, "MAX_BYTES_ON_DEVICE", 0)
    of_data = data[NETWORKS[network][0]]
    plain = config_of("gradient_penalty", network, data, "captured", **changes)
    expected, _, _ = trained(plain, of_data, tmp_path / "plain")
    config = config_of("gradient_penalty", network, data, "graphed", **changes)
    found, _, said = trained(config, of_data, tmp_path / "graphed")
    assert len(said) == 1
    assert_alike(found.tensors(), expected.tensors(), initial(plain, of_data, tmp_path))


def test_each_pattern_of_lazy_penalties_has_its_graph(
    data: dict[str, Dataset], graphs: RecordedGraphs, tmp_path: Path
) -> None:
    states = []
    for mode in ("captured", "graphed"):
        config = config_of("zero_centered_penalty", "mlp", data, mode)
        constraint = config.constraint.model_copy(update={"every": 5})
        config = config.model_copy(update={"constraint": constraint})
        states.append(trained(config, data["vector"], tmp_path / mode)[0])
    assert (graphs.captured, graphs.replayed) == (3, 12)  # the penalty in none of 2 steps, or one
    assert_alike(
        states[1].tensors(), states[0].tensors(), initial(config, data["vector"], tmp_path)
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", ["mlp", "rows"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    network: str, optimizer: str, data: dict[str, Dataset], graphs: RecordedGraphs, tmp_path: Path
) -> None:
    config = config_of("gradient_penalty", network, data, "graphed", optimizer=optimizer)
    of_data = data[NETWORKS[network][0]]
    whole = trained(config, of_data, tmp_path / "whole")[0].tensors()
    with pytest.raises(Interrupted):
        trained(config, of_data, tmp_path / "parts", stop_after=5)
    torch.manual_seed(12345)
    parts = trained(config, of_data, tmp_path / "parts")[0].tensors()
    assert graphs.captured == 3
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


class Refusing(RecordedGraphs):
    def capture_one(self, function: Callable[[], None]) -> Replay:
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


class Wrong(RecordedGraphs):
    """Its graphs lose the last kernels: the moving average, and the generator's step."""

    def capture_one(self, function: Callable[[], None]) -> Replay:
        recorded = Recorded()
        with recorded:
            function()
        names = [call[0].__name__ for call in recorded.calls]
        del recorded.calls[names.index("_fused_adam_.tensor_lr") :]
        return recorded.replay


@pytest.mark.parametrize(
    ("stand_in", "reason"),
    [
        (Refusing, "RuntimeError: operation not permitted"),
        (Wrong, "the generator's step is off by"),
    ],
)
def test_a_failed_capture_leaves_the_run_as_it_would_have_been(
    stand_in: type[RecordedGraphs],
    reason: str,
    data: dict[str, Dataset],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(loop, "graphs_on", lambda device: stand_in())
    states = []
    for mode in ("captured", "graphed"):
        config = config_of("gradient_penalty", "mlp", data, mode)
        state, _, said = trained(config, data["vector"], tmp_path / mode)
        states.append(state.tensors())
        assert mode_of(tmp_path / mode) == "captured"
    assert f"the whole step is not graphed: {reason}" in said[-1]
    assert "\n" not in said[-1]
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())


def test_what_a_failed_capture_holds_is_freed_at_once(
    data: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its memory, and nodes of autograd that belong to the capture's stream."""
    held: list[weakref.ref[Tensor]] = []

    class Holding(RecordedGraphs):
        def capture_one(self, function: Callable[[], None]) -> Replay:
            tensor = torch.zeros(1)
            held.append(weakref.ref(tensor))
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(loop, "graphs_on", lambda device: Holding())
    config = config_of("gradient_penalty", "mlp", data, "graphed", steps=1)
    gc.collect()
    gc.disable()
    try:
        trained(config, data["vector"], tmp_path)
        assert [found() for found in held] == [None]
    finally:
        gc.enable()


def mode_of(folder: Path) -> str:
    path = newest_checkpoint(folder)
    assert path is not None
    return load_checkpoint(path).critic_step


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own compiler
@pytest.mark.parametrize("network", ["mlp", "dcgan"])
def test_compiled_steps_in_a_graph_are_captured_ones(
    network: str, data: dict[str, Dataset], tmp_path: Path
) -> None:
    """With the stand-in that runs the steps: that which records kernels sees no compiled ones."""
    of_data = data[NETWORKS[network][0]]
    states = {}
    for mode in ("captured", "graphed_compiled"):
        config = config_of("gradient_penalty", network, data, mode)
        states[mode], _, said = trained(config, of_data, tmp_path / mode)
        assert mode_of(tmp_path / mode) == mode
    assert [line for line in said if "not" in line] == []
    captured, compiled = (states[mode].tensors() for mode in states)
    assert_alike(compiled, captured, initial(config, of_data, tmp_path))


def test_what_cannot_be_compiled_is_captured_in_the_graph(
    data: dict[str, Dataset],
    graphs: RecordedGraphs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no triton")

    monkeypatch.setattr(torch, "compile", fail)
    states = []
    for mode in ("graphed", "graphed_compiled"):
        config = config_of("gradient_penalty", "mlp", data, mode)
        state, _, said = trained(config, data["vector"], tmp_path / mode)
        states.append(state.tensors())
        assert mode_of(tmp_path / mode) == "graphed"
    assert said[1:] == ["the critic's step is captured, not compiled: RuntimeError: no triton"]
    assert (graphs.captured, graphs.replayed) == (2, 24)
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())


# Two processes, with gloo.


def exchanging(arguments: list[str]) -> int:
    """What each process does: train as every case says, and write down what came of it."""
    folder, workers = Path(arguments[0]), join_workers("cpu")
    for name, (config, data) in pickle.loads((folder / "cases").read_bytes()).items():
        graphs, said = RecordedGraphs(), list[str]()
        loop.graphs_on = lambda device, graphs=graphs: graphs  # type: ignore[assignment, misc]
        if name == "refused by one" and workers.is_main:
            graphs.capture_one = lambda function: 1 / 0  # type: ignore[assignment, return-value]
        state, _ = loop.train(config, data, folder / name, CPU, workers=workers, say=said.append)
        found = state.tensors(), (graphs.captured, graphs.replayed), said
        (folder / f"{name} {workers.rank}").write_bytes(pickle.dumps(found))
    workers.leave()
    return 0


def test_processes_exchange_gradients_between_graphs(
    data: dict[str, Dataset], tmp_path: Path
) -> None:
    """After 12 steps they have the weights of eager steps, and both the same ones."""
    cases = {
        f"{kind} {mode}": (config_of(kind, network, data, mode), data[NETWORKS[network][0]])
        for kind, network in {
            "gradient_penalty": "conditional",
            "weight_clipping": "mlp",
            "spectral_norm": "mlp",
            "max_gradient_penalty": "mlp",
        }.items()
        for mode in ("eager", "graphed")
    }
    cases["refused by one"] = cases["weight_clipping graphed"]
    (tmp_path / "cases").write_bytes(pickle.dumps(cases))
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        forked(exchanging, [tmp_path], tmp_path / f"log-{rank}", RANK=str(rank), **group)
        for rank in range(2)
    ]
    for rank, process in enumerate(processes):
        process.join(280)
        assert process.exitcode == 0, (tmp_path / f"log-{rank}").read_text()

    def found(name: str, rank: int = 0) -> tuple[dict[str, Tensor], tuple[int, int], list[str]]:
        return pickle.loads((tmp_path / f"{name} {rank}").read_bytes())  # type: ignore[no-any-return]

    for name, (config, of_data) in cases.items():
        kind = name.split()[0]
        eager = found("weight_clipping eager" if kind == "refused" else f"{kind} eager")[0]
        tensors, counts, said = found(name)
        assert_alike(tensors, eager, initial(config, of_data, tmp_path / "new"))
        others = found(name, rank=1)[0]
        assert all(torch.equal(t, others[n]) for n, t in tensors.items())
        if "graphed" in name and kind != "max_gradient_penalty":
            # Two critic steps and a generator step; after each there is an exchange.
            assert counts == (4, 4 * 12)
            assert [line for line in said if "whole step is not" in line] == []
    assert (
        "its penalty asks other processes for their samples"
        in found("max_gradient_penalty graphed")[2][0]
    )
    assert "ZeroDivisionError" in found("refused by one")[2][-1]
    assert "another process cannot replay it" in found("refused by one", rank=1)[2][-1]


def graphed_step(
    config: Config,
    data: Dataset,
    folder: Path,
    graphs: Graphs,
    workers: Workers = ALONE,
    say: Callable[[str], None] = print,
) -> GraphedStep:
    """What makes the steps of a new run, whose critic's steps are eager."""
    state, items = begin(config, data, folder, CPU, None).state, TrainingItems(data, CPU, True)
    find = CriticStep("eager", state.critic, config.constraint)
    whole = WholeStep(config, data, state, find, CPU, workers, nullcontext())
    return GraphedStep(whole, PlainStep(whole, items), items, CPU, graphs, say)


@pytest.mark.parametrize("part", ["generator", "critic", "ema"])
def test_a_replay_may_be_off_by_a_share_of_each_network_s_step(part: str) -> None:
    """Weights count alone; and where none moves, by more than rounding of its own size."""
    before = {f"{name}.w": torch.tensor([3.0, 4.0]) for name in ("generator", "critic", "ema")}
    before |= {"generator.count": torch.tensor(7), "critic_optimizer.0.step": torch.tensor(1.0)}
    moved = {n: t + torch.tensor([0.0, 1.0]) if n.endswith("w") else t for n, t in before.items()}

    def said(off: float, expected: dict[str, Tensor] = moved) -> str | None:
        changed = expected[f"{part}.w"] + torch.tensor([off, 0.0])
        others = {"generator.count": torch.tensor(9), "critic_optimizer.0.step": torch.tensor(9.0)}
        return _difference(before, expected, {**expected, **others, f"{part}.w": changed})

    assert said(0.29) is None
    assert said(-0.29) is None
    assert said(0.32) == f"the {part}'s step is off by 0.32 of its length"
    still = {n: t.double() if n.endswith("w") else t for n, t in before.items()}
    before |= still
    assert said(0.0, still) is None
    assert said(1e-7 * 5, still) is None
    assert said(1e-6 * 5, still) == f"the {part}'s step is off by 1 of its length"


def test_a_replay_s_loss_may_be_off_by_rounding_alone(
    data: dict[str, Dataset], tmp_path: Path
) -> None:
    """By a thousandth of it in float32, or of 1 if it is less."""
    config = config_of("none", "mlp", data, "graphed")
    step, empty = graphed_step(config, data["vector"], tmp_path, NoGraphs()), torch.zeros(0)

    def said(loss: float, off: float) -> str | None:
        outcome = Outcome(empty, torch.tensor(loss + off, dtype=torch.float64), empty, empty, [])
        return step._wrong_loss(torch.tensor(loss, dtype=torch.float64), outcome)

    for loss, off in ((0.5, 9e-4), (-0.5, -9e-4), (4.0, 3.9e-3), (-4.0, 3.9e-3), (1e-9, 0.0)):
        assert said(loss, off) is None
    for loss, off in ((0.5, 1.1e-3), (-0.5, -1.1e-3), (4.0, 4.1e-3), (-4.0, -4.1e-3)):
        assert said(loss, off) == f"its loss is off by {abs(off):.2g}"


@pytest.mark.parametrize("conditional", [False, True])
def test_labels_are_brought_to_conditional_runs_alone(
    conditional: bool, data: dict[str, Dataset], tmp_path: Path
) -> None:
    """Data may have classes that the run does not look at."""
    config, of_data = tiny_config(conditional=conditional), data["image"]
    step = graphed_step(config, of_data, tmp_path, NoGraphs())
    step._bring(numbers := np.arange(16).reshape(2, 8), 0)
    assert of_data.labels is not None
    labels = of_data.labels[of_data.is_training]
    for (items, own), chosen in zip(step._batches(), numbers, strict=True):
        assert np.array_equal(items, of_data.training[chosen])
        assert [x.tolist() for x in own] == ([labels[chosen].tolist()] if conditional else [])


class TwoTold(Workers):
    """One of two processes; the other's gradients are these in reverse. It may fail to replay."""

    def __init__(self, other: bool) -> None:
        super().__init__(0, 2)
        self.other = other

    def add_up(self, values: Tensor) -> None:
        values += values.flip(0)

    def any(self, flag: bool) -> bool:
        return flag or self.other


class Broken(NoGraphs):
    """Breaks off in its first steps, or when it is to capture one."""

    def __init__(self, when: str) -> None:
        self.when = when

    def run(self, function: Callable[[], None]) -> None:
        if self.when == "run":
            raise RuntimeError("broken off")
        function()

    def capture(self, parts: Parts, exchange: Exchange) -> Replay:
        if self.when == "capture":
            raise RuntimeError("broken off")
        return super().capture(parts, exchange)


@pytest.mark.parametrize(
    ("when", "workers", "says"),
    [
        ("", ALONE, None),
        ("", TwoTold(False), None),
        ("", TwoTold(True), "another process cannot replay it"),
        ("run", ALONE, "RuntimeError: broken off"),
        ("capture", ALONE, "RuntimeError: broken off"),
        ("capture", TwoTold(False), "RuntimeError: broken off"),
    ],
)
def test_a_graph_is_refused_by_all_processes_or_none(
    when: str,
    workers: Workers,
    says: str | None,
    data: dict[str, Dataset],
    tmp_path: Path,
) -> None:
    """And then the state is as before it, but for the plain step that is made in its place."""
    config, said = config_of("none", "mlp", data, "graphed"), list[str]()
    step, plain = (
        graphed_step(config, data["vector"], tmp_path, graphs, workers, said.append)
        for graphs in (Broken(when), NoGraphs())
    )
    assert step.mode == "graphed"
    numbers = [np.arange(workers.rows(8).stop)] * 2
    for k in range(2):
        step(numbers, k, seed=k)
        plain._plain(numbers, k, seed=k)
    assert said == ([f"the whole step is not graphed: {says}"] if says else [])
    assert step.mode == ("eager" if says else "graphed")
    assert [group.param_groups[0]["capturable"] for group in step._optimizers] == [False] * 2
    expected, found = plain._whole.state.live(), step._whole.state.live()
    if says:
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert_alike(found, expected, initial(config, data["vector"], tmp_path))


def test_a_process_that_cannot_make_its_first_steps_ends(
    data: dict[str, Dataset], tmp_path: Path
) -> None:
    """The others wait for an exchange with it, and would do so for ever."""
    config = config_of("none", "mlp", data, "graphed")
    step = graphed_step(config, data["vector"], tmp_path, Broken("run"), TwoTold(False))
    with pytest.raises(RuntimeError, match="broken off"):
        step([np.arange(4)] * 2, 0, seed=0)


@pytest.mark.parametrize(
    ("changes", "alone", "among_two"),
    [
        ({}, None, None),
        ({"constraint": {"kind": "max_gradient_penalty"}}, None, "its penalty asks other"),
        ({"generator": {"normalization": "batch"}}, None, "batch normalisation asks other"),
        (
            {"critic": {"normalization": "batch"}, "constraint": {"kind": "none"}},
            None,
            "batch normalisation asks other",
        ),
        (
            {"privacy": {"noise_multiplier": 1.0}, "constraint": {"kind": "none"}},
            "a private step's batches vary",
            "a private step's batches vary",
        ),
    ],
)
def test_what_is_known_of_a_run_before_its_graph(
    changes: dict[str, Any], alone: str | None, among_two: str | None
) -> None:
    config = tiny_config("vector", **changes)
    for workers, says in ((ALONE, alone), (Workers(0, 2), among_two)):
        assert str(graph_obstacle(config, workers)).startswith(str(says))


class LateDevice:
    """A device that reads pinned memory when one waits for it, and not before."""

    def __init__(self) -> None:
        self.copies: list[Callable[[], None]] = []

    def target(self) -> LateTarget:
        return LateTarget(self)

    def event(self) -> LateEvent:
        return LateEvent(self)

    def work(self, until: int) -> None:
        for copy in self.copies[:until]:
            copy()
        self.copies[:until] = [lambda: None] * until


class LateTarget:
    def __init__(self, device: LateDevice) -> None:
        self.device, self.value = device, torch.zeros(3)

    def copy_(self, source: Tensor, non_blocking: bool = False) -> None:
        assert non_blocking, "the processor would wait"

        def copy() -> None:
            self.value.copy_(source)

        self.device.copies.append(copy)


class LateEvent:
    def __init__(self, device: LateDevice) -> None:
        self.device, self.recorded = device, 0

    def record(self) -> None:
        self.recorded = len(self.device.copies)

    def synchronize(self) -> None:
        self.device.work(self.recorded)


def test_pinned_buffers_are_few_and_none_is_written_over_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, pinned = LateDevice(), list[Tensor]()

    def pin(values: Tensor) -> Tensor:
        pinned.append(values)
        return values

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    ring = PinnedRing(torch.empty(3), torch.device("cuda"))
    targets = [device.target() for _ in range(3 * AHEAD + 1)]
    for k, target in enumerate(targets):
        ring.send(torch.full((3,), float(k)), target)  # type: ignore[arg-type]
    assert targets[-AHEAD - 1].value.tolist() == [2 * AHEAD] * 3  # the processor has waited for it
    assert [target.value.any().item() for target in targets[-AHEAD:]] == [False] * AHEAD
    device.work(len(device.copies))
    assert [target.value[0].item() for target in targets] == list(range(len(targets)))
    on_processor = torch.zeros(3)
    PinnedRing(torch.empty(3), CPU).send(torch.ones(3), on_processor)
    assert on_processor.tolist() == [1] * 3
    assert len(pinned) == AHEAD, "a processor needs none"


META = torch.device("meta")
"""A device whose tensors hold no numbers: to read one is an error."""


class Copies(TorchDispatchMode):
    """Counts the kernels that bring something from the CPU to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves((args, kwargs, result))
        kinds = {t.device.type for t in leaves if isinstance(t, Tensor) and t.dim()}
        self.count += kinds == {"cpu", "meta"}
        return result


class Descent(torch.optim.Optimizer):
    """Stands for torch's fused optimisers, which know no device without numbers."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        (group,) = self.param_groups
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.sub_(parameter.grad * group["lr"])


def without_numbers(
    config: Config, data: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[GraphedStep, list[np.ndarray]]:
    """A run on a device without numbers, and the numbers of items of a step."""
    settings, state = config.training, begin(config, data, folder, CPU, None).state
    generator, critic, ema = (network.to(META) for network in state[:3])
    optimizers = [Descent(network.parameters(), {"lr": 0.0}) for network in (generator, critic)]
    state = TrainingState(generator, critic, ema, *optimizers)
    monkeypatch.setattr(step_module, "mismatch", lambda *_: None)  # it compares numbers
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # knows no such device
    find = CriticStep("auto", critic, config.constraint)
    nothing = nullcontext()
    whole = WholeStep(config, data, state, find, META, ALONE, nothing)
    items = batches.TrainingItems(data, META, whole=True)
    step = GraphedStep(whole, PlainStep(whole, items), items, META, NoGraphs(), print)
    outcomes: list[Outcome] = []

    def body() -> None:
        outcomes[:] = [whole(step._batches(), 0, step._weight)]

    body()
    step._replays[(True,) * settings.num_critic_steps] = body, outcomes
    return step, [np.arange(settings.batch_size)] * settings.num_critic_steps


@pytest.mark.parametrize("network", QUICK_FIRST)
@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_no_step_reads_a_number_or_brings_more_than_the_numbers_of_its_items(
    kind: str,
    network: str,
    data: dict[str, Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(kind, network, data, "graphed")
    of_data = data[NETWORKS[network][0]]
    step, numbers = without_numbers(config, of_data, tmp_path, monkeypatch)
    with Copies() as copies:
        for k in range(2):
            step(numbers, k, seed=k)
    assert copies.count == 2


def test_items_that_the_device_does_not_hold_are_brought_once_a_step(
    data: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_BYTES_ON_DEVICE", 0)
    config = config_of("gradient_penalty", "conditional", data, "graphed")
    step, numbers = without_numbers(config, data["image"], tmp_path, monkeypatch)
    with Copies() as copies:
        step(numbers, 0, seed=0)
    assert copies.count == 2
