"""What differs between two sets: blame in closed forms, the verdict, the page, and steps enough."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import wgan
import wgan_cli
from models.errors import ConfigError
from training.lab import steps as policy
from training.lab.differences import column_blame, column_names, scores_of, verdict
from training.lab.steps import Attempt, fit_for, fit_until_converged
from training.lab.w1 import TYPICAL, estimate

Array = np.ndarray


def normals(count: int, columns: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, count, columns))
    return a, b


# --- blame -------------------------------------------------------------------------------------


def test_a_shift_blames_the_columns_by_their_squares() -> None:
    a, b = normals(2000, 5)
    report, _ = estimate(a + np.array([3, 4, 0, 0, 0]), b, steps=100, batch_size=128)
    assert sum(report["blame"]) == pytest.approx(1)
    np.testing.assert_allclose(report["blame"], [9 / 25, 16 / 25, 0, 0, 0], atol=0.05)
    report, _ = estimate(a + np.array([0, 0, 0, 2, 0]), b, steps=100, batch_size=128)
    assert report["blame"][3] > 0.97
    assert report["verdict"].endswith("most of it is in x4 (100%)")


def test_a_wider_column_is_blamed_though_its_mean_is_the_same() -> None:
    a, b = normals(3000, 4)
    report, _ = estimate(a, b * [1, 1, 4, 1], steps=300, batch_size=256)
    assert report["blame"][2] > 0.9


def test_blame_by_the_optimal_critic_is_the_plan_s() -> None:
    """Spheres: |x| is optimal, and each point moves along its own ray, by 1."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(500, 3)) * [3.0, 1.0, 0.3])
    x /= x.norm(dim=1, keepdim=True)

    class Distance(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.norm(dim=1)

    blame = column_blame(Distance(), 2 * x, x[torch.randperm(500)])
    torch.testing.assert_close(blame, x.square().mean(dim=0), rtol=0, atol=0.02)


class Squares(nn.Module):
    """``sum_j c_j x_j^2``, which rises by ``c_j (a_j^2 - b_j^2)`` from b to a."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.factors = torch.tensor(factors, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().flatten(1) @ self.factors


@pytest.mark.parametrize(
    ("factors", "shares"),
    [
        ([1.0, 1.0], [1 / 6, 5 / 6]),
        ([1e-3, 1e-3], [1 / 6, 5 / 6]),
        ([1.0, -1.0], [1.0, 0.0]),
        ([0.0, 0.0], [1 / 2, 1 / 2]),
    ],
)
def test_each_column_is_blamed_for_what_it_adds_to_the_score(
    factors: list[float], shares: list[float]
) -> None:
    a, b = torch.tensor([[1.0, 3.0]]).double(), torch.tensor([[0.0, 2.0]]).double()
    found = column_blame(Squares(factors), a, b)
    torch.testing.assert_close(found, torch.tensor(shares).double())


def test_blame_is_of_as_many_samples_of_each() -> None:
    a, b = (torch.from_numpy(x) for x in normals(50, 3))
    critic = Squares([1.0, 2.0, 3.0])
    found = column_blame(critic, a[:30] + 2, b)
    assert torch.equal(found, column_blame(critic, a[:30] + 2, b[:30]))
    assert not torch.equal(found, column_blame(critic, a[:30] + 2, b[20:]))


def test_histograms_hold_all_scores_and_far_ones_at_their_ends() -> None:
    a = np.arange(1000.0)
    b = np.append(np.full(999, 500.0), 1e9)
    found = scores_of(a, b, bins=10)
    low, high = np.quantile(np.concatenate([a, b]), [0.001, 0.999])
    np.testing.assert_allclose(found["edges"], np.linspace(low, high, 11))
    np.testing.assert_allclose(found["a"], 0.1, atol=0.003)
    assert found["a"][0] == np.mean(a < found["edges"][1])
    of_b = np.histogram([500.0, high], found["edges"])[0] * [0.001]
    of_b[np.argmax(of_b)] = 0.999
    np.testing.assert_allclose(found["b"], of_b)
    same = scores_of(np.zeros(3), np.zeros(7), bins=3)
    np.testing.assert_allclose(same["edges"], np.linspace(-0.5, 0.5, 4))
    assert same["a"] == same["b"] == [0, 1, 0]


def test_blame_of_images_has_their_form() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 100, (2, 400, 8, 9, 2)).astype(np.uint8)
    b[:, 2, 5, 1] += 150
    report, _ = estimate(a, b, steps=60, batch_size=64)
    blame = np.array(report["blame"])
    assert blame.shape == (8, 9, 2)
    assert blame[2, 5, 1] == blame.max()
    assert "row 3, column 6, channel 2" in report["verdict"]


def test_names_say_where_a_value_is() -> None:
    assert column_names((2,)) == ["x1", "x2"]
    assert column_names((9, 2))[3] == "x2 at step 2"
    assert column_names((8, 8))[9] == "the pixel in row 2, column 2"


# --- items and the sentence ---------------------------------------------------------------------


def test_the_most_typical_rows_are_the_farthest_held_out_ones() -> None:
    """The critic of a shift is a plane, so its extremes are those of the shifted column."""
    a, b = normals(1000, 1)
    a += 3
    report, _ = estimate(a, b, steps=100, batch_size=128)
    (of_a, of_b), heldout = report["typical"], report["heldout"]
    assert heldout == [200, 200]
    assert len(of_a) == len(of_b) == TYPICAL
    found = a[of_a, 0]
    assert (np.diff(found) <= 0).all()
    assert found.min() > np.quantile(a, 0.85)
    assert b[of_b, 0].max() < np.quantile(b, 0.15)


def test_rows_are_numbered_as_given_where_copies_were_left_out() -> None:
    a, b = (np.repeat(x, 2, axis=0) for x in normals(300, 1))
    report, _ = estimate(a + 3, b, steps=50, batch_size=64)
    assert (a[report["typical"][0]] > np.quantile(a, 0.6)).all()


@pytest.mark.parametrize(
    ("p", "blame", "says"),
    [
        (0.0001, [0.1, 0.83, 0.07], "A and B differ (p 0.0001): W1 is about 0.51, at least 0.46; "),
        (0.0001, [0.1, 0.83, 0.07], "most of it is in x2 (83%)"),
        (0.0001, [0.3, 0.3, 0.4], "most of it is in x3 (40%) and x1 (30%)"),
        (0.0001, [0.125] * 8, "half of it is in 4 of 8 values, and the most in x1 (12%)"),
        (
            0.4,
            [0.5, 0.5, 0.0],
            "no difference between A and B was found (p 0.4); if",
        ),
        (0.4, [0.5, 0.5, 0.0], "W1 is hardly above 0.6"),
        (0.05, [0.1, 0.83, 0.07], "A and B differ (p 0.05): "),
        (0.051, [0.1, 0.83, 0.07], "no difference between A and B was found (p 0.051)"),
        (0.01, [0.2] * 5, "most of it is in x1 (20%), x2 (20%) and x3 (20%)"),
        (0.01, [0.5 - 1e-12, 0.25, 0.25 + 1e-12], "most of it is in x1 (50%)."),
    ],
)
def test_the_verdict(p: float, blame: list[float], says: str) -> None:
    report = {"p_value": p, "w1": 0.51, "lower": 0.46, "interval": [0.4, 0.6], "blame": blame}
    assert says in verdict(report, column_names((len(blame),))) + "."
    if p <= 0.05:
        assert "W1 is about 0.51; most" in verdict({**report, "lower": 0.0, "blame": [1.0]}, ["x1"])


# --- the page ----------------------------------------------------------------------------------


class Page(HTMLParser):
    """Texts and tags of a page; every tag is closed but those that HTML never closes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def vectors(rng: np.random.Generator) -> tuple[Array, Array]:
    a, b = rng.normal(size=(2, 300, 8))
    return a + 2 * (np.arange(8) == 4), b


def sequences(rng: np.random.Generator) -> tuple[Array, Array]:
    a, b = rng.normal(size=(2, 300, 12, 2)).cumsum(axis=2)
    return a + 3 * (np.arange(12) > 5)[:, None] * [0, 1], b


def images(rng: np.random.Generator) -> tuple[Array, Array]:
    a, b = rng.integers(0, 90, (2, 300, 10, 8)).astype(np.uint8)
    b[:, 6:8, 2:4] += 150
    return a, b


@pytest.mark.parametrize(
    ("draw", "pictures", "charts", "says"),
    [
        (vectors, 0, 3, ["Blame of each column", "x5", "Most typical of B, and not of A"]),
        (sequences, 1, 8, ["Blame of each step", "x2 (", "x2 of the sequences most typical of A"]),
        (images, 5, 1, ["Blame of each pixel", "Mean of A.", "Most typical of A, and not of B."]),
    ],
)
def test_the_page_shows_what_differs(
    draw: Callable[[np.random.Generator], tuple[Array, Array]],
    pictures: int,
    charts: int,
    says: list[str],
    tmp_path: Path,
) -> None:
    a, b = draw(np.random.default_rng(0))
    out = tmp_path / "page.html"
    found = wgan.wasserstein_1(a, b, steps=60, batch_size=64, out=out)
    page = Page(out.read_text())
    assert found.verdict in page.text
    for text in (*says, "Critic scores of A and B", f"{found.value:.4g}", "held-out samples"):
        assert text in page.text
    assert page.tags.count("img") == pictures
    assert page.tags.count("svg") == charts
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)


def test_names_of_files_are_escaped(tmp_path: Path) -> None:
    for name, x in zip(("<a>.npy", "b.npy"), normals(60, 1), strict=True):
        np.save(tmp_path / name, x)
    files = [str(tmp_path / name) for name in ("<a>.npy", "b.npy")]
    out, page = tmp_path / "w1.json", tmp_path / "page.html"
    command = ["w1", *files, "--json", str(out), "--out", str(page), "--steps", "10"]
    assert wgan_cli.main(command) == 0
    assert "Are &lt;a&gt;.npy and b.npy the same?" in page.read_text()
    assert "these shares are chance" in page.read_text()
    assert json.loads(out.read_text())["verdict"].startswith("no difference")


# --- steps -------------------------------------------------------------------------------------


def learning(
    fitted: Callable[[int], float], other: Callable[[int], float]
) -> tuple[list[int], Callable[[int], Attempt]]:
    """Fits whose gaps are known functions of the steps, and the steps that were asked for."""
    asked: list[int] = []

    def attempt(steps: int) -> Attempt:
        asked.append(steps)
        return Attempt(nn.Identity(), nn.Identity(), steps, fitted(steps), other(steps))

    return asked, attempt


def test_steps_double_until_both_gaps_stand_still_together() -> None:
    asked, attempt = learning(lambda s: 1 - 30 / s, lambda s: 0.98 - 30 / s)
    found, stopped = fit_until_converged(attempt, None)
    assert asked == [500, 1000, 2000, 4000]
    assert found.steps == 4000
    assert not stopped.more_samples


def test_steps_end_where_more_samples_are_needed() -> None:
    """More steps learn the samples by heart: the best fit is kept, not the last."""
    asked, attempt = learning(lambda s: 1 - 100 / s, lambda s: 0.6 - s / 1e5)
    found, stopped = fit_until_converged(attempt, None)
    assert asked == [500, 1000]
    assert found.steps == 500
    assert stopped.more_samples
    assert "more samples are needed" in stopped.reason


def test_steps_end_at_the_most() -> None:
    asked, attempt = learning(lambda s: s**0.5, lambda s: s**0.5)
    found, stopped = fit_until_converged(attempt, None)
    assert found.steps == asked[-1] == policy.MAX_STEPS
    assert str(policy.MAX_STEPS) in stopped.reason


def test_steps_end_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("training.lab.steps.time.perf_counter", lambda: clock[0])
    asked, plain = learning(lambda s: s**0.5, lambda s: s**0.5)

    def attempt(steps: int) -> Attempt:
        clock[0] += 2 + 0.01 * steps  # 2 seconds whatever the steps
        return plain(steps)

    found, _ = fit_for(attempt, 60)
    assert asked[:2] == list(policy.TRIAL_STEPS)
    assert found.steps == asked[2] == pytest.approx((60 - 4.8 - 2) / 0.01 * policy.SAFETY, rel=0.01)
    assert clock[0] <= 60
    clock[0] = 0
    found, stopped = fit_until_converged(attempt, 60)
    assert clock[0] <= 60
    assert found.steps == 2000
    assert "60 seconds" in stopped.reason


def test_the_time_of_a_real_fit_is_kept_and_its_steps_repeat_it() -> None:
    a, b = normals(300, 2)
    a[:, 0] += 1
    timed, _ = estimate(a, b, seconds=1.5, batch_size=64)
    assert timed["steps"] >= policy.TRIAL_STEPS[1]  # more, unless the machine is very busy
    again, _ = estimate(a, b, steps=timed["steps"], batch_size=64)
    assert again["w1"] == timed["w1"]
    assert "1.5 seconds" in timed["stopped"]
    assert again["stopped"] is None


def test_a_shift_has_converged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "FIRST_STEPS", 50)
    a, b = normals(3000, 2)
    report, _ = estimate(a + np.array([2, 0]), b, until_converged=True, batch_size=128)
    assert report["converged"]
    assert report["steps"] <= 200
    assert "as much by fitted samples as by others" in report["stopped"]


def test_too_few_samples_are_told_from_too_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 dimensions 150 samples are learnt by heart."""
    monkeypatch.setattr(policy, "FIRST_STEPS", 100)
    a, b = normals(150, 16)
    report, _ = estimate(a, 1.5 * b, until_converged=True, batch_size=64)
    assert not report["converged"]
    assert "more samples are needed, not more steps" in report["stopped"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 10, "seconds": 5.0}, "excludes"),
        ({"steps": 10, "until_converged": True}, "excludes"),
        ({"seconds": 0.0}, "above 0"),
        ({"seconds": float("nan")}, "above 0"),
        ({"steps": 0}, "steps 0: must be a whole number, 1 or above"),
        ({"steps": -1}, "steps -1"),
        ({"batch_size": 0}, "batch_size 0: must be a whole number, 1 or above"),
    ],
)
def test_options_that_contradict(options: dict[str, float], says: str) -> None:
    a, b = normals(60, 1)
    with pytest.raises(ConfigError, match=says):
        estimate(a, b, **options)  # type: ignore[arg-type]
