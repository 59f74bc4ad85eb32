"""The W1 estimate against distances known in closed form, and the benchmark's pairs against LP."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.fft import dctn

import wgan_cli
from benchmarks.w1 import coverage
from benchmarks.w1.anchors import ANCHORS, SAMPLES
from benchmarks.w1.pairs import PIXELS, FunnelPair, ImagePair
from benchmarks.w1.published import CHUNK, WrittenOut, fit_published
from benchmarks.w1.run import solvers
from benchmarks.w1.table import texts
from models.constraints import (
    Bjorck,
    Cayley,
    Consistency,
    Constraint,
    GradientPenalty,
    LipschitzPenalty,
    NoConstraint,
    Sandwich,
    SpectralNorm,
    WeightClipping,
)
from models.errors import DataError
from models.networks import CriticConfig, build_critic
from models.networks.cones import Cones
from training.judging.metrics import wasserstein_1
from training.lab.fitting import Recipe, default_recipe, fit
from training.lab.samples import Draw, Units, sampler
from training.lab.w1 import critic_estimate, estimate

Array = np.ndarray


def shifted(count: int, *shift: float, seed: int = 0) -> tuple[Array, Array]:
    """Standard normal points moved by `shift`, and others that are not."""
    rng = np.random.default_rng(seed)
    size = (count, len(shift))
    return rng.normal(size=size) + np.array(shift), rng.normal(size=size)


def test_two_clusters_with_a_known_plan() -> None:
    """One moves up by 1, the other, as large and far away, by 3."""
    rng = np.random.default_rng(0)
    a, b = (
        np.repeat([[0.0, 0.0], [10.0, 0.0]], 800, axis=0) + 0.1 * rng.normal(size=(1600, 2))
        for _ in range(2)
    )
    b[:, 1] += np.where(b[:, 0] < 5, 1.0, 3.0)
    report, _ = estimate(a, b, steps=300, batch_size=128)
    assert report["w1"] == pytest.approx(2, rel=0.05)
    assert report["lower"] < 2 * 1.01


def test_two_normals_apart_along_one_axis() -> None:
    a, b = shifted(5000, 3.0, 0, 0)
    report, gradient = estimate(a, b, steps=200, batch_size=128)
    assert report["w1"] == pytest.approx(3, rel=0.03)
    assert 2.6 < report["lower"] < 3
    assert report["plug_in_bias"] > 0.1
    assert report["plug_in"] == pytest.approx(3, abs=report["plug_in_bias"])
    assert report["lipschitz_sampled"] <= report["lipschitz_certified"]
    found = gradient(a[:100])
    assert found.shape == (100, 3)
    np.testing.assert_allclose(found.mean(axis=0), [1, 0, 0], atol=0.15)


def test_a_certified_critic_never_finds_more_than_there_is() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 2))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    report, _ = estimate(x[:1500], 2 * x[1500:], "bjorck", steps=150, batch_size=128)
    assert report["lipschitz_certified"] == pytest.approx(1, abs=1e-3)
    assert 0.5 < report["lower"] < 1.0
    assert report["w1"] < 1.05


def test_the_units_of_the_samples_are_those_of_the_answer() -> None:
    a, b = shifted(500, 2.0, 0)
    one, _ = estimate(a, b, steps=40, batch_size=64)
    large, _ = estimate(1000 * a + 7, 1000 * b + 7, steps=40, batch_size=64)
    for key in ("w1", "lower", "plug_in", "plug_in_bias"):
        assert large[key] == pytest.approx(1000 * one[key], rel=0.02)
    assert large["gradient_norm"]["mean"] == pytest.approx(one["gradient_norm"]["mean"], rel=0.02)


def test_a_large_offset_changes_nothing() -> None:
    """In float32 timestamps of one hour would all be the same."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 100, (2000, 1))
    b = rng.permutation(a) + 70
    plain, _ = estimate(a, b, steps=200, batch_size=128)
    late, gradient = estimate(a + 1_700_000_000, b + 1_700_000_000, steps=200, batch_size=128)
    for key in ("w1", "lower", "plug_in", "p_value"):
        assert late[key] == pytest.approx(plain[key], rel=1e-3)
    assert late["lower"] <= 70
    assert late["w1"] == pytest.approx(70, rel=0.03)
    assert late["interval"][0] <= 70 <= late["interval"][1]
    np.testing.assert_allclose(gradient(b[:50] + 1_700_000_000), -1, atol=0.1)


@pytest.mark.parametrize(
    ("outlier", "distance"), [(1e5, 100.0), (1e7, 1e4), (3e38, 3e35), (-1e7, 1e4)]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_heavy_tail_is_told_and_its_distance_found(
    outlier: float, distance: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 1000, 1))
    a[seed] = outlier
    report, _ = estimate(a, b, steps=30, batch_size=64, seed=seed)
    assert report["w1"] == pytest.approx(distance, rel=2e-3)
    assert report["lower"] <= distance
    assert "heavy tail" in report["cautions"][0]


def test_copied_rows_are_no_further_samples() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.repeat(rng.normal(size=(200, 2)), 5, axis=0) for _ in range(2))
    report, _ = estimate(a, b, steps=20, batch_size=64)
    assert report["heldout"] == [40, 40]
    assert "occurs 5 times" in report["cautions"][0]


def test_the_page_shows_how_often_the_bounds_fail() -> None:
    rows = json.loads(coverage.RESULTS.read_text())
    assert set(rows) == {*coverage.NULLS, *coverage.SHIFTS}
    assert coverage.table(rows) in (Path(__file__).parent.parent / "docs/w1.md").read_text()
    seed = 3
    assert coverage.measure("uniform", seed)["lower"] == pytest.approx(
        rows["uniform"][seed]["lower"]
    )


def test_a_difference_is_told_with_its_p_value() -> None:
    a, b = shifted(500, 1.0, 0)
    apart, _ = estimate(a, b, steps=50, batch_size=64)
    alike, _ = estimate(a, a + 0.0, steps=50, batch_size=64)
    assert apart["p_value"] < 0.001
    assert alike["p_value"] > 0.05
    assert alike["lower"] == 0
    assert apart["interval"][0] < 1 < apart["interval"][1]


@pytest.mark.parametrize("dimension", [32, pytest.param(128, marks=pytest.mark.slow)])
def test_an_estimate_that_has_not_converged_says_so(dimension: int) -> None:
    """Of 256 funnels in many dimensions, few samples and steps find too few."""
    pair = FunnelPair(dimension, 256, seed=0)
    true, _ = pair.w1(2**14)
    a, b = (x.numpy() for x in pair.sample(4000, torch.Generator().manual_seed(0)))
    report, _ = estimate(a, b, steps=300)
    assert abs(report["w1"] / true - 1) > 0.05, "too low, or learnt by heart"
    assert "not converged" in report["cautions"][0]
    assert report["interval"][0] < true < report["interval"][1]


@pytest.mark.parametrize("dimension", [1, 16])
def test_a_converged_estimate_has_no_caution(dimension: int) -> None:
    a, b = shifted(4000, *[2.0] * dimension)
    report, _ = estimate(a, b, steps=200)
    assert report["w1"] == pytest.approx(2 * dimension**0.5, rel=0.03)
    assert report["cautions"] == []


def test_validation_never_sees_half_of_a_split() -> None:
    source = torch.Generator().manual_seed(0)
    centers = 3 * torch.randn(8, 16, generator=source)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(2, 256, 16, generator=source)
        return centers[torch.arange(256) % 8] + 0.3 * noise[0], noise[1]

    a, b = draw()
    gaps: list[float] = []

    def look(critic: torch.nn.Module) -> float:
        with torch.no_grad():
            gaps.append((critic(a).mean() - critic(b).mean()).item())
        return gaps[-1]

    fit(draw, (16,), default_recipe((16,)), 200, 0, look)
    assert len(gaps) == 20
    assert min(gaps[2:]) > 0.9 * gaps[-1]  # a half-moved cone took up to all of it


def test_a_seed_repeats_itself() -> None:
    a, b = shifted(200, 2.0, 0)
    first, again, other = (
        estimate(a, b, steps=10, batch_size=32, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert first["w1"] != other["w1"]


def test_the_correction_takes_out_what_the_penalty_lets_through() -> None:
    """A linear critic of slope 1 + W / (2 strength), which is the optimal one on a line."""
    critic = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Flatten(0))
    critic[0].weight.data.fill_(1 + 3 / 20)
    a, b = torch.full((50, 1), 3.0), torch.zeros(50, 1)
    assert critic_estimate(critic, LipschitzPenalty(strength=10), a, b) == pytest.approx(3)


def test_images_are_taken_as_images() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (60, 8, 9, 2), dtype=np.uint8)
    report, gradient = estimate(a, 255 - a, steps=2, batch_size=8)
    assert np.isfinite(report["w1"])
    assert gradient(a[:3]).shape == (3, 8, 9, 2)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((60, 2)), np.ones((60, 3)), "A has items of shape"),
        (np.zeros((60, 2)), np.zeros((60, 2)), "one and the same point"),
        (np.zeros((5, 2)), np.zeros((60, 2)), "A: needs at least 50"),
        (np.zeros((60, 2)), np.full((60, 2), np.nan), "B: holds NaN"),
        (np.eye(60) * 1e200, np.eye(60), "differ by up to 1e.200, .* bring them to other units"),
        (np.eye(60) * 1e-200, np.zeros((60, 60)), "differ by up to 1e-200, .* to other units"),
        (np.full((60, 1), 1e308), np.full((60, 1), -1e308), "bring them to other units"),
        (np.zeros(60), np.zeros(60), r"A: needs .*of a single column give x\[:, None\]"),
    ],
)
def test_samples_that_do_not_fit(a: Array, b: Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        estimate(a, b)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = shifted(300, 2.0, 0)
    for name, x in (("a", a), ("b", b)):
        np.save(tmp_path / f"{name}.npy", x)
    files = [str(tmp_path / name) for name in ("a.npy", "b.npy")]
    out, at, to = (str(tmp_path / name) for name in ("w1.json", "a.npy", "gradients.npy"))
    command = ["w1", *files, "--json", out, "--steps", "20", "--batch-size", "32"]
    assert wgan_cli.main([*command, "--gradients-at", at, "--gradients-out", to]) == 0
    report = json.loads(Path(out).read_text())
    assert {
        "w1",
        "lower",
        "plug_in",
        "lipschitz_certified",
        "lipschitz_sampled",
        "gradient_norm",
        "steps",
        "seconds",
    } <= set(report)
    assert report["steps"] == 20
    assert np.load(to).shape == a.shape
    assert "95% confidence" in capsys.readouterr().out
    assert wgan_cli.main([*command, "--gradients-at", at]) == 2
    assert wgan_cli.main([*command, "--constraint", "gradient_penalti"]) == 2
    assert "gradient_penalty" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ANCHORS)
def test_the_anchors_within_two_per_cent(name: str) -> None:
    anchor = ANCHORS[name](np.random.default_rng(0))
    assert len(anchor.a) == len(anchor.b) == SAMPLES
    report, _ = estimate(anchor.a, anchor.b)
    assert report["w1"] == pytest.approx(anchor.w1, rel=0.02)
    assert report["lower"] <= anchor.w1 * 1.01


# --- the benchmark's pairs ----------------------------------------------------------------------


@pytest.mark.parametrize(("dimension", "funnels"), [(2, 4), (2, 64), (16, 8), (64, 64)])
def test_the_pairs_plan_is_optimal(dimension: int, funnels: int) -> None:
    """Exact discrete transport between paired samples finds nothing cheaper than their pairs."""
    pair = FunnelPair(dimension, funnels, seed=3)
    x = pair.uniform(600, torch.Generator().manual_seed(0))
    moved = pair.transport(x)
    paid = (x - moved).norm(dim=1).mean().item()
    assert wasserstein_1(moved.numpy(), x.numpy()) == pytest.approx(paid, rel=1e-9)
    mean, error = pair.w1(2**15)
    assert mean == pytest.approx(paid, abs=5 * (error + paid / 600**0.5))


def test_the_potential_pays_for_each_ray() -> None:
    pair = FunnelPair(3, 5, seed=0)
    x = pair.uniform(500, torch.Generator().manual_seed(0))
    moved = pair.transport(x)

    def potential(points: torch.Tensor) -> torch.Tensor:
        return (torch.cdist(points, pair.centers) + pair.heights).min(dim=1).values

    torch.testing.assert_close(potential(x) - potential(moved), (x - moved).norm(dim=1))
    assert (moved.abs() <= 2.5).all()


def test_the_known_gradient_is_that_of_the_potential() -> None:
    pair = FunnelPair(3, 5, seed=0)
    x = pair.uniform(50, torch.Generator().manual_seed(0)).requires_grad_()
    potential = (torch.cdist(x, pair.centers) + pair.heights).min(dim=1).values
    (gradient,) = torch.autograd.grad(-potential.sum(), x)
    torch.testing.assert_close(pair.gradient(x.detach()), gradient)


def test_the_pairs_in_float32_are_those_in_float64() -> None:
    """Also where a coordinate equals the funnel's."""
    pair = FunnelPair(2, 64, seed=0)
    pair.centers = pair.centers.float().double()
    x = pair.uniform(2**14, torch.Generator().manual_seed(0))
    x[:64] = pair.centers + torch.tensor([0, 1e-3])
    x = x.float().double()
    torch.testing.assert_close(
        pair.transport(x.float()).double(), pair.transport(x), rtol=0, atol=2e-3
    )


def test_images_of_points_are_as_far_apart_as_the_points() -> None:
    """Their waves are those of SciPy's cosine transform, each of another slow frequency."""
    pair = ImagePair(7, 5, seed=0)
    points = pair.uniform(20, torch.Generator().manual_seed(0))
    images = pair.images(points)
    assert images.shape == (20, 1, PIXELS, PIXELS)
    torch.testing.assert_close(
        torch.cdist(images.flatten(1), images.flatten(1)), torch.cdist(points, points)
    )
    amplitudes = dctn(images[:, 0].numpy(), axes=(1, 2), norm="ortho")
    slow = [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1)]
    np.testing.assert_allclose(np.stack([amplitudes[:, u, v] for u, v in slow], axis=1), points)


def test_the_known_gradient_at_images_is_that_of_the_potential() -> None:
    pair = ImagePair(3, 5, seed=0)
    x = pair.images(pair.uniform(30, torch.Generator().manual_seed(0))).requires_grad_()
    potential = (
        (torch.cdist(x.flatten(1), pair.images(pair.centers).flatten(1)) + pair.heights)
        .min(dim=1)
        .values
    )
    (gradient,) = torch.autograd.grad(-potential.sum(), x)
    torch.testing.assert_close(pair.gradient(x.detach()), gradient)


# --- the published recipe -----------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [LipschitzPenalty(target=0.2), GradientPenalty(target=0.2)])
@pytest.mark.parametrize("depth", [1, 3])
def test_gradients_written_out_are_those_of_autograd(
    penalty: LipschitzPenalty | GradientPenalty, depth: int
) -> None:
    torch.manual_seed(1)
    config = CriticConfig(width=16, depth=depth, activation="relu")
    critic = build_critic(config, (3,)).double()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.mul_(2)  # some slopes are above the target, and some below
    a, b = (torch.randn(CHUNK + 100, 3, dtype=torch.float64) + shift for shift in (0, 1))
    written_out = WrittenOut(critic, penalty)
    for seed in range(2):  # the second time over what the first left
        torch.manual_seed(seed)
        written_out(a, b)
    found = [p.grad.clone() for p in critic.parameters() if p.grad is not None]
    torch.manual_seed(1)
    term = penalty.term(critic, a, b)
    assert term > 0
    loss = critic(b).mean() - critic(a).mean() + term
    right = torch.autograd.grad(loss, list(critic.parameters()), materialize_grads=True)
    torch.testing.assert_close(found, list(right), rtol=1e-9, atol=1e-12)


def test_a_slope_of_zero_gives_finite_gradients() -> None:
    critic = build_critic(CriticConfig(width=4, depth=2, activation="relu"), (2,))
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.zero_()
    WrittenOut(critic, GradientPenalty())(torch.randn(8, 2), torch.randn(8, 2))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in critic.parameters())


def test_the_published_fit_is_that_of_fit_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, recipe = FunnelPair(2, 4, seed=0), solvers(2)["lp_published"].recipe
    checkpoint = tmp_path / "checkpoint"
    points = pair.sample(100, torch.Generator().manual_seed(9))[0]

    def scores(steps: int, draws: int) -> torch.Tensor:
        source = torch.Generator().manual_seed(0)
        left = iter(range(draws))

        def draw() -> tuple[torch.Tensor, torch.Tensor]:
            next(left)
            return pair.sample(32, source)

        critic = fit_published(draw, 2, recipe, steps, 0, source, checkpoint)
        return critic(points).detach()

    whole = scores(12, 12)
    source = torch.Generator().manual_seed(0)
    critic = fit(lambda: pair.sample(32, source), (2,), recipe, 12, 0)
    torch.testing.assert_close(whole, critic(points).detach(), rtol=1e-3, atol=1e-5)
    monkeypatch.setattr("benchmarks.w1.published.SAVED_EVERY", 5)
    with pytest.raises(StopIteration):
        scores(12, 7)
    assert torch.equal(scores(12, 7), whole)
    assert not checkpoint.exists()


# --- fitting ------------------------------------------------------------------------------------


def test_a_fit_without_judge_returns_the_last_average() -> None:
    source = torch.Generator().manual_seed(0)
    pair = FunnelPair(2, 4, seed=0)
    recipe = default_recipe((2,), Bjorck())
    critic = fit(lambda: pair.sample(64, source), (2,), recipe, steps=5, seed=0)
    assert Bjorck().broken_claim(critic) is None
    assert not critic.training


def by_hand(draw: Draw, shape: tuple[int], recipe: Recipe, steps: int) -> torch.nn.Module:
    """A fit as docs/w1.md describes it: Adam, a short rise and a cosine, an average of weights."""
    torch.manual_seed(0)
    assert recipe.critic is not None
    critic = recipe.constraint.before_training(build_critic(recipe.critic, shape))
    adam = torch.optim.Adam(critic.parameters(), lr=1, betas=(0.9, 0.99))
    average = copy.deepcopy(critic).eval()
    for step in range(steps):
        fall = (1 + math.cos(math.pi * step / steps)) / 2 if recipe.cosine else 1
        rise = min(1, (step + 1) / (0.05 * steps)) if recipe.cosine else 1
        adam.param_groups[0]["lr"] = recipe.learning_rate * rise * fall
        a, b = draw()
        adam.zero_grad()
        loss = critic(b).mean() - critic(a).mean()
        penalty = recipe.constraint.penalty(critic, a, b)
        (loss if penalty is None else loss + penalty).backward()
        adam.step()
        recipe.constraint.after_critic_step(critic)
        kept = min(recipe.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for old, new in zip(average.parameters(), critic.parameters(), strict=True):
                old.lerp_(new, 1 - kept)
            for old, new in zip(average.buffers(), critic.buffers(), strict=True):
                old.copy_(new)
    recipe.constraint.after_critic_step(average)
    return average


@pytest.mark.parametrize(
    ("constraint", "cosine"),
    [
        (WeightClipping(), True),
        (GradientPenalty(), False),
        (SpectralNorm(), True),
        (Bjorck(), False),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_a_fit_is_the_one_that_the_docs_describe(constraint: Constraint, cosine: bool) -> None:
    activation = "groupsort" if isinstance(constraint, Bjorck) else "relu"
    config = CriticConfig(width=8, depth=2, activation=activation)
    recipe = Recipe(constraint, config, 0.02, cosine=cosine)
    points, critics = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)), []
    for fitted in (fit, by_hand):
        source = torch.Generator().manual_seed(0)

        def draw(source: torch.Generator = source) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.randn(2, 64, 2, generator=source)
            return x[0] + torch.tensor([1.0, 0]), x[1]

        args = () if fitted is by_hand else (0,)
        critics.append(fitted(draw, (2,), recipe, 40, *args))  # type: ignore[operator]
    found, right = (critic(points).detach() for critic in critics)
    torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)


def test_the_critic_that_its_judge_likes_best_is_returned() -> None:
    """Of twenty, which come after equally many steps each."""
    source, judged = torch.Generator().manual_seed(0), list[torch.nn.Module]()
    draws, steps = list[int](), list[int]()
    values = {4: 2.0, 7: 5.0, 12: 4.0}

    def judge(critic: torch.nn.Module) -> float:
        judged.append(critic)
        steps.append(len(draws))
        return values.get(len(judged), 0.0)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        draws.append(1)
        a, b = torch.randn(2, 32, 2, generator=source)
        return a + 1, b

    critic = fit(draw, (2,), default_recipe((2,), GradientPenalty()), 40, 0, judge)
    assert steps == list(range(2, 41, 2))
    points = torch.randn(10, 2, generator=source)
    assert torch.equal(critic(points), judged[6](points))
    assert not torch.equal(critic(points), judged[-1](points))


def test_cones_are_split_ten_times_in_the_first_half(monkeypatch: pytest.MonkeyPatch) -> None:
    draws, splits = list[int](), list[int]()
    real = Cones.split

    def split(critic: Cones, x: torch.Tensor, average: Cones) -> None:
        splits.append(len(draws) - len(splits) - 2)  # but for the first draw, and for splits
        real(critic, x, average)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        draws.append(1)
        return torch.randn(16, 2) + 1, torch.randn(16, 2)

    monkeypatch.setattr(Cones, "split", split)
    fit(draw, (2,), default_recipe((2,)), 60, 0)
    assert splits == list(range(3, 31, 3))


def test_recipes_are_those_of_the_docs() -> None:
    assert default_recipe((2,)) == Recipe(NoConstraint(), None, 1e-2, (0.9, 0.99), 0.99)
    for constraint, activation, rate, dropout in (
        (GradientPenalty(), "abs", 2e-3, 0.0),
        (Consistency(), "abs", 2e-3, 0.1),
        (Bjorck(), "groupsort", 5e-3, 0.0),
        (Cayley(), "groupsort", 1e-2, 0.0),
        (Sandwich(), "relu", 1e-2, 0.0),
    ):
        config = CriticConfig(width=128, depth=3, activation=activation, dropout=dropout)
        recipe = default_recipe((9, 2), constraint)
        assert recipe == Recipe(constraint, config, rate, (0.9, 0.99), 0.998, True, 10)
    images = default_recipe((8, 8, 1), GradientPenalty()).critic
    assert images is not None
    assert (images.architecture, images.width) == ("dcgan", 32)


def test_the_benchmark_s_page_is_made_from_its_results() -> None:
    for path, text in texts().items():
        assert path.read_text() == text, "run: python -m benchmarks.w1.table"


FAR = {
    "one column 10^12 times as wide as the other": lambda x, y: (x * [1e9, 1e-3], y * [1e9, 1e-3]),
    "clusters 10^9 apart": lambda x, y: (x + 1e9 * (x > 0), y + 1e9 * (y > 0)),
    "a shift of 10^-9": lambda x, y: (x + 1e-9, y),
    "an outlier": lambda x, y: (np.vstack([x[1:], [[1e4, 0]]]), y),
}


@pytest.mark.parametrize("name", FAR)
def test_a_fit_in_float64_finds_what_one_in_float32_does(name: str) -> None:
    """Rounding costs less than a tenth of a standard error: no data need a fit in float64."""
    a, b = FAR[name](*np.random.default_rng(0).normal(size=(2, 4000, 2)))
    units = Units((a, b))
    x, y = units.to_critic(a), units.to_critic(b)
    recipe = default_recipe((2,))._replace(splits=0)  # which are random in either precision
    gaps = []
    for dtype in (torch.float32, torch.float64):
        draw = sampler(x.to(dtype), y.to(dtype), 256, 0)
        critic = fit(draw, (2,), recipe, 200, 0).double()
        scores = [critic(side).detach() for side in (x, y)]
        gaps.append((scores[0].mean() - scores[1].mean()).item())
    error = sum(side.var().item() / len(side) for side in scores) ** 0.5
    assert abs(gaps[0] - gaps[1]) < 0.1 * error
