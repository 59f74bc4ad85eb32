"""The study: its known distances, and verdicts that could come out otherwise."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from models.errors import UserError
from models.record import Chart, Line
from training.lab.study import study
from training.lab.study.claims import beyond, compared, do_not_train, judge_claims
from training.lab.study.fits import distance_from_normal, hermite, with_noise
from training.lab.study.page import Part
from training.lab.study.settings import CLIPS, Answers, Scale


@pytest.mark.parametrize("nodes", range(1, 6))
def test_hermite_nodes_share_exactly_so_many_moments_with_the_normal(nodes: int) -> None:
    points, weights = hermite(nodes)
    moments = [float((weights * points**k).sum()) for k in range(2 * nodes + 1)]
    normal = [float(stats.norm.moment(k)) if k else 1.0 for k in range(2 * nodes + 1)]
    np.testing.assert_allclose(moments[:-1], normal[:-1], atol=1e-9)
    assert abs(moments[-1] - normal[-1]) > 0.5


def test_the_distance_from_the_normal_is_that_between_quantiles() -> None:
    assert distance_from_normal(*hermite(1)) == pytest.approx(math.sqrt(2 / math.pi), rel=1e-6)
    for nodes in (2, 4):
        points, weights = hermite(nodes)
        edges = np.concatenate([[0], np.cumsum(weights)]).clip(0, 1)
        exact = sum(
            integrate.quad(lambda u, x=x: abs(stats.norm.ppf(u) - x), a, b, limit=500)[0]
            for x, a, b in zip(points, edges[:-1], edges[1:], strict=True)
        )
        assert distance_from_normal(points, weights) == pytest.approx(exact, rel=1e-4)


def test_noise_is_standard_normal_and_one_for_a_whole_sequence() -> None:
    items = torch.zeros(4000, 3, 2)
    noisy = with_noise(items, seed=1)
    assert torch.equal(noisy[:, 0], noisy[:, 2])
    assert noisy[:, 0].std().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(noisy, with_noise(items, seed=1))


def test_verdicts() -> None:
    assert compared([3.0, 3.1, 2.9], [1.0, 1.1, 0.9]) == "borne out"
    assert compared([1.0, 1.1, 0.9], [3.0, 3.1, 2.9]) == "not borne out"
    assert compared([1.0, 3.0, 2.0], [1.1, 2.9, 2.1]) == "undecided"
    assert compared([5.0], [1.0]) == "undecided"
    assert beyond([0.9, 0.92, 0.91], 0.5) == "borne out"
    assert beyond([0.1, 0.12, 0.11], 0.5) == "not borne out"
    assert beyond([0.1, 0.9, 0.6], 0.5) == "undecided"
    assert do_not_train([0.0, 0.1], [0.2, 0.9]) == "borne out"
    assert do_not_train([0.0, 0.1], [0.2, 0.1]) == "undecided"  # nothing trains in so few steps
    assert do_not_train([0.5, 0.6], [0.9, 0.9]) == "not borne out"


def answers(clipping_is_bad: bool) -> Answers:
    """Figures that a study might find, good or bad for clipping, with a little spread."""
    bad, good = (0.9, 0.1) if clipping_is_bad else (0.1, 0.9)

    def critic(missed: float) -> dict[str, Any]:
        return {"found": 1 - missed, "far": 0.95 + 0.05 * missed if missed > 0.5 else 0.2}

    def run(distance: float, coverage: float) -> dict[str, Any]:
        return {"figures": {"wasserstein_1": {"value": distance}, "coverage": {"value": coverage}}}

    found: Answers = {part: {} for part in ("surface", "layers", "grid", "moments", "run")}
    for seed in range(3):
        off = 0.01 * seed
        for name, value in (
            ("clip 0.01", bad),
            ("gradient penalty", good),
            ("lipschitz penalty", good),
        ):
            found["surface"][f"surface-swissroll-{name}-{seed}"] = critic(value + off)
        for name in ("clip 0.01", "clip 0.1"):
            share = {"saturated_at_start": 0.0, "saturated": bad - off}
            found["surface"][f"surface-swissroll-{name}-{seed}"] = critic(bad + off) | share
        steep = 1.0 if clipping_is_bad else 0.05
        for c, slope in (("0.001", -3 * steep), ("0.01", -steep), ("0.1", steep)):
            found["layers"][f"layers-128-clip {c}-{seed}"] = {"slope": slope + off}
        for depth in (12, 20):
            for name, value in (("clip 0.01", bad), ("clip 0.1", bad), ("spectral norm", good)):
                found["grid"][f"grid-{depth}-none-{name}-{seed}"] = critic(value - off)
            found["grid"][f"grid-{depth}-none-gradient penalty-{seed}"] = critic(good - off)
            found["grid"][f"grid-{depth}-batch-gradient penalty-{seed}"] = {"refused": "why"}
        for clip in CLIPS:
            found["run"][f"run-25gaussians-clip {clip:g}-{seed}"] = run(bad + off, 0.5)
        found["run"][f"run-25gaussians-lipschitz penalty-{seed}"] = run(good + off, 0.5)
        found["run"][f"run-digits-clip 0.01-{seed}"] = run(1, 1 - bad + off)
        found["run"][f"run-digits-lipschitz penalty-{seed}"] = run(1, 1 - good + off)
    return found


def test_every_claim_could_come_out_either_way() -> None:
    assert [c.verdict for c in judge_claims(answers(clipping_is_bad=True))] == ["borne out"] * 7
    against = [c.verdict for c in judge_claims(answers(clipping_is_bad=False))]
    assert against == ["not borne out"] * 7


def test_a_part_is_html_and_markdown(tmp_path: Path) -> None:
    chart = Chart(title="t", x_label="x", y_label="y", lines=[Line(name="a", x=[1, 2], y=[3, 4])])
    parts = [Part("A", 2), Part("words"), Part(rows=(("a", "b"), ("1", "2"))),
             Part("drawn", chart=chart, file="f")]  # fmt: skip
    told = [part.markdown(tmp_path) for part in parts]
    assert told[0] == "## A"
    assert told[2].splitlines() == ["| a | b |", "|---|---|", "| 1 | 2 |"]
    assert (tmp_path / "f.svg").read_text().startswith("<svg")
    assert "f.svg" in told[3]
    assert "<h2>A</h2><p>words</p>" in "".join(part.html() for part in parts)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_small_study_runs_whole_and_once(tmp_path: Path) -> None:
    tiny = Scale(2, 1, 20, 20, 10, 2, (128,), 8, 4)
    said = list[str]()
    claims = study(tmp_path, tiny, processes=2, say=said.append)
    assert len(claims) == 7
    assert {c.verdict for c in claims} <= {"borne out", "not borne out", "undecided"}
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    text = (tmp_path / "study.md").read_text()
    assert "refused" in text
    for file in (tmp_path / "pictures").iterdir():
        assert f"pictures/{file.name}" in text
    count = len(said)
    assert study(tmp_path, tiny, processes=2, say=said.append) == claims
    assert len(said) == count
    with pytest.raises(UserError, match="another scale"):
        study(tmp_path, Scale(3, 1, 20, 20, 10, 2, (128,), 8, 4), processes=1, say=said.append)
