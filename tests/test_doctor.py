"""The doctor: each finding on critics whose illness is known, and how people are told."""

import copy
import dataclasses
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from torch import Tensor, nn

from benchmarks.doctor_risk import (
    RESULTS,
    areas_of_findings,
    design,
    fit,
    of_grid,
)
from models.artifact import load_artifact, save_artifact
from models.config import Config
from models.errors import UserError
from models.lipschitz import layer_signals
from models.model import QUANTILE_LEVELS
from models.networks import ACTIVATIONS, CriticConfig, build_critic, build_networks
from models.record import Figure, Finding, Severity
from models.sampling import latents
from tests.artifacts import make_artifact, tiny_config
from tests.command_line import called
from tests.test_cli import wgan
from tests.test_judging import dataset
from training.data.dataset import Dataset, load_data
from training.data.raw import Mixture
from training.engine.checkpoint import TrainingState, load_checkpoint
from training.engine.loop import train
from training.engine.runs import Interrupted
from training.judging.doctor import risk
from training.judging.doctor import subject as subject_module
from training.judging.doctor.base import Check, Measurement
from training.judging.doctor.checks import CHECKS
from training.judging.doctor.diagnosis import diagnose, diagnose_run, in_one_line, watcher
from training.judging.doctor.subject import (
    Subject,
    explained_variance,
    gaussian_like,
    gradient_decades,
    slope,
)
from training.judging.metrics import precision_recall_density_coverage, wasserstein_1
from training.reporting.pages import findings_page

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_data(tiny_config("vector").data)


class Replay(nn.Module):
    """A generator that returns given items, whatever its latents."""

    def __init__(self, items: Tensor) -> None:
        super().__init__()
        self.items = items

    def forward(self, latents: Tensor) -> Tensor:
        return self.items[: len(latents)]


class Linear(nn.Module):
    """A critic ``x @ direction``."""

    def __init__(self, direction: list[float]) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.tensor(direction))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.direction


class Memory(nn.Module):
    """A critic that knows some items by heart."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known = nn.Parameter(known)

    def forward(self, x: Tensor) -> Tensor:
        return (-(torch.cdist(x, self.known) ** 2) / 1e-12).exp().amax(dim=1) + 0.01 * x[:, 0]


def real(data: Dataset, *, heldout: bool = False) -> Tensor:
    return torch.from_numpy(data.sample(1000, heldout=heldout))


def found(
    data: Dataset, generator: nn.Module, critic: nn.Module, config: Config | None = None
) -> dict[str, Finding]:
    config = config or tiny_config("vector")
    return {f.name: f for f in diagnose(config, data, generator, critic)}


def ones_critic(c: float, width: int, depth: int) -> nn.Module:
    """Every weight is c: where all units are on, a layer multiplies a gradient by c width."""
    critic = build_critic(CriticConfig(width=width, depth=depth, activation="relu"), shape=(2,))
    with torch.no_grad():
        for name, parameter in critic.named_parameters():
            parameter.fill_(0 if name.endswith("bias") else c)
    return critic


@pytest.mark.parametrize("c", [0.001, 0.125, 0.5])
def test_gradients_by_layer_follow_the_closed_form(c: float) -> None:
    width, depth = 8, 12
    signals = layer_signals(ones_critic(c, width, depth), torch.rand(5, 2))
    assert len(signals) == depth
    # The head's row of c, times the all-c matrices between: each has the one singular value c W.
    expected = [c * math.sqrt(width) * (c * width) ** (depth - 1 - i) for i in range(depth)]
    np.testing.assert_allclose([s.gradient for s in signals], expected, rtol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_by_layer_agree_with_finite_differences(activation: Any) -> None:
    torch.manual_seed(0)
    critic = build_critic(CriticConfig(width=4, depth=3, activation=activation), (2,)).double()
    x = torch.randn(1, 2, dtype=torch.float64)
    layers = list(critic.body)  # type: ignore[arg-type]
    for number, place in enumerate((1, 3, 5)):  # what follows the first, second, third dense layer
        hidden = nn.Sequential(*layers[:place])(x)
        rest = nn.Sequential(*layers[place:])
        gradient = []
        for unit in range(hidden.shape[1]):
            step = torch.zeros_like(hidden)
            step[0, unit] = 1e-6
            gradient.append(((rest(hidden + step) - rest(hidden - step)) / 2e-6).item())
        signal = layer_signals(critic, x)[number]
        assert signal.gradient == pytest.approx(np.linalg.norm(gradient), rel=1e-5)


def test_every_kind_of_critic_has_signals() -> None:
    torch.manual_seed(0)
    for architecture, shape, count in (
        ("dcgan", (1, 8, 8), 2),
        ("resnet", (1, 8, 8), None),
        ("gru", (5, 2), 3),
        ("lstm", (5, 2), 3),
    ):
        critic = build_critic(CriticConfig(architecture=architecture, width=4, depth=2), shape)  # type: ignore[arg-type]
        signals = layer_signals(critic, torch.randn(3, *shape))
        assert count is None or len(signals) == count, architecture
        assert all(s.gradient > 0 and 0 <= s.variation < 2 for s in signals)


def test_a_clip_range_that_is_too_small_is_seen_with_the_right_remedy(data: Dataset) -> None:
    config = tiny_config(
        "vector",
        critic={"width": 8, "depth": 12, "activation": "relu"},
        constraint={"kind": "weight_clipping", "clip_value": 0.01},
    )
    # Positive points keep every unit on.
    positive = Replay(real(data).abs() + 0.1)
    finding = found(data, positive, ones_critic(0.01, 8, 12), config)["clip_range"]
    assert finding.present
    assert finding.value == pytest.approx(-math.log10(0.08), rel=0.02)
    assert "too small" in finding.remedy
    assert "near 0.13" in finding.remedy  # 1 / 8, where a layer of width 8 passes gradients on
    large = tiny_config("vector", constraint={"kind": "weight_clipping", "clip_value": 1.0})
    finding = found(data, positive, ones_critic(1.0, 8, 4), large)["clip_range"]
    assert finding.value == pytest.approx(math.log10(8), rel=0.02)
    assert "too large" in finding.remedy


def test_saturation_is_the_share_at_the_bounds(data: Dataset) -> None:
    config = tiny_config("vector", constraint={"kind": "weight_clipping", "clip_value": 0.1})
    critic = build_critic(config.critic, (2,))
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.copy_(torch.linspace(-0.05, 0.05, parameter.numel()).view_as(parameter))
        weight = next(iter(critic.parameters()))
        weight.fill_(0.0995)
        weight[0] = -0.1
    total = sum(p.numel() for p in critic.parameters())
    finding = found(data, Replay(real(data)), critic, config)["saturated_weights"]
    assert finding.value == pytest.approx(weight.numel() / total)
    assert finding.chart is not None
    assert sum(y or 0 for y in finding.chart.lines[0].y) == pytest.approx(1, abs=1e-3)


def test_a_linear_critic_is_too_simple_and_its_norm_is_its_slope(data: Dataset) -> None:
    findings = found(data, Replay(real(data)), Linear([30.0, 40.0]))
    assert findings["critic_too_simple"].value == pytest.approx(1)
    assert findings["critic_too_simple"].present
    assert "a linear function of the input explains 100%" in findings["critic_too_simple"].evidence
    assert findings["gradient_norm"].value == pytest.approx(math.log10(50))
    assert "depth" not in findings, "it has no layers"
    torch.manual_seed(0)
    bent = build_critic(CriticConfig(width=64, depth=3, activation="relu"), (2,))
    assert not found(data, Replay(real(data)), bent)["critic_too_simple"].present


@pytest.mark.parametrize(
    ("constraint", "target"),
    [
        ({"kind": "zero_centered_penalty"}, None),
        ({"kind": "max_gradient_penalty"}, None),
        ({"kind": "max_gradient_penalty", "target": 5.0}, 5.0),
        ({"kind": "gradient_penalty", "target": 5.0}, 5.0),
        ({"kind": "weight_clipping", "target_lipschitz": 5.0}, 5.0),
        ({"kind": "weight_clipping"}, 1.0),
        ({"kind": "none"}, 1.0),
    ],
)
def test_a_slope_is_compared_with_the_constraint_s_own_target(
    data: Dataset, constraint: dict[str, Any], target: float | None
) -> None:
    config = tiny_config("vector", constraint=constraint)
    critic = config.constraint.before_training(build_critic(config.critic, (2,)))
    findings = found(data, Replay(real(data) + 3), critic, config)
    if target is None:
        assert "gradient_norm" not in findings
        assert len(findings) > 4
    else:
        evidence = findings["gradient_norm"].evidence
        mean = float(evidence.split(" is ")[1].split(",")[0])
        assert findings["gradient_norm"].value == pytest.approx(
            abs(math.log10(mean / target)), abs=0.01
        )
        assert f"where {target:g} is" in evidence
    advice = " ".join(finding.remedy for finding in findings.values())
    if "penalty" in constraint["kind"]:
        assert "another constraint.strength" in advice
        assert "use lipschitz_penalty" not in advice


def test_the_share_of_the_distance_that_is_found(data: Dataset) -> None:
    """Samples moved by a vector: its length is the distance, its direction the optimal critic."""
    far = Replay(real(data) - torch.tensor([3.0, 4.0]))
    best = found(data, far, Linear([0.6, 0.8]))["slow_optimisation"]
    assert best.value == pytest.approx(0, abs=0.05)
    across = found(data, far, Linear([0.8, -0.6]))["slow_optimisation"]
    assert across.value == pytest.approx(1, abs=0.05)
    halfway = found(data, far, Linear([0.6 * 0.5 + 0.8 * 0.75**0.5, 0.8 * 0.5 - 0.6 * 0.75**0.5]))
    assert halfway["slow_optimisation"].value == pytest.approx(0.5, abs=0.05)
    config = tiny_config("vector")
    own = config.training.model_copy(update={"critic_learning_rate": 0.01})
    config = config.model_copy(update={"training": own})
    finding = found(data, far, Linear([0.8, -0.6]), config)["slow_optimisation"]
    assert "another training.critic_learning_rate;" in finding.remedy
    assert "another training.learning_rate;" in across.remedy
    same = found(data, Replay(real(data)), Linear([0.8, -0.6]))["slow_optimisation"]
    assert not same.present, "nothing is left to find"


def test_lost_modes_are_lost_diversity_and_the_only_critical_finding(data: Dataset) -> None:
    assert data.mixture is not None
    items = torch.from_numpy(data.sample(8000, heldout=False))
    centers = torch.from_numpy(data.mixture.centers).float()
    mode = torch.cdist(items, centers).argmin(dim=1)
    kept = items[mode < 2][:1000]
    items = items[:1000]
    finding = found(data, Replay(kept), Linear([1.0, 0.0]))["low_diversity"]
    assert finding.value == pytest.approx(0.75, abs=0.06)
    assert finding.severity == "critical"
    whole = found(data, Replay(items), Linear([1.0, 0.0]))["low_diversity"]
    assert whole.value < 0.05
    assert whole.remedy == ""


def test_samples_are_compared_with_those_of_a_fitted_gaussian(data: Dataset) -> None:
    points = np.random.default_rng(1).standard_normal((50, 3)) @ np.diag([1, 2, 3]) + 5
    drawn = gaussian_like(points, 100_000)
    np.testing.assert_allclose(drawn.mean(axis=0), points.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(points.T), atol=0.15)
    critic = Linear([1.0, 0.0])
    gaussian = torch.from_numpy(gaussian_like(real(data).numpy(), 1000, seed=1)).float()
    as_good = found(data, Replay(gaussian), critic)["worse_than_gaussian"]
    assert as_good.value == pytest.approx(1, abs=0.15)
    # Far away every distance is the shift.
    far = found(data, Replay(gaussian + torch.tensor([300.0, 400.0])), critic)[
        "worse_than_gaussian"
    ]
    assert far.chart is not None
    training, generated, of_gaussian = far.chart.lines[0].y
    assert generated == pytest.approx(500, rel=0.01)
    assert far.value == pytest.approx(generated / of_gaussian)  # type: ignore[operator]
    assert training < of_gaussian  # type: ignore[operator]
    assert not found(data, Replay(real(data)), critic)["worse_than_gaussian"].present


def test_a_critic_that_knows_its_data_by_heart_is_seen(data: Dataset) -> None:
    noise = Replay(torch.randn(1000, 2))
    finding = found(data, noise, Memory(real(data)))["critic_overfitting"]
    assert finding.present
    assert finding.value > 10
    assert not found(data, noise, Linear([1.0, 0.0]))["critic_overfitting"].present


# What the checks measure


class Sided(nn.Module):
    """A critic of points that looks at their first value, and at their labels if there are any."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        assert not self.training
        return self.slope * x[:, 0] + (0 if labels is None else 10.0 * labels)


class Turned(nn.Module):
    """A generator of points that are its latents, moved by their labels if there are any."""

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        assert not self.training
        return z + (1 if labels is None else labels[:, None].float())


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("heldout", "count"), [(30, 30), (90, 40), (60, 50)])
def test_a_subject_has_as_many_items_of_each_kind(
    conditional: bool, heldout: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 130 items some are held out; 50 of each kind are scored at most, some at once."""
    monkeypatch.setattr(subject_module, "MAX_ITEMS", 50)
    monkeypatch.setattr(subject_module, "SCORED_AT_ONCE", 16)
    monkeypatch.setattr(subject_module, "MAX_GRADIENTS", 12)
    rng = np.random.default_rng(0)
    items, labels = rng.normal(size=(130, 2)).astype(np.float32), rng.integers(2, size=130)
    data = dataset(items, heldout, labels, classes=["a", "b"])
    config = tiny_config("vector", conditional=conditional, generator={"latent_size": 2})
    critic, generator = Sided(), Turned()
    state = torch.random.get_rng_state()
    found = Subject.prepare(config, data, generator, critic, [], {})
    chosen = {name: data.sample_indices(count, heldout=name == "heldout")
              for name in ("heldout", "training")}  # fmt: skip
    sets = {name: (items[indices] - 1) / 2 for name, indices in chosen.items()}
    bound = labels[chosen["heldout"]]
    z = latents(config.training.seed, 0, count, 2)
    sets["fake"] = z + (bound[:, None] if conditional else 1)
    known = {**{name: labels[indices] for name, indices in chosen.items()}, "fake": bound}
    assert list(found.sets) == list(sets)
    for name, points in sets.items():
        np.testing.assert_allclose(found.points(name), points, rtol=1e-6, atol=1e-6)
        assert found.points(name).dtype == np.float64
        scores = 3 * points[:, 0] + 10 * known[name] * conditional
        np.testing.assert_allclose(found.scores[name], scores, rtol=1e-5, atol=1e-5)
    assert found.gradient_rows == slice(0, 12)
    between, real, fake = found.between.numpy(), sets["heldout"][:12], sets["fake"][:12]
    along = (between - fake) / (real - fake)
    assert ((along > 0) & (along < 1)).all()
    np.testing.assert_allclose(along[:, 0], along[:, 1], rtol=1e-3, atol=1e-4)
    assert np.std(along[:, 0]) > 0.1, "each sample has its own"
    np.testing.assert_allclose(found.gradients, np.tile([3.0, 0.0], (12, 1)))
    np.testing.assert_allclose(found.gradient_norms, 3)
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.random.fork_rng():
        torch.rand(1)  # whatever was drawn before
        again = Subject.prepare(config, data, generator, critic, [], {})
        assert torch.equal(again.between, found.between)
    assert (critic.training, generator.training, critic.slope.dtype) == (True, True, torch.float32)
    gaussian = gaussian_like(found.points("training"), 12)
    others = {"training": sets["training"][:12], "fake": fake, "gaussian": gaussian}
    assert found.distances == pytest.approx(
        {name: wasserstein_1(real, points) for name, points in others.items()}, rel=1e-5
    )
    diversity = [
        precision_recall_density_coverage(*(found.points(x) for x in ("heldout", name)))
        for name in ("fake", "training")
    ]
    expected = {x: (diversity[0][x], diversity[1][x]) for x in ("recall", "coverage")}
    assert found.diversity.keys() == expected.keys()
    for name, pair in expected.items():
        assert found.diversity[name] == pytest.approx(pair), name
    assert expected["coverage"][0] < expected["coverage"][1], "the two sides are not alike"
    assert found.bending_share is None
    figure = Figure(value=0.5, floor=0.75, interval=(0, 1), n=9, better="higher")
    judged = {"recall": figure, "precision": figure,
              "coverage": figure.model_copy(update={"floor": None})}  # fmt: skip
    assert dataclasses.replace(found, figures=judged).diversity == {"recall": (0.5, 0.75)}
    centers = np.array([[-0.5, -0.5], [0.0, 0.0], [1.2, 1.2], [1.5, 1.5], [50.0, 0.0]])
    mixture = dataclasses.replace(data, mixture=Mixture(centers, 0.25))
    covered = [
        (cdist(centers, found.points(name)).min(axis=1) < 0.75).sum()
        for name in ("fake", "training")
    ]
    assert covered[0] > covered[1]
    modes = dataclasses.replace(found, data=mixture).diversity["modes_covered"]
    assert modes == tuple(covered)


@pytest.mark.parametrize("shape", [(2,), (3, 5, 5)])
@pytest.mark.parametrize("kind", [nn.ReLU, nn.LeakyReLU])
def test_units_bend_that_are_on_for_some_points_alone(
    shape: tuple[int, ...], kind: type[nn.Module]
) -> None:
    """Units of a layer, or channels: one is always on, one always off, and the third for some."""
    layer: nn.Module = nn.Linear(2, 3) if len(shape) == 1 else nn.Conv2d(3, 3, 1)
    critic = nn.Sequential(layer, kind(), nn.Flatten(1))
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    assert isinstance(bias, nn.Parameter)
    with torch.no_grad():
        weight.zero_()
        bias.copy_(torch.tensor([1.0, -1.0, 0.0]))
        weight.view(3, -1)[2, 0] = 1
    find = Subject.bending_share.func  # type: ignore[attr-defined]
    for on, share in ((2, 0), (3, 1 / 3), (100, 1 / 3), (197, 1 / 3), (198, 0), (200, 0)):
        between = torch.randn(200, *shape, dtype=torch.float64)
        between[:, 0] = (torch.arange(200) < on).double().sub(0.5).view(-1, *[1] * len(shape[1:]))
        subject: Any = SimpleNamespace(
            critic=critic.double(), bind=lambda *_: critic, gradient_rows=slice(0, 200),
            between=between,
        )  # fmt: skip
        assert find(subject) == pytest.approx(share), on
    if len(shape) == 3:  # on in some places of each point
        between[:, 0] = torch.linspace(-1, 1, 5, dtype=torch.float64)
        assert find(subject) == pytest.approx(1 / 3)
    assert not critic[1]._forward_hooks, "the critic is left as it was"


def test_slopes_and_shares_of_variance_are_those_of_least_squares() -> None:
    signals: Any = [SimpleNamespace(gradient=x) for x in (100.0, 10.0, 0.0)]
    np.testing.assert_allclose(gradient_decades(signals), [2, 1, -300])
    assert slope(np.array([2.0, 1.0, 0.5, -1.0])) == pytest.approx(0.95)
    rng = np.random.default_rng(0)
    features, scores = rng.normal(size=(30, 2)), 5 + 0.1 * rng.normal(size=30)
    model = LinearRegression().fit(features, scores)
    assert explained_variance(features, scores) == pytest.approx(model.score(features, scores))
    assert explained_variance(features, np.full(30, 2.0)) == 1
    points = rng.normal(size=(4, 3))
    drawn, same = gaussian_like(points, 5), gaussian_like(points, 5, seed=1)
    assert drawn.shape == (5, 3)
    assert not np.allclose(drawn, same)
    many = np.cov(gaussian_like(points, 20_000).T)
    np.testing.assert_allclose(many, np.cov(points.T), atol=0.05 * np.abs(many).max())
    assert Subject.decades.func(SimpleNamespace(signals=signals[:1])) is None  # type: ignore[attr-defined]
    np.testing.assert_allclose(
        Subject.decades.func(SimpleNamespace(signals=signals[:2])),  # type: ignore[attr-defined]
        [2, 1],
    )


# Each check, on measurements that are given


def measured(name: str, **given: Any) -> Measurement:
    """What a check says of a subject with these measurements."""
    plain = {"config": tiny_config("vector"), "bending_share": None, "history": []}
    subject: Any = SimpleNamespace(**plain | given)
    found = CHECKS[name].measure(subject)
    assert found is not None
    return found


def lines_of(found: Measurement) -> list[tuple[list[float], list[float | None]]]:
    assert found.chart is not None
    return [(line.x, line.y) for line in found.chart.lines]


@pytest.mark.parametrize("features", [2, 8, 9])
def test_a_critic_is_as_simple_as_its_gradient_is_the_same(features: int) -> None:
    """Two directions at right angles: half of the square is of the mean, at 45 degrees of each."""
    rng = np.random.default_rng(0)
    sets = dict(zip(("heldout", "fake"), rng.normal(size=(2, 60, features)), strict=True))
    gradients = np.repeat(np.eye(features)[:2], 10, axis=0) * 3
    given = {
        "points": sets.__getitem__,
        # Of squares and products a linear function explains little, a quadratic one all.
        "scores": {name: x[:, 0] ** 2 + 2 * x[:, 0] * x[:, 1] for name, x in sets.items()},
        "gradients": gradients,
        "gradient_norms": np.linalg.norm(gradients, axis=1),
        "bending_share": 0.25,
    }
    found = measured("critic_too_simple", **given)
    assert found.value == pytest.approx(0.5)
    assert found.evidence.startswith("50% of the critic's squared gradient is the same everywhere")
    assert "; 25% of the hidden units bend among the samples" in found.evidence
    explained = re.findall(r"explains (\d+)% of its scores, a quadratic one (\d+)%", found.evidence)
    assert len(explained) == (features <= 8)
    assert all(int(linear) < 40 and quadratic == "100" for linear, quadratic in explained)
    ((x, y),) = lines_of(found)
    assert len(x) == 41
    assert [middle for middle, share in zip(x, y, strict=True) if share] == [
        pytest.approx(math.sqrt(0.5), abs=1 / 41)
    ]
    assert sum(share or 0 for share in y) == 1
    assert found.chart is not None
    assert found.chart.bars
    small = measured("critic_too_simple", **given | {
        "gradients": gradients / 100, "gradient_norms": given["gradient_norms"] / 100
    })  # fmt: skip
    assert small.value == pytest.approx(0.5)
    assert lines_of(small) == [(x, y)]
    given["gradients"] = np.zeros((4, features))
    given["gradient_norms"] = np.zeros(4)
    still = measured("critic_too_simple", **given)
    assert still.value == 1
    assert lines_of(still)[0][1][20] == 1, "no direction is at right angles to all"


@pytest.mark.parametrize(("gained", "word"), [(0.5, "grows"), (-0.5, "shrinks")])
def test_the_gain_of_a_layer_is_the_slope_of_the_decades(gained: float, word: str) -> None:
    config = tiny_config("vector", constraint={"kind": "weight_clipping", "clip_value": 0.2})
    decades = gained * np.array([3.0, 2.0, 1.0, 0.0])
    found = measured("clip_range", config=config, decades=decades)
    assert found.value == pytest.approx(0.5)
    assert f"the gradient {word} 3.16-fold at each of 4 layers ({gained:+.2f}" in found.evidence
    assert f"near {0.2 * 10**-gained:.2g} a layer" in found.remedy
    assert lines_of(found) == [([1, 2, 3, 4], decades.tolist())]
    # A layer without a gradient below a steep one: a power of so much is no number.
    dead = measured("clip_range", config=config, decades=np.array([-300.0, 100.0]))
    assert "shrinks 1e+300-fold" in dead.evidence
    given = tiny_config("vector", constraint={"kind": "weight_clipping", "target_lipschitz": 2.0})
    assert "near" not in measured("clip_range", config=given, decades=decades).remedy
    for nothing in ({"config": tiny_config("vector"), "decades": decades},
                    {"config": config, "decades": None}):  # fmt: skip
        assert CHECKS["clip_range"].measure(SimpleNamespace(**nothing)) is None  # type: ignore[arg-type]


def test_what_the_critic_has_not_found_is_a_share_of_what_there_is_to_find() -> None:
    given = {
        "gradients": np.zeros((7, 2)),
        "gradient_norms": np.arange(101) / 100,  # 0.95 is its slope
        "scores": {"heldout": np.array([1.0, 2.0]), "fake": np.array([0.0, 1.1])},  # 0.95 apart
        "history": [{"step": 2, "critic_gap": 0.5}, {"step": 3}, {"step": 4, "critic_gap": 0.7}],
    }

    def missed(fake: float, training: float = 1.0, **changes: Any) -> Measurement:
        distances = {"training": training, "fake": fake}
        return measured("slow_optimisation", **given | changes, distances=distances)

    found = missed(3.0)
    assert found.value == pytest.approx(0.5)
    assert (
        "gap 0.95 over its slope 0.95 finds 50% of the transport distance 2 (exact, of 7 samples, "
        "less the 1 between real ones)"
    ) in found.evidence
    assert lines_of(found) == [([2, 4], [0.5, 0.7])]
    assert missed(1.5).value == 0, "it has found more than there is"
    none = missed(3.0, scores={"heldout": np.zeros(2), "fake": np.ones(2)}, history=[])
    assert (none.value, none.chart) == (1, None)
    assert "finds 0%" in none.evidence
    assert "finds 400%" in missed(1.25).evidence, "a quarter beyond the real ones' distance"
    near = missed(1.2)
    assert near.value == 0
    assert "hardly a distance left" in near.evidence
    assert "hardly a distance left" in missed(2.4, training=2.0).evidence
    assert "hardly a distance left" in missed(9.0, training=40.0).evidence


@pytest.mark.parametrize(
    ("decades", "words"),
    [([3.0, 1.0, 0.5], ("gains", "swamp")), ([0.5, 1.0, 3.0], ("loses", "hardly learn"))],
)
def test_depth_is_between_the_first_and_the_last_layer(
    decades: list[float], words: tuple[str, str]
) -> None:
    signals = [SimpleNamespace(variation=v) for v in (0.3, 0.2, 0.45678)]
    found = measured("depth", decades=np.array(decades), signals=signals)
    assert found.value == 2.5
    assert f"of 3 hidden layers the gradient {words[0]} 2.5 decades" in found.evidence
    assert "between samples is 0.2 of its size" in found.evidence
    assert words[1] in found.remedy
    norms, variations = lines_of(found)
    assert norms[0] == variations[0] == [1, 2, 3]
    assert norms[1] == pytest.approx([10 ** (d - 3) for d in decades], rel=1e-3)
    assert variations[1] == [0.3, 0.2, 0.4568]
    assert found.chart is not None
    assert found.chart.log_y


def test_diversity_is_lost_where_most_of_it_is_and_a_gain_is_no_loss() -> None:
    shares = {"coverage": (0.5, 1.0), "recall": (0.2, 0.8), "modes_covered": (3.0, 0.0)}
    found = measured("low_diversity", diversity=shares)
    assert found.value == pytest.approx(0.75)
    assert found.evidence.startswith("recall is 0.2, where training data in the samples' place")
    assert lines_of(found) == [([0, 1], [0.5, 0.25])]
    assert found.chart is not None
    assert (found.chart.bars, found.chart.x_names) == (True, ["coverage", "recall"])
    assert measured("low_diversity", diversity={"recall": (0.9, 0.8)}).value == 0


def test_the_norm_s_decades_from_its_target_and_the_share_near_it() -> None:
    norms = np.array([0.5, 1.0, 2.0, 4.0])
    found = measured("gradient_norm", gradient_norms=norms)
    assert found.value == pytest.approx(math.log10(1.875))
    assert "at 25% of the points it is within a factor of 2" in found.evidence
    centre = math.log10(2) / 2
    ((x, y),) = lines_of(found)
    assert (x[0], x[-1]) == pytest.approx(
        (-1 + (centre + 2) / 82, centre + 1 - (centre + 2) / 82), rel=1e-3
    )
    assert sum(share or 0 for share in y) == 1
    assert (len(x), max(share or 0 for share in y)) == (41, 0.25)
    config = tiny_config("vector", constraint={"kind": "gradient_penalty", "target": 4.0})
    wanted = measured("gradient_norm", gradient_norms=norms, config=config)
    assert wanted.value == pytest.approx(math.log10(4 / 1.875))
    assert "at 25% of the points it is within a factor of 2" in wanted.evidence
    centre_of_four, width = centre - math.log10(4), 2 - (centre - math.log10(4))
    assert lines_of(wanted)[0][0][0] == pytest.approx(centre_of_four - 1 + width / 82, rel=1e-3)
    low = lines_of(measured("gradient_norm", gradient_norms=norms / 100))[0][0]
    assert low[0] < centre - 2.8, "all norms are shown"
    assert 0.9 < low[-1] < 1, "the target is shown too"
    assert measured("gradient_norm", gradient_norms=np.zeros(3)).value == pytest.approx(300)


def test_scores_of_training_data_are_compared_by_their_spread() -> None:
    scores = {
        "heldout": np.array([0.5, 1.5] * 4),
        "training": np.array([1.75, 2.25] * 4),
        "fake": np.array([0.25] * 8),
    }
    found = measured("critic_overfitting", scores=scores)
    assert found.value == pytest.approx(2)
    assert "training data +2.00 standard deviations (give or take 0.50)" in found.evidence
    assert "its gap is 1.75 on the former and 0.75 on the latter" in found.evidence
    assert found.chart is not None
    assert [line.name for line in found.chart.lines] == [*scores]
    for (x, y), values in zip(lines_of(found), scores.values(), strict=True):
        assert (x[0], x[-1]) == pytest.approx((0.25 + 2 / 82, 2.25 - 2 / 82), rel=1e-3)
        assert (len(x), sum(share or 0 for share in y)) == (41, 1)
        assert sum(bool(share) for share in y) == len(set(values))
    assert "more data, a smaller critic (critic.width=8), critic.dropout, or" in found.remedy
    for config in (tiny_config(), tiny_config(augmentation={"strength": 0.5})):
        remedy = measured("critic_overfitting", scores=scores, config=config).remedy
        assert ("augmentation.target=0.3" in remedy) == (config.augmentation is None)
    swapped = {"heldout": scores["training"], "training": scores["heldout"], "fake": scores["fake"]}
    assert measured("critic_overfitting", scores=swapped).value == 0
    many = np.arange(1000.0)
    low, high = np.quantile(np.tile(many, 3), [0.005, 0.995])
    ((x, _), *_) = lines_of(measured("critic_overfitting", scores=dict.fromkeys(scores, many)))
    middle = (high - low) / 82
    assert (x[0], x[-1]) == pytest.approx((low + middle, high - middle), rel=1e-4)
    same = measured("critic_overfitting", scores=dict.fromkeys(scores, np.ones(8)))
    assert same.value == 0
    assert lines_of(same)[0][0][-1] == pytest.approx(2 - 1 / 82, rel=1e-3)


def test_the_distance_is_told_in_gaussians() -> None:
    distances = {"training": 1.0, "fake": 3.0, "gaussian": 2.0}
    found = measured("worse_than_gaussian", distances=distances)
    assert found.value == 1.5
    assert lines_of(found) == [([0, 1, 2], [1, 3, 2])]
    assert found.chart is not None
    assert (found.chart.bars, found.chart.log_y) == (True, False)


def test_severity_never_exceeds_the_ceiling() -> None:
    def severity(ceiling: Severity, value: float) -> str:
        check = Check("any", lambda subject: None, "a value", 1, ceiling, critical=2)
        return check.severity(value)

    assert severity("info", 9) == "info"
    assert severity("warning", 9) == "warning"
    assert severity("critical", 9) == "critical"
    assert severity("critical", 1.5) == "warning"
    assert severity("critical", 1) == "info"
    assert all(name == check.name and check.meaning for name, check in CHECKS.items())


def test_every_finding_is_in_the_docs_with_its_threshold() -> None:
    docs = (ROOT / "docs/doctor.md").read_text()
    rows = {cells[1].strip("` "): cells[3] for line in docs.splitlines()
            if len(cells := line.split("|")) == 6}  # fmt: skip
    for name, check in CHECKS.items():
        assert f"{check.threshold:g}" in rows[name], name
        assert math.isinf(check.critical) or f"critical: {check.critical:g}" in rows[name], name


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """What `benchmarks/doctor.py` measured; the findings on runs that nothing was chosen on."""
    return json.loads(RESULTS.read_text())


def test_what_predicts_nothing_does_not_alarm(results: dict[str, Any]) -> None:
    runs = of_grid(results["answers"], "judging", 0.2)
    assert results["findings"]["0.2"] == areas_of_findings(runs, 0.2)
    for name, check in CHECKS.items():
        area = results["findings"]["0.2"][name]["area"]
        assert (check.ceiling == "info") == (area < 0.7) or not check.warns_early, f"{name}: {area}"
    # Lost diversity is measured on the samples themselves; during training it does not warn.
    assert [name for name, c in CHECKS.items() if c.ceiling == "critical"] == ["low_diversity"]


def test_the_docs_tell_what_was_measured(results: dict[str, Any]) -> None:
    lines = (ROOT / "docs/doctor.md").read_text().splitlines()

    def in_words(entry: dict[str, float]) -> str:
        return f"{entry['area']:.2f} ({entry['low']:.2f} to {entry['high']:.2f})"

    early, late = results["findings"]["0.2"], results["findings"]["0.6"]
    for name in CHECKS:
        counts = f"{early[name]['failing']} / {early[name]['training']}"
        row = f"| `{name}` | {counts} | {in_words(early[name])} | {in_words(late[name])} | "
        assert any(line.startswith(row) for line in lines), row
    for entry in results["risk"].values():
        row = f" | {in_words(entry)} | {entry['brier']:.3f} | {entry['brier_of_base_rate']:.3f} |"
        assert any(line.endswith(row) for line in lines), row


def test_both_grids_have_runs_of_both_ends(results: dict[str, Any]) -> None:
    for grid, counts in results["grids"].items():
        ends = [a["failed"] for a in results["answers"].values() if a["grid"] == grid]
        assert (counts["failed"], counts["trained"]) == (sum(ends), len(ends) - sum(ends))
        assert min(counts.values()) >= 40
    assert sum(results["grids"]["judging"].values()) >= 200
    sources = [{a["data"] for a in results["answers"].values() if a["grid"] == grid}
               for grid in ("fitting", "judging")]  # fmt: skip
    assert sources[1] - sources[0] == {"swissroll", "iris", "china", "mnist5k"}


def test_the_risk_is_scikit_learn_s_regression_of_the_fitting_runs(
    results: dict[str, Any],
) -> None:
    answers = results["answers"]
    for model, again in zip(risk.models(), fit(answers), strict=True):
        assert (model.share, list(model.terms)) == (again.share, list(again.terms))
        runs = of_grid(answers, "fitting", model.share)
        x, _, _ = design(runs, model.share, list(model.terms))
        regression = LogisticRegression().fit(x, [run["failed"] for run in runs])
        found = [model.probability(run["looks"][f"{model.share:g}"]) for run in runs]
        np.testing.assert_allclose(found, regression.predict_proba(x)[:, 1], atol=1e-4)


def test_the_risk_s_figures_follow_from_the_judging_runs(results: dict[str, Any]) -> None:
    for model in risk.models():
        recorded = results["risk"][f"{model.share:g}"]
        runs = of_grid(results["answers"], "judging", model.share)
        failed = [run["failed"] for run in runs]
        risks = [model.probability(run["looks"][f"{model.share:g}"]) for run in runs]
        assert recorded["area"] == pytest.approx(roc_auc_score(failed, risks))
        assert recorded["brier"] == pytest.approx(brier_score_loss(failed, risks))
        assert recorded["low"] < recorded["area"] < recorded["high"]
        assert sum(b["runs"] for b in recorded["bins"]) == len(runs)


def test_the_risk_names_what_raises_it_and_leaves_out_what_does_not_apply() -> None:
    (model, *_) = risk.models()
    names = list(model.terms)
    bad = {name: 1 + 2 * CHECKS[name].threshold for name in names}
    findings = [
        Finding(
            name=name, value=value, threshold=CHECKS[name].threshold, present=True,
            severity="info", evidence="", remedy=f"mend {name}",
        )
        for name, value in bad.items()
    ]  # fmt: skip
    assessed = risk.assess(findings, 0.25)
    assert assessed.value == model.probability(bad) > 0.9
    assert (assessed.present, assessed.severity) == (True, "warning")
    parts = model.parts(bad)
    worst = max(parts, key=lambda name: parts[name])
    assert f"raised by {worst} {bad[worst]:.3g}" in assessed.evidence
    assert assessed.remedy == f"mend {worst}"
    odds = math.log(assessed.value / (1 - assessed.value))
    assert odds == pytest.approx(model.intercept + sum(parts.values()))
    without = risk.assess([f for f in findings if f.name != worst], 0.25)
    assert math.log(without.value / (1 - without.value)) == pytest.approx(odds - parts[worst])


def findings_of(values: dict[str, float], remedies: bool = True) -> list[Finding]:
    return [
        Finding(
            name=name, value=value, threshold=CHECKS[name].threshold, present=True,
            severity="info", evidence="", remedy=f"mend {name}" if remedies else "",
        )
        for name, value in values.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("share", "used"),
    [(0, 0.2), (0.2, 0.2), (0.59, 0.2), (0.6, 0.6), (0.99, 0.6), (1, 1)],
)
def test_the_risk_is_that_of_runs_that_were_looked_at_as_late(share: float, used: float) -> None:
    (model,) = (m for m in risk.models() if m.share == used)
    values = dict.fromkeys(CHECKS, 0.5)
    values["depth"] = 30.0
    assessed = risk.assess(findings_of(values), share)
    assert assessed.value == model.probability(values)
    when = "at the end" if used == 1 else f"at {used:.0%} of their steps"
    assert f"looked like this {when}, about {100 * assessed.value:.0f} end" in assessed.evidence
    parts = model.parts(values)
    worst_first = sorted(parts, key=lambda name: parts[name], reverse=True)
    assert assessed.chart is not None
    assert assessed.chart.bars
    assert assessed.chart.x_names == worst_first
    (line,) = assessed.chart.lines
    assert line.x == [*range(len(parts))]
    assert line.y == pytest.approx([parts[name] for name in worst_first], abs=1e-4)


@pytest.mark.parametrize(
    ("values", "raised", "lowered"),
    [
        ((0.9, 9.0, 1.0, 2.0), 3, 0),
        ((0.9, 9.0, 0.2, 0.1), 2, 2),
        ((0.9, 0.0, 0.2, 0.1), 1, 3),
        ((0.1, 0.0, 0.2, 0.1), 0, 3),
    ],
)
def test_the_risk_names_three_at_most_that_raise_and_that_lower_it(
    values: tuple[float, ...], raised: int, lowered: int
) -> None:
    """Of four findings, those that change it most come first."""
    (model, *_) = risk.models()
    given = dict(zip(model.terms, values, strict=True))
    parts = model.parts(given)
    up = sorted((n for n in parts if parts[n] > 0), key=lambda n: -parts[n])[:3]
    down = sorted((n for n in parts if parts[n] < 0), key=lambda n: parts[n])[:3]
    assert (len(up), len(down)) == (raised, lowered)
    told = [
        f"{verb} by " + ", ".join(f"{name} {given[name]:.3g}" for name in names)
        for verb, names in (("raised", up), ("lowered", down))
        if names
    ]
    assessed = risk.assess(findings_of(given), 0.2)
    assert assessed.evidence.endswith("; ".join(["a fitted Gaussian's", *told]))
    assert assessed.present is (assessed.value > 0.5)
    assert assessed.severity == ("warning" if assessed.present else "info")
    assert assessed.remedy == (f"mend {up[0]}" if assessed.present else "")
    assert assessed.threshold == 0.5
    assert risk.assess(findings_of(given, remedies=False), 0.2).remedy == ""


def test_no_value_decides_the_risk_alone() -> None:
    """Each has a scale, and those without a bound of their own are cut."""
    bounded = {
        "clip_range": {1.5: 1.5, 9: 2},
        "gradient_norm": {3: 3, 9: 4},
        "depth": {19: math.log(20), 99: math.log(21)},
        "critic_overfitting": {2.5: math.log(3.5), 9: math.log(4)},
        "worse_than_gaussian": {0: math.log(0.01), 0.02: math.log(0.02), 1: 0,
                                99: math.log(99), 1e9: math.log(100)},
    }  # fmt: skip
    assert {*risk.SCALES} == {*CHECKS}
    for name, scale in risk.SCALES.items():
        for value, expected in bounded.get(name, {0.3: 0.3, 1.0: 1.0}).items():
            assert scale(value) == pytest.approx(expected), name


def test_watching_warns_once_and_changes_nothing(data: Dataset, tmp_path: Path) -> None:
    config = tiny_config(
        "vector",
        critic={"depth": 6},
        constraint={"kind": "weight_clipping", "clip_value": 0.001},
        training={"steps": 10},
    )
    said = list[str]()
    watch = watcher(config, data, said.append)
    watched, _ = train(config, data, tmp_path / "a", CPU, watch=watch)
    alone, _ = train(config, data, tmp_path / "b", CPU)
    first, second = watched.tensors(), alone.tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "\n".join(said).count("use lipschitz_penalty") == 1, "the same advice is given once"
    about = [line.split()[1] for line in said]
    risks = [line for line, name in zip(said, about, strict=True) if name == risk.NAME]
    assert [line.rpartition(" (")[2] for line in risks] == ["at step 2)", "at step 6)"]
    assert ["20% of their steps" in risks[0], "60% of their steps" in risks[1]] == [True, True]
    said = [line for line in said if line not in risks]
    about = [line.split()[1] for line in said]
    assert "gradient_norm" in about
    assert "saturated_weights" not in about, "it is present, but predicts too little to warn"
    assert len(set(about)) == len(about) > 1
    assert "lipschitz_penalty" in said[0]
    assert "low_diversity" not in about
    assert all(line.startswith("warning: ") for line in said)


def test_a_finding_is_what_lies_beyond_its_threshold() -> None:
    """Told in one line, with advice only where it is present."""
    measurement = Measurement(1.0, "what was seen", "what to do", None)
    check = Check("slope", lambda _: measurement._replace(value=value), "a", 1.0, "critical", 2.0)
    subject: Any = None
    for value, severity, line in (
        (1.0, "info", "fine: slope 1 (threshold 1), what was seen"),
        (1.5, "warning", "warning: slope 1.5 (threshold 1), what was seen: what to do"),
        (2.0, "warning", "warning: slope 2 (threshold 1), what was seen: what to do"),
        (2.0004, "critical", "critical: slope 2 (threshold 1), what was seen: what to do"),
    ):
        found = check.examine(subject)
        assert found is not None
        assert (found.value, found.present, found.severity) == (value, value > 1, severity)
        assert in_one_line(found) == line
    info = dataclasses.replace(check, ceiling="info").examine(subject)
    assert info is not None
    assert in_one_line(info).startswith("note: slope 2 ")
    assert dataclasses.replace(check, measure=lambda _: None).examine(subject) is None
    assert check.warns_early


def test_a_run_that_has_no_artifact_is_examined_by_its_newest_checkpoint(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was at that step, with its history, and as late; an artifact has precedence."""
    monkeypatch.setattr(subject_module, "MAX_ITEMS", 60)
    config = tiny_config("vector", training={"steps": 8, "checkpoint_every": 2, "log_every": 1})
    seen: dict[int, TrainingState] = {}

    def watch(step: int, state: TrainingState) -> None:
        seen[step] = copy.deepcopy(state)

    with pytest.raises(Interrupted):
        train(config, data, tmp_path / "checkpoints", CPU, watch=watch,
              stop_requested=lambda: len(seen) == 4)  # fmt: skip
    last = max(seen)
    assert 5 <= last < 8
    found = diagnose_run(tmp_path)
    saved = load_checkpoint(tmp_path / "checkpoints" / f"step-{last:08}.safetensors")
    state = seen[last]
    expected = diagnose(config, data, state.ema, state.critic, saved.history, None, share=last / 8)
    assert found == expected
    assert len(saved.history) == last
    assert "at 60% of their steps" in found[-1].evidence
    artifact = make_artifact(tmp_path / "artifact", "vector")
    assert diagnose_run(tmp_path) == diagnose_run(artifact) != found
    assert "at the end" in diagnose_run(artifact)[-1].evidence
    with pytest.raises(UserError, match="neither an artifact nor a checkpoint"):
        diagnose_run(tmp_path / "checkpoints")


@pytest.mark.parametrize(("steps", "watched"), [(1, []), (2, [1]), (7, [2, 5]), (5, [1, 3])])
def test_a_run_is_watched_after_a_fifth_and_three_fifths_of_its_steps(
    steps: int, watched: list[int], data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not after its last: then it is diagnosed. Of a finding it warns the first time."""
    monkeypatch.setattr(subject_module, "MAX_ITEMS", 40)
    said: list[str] = []
    watch = watcher(tiny_config("vector", training={"steps": steps}), data, said.append)
    state: Any = SimpleNamespace(ema=Replay(real(data) + 5), critic=Linear([30.0, 40.0]))
    for step in range(1, steps + 1):
        watch(step, state)
    told = [(line.split()[1], int(line.split()[-1][:-1])) for line in said]
    assert [step for name, step in told if name == risk.NAME] == watched
    assert [step for name, step in told if name == "gradient_norm"] == watched[:1]


def test_a_dead_critic_still_has_finite_findings(data: Dataset) -> None:
    critic = ones_critic(0.0, 8, 3)
    findings = found(data, Replay(real(data) + 5), critic)
    assert all(math.isfinite(f.value) for f in findings.values())
    assert findings["gradient_norm"].present
    assert findings["critic_too_simple"].present
    page = findings_page("dead", list(findings.values()))
    assert page.count("<svg") == sum(f.chart is not None for f in findings.values())


def test_a_conditional_critic_of_images_is_examined_with_its_labels() -> None:
    config = tiny_config(conditional=True)
    digits = load_data(config.data)
    generator, critic = build_networks(config, digits.card.shape, len(digits.card.classes))
    once, again = (diagnose(config, digits, generator, critic) for _ in range(2))
    assert once == again
    expected = [name for name in CHECKS if name not in ("clip_range", "saturated_weights")]
    assert [f.name for f in once] == [*expected, risk.NAME]
    assert next(f for f in once if f.name == "low_diversity").present


def test_a_critic_without_finite_scores_has_diverged(data: Dataset, tmp_path: Path) -> None:
    """Of whatever items; what is examined without a word of how late it is has ended."""
    critic = Linear([1.0, 0.0])
    assert diagnose(tiny_config("vector"), data, Replay(real(data) + math.inf), critic) == []
    ended = found(data, Replay(real(data)[:40].repeat(25, 1)), critic)[risk.NAME]
    assert "looked like this at the end" in ended.evidence
    folder = make_artifact(tmp_path / "artifact", "vector", critic={"depth": 10})
    model = load_artifact(folder)
    with torch.no_grad():
        for parameter in model.critic.parameters():
            parameter.mul_(1e37)
    quantiles = np.zeros(len(QUANTILE_LEVELS))
    save_artifact(folder, model.run, model.generator, model.critic, {}, quantiles, b"", "")
    with pytest.raises(UserError, match="the run has diverged"):
        diagnose_run(tmp_path)


@pytest.mark.timeout(900)
def test_the_command_says_what_the_run_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The page that is looked at is that of `wgan diagnose`.
    monkeypatch.setattr("training.run.findings_page", lambda title, findings: "")
    result = called(
        "train", "--preset", "8gaussians", "--constraint", "weight_clipping", "--steps", 12,
        "--no-register", "--out", "run", "--set", "evaluation.samples=100",
        "--set", "critic.width=16", "--set", "training.checkpoint_every=5",
        "--set", "training.critic_step=eager", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if ": risk " in line]
    assert ["(at step 3)" in lines[0], "(at step 8)" in lines[1]] == [True, True]
    assert "of 100 short runs" in lines[0]
    recorded = json.loads((tmp_path / "run" / "artifact" / "run.json").read_text())["findings"]
    told = wgan("diagnose", "run", "--json", "--out", "page.html", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == recorded
    assert {"clip_range", "saturated_weights", "risk"} <= {finding["name"] for finding in recorded}
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") >= 7
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "## Findings" in (tmp_path / "run" / "artifact" / "MODEL_CARD.md").read_text()
    # An unfinished run has checkpoints only. It is compared with others at its share of the steps.
    (tmp_path / "run" / "artifact").rename(tmp_path / "elsewhere")
    told = called("diagnose", "run", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "gradient_norm" in told.stdout
    assert "looked like this at the end" in told.stdout
    (tmp_path / "run" / "checkpoints" / "step-00000012.safetensors").unlink()
    told = called("diagnose", "run", cwd=tmp_path)
    assert "looked like this at 100% of their steps" not in told.stdout
    assert re.search("looked like this at [26]0% of their steps", told.stdout), told.stdout
    told = called("diagnose", tmp_path / "absent", cwd=tmp_path)
    assert told.returncode == 2
    assert "absent: no such folder" in told.stderr
