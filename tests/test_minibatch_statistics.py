"""Minibatch statistics: the paper's layer in training, a fixed value in what is served."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.artifact import load_artifact
from models.config import parse_config
from models.constraints import CONSTRAINTS, GradientNormalization, ZeroCenteredPenalty
from models.constraints.penalty import Penalty
from models.errors import ConfigError, ShapeError
from models.export import folder
from models.lipschitz import certify
from models.networks import CriticConfig, build_critic
from models.networks.conditional import WithLabels
from models.networks.parts import MinibatchStatistics, Residual
from models.networks.resnet import num_blocks
from tests.artifacts import make_artifact, tiny_config
from tests.conformance import critic_step, same
from tests.runs import trained
from tests.test_export import opened
from training.engine.step import CriticStep, can_pair
from training.engine.workers import Workers

SETTINGS: dict[str, Any] = {"minibatch_statistics": True, "depth": 4, "width": 4}
SHAPE = (2, 9, 16)
ARCHITECTURES = ("dcgan", "resnet")


def critic_of(architecture: str, classes: int = 0, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    config = CriticConfig(**{**SETTINGS, "architecture": architecture, **more})
    return build_critic(config, SHAPE, classes).double()


def batch(count: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=source, dtype=torch.float64)


def test_the_channel_is_the_mean_deviation_of_each_group() -> None:
    layer = MinibatchStatistics().double()
    x = torch.randn(12, 3, 5, 7, dtype=torch.float64)
    found = layer(x).numpy()
    np.testing.assert_array_equal(found[:, :3], x.numpy())
    means = []
    for first in (0, 4, 8):
        group = x.numpy()[first : first + 4]
        deviations = np.sqrt(group.var(axis=0) + 1e-8)
        means.append(deviations.mean())
        np.testing.assert_allclose(found[first : first + 4, 3], means[-1], rtol=1e-12)
    assert layer.running.item() == pytest.approx(0.1 * np.mean(means))
    layer(x)
    assert layer.running.item() == pytest.approx(0.19 * np.mean(means))
    before = layer.running.clone()
    assert (layer.eval()(x[:1])[:, 3] == before).all()
    assert layer.running == before
    with pytest.raises(ShapeError, match="multiple of 4"):
        layer.train()(x[:6])


def test_of_samples_that_are_all_alike_it_has_a_derivative() -> None:
    layer = MinibatchStatistics()
    x = torch.ones(4, 1, 2, 2, requires_grad=True)
    layer(x)[:, 1].sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_score_depends_on_its_group_in_training_and_on_itself_when_served(
    architecture: str, skips: bool, classes: int, depth: int
) -> None:
    if skips and depth == 1 and architecture == "resnet":
        pytest.skip("refused: a single resolution has no skips")
    critic = critic_of(architecture, classes, skips=skips, depth=depth)
    bound = WithLabels(critic, torch.tensor([0, 1, 2, 2, 1, 0, 1, 1])) if classes else critic
    assert sum(isinstance(m, MinibatchStatistics) for m in critic.modules()) == 1
    x = batch(8)
    other = x.clone()
    other[0] += 1
    changed = bound(x) != bound(other)
    assert changed.tolist() == [True] * 4 + [False] * 4
    critic.eval()
    whole = bound(x)
    assert (whole != bound(other)).tolist() == [True] + [False] * 7
    again = bound(torch.cat([x[:1], other[1:].flip(0)]))
    torch.testing.assert_close(again[:1], whole[:1], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("architecture", "kind"), [("dcgan", nn.Conv2d), ("resnet", Residual)])
@pytest.mark.parametrize("depth", [1, 2, 5, 7])
def test_it_is_shown_to_the_last_convolution_or_block(
    architecture: str, kind: type[nn.Module], depth: int
) -> None:
    critic = critic_of(architecture, 0, depth=depth)
    assert critic(batch(4)).shape == (4,)
    parts = [*critic.modules()]
    at = next(i for i, part in enumerate(parts) if isinstance(part, MinibatchStatistics))
    before, after = (sum(isinstance(m, kind) for m in part) for part in (parts[:at], parts[at:]))
    layers = depth if architecture == "dcgan" else num_blocks(depth)
    assert (before, after) == (max(layers - 1, 0), min(layers, 1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_r1_is_of_the_gradient_of_a_group_s_sum_and_back_propagated_exactly(
    architecture: str,
) -> None:
    critic = critic_of(architecture, activation="tanh")
    real, fake = batch(8), batch(8, 1)
    flat = real.flatten(1)
    lengths = []
    count = flat.shape[1]
    for i in range(2):  # of the first group, by finite differences of the sum of all scores
        ends = []
        for sign in (1, -1):
            moved = flat.repeat(count, 1, 1)  # batches whose groups no other batch shares
            moved[range(count), i, range(count)] += sign * 1e-6
            with torch.no_grad():
                ends.append(critic(moved.view(-1, *SHAPE)).view(count, -1).sum(1))
        lengths.append(((ends[0] - ends[1]) / 2e-6).square().sum())
    (gradient,) = torch.autograd.grad(critic(real.requires_grad_()).sum(), real)
    np.testing.assert_allclose(gradient[:2].flatten(1).square().sum(1), lengths, rtol=1e-6)
    names = [name for name, _ in critic.named_parameters()]

    def penalty(*weights: Tensor) -> Tensor:
        def scored(x: Tensor) -> Tensor:
            return torch.func.functional_call(critic, dict(zip(names, weights, strict=True)), (x,))  # type: ignore[no-any-return]

        found = ZeroCenteredPenalty().penalty(scored, real, fake)
        assert found is not None
        return found

    weights = tuple(p.detach().clone().requires_grad_() for p in critic.parameters())
    expected = 5 * gradient.flatten(1).square().sum(1).mean()
    torch.testing.assert_close(penalty(*weights), expected)
    assert torch.autograd.gradcheck(penalty, weights, fast_mode=True)


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_limits_of_each_sample_s_gradient_are_refused_but_for_r1(kind: str) -> None:
    values = tiny_config().model_dump(mode="json")
    values["critic"] |= {"minibatch_statistics": True, "dropout": 0.5}
    constraint = CONSTRAINTS[kind]()
    refused = isinstance(constraint, Penalty | GradientNormalization)
    if not refused or kind == "zero_centered_penalty":
        parse_config({**values, "constraint": constraint})
        return
    with pytest.raises(ConfigError, match=r"critic.minibatch_statistics: .* zero_centered_penalty"):
        parse_config({**values, "constraint": constraint})


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (
            lambda: build_critic(CriticConfig(minibatch_statistics=True), (3,)),
            "are for images, not vectors",
        ),
        (
            lambda: critic_of("dcgan", normalization="batch"),
            "'batch' takes out what critic.minibatch_statistics adds",
        ),
        (lambda: critic_of("resnet", normalization="instance"), "use 'layer' or 'none'"),
        (
            lambda: Workers(count=2).prepare(critic_of("dcgan")),
            "train in one process",
        ),
        (
            lambda: tiny_config(
                critic={"minibatch_statistics": True},
                constraint={"kind": "spectral_norm"},
                training={"batch_size": 6},
            ),
            "set a multiple of 4",
        ),
        (
            lambda: tiny_config(
                critic={"minibatch_statistics": True},
                constraint={"kind": "spectral_norm"},
                privacy={"epsilon": 1.0},
            ),
            "critic.minibatch_statistics: mix the rows",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(build: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build()


def test_real_and_fake_samples_share_no_group_and_the_step_is_eager() -> None:
    critic, said = critic_of("dcgan"), list[str]()
    assert not can_pair(critic)
    real, fake = batch(8), batch(8, 1)
    expected = critic(real).mean() - critic(fake).mean()
    step = CriticStep("captured", copy.deepcopy(critic), ZeroCenteredPenalty(), say=said.append)
    gap, _ = step(real, fake, [], 0)
    torch.testing.assert_close(gap, expected.detach().float())
    assert step.mode == "eager"
    assert "running mean in each forward" in said[0]


def test_a_resumed_step_is_the_same() -> None:
    constraint = ZeroCenteredPenalty()
    whole, resumed = critic_of("resnet"), critic_of("resnet")

    def steps(critic: nn.Module, times: range) -> None:
        optimizer = torch.optim.SGD(critic.parameters(), 0.01)
        for step in times:
            critic_step(constraint, critic, optimizer, batch(8, step), batch(8, step + 99), step)

    steps(whole, range(3))
    resumed.load_state_dict(whole.state_dict())
    steps(whole, range(3, 6))
    steps(resumed, range(3, 6))
    assert same(whole, resumed)


@pytest.mark.parametrize("kind", ["zero_centered_penalty", "spectral_norm"])
def test_a_run_trains_it_and_serves_scores_of_single_items(
    kind: str, charts_undrawn: None, tmp_path: Path
) -> None:
    config = tiny_config(
        critic={"minibatch_statistics": True},
        constraint={"kind": kind},
        evaluation={"samples": 50},
    )
    model, _, _ = trained(config, tmp_path / "run", register=False)
    (layer,) = (m for m in model.critic.modules() if isinstance(m, MinibatchStatistics))
    assert layer.running > 0
    items = model.sample(0, 20)
    np.testing.assert_allclose(model.score(items[3:5]), model.score(items)[3:5], rtol=1e-5)
    assert model.run.lipschitz.certified is not None
    bound, _ = certify(model.critic, shape=(1, 8, 8))
    assert bound == pytest.approx(model.run.lipschitz.certified, rel=1e-5)
    folder.export(model, "onnx", tmp_path / "out")
    critic = opened(tmp_path / "out/critic.onnx")
    (scores,) = critic.run(None, {"items": items})
    np.testing.assert_allclose(scores, model.score(items), atol=1e-5)


def test_old_records_say_nothing_of_it(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "a"))
    assert "minibatch_statistics" not in model.run.model_dump_json()
