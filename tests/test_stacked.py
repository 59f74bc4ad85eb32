"""Models trained together become what each becomes alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.config import Config
from models.constraints import (
    Constraint,
    GradientPenalty,
    LipschitzPenalty,
    NoConstraint,
    SpectralNorm,
    WeightClipping,
)
from tests.conformance import FAMILIES, data, make
from tests.test_conformance import CONSTRAINTS
from tests.test_step import STAY_EAGER, TOLERANCE
from tests.test_workers import DRAWS
from training.data.dataset import load_data
from training.engine import stack
from training.engine.checkpoint import load_checkpoint, newest_checkpoint
from training.engine.loop import train
from training.engine.runs import Diverged
from training.engine.stack import NotStackable, Stack, StackedStep
from training.engine.stacked import train_together
from training.engine.step import CriticStep
from training.presets import build_config

COUNT = 3
TINY = {
    "generator.width": 16,
    "critic.width": 16,
    "critic.depth": 2,
    "training.batch_size": 32,
    "training.steps": 6,
    "training.checkpoint_every": 3,
    "training.log_every": 2,
    "data.heldout_fraction": 0.01,
}


def alone(critic: nn.Module, constraint: Constraint) -> CriticStep:
    return CriticStep("eager", critic, constraint)


def compare(constraints: list[Constraint], name: str = "mlp") -> None:
    """Some steps of several critics, stacked, beside their eager steps; all in float64."""
    family = FAMILIES[name]
    critics = [make(c, family, seed=k).train() for k, c in enumerate(constraints)]
    twins = [copy.deepcopy(critic) for critic in critics]
    stacked = Stack(critics)
    ours = StackedStep(stacked, constraints)
    optimizer = torch.optim.Adam(stacked.parameters, 0.01, fused=True)
    optimizers = [torch.optim.Adam(twin.parameters(), 0.01, fused=True) for twin in twins]
    sources = [torch.Generator() for _ in critics]
    for step in (0, 1, 4):  # with and without a lazy penalty, and with it again
        batches = [data(family, seed=10 * step + k) for k in range(len(critics))]
        real, fake = (torch.stack(x) for x in zip(*batches, strict=True))
        for k, source in enumerate(sources):
            source.manual_seed(100 + k)
        gaps, losses = ours(real, fake, sources, step)
        optimizer.step()
        for k, (twin, constraint) in enumerate(zip(twins, constraints, strict=True)):
            torch.manual_seed(100 + k)
            gap, loss = alone(twin, constraint)(real[k], fake[k], [], step)
            torch.testing.assert_close(gaps[k], gap, rtol=TOLERANCE, atol=TOLERANCE)
            torch.testing.assert_close(losses[k], loss, rtol=TOLERANCE, atol=TOLERANCE)
            optimizers[k].step()
            constraint.after_critic_step(critics[k])
            constraint.after_critic_step(twin)
            for mine, its in zip(critics[k].parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(mine, its, rtol=1e-7, atol=1e-7)
            twin.load_state_dict(critics[k].state_dict())  # so that rounding does not add up


@pytest.mark.sampled
@pytest.mark.parametrize(
    "name",
    [
        name if "," not in name or "lazy" in name else pytest.param(name, marks=pytest.mark.slow)
        for name in CONSTRAINTS
    ],
)
def test_stacked_critics_learn_as_each_alone(name: str) -> None:
    if name in STAY_EAGER:
        with pytest.raises(NotStackable, match="changes gradients"):
            compare([CONSTRAINTS[name]] * COUNT)
    else:
        compare([CONSTRAINTS[name]] * COUNT)


@pytest.mark.parametrize("name", ["gradient_penalty", "spectral_norm", "weight_clipping"])
def test_equalized_critics_are_stacked_too(name: str) -> None:
    compare([CONSTRAINTS[name]] * COUNT, "mlp, equalized")


def test_strengths_may_differ_and_nothing_else() -> None:
    compare([GradientPenalty(strength=s, target=1.5) for s in (0.1, 1.0, 10.0)])
    compare([WeightClipping(clip_value=c) for c in (0.01, 0.1)])
    for others in (
        [GradientPenalty(every=2), GradientPenalty()],
        [GradientPenalty(where="both"), GradientPenalty()],
        [LipschitzPenalty(), GradientPenalty()],
    ):
        with pytest.raises(NotStackable, match="differ in"):
            compare(others)


def configs(kind: str, **overrides: Any) -> list[Config]:
    config = build_config("8gaussians", None, kind, {**TINY, **overrides})
    return [
        config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
        for seed in range(COUNT)
    ]


def look(step: int, state: Any) -> None:
    torch.rand(7)  # a watch may draw


def train_alone(config: Config, folder: Path) -> None:
    train(
        config,
        load_data(config.data, config.training.batch_size),
        folder,
        torch.device("cpu"),
    )


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("lipschitz_penalty", {}),
        ("weight_clipping", {}),
        ("lipschitz_penalty", {"training.optimizer": "optimistic_adam"}),
        (
            "lipschitz_penalty",
            {"training.optimizer": "extragradient", "training.critic_learning_rate": 5e-3},
        ),
        ("lipschitz_penalty", {"constraint.every": 3, "constraint.rescale_adam": True}),
    ],
)
def test_runs_together_end_where_each_alone_does(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Networks, averages, optimisers and histories; one is stopped half way, and goes on."""
    several = configs(kind, **changes)
    dataset = load_data(several[0].data, several[0].training.batch_size)
    folders = [tmp_path / f"together-{k}" for k in range(COUNT)]

    class Stopped(Exception):
        pass

    def stop(step: int, state: Any) -> None:
        if step == 4:
            raise Stopped

    with pytest.raises(Stopped):
        train_together(several, dataset, folders, [look, look, stop])
    assert {newest_checkpoint(f).name for f in folders} == {"step-00000003.safetensors"}  # type: ignore[union-attr]
    train_together(several, dataset, folders, [look] * COUNT)
    for k, config in enumerate(several):
        train_alone(config, tmp_path / f"alone-{k}")
        mine, its = (
            load_checkpoint(newest_checkpoint(tmp_path / f"{how}-{k}"))  # type: ignore[arg-type]
            for how in ("together", "alone")
        )
        assert (mine.critic_step, mine.step, mine.config) == ("stacked", its.step, its.config)
        assert mine.tensors.keys() == its.tensors.keys()
        for name, tensor in its.tensors.items():
            scale = tensor.abs().max().item()
            torch.testing.assert_close(mine.tensors[name], tensor, rtol=0, atol=1e-3 * scale + 1e-9)
        for row, other in zip(mine.history, its.history, strict=True):
            assert row["step"] == other["step"]
            for key in ("critic_gap", "critic_loss", "gradient_norm"):
                assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5)
        before = (folders[k] / "step-00000006.safetensors").stat().st_mtime_ns
        train_alone(config, folders[k])  # finds the run complete
        assert (folders[k] / "step-00000006.safetensors").stat().st_mtime_ns == before


def test_two_runs_together_are_those_alone(tmp_path: Path) -> None:
    """With dropout, a falling rate, hooks after steps; from the newest common step they go on."""
    several = [
        build_config(
            "8gaussians",
            None,
            "weight_clipping",
            {
                **TINY,
                "critic.depth": 1,
                "critic.dropout": 0.3,
                "generator.depth": 1,
                "constraint.clip_value": clip,
                "training.optimizer": "adam",
                "training.num_critic_steps": 2,
                "training.steps": 4,
                "training.decay_from": 0.0,
                "training.checkpoint_every": 1,
                "training.log_every": 1,
                "training.seed": seed,
            },
        )
        for seed, clip in ((0, 0.05), (1, 0.1))
    ]
    dataset, seen = load_data(several[0].data, several[0].training.batch_size), list[int]()
    folders = [tmp_path / f"together-{k}" for k in range(2)]

    def watch(step: int, state: Any) -> None:
        seen.append(step)
        if seen == [1, 2, 3]:
            raise KeyError

    with pytest.raises(KeyError):
        train_together(several, dataset, folders, [watch, look])
    train_together(several, dataset, folders, [watch, look])
    assert seen == [1, 2, 3, 3, 4]
    assert newest_checkpoint(folders[1]).name == "step-00000004.safetensors"  # type: ignore[union-attr]
    for k, config in enumerate(several):
        eager = {"critic_step": "eager"}
        own = config.model_copy(update={"training": config.training.model_copy(update=eager)})
        train_alone(own, tmp_path / f"alone-{k}")
        mine, its = (
            load_checkpoint(newest_checkpoint(tmp_path / f"{how}-{k}"))  # type: ignore[arg-type]
            for how in ("together", "alone")
        )
        assert (mine.step, mine.critic_step) == (4, "stacked")
        assert mine.tensors.keys() == its.tensors.keys()
        for name, tensor in its.tensors.items():
            scale = tensor.abs().max().item()
            torch.testing.assert_close(mine.tensors[name], tensor, rtol=0, atol=1e-3 * scale + 1e-9)
        assert [row["step"] for row in mine.history] == [1, 2, 3, 4]
        for row, other in zip(mine.history, its.history, strict=True):
            for key in ("critic_gap", "critic_loss", "gradient_norm"):
                assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5)
    for path in folders[1].iterdir():
        path.unlink()
    with pytest.raises(NotStackable, match="different steps"):
        train_together(several, dataset, folders, [look, look])


def test_one_run_is_a_stack_too(tmp_path: Path) -> None:
    """With dropout, of which the log between its two kinds of critic steps leaves nothing off."""
    lazy = {"constraint.every": 2, "critic.dropout": 0.3, "training.num_critic_steps": 1}
    ends = {"training.steps": 2, "training.checkpoint_every": 2, "training.log_every": 1}
    (config, *_) = configs("lipschitz_penalty", **lazy, **ends)
    dataset = load_data(config.data, config.training.batch_size)
    train_together([config], dataset, [tmp_path / "stack"], [look])
    eager = {"critic_step": "eager"}
    train_alone(
        config.model_copy(update={"training": config.training.model_copy(update=eager)}),
        tmp_path / "alone",
    )
    mine, its = (
        load_checkpoint(newest_checkpoint(tmp_path / how))  # type: ignore[arg-type]
        for how in ("stack", "alone")
    )
    assert (mine.step, mine.critic_step) == (2, "stacked")
    for name, tensor in its.tensors.items():
        scale = tensor.abs().max().item()
        torch.testing.assert_close(mine.tensors[name], tensor, rtol=0, atol=1e-3 * scale + 1e-9)
    diverging = {"divergence_gap": 1e-9, "steps": 4, "log_every": 2, "checkpoint_every": 4}
    (config, *_) = configs("none")
    training = config.training.model_copy(update=diverging)
    with pytest.raises(Diverged, match="diverged by step 2:"):  # it is looked at before it is told
        train_together(
            [config.model_copy(update={"training": training})], dataset, [tmp_path / "no"], [look]
        )


def test_what_runs_began_together_one_ends_alone(tmp_path: Path) -> None:
    several = configs("lipschitz_penalty")
    dataset = load_data(several[0].data, several[0].training.batch_size)
    folders = [tmp_path / str(k) for k in range(COUNT)]
    train_together(several, dataset, folders, [look] * COUNT)
    (folders[0] / "step-00000006.safetensors").unlink()
    whole = load_checkpoint(newest_checkpoint(folders[1]))  # type: ignore[arg-type]
    train_alone(several[0], folders[0])
    ended = load_checkpoint(newest_checkpoint(folders[0]))  # type: ignore[arg-type]
    assert (ended.step, ended.critic_step) == (whole.step, "captured")
    (folders[2] / "step-00000003.safetensors").unlink()
    (folders[0] / "step-00000006.safetensors").unlink()
    with pytest.raises(NotStackable, match="different steps"):
        train_together(several, dataset, folders, [look] * COUNT)


def test_runs_that_differ_or_do_not_stack_are_refused(tmp_path: Path) -> None:
    clipped, pulled = configs("weight_clipping")[0], configs("gradient_penalty")[0]
    wide = configs("weight_clipping", **{"critic.width": 17})[1]
    dataset = load_data(clipped.data, clipped.training.batch_size)
    for several, says in (
        ([clipped, pulled], "differ in"),
        ([clipped, wide], "more than"),
        (configs("weight_decay"), "changes gradients"),
        (configs("none", **{"training.critic_step": "eager"}), "ask for something else"),
        (configs("none", **{"critic.normalization": "batch"}), "batch normalisation"),
        (configs("none", **{"generator.normalization": "batch"}), "batch normalisation"),
        (configs("none", **{"training.precision": "bf16"}), "ask for something else"),
        (configs("none", **{"training.micro_batch_size": 16}), "little memory"),
        (configs("none", **{"training.activation_checkpointing": True}), "little memory"),
        (configs("none", **{"generator.architecture": "dcgan"}), "unconditional models of vectors"),
        (configs("none", conditional=True), "unconditional models of vectors"),
        (
            configs("none", **{"selection.every": 1, "data.validation_fraction": 0.1}),
            "its own best step",
        ),
    ):
        folders = [tmp_path / str(k) for k in range(len(several))]
        with pytest.raises(NotStackable, match=says):
            train_together(several, dataset, folders, [look] * len(several))
        assert not list(tmp_path.iterdir())


class Shuffled(NoConstraint):
    """A penalty whose random numbers no generator of a model's own can give."""

    def penalty(self, critic: Any, real: Tensor, fake: Tensor, step: int = 0) -> Tensor | None:
        return critic(real[torch.randperm(len(real))]).square().mean()


def test_random_functions_without_a_generator_are_refused() -> None:
    with pytest.raises(NotStackable, match="randperm cannot be divided over models"):
        compare([Shuffled()] * COUNT)


@pytest.mark.parametrize("name", DRAWS)
def test_a_model_s_own_generator_gives_the_numbers_of_a_run_alone(name: str) -> None:
    torch.manual_seed(7)
    alone = DRAWS[name](8)
    torch.manual_seed(0)
    others, source = torch.get_rng_state(), torch.Generator().manual_seed(7)
    with stack._SuppliedNumbers(lambda draw: draw(source)):
        assert torch.equal(DRAWS[name](8), alone)
    assert torch.equal(torch.get_rng_state(), others)


def test_a_wrong_stacked_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = stack.gradients
    monkeypatch.setattr(stack, "gradients", lambda *a: [0.9 * g for g in correct(*a)])
    with pytest.raises(NotStackable, match="is not right: its gradient is off by"):
        compare([SpectralNorm()] * COUNT)


def test_networks_that_are_not_of_one_architecture_are_no_stack() -> None:
    """None of their tensors is left out, nor is any of a network used in place of one not given."""
    for networks in (
        [nn.Linear(2, 1), nn.Linear(2, 1, bias=False)],
        [nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)],
    ):
        with pytest.raises(ValueError, match="shorter"):
            Stack(networks)
    critics = Stack([nn.Linear(2, 1), nn.Linear(2, 1)])
    weight = [torch.zeros(2, 1, 2)]
    with pytest.raises(ValueError, match="shorter"):
        critics.set_gradients(weight)
    with pytest.raises(ValueError, match="shorter"):
        critics.forward([weight[0][0]], torch.zeros(3, 2))


class Idle(nn.Module):
    """A critic with a weight that no score depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(2, 1, bias=False), nn.Linear(3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.used(x).squeeze(1)
        return result


def test_a_weight_that_no_score_depends_on_has_no_slope() -> None:
    """The gradients of a linear critic's gap are the differences of the means, turned round."""
    stacked = Stack([Idle(), Idle()])
    step = StackedStep(stacked, [NoConstraint(), NoConstraint()])
    real, fake = torch.arange(12.0).view(2, 3, 2), torch.zeros(2, 3, 2)
    gaps, _ = step(real, fake, [torch.Generator(), torch.Generator()], 0)
    used, idle = (parameter.grad for parameter in stacked.parameters)
    torch.testing.assert_close(used, torch.tensor([[[-2.0, -3.0]], [[-8.0, -9.0]]]))
    assert idle is not None
    assert idle.shape == (2, 1, 3)
    assert not idle.any()
    assert gaps.shape == (2,)


def test_the_reason_is_one_line_of_200_letters_at_most() -> None:
    for said, told in (("x" * 201, "x" * 200), ("y" * 200, "y" * 200), ("a\nb", "a"), ("", "")):

        def fails(tensors: list[Tensor], said: str = said) -> Tensor:
            raise ValueError(said)

        with pytest.raises(NotStackable) as error:
            stack.MappedFunction(fails)(([torch.zeros(2, 1)],), [torch.Generator()] * 2)
        assert str(error.value) == f"its step cannot be stacked (ValueError: {told})"
