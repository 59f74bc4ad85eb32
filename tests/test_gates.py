"""The gates of a promotion, each against cases whose answer is known."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from models import record
from models.artifact import load_artifact
from models.config import DataConfig, EvaluationConfig
from models.record import Finding
from models.sampling import Scaling
from tests.artifacts import make_artifact
from training.data.dataset import Dataset, load_data
from training.judging.copying import COPYING, Membership, copying_statistic, membership
from training.judging.evaluate import judge
from training.judging.figures import HEADLINES, distances, figure
from training.judging.intervals import (
    Difference,
    Estimate,
    compare,
    compare_kernel_distances,
    measure,
    pair_mean_error,
)
from training.judging.metrics import kernel_distance
from training.judging.neighbours import nearest_distances
from training.retraining import gates
from training.retraining.evidence import ATTACK_SAMPLES, DIFFERENCE_LEVEL, Evidence, RegisteredModel


def means(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    return {"mean": float(fake.mean() - real.mean())}


def test_a_difference_is_of_the_same_items() -> None:
    rng = default_rng(0)
    real, first, second = rng.normal(size=(3, 200, 2))
    found = compare(means, real, first, second)["mean"]
    assert found.first - found.second == pytest.approx(first.mean() - second.mean())
    assert found.low < found.first - found.second < found.high
    same = compare(means, real, first, first)["mean"]
    assert (same.low, same.high, same.n) == (0, 0, 200)
    with pytest.raises(ValueError, match="equal"):
        compare(means, real, first, second[:100])


def test_what_moves_both_figures_alike_falls_out() -> None:
    """Real points that scatter widely blur each figure, and not the difference."""
    rng = default_rng(1)
    real, first, second = 100 * rng.normal(size=(400, 1)), *rng.normal(size=(2, 400, 1))
    alone = measure(means, real, first, real)["mean"]
    both = compare(means, real, first, second)["mean"]
    assert both.high - both.low < 0.1 * (alone.high - alone.low)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """The ends of the 90% interval are 95% bounds: difference of means of normal data."""
    rng = default_rng(2)
    above = 0
    for seed in range(300):
        real, first, second = rng.normal(size=(3, 60, 1))
        found = compare(means, real, first + 0.3, second, level=DIFFERENCE_LEVEL, seed=seed)["mean"]
        above += found.high >= 0.3
    assert 0.91 < above / 300 < 0.99  # 95% and about four standard errors


@pytest.mark.parametrize("spread", [1.0, 0.0])
def test_the_error_of_a_mean_over_pairs_is_hoeffding_s(spread: float) -> None:
    """Products of pairs that share one draw, and none, one by one; of 1s there is no error."""
    values = 1 + spread * default_rng(5).normal(size=(7, 7)) ** 2
    pairs = values + values.T
    # Of sums over draws the pairs that share one are alike; of others that part is cut at 0.
    for each in (pairs, pairs + spread * 3 * np.add.outer(np.arange(7), np.arange(7))):
        np.fill_diagonal(each, 0)
        shared = [each[i, j] * each[i, k] for i, j, k in itertools.permutations(range(7), 3)]
        apart = [each[i, j] * each[k, m] for i, j, k, m in itertools.permutations(range(7), 4)]
        squares = [each[i, j] ** 2 for i, j in itertools.permutations(range(7), 2)]
        z1 = max(0, np.mean(shared) - np.mean(apart))
        z2 = np.mean(squares) - np.mean(apart)
        expected = math.sqrt((4 * 5 * z1 + 2 * z2) / (7 * 6))
        assert pair_mean_error(each) == pytest.approx(expected, rel=1e-9, abs=1e-6)
        assert (expected > 0.1) is (spread > 0)


def test_kernel_distances_are_compared_as_the_docs_describe() -> None:
    """The difference and its interval, from the pairs' values; what does not fit is refused."""
    real, first, second = default_rng(6).normal(size=(3, 9, 4))
    found = compare_kernel_distances(real, first, second, level=0.8)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 4 + 1) ** 3)

    def pair(i: int, j: int) -> float:
        within = kernel(first[i], first[j]) - kernel(second[i], second[j])
        across = [
            kernel(real[a], second[b]) - kernel(real[a], first[b]) for a, b in ((i, j), (j, i))
        ]
        return within + sum(across)

    pairs = np.array([[pair(i, j) if i != j else 0.0 for j in range(9)] for i in range(9)])
    margin = stats.t(19).ppf(0.9) * pair_mean_error(pairs)
    expected = kernel_distance(real, first) - kernel_distance(real, second)
    assert found.first - found.second == pytest.approx(expected)
    assert (found.low, found.high) == pytest.approx((expected - margin, expected + margin))
    assert found.n == 9
    assert compare_kernel_distances(real[:4], first[:4], second[:4]).n == 4
    for sets in ((real[:8], first, second), (real, first[:8], second), (real, first, second[:8])):
        with pytest.raises(ValueError, match="need equal"):
            compare_kernel_distances(*sets)
        with pytest.raises(ValueError, match="need equal"):
            compare(means, *sets)
    with pytest.raises(ValueError, match="at least 4 points"):
        compare_kernel_distances(real[:3], first[:3], second[:3])
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            compare_kernel_distances(real, first, second, level=level)


@pytest.mark.parametrize(
    ("first", "second", "least"),
    [(0, 0, 0.95), (0.1, 0.1, 0.95), (0.3, 0.3, 0.95), (0.1, 0.3, 0.93), (0.3, 0.1, 0.93)],
)
def test_kernel_distances_differ_by_as_much_as_their_interval_says(
    first: float, second: float, least: float
) -> None:
    """Each end holds the truth as often as said, a little less where the differences are skewed."""
    rng, found = default_rng(3), list[Difference]()
    for _ in range(2000):
        real, one, other = rng.normal(size=(3, 100, 16))
        found.append(
            compare_kernel_distances(real, one + first, other + second, level=DIFFERENCE_LEVEL)
        )
    differences = np.array([x.first - x.second for x in found])
    truth = differences.mean()
    above = np.mean([x.high >= truth for x in found])
    below = np.mean([x.low <= truth for x in found])
    assert min(above, below) > least - 0.015  # three standard errors
    width = np.mean([x.high - x.low for x in found]) / 2
    assert 0.9 < width / (1.729 * differences.std()) < 1.15  # Student's t of 19 at 95%


def test_a_small_true_gain_is_seen_by_the_kernel_distance() -> None:
    """Half samples see it in some 40 of 100 cases; of equal models one in twenty is promoted."""
    rng, scaling = default_rng(4), Scaling((16,), [0.0] * 16, [1.0] * 16)

    def model(samples: np.ndarray) -> Any:
        return SimpleNamespace(
            shape=(16,), scaling=scaling, sample=lambda seed, count: samples.astype(np.float32)
        )

    better, equal = 0, 0
    for _ in range(100):
        real, one, other, third = rng.normal(size=(4, 150, 16))
        data: Any = SimpleNamespace(sample=lambda n, heldout, real=real: real.astype(np.float32))
        challenger = model(one + 0.05)
        evidence = Evidence(challenger, None, None, data, data, None, "kernel_distance", 150)
        better += evidence.loss_difference(model(other + 0.15)).high <= 0
        equal += evidence.loss_difference(model(third + 0.05)).high <= 0
    assert better >= 60
    assert equal <= 12  # more than 5% by chance in fewer than one of a thousand cases


def test_nearest_distances_agree_with_all_pairs() -> None:
    rng = default_rng(0)
    points, others = rng.normal(size=(50, 3)), rng.normal(size=(70, 3))
    expected = np.linalg.norm(points[:, None] - others, axis=2).min(axis=1)
    np.testing.assert_allclose(nearest_distances(points, others, chunk=7), expected)


def test_nearest_distances_do_not_round_copies_far_away_and_take_several_arrays() -> None:
    rng = default_rng(1)
    others = 1e6 + rng.normal(size=(300, 5))
    points = np.concatenate([others[::3], others[::3] + 1e-4, 1e6 + rng.normal(size=(50, 5))])
    expected = cdist(points, others).min(axis=1)
    assert (expected[:100] == 0).all()
    for parts in (others, [others[:1], others[1:299], others[299:]], iter([others])):
        found = nearest_distances(points, parts, chunk=64)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    with pytest.raises(ValueError, match="at least 1"):
        nearest_distances(points, [])


@pytest.mark.parametrize(
    ("low", "high", "margin", "passed", "says"),
    [
        (-0.5, -0.1, 0.0, True, "at most"),
        (-0.5, 0.0, 0.0, True, "at most"),
        (-0.1, 0.3, 0.0, False, "cannot tell"),
        (-0.1, 0.3, 0.3, True, "at most"),
        (0.1, 0.3, 0.05, False, "worse"),
        (0.05, 0.3, 0.05, False, "cannot tell"),
    ],
)
def test_no_worse_means_the_upper_bound(
    low: float, high: float, margin: float, passed: bool, says: str
) -> None:
    gate = gates.not_worse("champion", "it", "loss", Difference(1.0, 1.1, low, high, 50), margin)
    assert gate.passed is passed
    assert says in gate.reason
    assert (gate.challenger, gate.reference, gate.interval) == (1.0, 1.1, (low, high))


def test_too_little_data_rejects() -> None:
    """The same better challenger passes with many held-out items and not with few."""
    rng = default_rng(3)

    def verdict(n: int) -> bool:
        real, better, worse = rng.normal(size=(3, n, 2))
        found = compare(lambda r, f: {"loss": abs(means(r, f)["mean"])}, real, better, worse + 0.3)
        return gates.not_worse("champion", "it", "loss", found["loss"], 0.0).passed

    assert verdict(4000)
    assert not verdict(20)
    assert gates.enough_heldout(100, 100).passed
    few, enough = (gates.enough_heldout(n, 100) for n in (99, 100))
    assert not few.passed
    assert "too few to judge by" in few.reason
    assert "too few" not in enough.reason


def test_shares_must_surely_reach_their_least_value() -> None:
    recall = figure("recall", Estimate(value=0.5, floor=0.9, low=0.4, high=0.6, n=100))
    assert gates.within("recall", recall, least=0.4).passed
    gate = gates.within("recall", recall, least=0.45)
    assert not gate.passed
    assert (gate.challenger, gate.reference, gate.interval) == (0.5, 0.45, (0.4, 0.6))
    assert gates.within("recall", recall, most=0.6).passed
    assert not gates.within("recall", recall, most=0.55).passed
    above = gates.within("recall", recall, most=0.6)
    assert above.reference == 0.6
    assert "surely at most 0.600; enough: at most 0.6 is wanted" in above.reason
    assert "surely at least 0.400; too low: at least 0.45 is wanted" in gate.reason
    assert gate.reason.endswith(", and real data have 0.9")
    unheard = gates.within("recall", recall.model_copy(update={"floor": None}), least=0.4)
    assert unheard.reason.endswith("enough: at least 0.4 is wanted")
    unknown = gates.within("tstr", None, least=0.1)
    assert not unknown.passed
    assert "set evaluation.target" in unknown.reason
    assert unknown.reference == 0.1
    missing = gates.within("recall", None, most=0.2)
    assert (missing.passed, missing.reference) == (False, 0.2)
    assert "the data do not have it" in missing.reason


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("margin", [0], [-1e-9, math.inf]),
        ("min_heldout", [20], [19]),
        *((share, [0, 1], [-0.01, 1.01]) for share in ("precision", "recall", "coverage")),
        ("max_drift", [1], [0.99, math.inf]),
        ("max_near_training", [0, 1], [-0.01, 1.01]),
        ("max_membership", [0.5, 1], [0.49, 1.01]),
        ("max_seconds", [1e-9], [0]),
    ],
)
def test_a_limit_without_a_meaning_is_refused(
    name: str, allowed: list[float], refused: list[float]
) -> None:
    """Shares are from 0 to 1, an area under a curve is 0.5 by chance, a factor is 1 or more."""
    for value in allowed:
        assert getattr(gates.GatesConfig(**{name: value}), name) == value
    for value in refused:
        with pytest.raises(ValueError, match=name):
            gates.GatesConfig(**{name: value})


@pytest.mark.parametrize("model", [gates.GatesConfig, gates.Gate])
def test_limits_and_results_are_fixed_and_take_no_other_names(model: Any) -> None:
    given = {} if model is gates.GatesConfig else {"name": "a", "passed": True, "reason": "b"}
    with pytest.raises(ValueError, match="unknown"):
        model(**given, unknown=1)
    made = model(**given)
    with pytest.raises(ValueError, match="frozen"):
        setattr(made, next(iter(type(made).model_fields)), None)


def test_every_gate_has_its_limit_and_its_place() -> None:
    rng = default_rng(20)
    share = Estimate(value=0.5, floor=0.9, low=0.41, high=0.6, n=100)
    evidence: Any = SimpleNamespace(
        challenger=SimpleNamespace(
            run=SimpleNamespace(findings=[]), sample=lambda seed, count: None
        ),
        n=100,
        schema=None,
        shares=dict.fromkeys(("precision", "recall", "coverage"), share),
        fake=rng.normal(size=(100, 2)),
        real=rng.normal(size=(100, 2)),
        all_training=lambda: [rng.normal(size=(100, 2))],
        device="cpu",
        membership=Membership(0.6, 0.55, 0.65, 0.001),
        figures={name: figure(name, share) for name in ("valid_share", "pair_trends")},
    )
    limits = gates.GatesConfig(most={"pair_trends": 0.6}, least={"pair_trends": 0.2})

    def found(limits: gates.GatesConfig) -> list[tuple[str, float | None, bool]]:
        judged = gates.challenger_gates(evidence, limits)
        return [(gate.name, gate.reference, gate.passed) for gate in judged]

    shares = [(name, 0.4, True) for name in ("precision", "recall", "coverage")]
    own = [("pair_trends", 0.2, True), ("pair_trends", 0.6, True)]
    always = [
        ("memorisation", 0.15, True),
        ("membership", 0.55, True),  # its lower end may be as large
        ("findings", 0, True),
        ("latency", 2.0, True),
    ]
    assert found(limits) == [("heldout", 100, True), *shares, *always, *own]
    evidence.schema = object()  # a table
    valid = ("valid_share", 1.0, False)
    assert found(limits) == [("heldout", 100, True), *always, valid, *own]
    named = gates.GatesConfig(least={"valid_share": 0.4})
    assert found(named)[-1] == ("valid_share", 0.4, True)


def test_limits_are_of_figures_that_there_are() -> None:
    with pytest.raises(ValueError, match="no figure 'pair_trend'; did you mean 'pair_trends'"):
        gates.GatesConfig(least={"pair_trend": 0.8})


def test_only_critical_findings_count() -> None:
    minor = Finding(
        name="vanishing_gradients",
        value=3.0,
        threshold=1.0,
        present=True,
        severity="warning",
        evidence="the gradient falls",
        remedy="constrain less",
    )
    critical = minor.model_copy(update={"severity": "critical"})
    assert gates.no_critical_finding([]).passed
    assert gates.no_critical_finding([minor]).passed
    assert gates.no_critical_finding([minor]).reason == "none of 1 findings is critical"
    gate = gates.no_critical_finding([minor, critical])
    assert not gate.passed
    assert gate.challenger == 1
    assert "the gradient falls: constrain less" in gate.reason
    assert gates.no_critical_finding([critical], (minor.name,)).passed


def test_a_copier_is_caught_and_a_perfect_sampler_is_not() -> None:
    rng = default_rng(4)
    training, heldout, fresh = rng.normal(size=(3, 1000, 4))
    perfect = gates.not_copied(fresh, heldout, training, 0.25)
    assert perfect.passed
    assert perfect.challenger == pytest.approx(gates.NEAR_SHARE, abs=0.03)
    assert "C_T is" in perfect.reason
    few = gates.not_copied(fresh[:5], heldout[:5], training, 0.25)
    assert "C_T" not in few.reason, "too few to say"
    copies = training[rng.permutation(1000)] + 1e-3 * rng.normal(size=(1000, 4))
    assert gates.not_copied(copies, heldout, training, 0.25).challenger == 1.0
    mixed = np.concatenate([copies[:400], fresh[:600]])
    assert not gates.not_copied(mixed, heldout, training, 0.25).passed


def test_the_share_of_near_samples_has_the_interval_of_a_share() -> None:
    """One training item at 0, held-out ones at 1 to 100: a sample is near up to 5.95."""
    heldout = np.arange(1.0, 101)[:, None]
    fake = np.repeat([5.9, 50.0], [30, 70])[:, None]
    gate = gates.not_copied(fake, heldout, [np.zeros((1, 1))], 0.22)
    assert gate.passed
    assert gate.challenger == 0.3
    low, high = stats.norm.interval(0.95, 0.3, math.sqrt(0.3 * 0.7 / 100))
    assert gate.interval == pytest.approx((low, high), abs=1e-4)
    assert low == pytest.approx(0.2102, abs=1e-4)
    assert not gates.not_copied(fake, heldout, [np.zeros((1, 1))], 0.2).passed
    assert gates.not_copied(fake, heldout, [np.zeros((1, 1))], gate.interval[0]).passed


def test_what_is_as_near_as_the_nearest_held_out_items_is_near() -> None:
    """All held-out items and all samples are equally far: a share of 1 is as near."""
    ones = np.ones((50, 1))
    gate = gates.not_copied(ones, ones, [np.zeros((1, 1))], 0.15)
    assert (gate.challenger, gate.passed) == (1.0, False)


def test_a_copier_of_a_hundred_thousand_items_is_caught() -> None:
    """Each of its 1,000 samples is one of the training items, and an honest generator's none."""
    rng = default_rng(5)
    items = rng.normal(size=(101_000, 8)).astype(np.float32)
    data: Any = Dataset(items, np.arange(101_000) < 1000, None, None, None)  # type: ignore[arg-type]

    def judged(samples: np.ndarray) -> dict[str, gates.Gate]:
        samples = samples.astype(np.float32)
        challenger: Any = SimpleNamespace(
            shape=(8,),
            scaling=Scaling((8,), [0.0] * 8, [1.0] * 8),
            sample=lambda seed, count: samples[:count],
            samples=lambda seed, count, start: iter([samples[start : start + count]]),
        )
        evidence = Evidence(challenger, None, None, data, data, None, "wasserstein_1", 1000)
        found = itertools.islice(gates.challenger_gates(evidence, gates.GatesConfig()), 6)
        return {gate.name: gate for gate in found}

    copier = judged(items[rng.integers(1000, 101_000, size=ATTACK_SAMPLES)])
    assert not copier["memorisation"].passed, copier["memorisation"].reason
    assert copier["memorisation"].challenger == 1.0
    assert not copier["membership"].passed, copier["membership"].reason
    assert "C_T is -" in copier["memorisation"].reason
    honest = judged(rng.normal(size=(ATTACK_SAMPLES, 8)))
    for name in ("memorisation", "membership"):
        assert honest[name].passed, honest[name].reason
    assert honest["memorisation"].challenger == pytest.approx(gates.NEAR_SHARE, abs=0.03)
    assert honest["membership"].challenger == pytest.approx(0.5, abs=0.05)
    quarter = rng.normal(size=(ATTACK_SAMPLES, 8))
    quarter[::4] = items[rng.integers(1000, 101_000, size=ATTACK_SAMPLES // 4)]
    assert not judged(quarter)["memorisation"].passed


def test_a_membership_attack_is_the_area_under_its_curve() -> None:
    """Of scikit-learn, with ties; DeLong's interval by its definition over all pairs."""
    rng = default_rng(10)
    members, others = rng.integers(0, 30, 80) + 3.0, rng.integers(0, 30, 50) + 0.0
    found = membership(members, others)
    truth = np.repeat([1, 0], [80, 50])
    assert found.auroc == pytest.approx(roc_auc_score(truth, np.concatenate([members, others])))
    wins = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    variance = wins.mean(axis=1).var(ddof=1) / 80 + wins.mean(axis=0).var(ddof=1) / 50
    assert found.high - found.auroc == pytest.approx(1.96 * np.sqrt(variance))
    assert found.auroc - found.low == pytest.approx(1.96 * np.sqrt(variance))
    for bad in (members[:1], np.full(5, np.nan)):
        with pytest.raises(ValueError, match="at least 2"):
            membership(bad, others)
        with pytest.raises(ValueError, match="at least 2"):
            membership(others, bad)
    assert membership(members[:2], others[:2]).auroc >= 0


def test_the_figures_of_membership_tell_a_copier() -> None:
    """A generator that repeats 60 training items, and a critic that scores all of them higher."""
    data = load_data(DataConfig(source="8gaussians"))
    known = data.sample(200, heldout=False)
    model: Any = SimpleNamespace(
        is_image=False,
        classes=[],
        device=torch.device("cpu"),
        scaling=data.scaling,
        sample=lambda seed, count: np.resize(known[:60], (count, 2)),
        score=lambda items, labels: (items[:, None] == known).all(axis=2).any(axis=1) * 1.0,
    )
    figures = judge(model, data, EvaluationConfig(samples=200)).figures
    assert list(figures)[-2:] == ["membership_auroc", "critic_membership_auroc"]
    found = figures["membership_auroc"]
    items = np.concatenate([known, data.sample(200, heldout=True)]).astype(np.float64)
    nearest = cdist(items, known[:60].astype(np.float64)).min(axis=1)
    expected = roc_auc_score(np.repeat([1, 0], 200), -nearest)
    assert found.value == pytest.approx(expected)
    assert (found.floor, found.better, found.n) == (0.5, "lower", 200)
    assert 0.5 < found.interval[0] < found.value < found.interval[1] <= 1
    assert figures["critic_membership_auroc"].value == 1
    assert figures["authenticity"].value == 0
    assert 0.2 < figures["authenticity"].floor < 0.5  # type: ignore[operator]


def test_the_chance_of_a_membership_attack_is_as_large_as_it_says() -> None:
    """Of items that are alike, p is below 5% in 5% of cases, and the interval holds 0.5 in 95%."""
    rng = default_rng(11)
    found = [membership(rng.normal(size=60), rng.normal(size=40)) for _ in range(1000)]
    assert np.mean([x.p_value < 0.05 for x in found]) == pytest.approx(0.05, abs=0.02)
    assert np.mean([x.low <= 0.5 <= x.high for x in found]) == pytest.approx(0.95, abs=0.02)


def test_a_trusted_set_is_no_part_of_the_membership_attack() -> None:
    """Samples are nearer to the data of the training than to a trusted set of another kind."""
    rng = default_rng(12)

    def data(shift: float) -> Any:
        items = (rng.normal(size=(1500, 8)) + shift).astype(np.float32)
        return Dataset(items, np.arange(1500) < 500, None, None, None)  # type: ignore[arg-type]

    samples = rng.normal(size=(1000, 8)).astype(np.float32)
    challenger: Any = SimpleNamespace(
        shape=(8,),
        scaling=Scaling((8,), [0.0] * 8, [1.0] * 8),
        samples=lambda seed, count, start: iter([samples[start : start + count]]),
    )
    evidence = Evidence(challenger, None, None, data(3.0), data(0.0), None, "wasserstein_1", 500)
    assert gates.not_told_apart(evidence.membership, gates.GatesConfig().max_membership).passed


def test_a_narrow_generator_gives_no_training_items_away() -> None:
    """It is near to training items since it stays where they are dense: C_T calls that copying."""
    rng = default_rng(13)
    training, heldout = rng.normal(size=(2, 1000, 8))
    narrow = 0.8 * rng.normal(size=(1000, 8))
    of_narrow, of_heldout = (nearest_distances(x, training) for x in (narrow, heldout))
    statistic = copying_statistic(narrow, heldout, of_narrow, of_heldout)
    assert statistic is not None
    assert statistic < COPYING
    attack = membership(-nearest_distances(training, narrow), -nearest_distances(heldout, narrow))
    assert gates.not_told_apart(attack, gates.GatesConfig().max_membership).passed


def test_the_data_copying_test_tells_copies_from_samples() -> None:
    """Meehan et al. 2020: also where copies in one half are hidden by bad samples in the other."""
    rng = default_rng(6)
    for _ in range(5):
        training, heldout, fresh = np.split(rng.normal(size=(7000, 6)), [5000, 6000])

        def statistic(
            samples: np.ndarray, training: np.ndarray = training, heldout: np.ndarray = heldout
        ) -> float:
            of_samples, of_heldout = (nearest_distances(x, training) for x in (samples, heldout))
            found = copying_statistic(samples, heldout, of_samples, of_heldout)
            assert found is not None
            return found

        assert abs(statistic(fresh)) < 1 < -COPYING
        assert statistic(training[:1000]) < 2 * COPYING
        assert statistic(1.5 * fresh) > 3
        hidden, side = 1.6 * fresh, fresh[:, 0] > 0
        hidden[side] = training[training[:, 0] > 0][: side.sum()]
        assert statistic(hidden) < -2
        assert "C_T is" in gates.not_copied(fresh, heldout, training, 0.25).reason
    collapsed = np.ones((1000, 6))
    nearest = nearest_distances(collapsed, training)
    assert copying_statistic(collapsed, heldout[:10], nearest, nearest[:10]) is None
    assert copying_statistic(collapsed, collapsed, nearest, nearest) == 0


def test_the_data_copying_statistic_is_a_mean_of_mann_whitney_tests() -> None:
    """Of cells that are known: each test is SciPy's, and its weight the number of held-out items.

    The last cell has one item less than a cell must have, of one kind.
    """
    rng = default_rng(7)

    def z_value(near: np.ndarray, others: np.ndarray) -> float:
        test = stats.mannwhitneyu(near, others, method="asymptotic", use_continuity=False)
        n, m = len(near), len(others)
        return float((test.statistic - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12))

    for counts in (((20, 199),), ((20, 180), (70, 20)), ((40, 190), (19, 90))):
        groups = [
            [100 * i + rng.normal(size=(n, 2)) for n in pair] for i, pair in enumerate(counts)
        ]
        distances = [[rng.random(n) for n in pair] for pair in counts]
        counted = [(*pair, len(pair[1])) for pair in distances if min(map(len, pair)) >= 20]
        expected = np.average(
            [z_value(near, others) for near, others, _ in counted],
            weights=[weight for *_, weight in counted],
        )
        fake, heldout = (np.concatenate(side) for side in zip(*groups, strict=True))
        of_fake, of_heldout = (np.concatenate(side) for side in zip(*distances, strict=True))
        found = copying_statistic(fake, heldout, of_fake, of_heldout)
        assert found == pytest.approx(expected, rel=1e-9)


def test_data_must_look_to_the_champion_as_they_did() -> None:
    recorded = record.Figure(value=1.0, floor=0.0, interval=(0.8, 1.2), n=100, better="lower")
    now = Estimate(value=2.9, floor=0.0, low=2.3, high=3.5, n=100)
    assert gates.familiar("loss", now, recorded, 2.0).passed
    assert not gates.familiar("loss", now._replace(low=2.5), recorded, 2.0).passed
    assert gates.familiar("loss", now._replace(low=2.4), recorded, 2.0).passed
    fewer = gates.familiar("loss", now._replace(low=2.5), recorded, 2.0, growth=0.3)
    assert fewer.reference == pytest.approx(2 * (1.2 + 0.3))
    assert fewer.passed
    assert fewer.reason.endswith("1 when it was judged on 100, 0.3 less than on 100")


def test_the_champion_s_loss_is_compared_on_one_number_of_items() -> None:
    asked: list[Any] = []

    def loss_of(model: Any, n: int) -> Estimate:
        asked.append(n)
        return Estimate(value=2.6, floor=0.0, low=2.5, high=2.7, n=60)

    def loss_growth(model: Any, fewer: int, more: int) -> float:
        asked.extend((fewer, more))
        return 0.3

    recorded = record.Figure(value=1.0, floor=0.0, interval=(0.8, 1.2), n=100, better="lower")
    champion: Any = SimpleNamespace(
        run=SimpleNamespace(results=SimpleNamespace(figures={"loss": recorded}))
    )
    evidence: Any = SimpleNamespace(
        judged_alike=lambda model: True, loss="loss", loss_of=loss_of, loss_growth=loss_growth
    )
    gate = gates.known_data(evidence, champion, 2.0)
    assert asked == [100, 60, 100]
    assert (gate.passed, gate.reference) == (True, pytest.approx(3.0))
    evidence.judged_alike = lambda model: False
    gate = gates.known_data(evidence, champion, 1e-9)
    assert gate.passed
    assert "not asked" in gate.reason


class Sampler:
    """A champion that draws normal points around ``center``."""

    shape = (32,)
    scaling = Scaling((32,), [0.0] * 32, [1.0] * 32)

    def __init__(self, center: float, judged_on: np.ndarray, loss: str) -> None:
        self.center = center
        training = default_rng(99).normal(size=judged_on.shape)
        metric, samples = distances(loss), self.sample(0, len(judged_on))
        figures = {loss: figure(loss, measure(metric, judged_on, samples, training)[loss])}
        results = record.Results(extractor=None, figures=figures)
        self.run = SimpleNamespace(results=results)

    def sample(self, seed: int, count: int) -> np.ndarray:
        return default_rng(1000 + seed).normal(self.center, 1, (count, 32)).astype(np.float32)


def data_gate(loss: str, then: np.ndarray, now: np.ndarray, center: float = 0.05) -> gates.Gate:
    """Judge a champion on items ``then``, and ask the gate about items ``now``."""
    champion: Any = Sampler(center, then, loss)
    count = len(now)
    items = np.concatenate([now, default_rng(98).normal(size=(count, 32))]).astype(np.float32)
    data: Any = Dataset(items, np.arange(2 * count) < count, None, None, None)  # type: ignore[arg-type]
    evidence = Evidence(
        champion, RegisteredModel("1", champion), None, data, data, None, loss, count
    )
    return gates.known_data(evidence, champion, 2.0)


@pytest.mark.parametrize("counts", [(1000, 100), (500, 250), (100, 1000)])
@pytest.mark.parametrize("loss", ["frechet_distance", "sliced_wasserstein_1", "kernel_distance"])
def test_the_number_of_held_out_items_is_no_sign_of_spoiled_data(
    loss: str, counts: tuple[int, int]
) -> None:
    """Sound data pass and spoiled data fail, whether there are fewer or more items than then."""
    for seed in range(5):
        rng = default_rng(seed)
        then, now = (rng.normal(size=(count, 32)) for count in counts)
        gate = data_gate(loss, then, now)
        assert gate.passed, gate.reason
        assert not data_gate(loss, then, now + 1).passed
        assert not data_gate(loss, then, 4 * now).passed


def test_few_items_judged_on_then_hide_no_spoiled_data_now() -> None:
    """On 100 points the distance of equal distributions is 6, on 1,000 it is 0.6."""
    rng = default_rng(7)
    then, now = rng.normal(size=(100, 32)), rng.normal(0.7, 1, (1000, 32))
    gate = data_gate("frechet_distance", then, now)
    assert not gate.passed, gate.reason


def test_every_headline_may_be_the_loss() -> None:
    assert set(get_args(gates.Loss)) == set(itertools.chain(*HEADLINES.values()))


def test_items_of_another_kind_are_compared_with_no_champion(tmp_path: Path) -> None:
    kinds = ("vector", "image", "rgb")
    models = {kind: load_artifact(make_artifact(tmp_path / kind, kind)) for kind in kinds}

    def found(champion: str, best: str | None = None) -> dict[str, gates.Gate]:
        versions = [
            RegisteredModel(str(i), models[kind])
            for i, kind in enumerate((champion, best or champion))
        ]
        evidence: Any = SimpleNamespace(
            champion=versions[0],
            best=versions[1] if best else versions[0],
            challenger=models["vector"],
            loss="wasserstein_1",
            judged_alike=lambda model: False,
            loss_difference=lambda model: Difference(1.0, 1.1, -0.5, -0.1, 50),
        )
        judged = gates.champion_gates(evidence, gates.GatesConfig())
        return {gate.name: gate for gate in judged}

    none: Any = SimpleNamespace(champion=None, best=None)
    assert list(gates.champion_gates(none, gates.GatesConfig())) == []
    assert [*found("vector")] == ["schema", "data", "champion"]
    assert [*found("vector", "vector")] == ["schema", "data", "champion", "best_champion"]
    assert all(gate.passed for gate in found("vector", "vector").values())
    other = found("image", "rgb")
    assert not any(gate.passed for gate in other.values())
    assert other["schema"].reason.startswith(
        "it makes vectors of 2 values, not images of 8x8 pixels and 1 channel; "
    )
    assert other["champion"].reason == "the champion makes items that do not compare"
    assert other["best_champion"].reason == "the best champion makes items that do not compare"


def test_a_registered_artifact_must_be_the_one_that_was_trained(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    digest = load_artifact(folder).digest
    gate, model = gates.sound(folder, digest)
    assert gate.passed
    assert model is not None
    gate, model = gates.sound(folder, "0" * 64)
    assert (gate.passed, model) == (False, None)
    (folder / "MODEL_CARD.md").write_text("better\n")
    gate, model = gates.sound(folder, digest)
    assert (gate.passed, model) == (False, None)
    assert "MODEL_CARD.md" in gate.reason


def test_latency_is_measured(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact"))
    gate = gates.within_budget(model, 1e9)
    assert gate.passed
    assert gate.challenger is not None
    assert not gates.within_budget(model, gate.challenger / 1000).passed


def test_latency_is_the_median_of_five_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    now, left, drawn = 100.0, [9.0, 1.0, 2.0, 4.0, 3.0], []

    def sample(seed: int, count: int) -> None:
        nonlocal now
        now += left.pop(0)
        drawn.append((count, torch.get_num_threads()))

    monkeypatch.setattr(gates.time, "perf_counter", lambda: now)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model: Any = SimpleNamespace(sample=sample)
        gate = gates.within_budget(model, 3.0)
        assert (gate.challenger, gate.interval, gate.passed) == (3.0, (1.0, 9.0), True)
        assert drawn == [(64, 1)] * 5
        with pytest.raises(IndexError):
            gates.within_budget(model, 3.0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
