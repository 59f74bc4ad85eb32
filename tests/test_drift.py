"""Drift of scores: against scipy, on windows that are real and on windows that are not."""

import logging
import os
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from models.artifact import MAX_SCORED_ITEMS, load_artifact
from models.lipschitz import LipschitzBounds
from models.model import QUANTILE_LEVELS, Model
from service.drift import LEVEL, Windows, threshold, wasserstein
from service.ring import COUNT_BYTES
from service.served import Served
from tests.artifacts import make_artifact
from tests.waiting import waits_for_the_lock

WINDOW = 200


@pytest.mark.parametrize("sizes", [(50, 50), (7, 200), (200, 1001), (1, 1)])
def test_the_distance_is_scipys(sizes: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=sizes[0]), random.exponential(size=sizes[1]).round(1)
    assert wasserstein(a, b) == pytest.approx(wasserstein_distance(a, b))


@pytest.mark.parametrize("reference", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_real_windows_seldom_pass_the_threshold(reference: int) -> None:
    """References and windows are new samples; only quantiles reach the threshold, as in service."""
    random = np.random.default_rng(1)
    alarms = []
    for _ in range(25):  # references; each has its own threshold and noise
        quantiles = np.quantile(random.gumbel(size=reference), QUANTILE_LEVELS)
        limit = threshold(tuple(quantiles), WINDOW, reference)
        alarms += [wasserstein(random.gumbel(size=WINDOW), quantiles) > limit for _ in range(16)]
    # 1% is meant. The windows of one reference share its noise, so the rate itself varies.
    assert np.mean(alarms) < 0.05
    assert LEVEL == 0.99


def test_the_threshold_is_that_of_windows_drawn_by_another_hand() -> None:
    """Evenly spaced quantiles of 0 to 1 are those of uniform scores, which need no inversion."""
    random, levels = np.random.default_rng(5), np.linspace(0, 1, len(QUANTILE_LEVELS))
    distances = [
        wasserstein_distance(random.random(100), np.quantile(random.random(400), levels))
        for _ in range(2000)
    ]
    expected = np.quantile(distances, 0.99)
    threshold.cache_clear()  # they are computed here
    assert threshold(tuple(levels), 100, 400) == pytest.approx(expected, rel=0.2)
    assert threshold(tuple(3 * levels), 100, 400) == pytest.approx(3 * expected, rel=0.2)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    model: Model = load_artifact(make_artifact(tmp_path / "artifact", "vector"))
    random = np.random.default_rng(2)
    model.quantiles = np.quantile(random.normal(size=2000), QUANTILE_LEVELS)
    data = model.run.data.model_copy(update={"heldout_count": 2000})
    lipschitz = LipschitzBounds(certified=4.0, sampled=1.0)
    model.run = model.run.model_copy(update={"data": data, "lipschitz": lipschitz})
    return Served(model, "a@1", "champion", None, 0.0)


@pytest.fixture
def windows(tmp_path: Path) -> Windows:
    return Windows(WINDOW, tmp_path)


def test_a_shift_is_seen_and_real_traffic_is_not_one(served: Served, windows: Windows) -> None:
    random = np.random.default_rng(3)
    windows.add(served, random.normal(size=WINDOW - 1).astype(np.float32))
    short = windows.report(served)
    assert short is not None
    assert (short.items, short.distance, short.lower_bound) == (WINDOW - 1, None, None)
    windows.add(served, np.zeros(1, np.float32))
    real = windows.report(served)
    assert real is not None
    assert real.distance is not None
    assert real.distance < real.threshold
    windows.add(served, random.normal(0.6, size=WINDOW).astype(np.float32))
    shifted = windows.report(served)
    assert shifted is not None
    assert shifted.distance is not None
    assert shifted.distance > shifted.threshold
    assert shifted.distance == pytest.approx(0.6, abs=0.2)
    assert shifted.lower_bound == shifted.distance / 4.0


def test_a_window_holds_the_last_scores_of_all_workers(served: Served, windows: Windows) -> None:
    scores = np.random.default_rng(4).normal(size=1000).astype(np.float32)
    workers = [windows, Windows(WINDOW, windows.folder)]
    start = 0
    for i, size in enumerate((3, 150, 90, 1, 500, 256)):
        workers[i % 2].add(served, scores[start : start + size])
        start += size
    found = workers[0].report(served)
    assert found is not None
    expected = wasserstein(scores[1000 - WINDOW :].astype(float), served.model.quantiles)
    assert found.distance == pytest.approx(expected)


def test_another_version_begins_anew(served: Served, windows: Windows) -> None:
    windows.add(served, np.ones(WINDOW, np.float32))
    served.model.digest = "another"
    found = windows.report(served)
    assert found is not None
    assert found.items == 0
    assert len(list(windows.folder.glob("drift-*"))) == 1


def test_a_window_that_cannot_be_used_spoils_no_scores(
    served: Served, windows: Windows, caplog: pytest.LogCaptureFixture
) -> None:
    windows.add(served, np.ones(3, np.float32))
    (file,) = windows.folder.glob("drift-*")
    with caplog.at_level(logging.ERROR, "wgan.service"):
        for _ in range(2):
            file.write_bytes(b"abc")
            windows.add(served, np.ones(3, np.float32))
            assert windows.report(served) is None
        assert [record.getMessage() for record in caplog.records] == [
            f"drift is not measured: {file} is damaged"
        ], "once, not at every request"
        file.unlink()
        windows.add(served, np.ones(3, np.float32))
        found = windows.report(served)
        assert found is not None
        assert found.items == 3
        shutil.rmtree(windows.folder)
        windows.add(served, np.ones(3, np.float32))
        assert windows.report(served) is None
    assert len(caplog.records) == 2


def test_the_reference_counts_with_the_items_that_were_scored_of_it(
    served: Served, windows: Windows
) -> None:
    run, quantiles = served.model.run, tuple(served.model.quantiles)
    for held_out, counted in ((2000, 2000), (MAX_SCORED_ITEMS + 1, MAX_SCORED_ITEMS)):
        data = run.data.model_copy(update={"heldout_count": held_out})
        served.model.run = run.model_copy(update={"data": data})
        found = windows.report(served)
        assert found is not None
        assert found.threshold == threshold(quantiles, WINDOW, counted)


@pytest.mark.parametrize("what", ["add", "report"])
def test_a_folder_that_is_not_there_is_told_once_by_each_way(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    windows = Windows(WINDOW, tmp_path / "none")
    for _ in range(2):
        if what == "add":
            windows.add(served, np.ones(3, np.float32))
        else:
            assert windows.report(served) is None
        (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
        assert told.startswith("drift is not measured: ")
    (tmp_path / "none").mkdir()
    windows.add(served, np.ones(3, np.float32))
    found = windows.report(served)
    assert found is not None
    assert found.items == 3


@pytest.mark.parametrize("what", ["add", "report"])
def test_a_worker_waits_while_another_has_the_window(
    served: Served, windows: Windows, what: str
) -> None:
    windows.add(served, np.ones(3, np.float32))
    (file,) = windows.folder.glob("drift-*")
    scores = np.ones(3, np.float32)
    work = {"add": lambda: windows.add(served, scores), "report": lambda: windows.report(served)}
    assert waits_for_the_lock(file, work[what])
    found = windows.report(served)
    assert found is not None
    assert found.items == (6 if what == "add" else 3)


def test_workers_that_begin_at_once_find_whole_windows(
    served: Served, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window is whole as soon as it has its name, and of an old one others may be rid first."""
    windows.add(served, np.ones(3, np.float32))
    served.model.digest = "another"
    sizes = []

    def link(new: str, path: Path) -> None:
        os.link(new, path)
        sizes.append(path.stat().st_size)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        os.unlink(path)  # by another worker
        original(path, missing_ok)

    original = Path.unlink
    with monkeypatch.context() as patch:
        patch.setattr("service.drift.os", types.SimpleNamespace(link=link))
        patch.setattr(Path, "unlink", unlink)
        windows.add(served, np.ones(3, np.float32))
    assert sizes == [COUNT_BYTES + 4 * WINDOW]
    found = windows.report(served)
    assert found is not None
    assert found.items == 3
