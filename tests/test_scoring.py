"""Requests for scores that wait together share forwards, and notice nothing of it."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import anyio
import anyio.from_thread
import anyio.to_thread
import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file

from models.artifact import load_artifact
from models.errors import ArtifactError, ShapeError
from models.model import Model
from models.record import Engine
from models.sampling import CHUNK
from service import served as module
from service.drift import Windows
from service.endpoints.scores import read_files
from service.kept_items import KeptItems
from service.metrics import Metrics
from service.scoring import ScoreBatcher, ScoreJob, compare
from service.served import Served
from tests.artifacts import make_artifact
from tests.costly import progressive, with_scans
from tests.servers import sign, spoil_weights

Array = np.ndarray


class Counting(Model):
    """A model that remembers how many rows each forward was asked for."""

    rows: list[int]

    def score(self, items: Array, labels: Array | None = None) -> Array:
        self.rows.append(len(items))
        return super().score(items, labels)


def served(
    folder: Path, seed: int = 0, classes: dict[str, int] | None = None, chunk: int = CHUNK
) -> Served:
    made = load_artifact(make_artifact(folder, seed=seed, class_counts=classes))
    run = made.run.model_copy(update={"engine": Engine(chunk=chunk)})
    model = Counting(run, made.generator, made.critic, made.quantiles, made.digest)
    model.rows = []
    return Served(model, "1", "champion", None, 0.0)


def gathered(processors: int = 1) -> ScoreBatcher[Array]:
    limiter = anyio.CapacityLimiter(processors)

    async def in_thread(is_done: Callable[[], bool], work: Callable[[], None]) -> None:
        async with limiter:
            if not is_done():
                await anyio.to_thread.run_sync(work)

    return ScoreBatcher(in_thread, lambda job, scores, seconds: scores)


@pytest.mark.parametrize("processors", [1, 3])
@pytest.mark.parametrize("classes", [None, {"a": 4, "b": 4}])
def test_scores_are_those_of_each_alone(
    tmp_path: Path, processors: int, classes: dict[str, int] | None
) -> None:
    one, other = (served(tmp_path / str(seed), seed, classes) for seed in (0, 1))
    items = one.model.sample(seed=0, count=120)
    labels = np.arange(120) % 2 if classes else None
    asked = []
    first = 0
    for i in range(40):
        own = slice(first, first + 1 + i % 4)
        first = own.stop
        asked.append(
            ScoreJob(
                other if i % 5 == 0 else one, items[own], None if labels is None else labels[own]
            )
        )
    scoring = gathered(processors)

    async def ask() -> list[Array]:
        return await asyncio.gather(*(scoring.score(lambda g=g: g, alone=False) for g in asked))

    found = asyncio.run(ask())
    forwards = one.model.rows + other.model.rows  # type: ignore[attr-defined]
    assert sum(forwards) == first
    assert max(forwards) < CHUNK + 4
    assert len(forwards) < len(asked) / 2
    for given, scores in zip(asked, found, strict=True):
        assert np.array_equal(scores, given.served.model.score(given.items, given.labels))


@pytest.mark.parametrize(("chunk", "forwards"), [(16, [16, 16, 8]), (32, [32, 8])])
def test_as_many_are_gathered_as_the_model_scores_at_once(
    tmp_path: Path, chunk: int, forwards: list[int]
) -> None:
    model = served(tmp_path / "model", chunk=chunk)
    items = model.model.sample(seed=0, count=40)
    scoring = gathered()

    async def ask() -> list[Array]:
        reads = [lambda i=i: ScoreJob(model, items[i : i + 1], None) for i in range(40)]
        return await asyncio.gather(*(scoring.score(read, alone=False) for read in reads))

    found = asyncio.run(ask())
    assert model.model.rows == forwards  # type: ignore[attr-defined]
    for i, scores in enumerate(found):
        assert np.array_equal(scores, model.model.score(items[i : i + 1]))


def test_decoding_ends_when_the_request_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = served(tmp_path / "model").model
    photo = with_scans(progressive(2048), 50)
    check = anyio.from_thread.check_cancelled
    checks, ends, scopes = 0, list[BaseException](), list[anyio.CancelScope]()

    def leave_at_the_third() -> None:
        nonlocal checks
        checks += 1
        if checks == 3:
            anyio.from_thread.run_sync(scopes[0].cancel)
        check()

    def read() -> None:
        try:
            read_files(model, [("photo", photo)], resize=True)
        except BaseException as error:
            ends.append(error)
            raise

    async def ask() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await anyio.to_thread.run_sync(read)

    monkeypatch.setattr(anyio.from_thread, "check_cancelled", leave_at_the_third)
    asyncio.run(ask())
    assert [type(error) for error in ends] == [asyncio.CancelledError]
    assert checks == 3


def test_what_is_wrong_with_one_is_told_to_that_one(tmp_path: Path) -> None:
    model = served(tmp_path / "model")
    items = model.model.sample(seed=0, count=8)
    scoring = gathered()

    def broken() -> ScoreJob:
        raise ShapeError("not that")

    async def ask() -> list[Array | BaseException]:
        reads = [lambda i=i: ScoreJob(model, items[i : i + 1], None) for i in range(8)]
        reads[3] = broken
        return await asyncio.gather(
            *(scoring.score(read, alone=False) for read in reads), return_exceptions=True
        )

    found = asyncio.run(ask())
    assert isinstance(found[3], ShapeError)
    assert model.model.rows == [7], "the others share a forward all the same"  # type: ignore[attr-defined]
    expected = model.model.score(items)
    assert [f for i, f in enumerate(found) if i != 3] == [
        s for i, s in enumerate(expected) if i != 3
    ]


def test_a_lone_request_and_a_large_one_wait_for_nobody(tmp_path: Path) -> None:
    model = served(tmp_path / "model")
    items = model.model.sample(seed=0, count=3)
    scoring = gathered(2)
    reading, may_go_on = threading.Event(), threading.Event()

    def slowly() -> ScoreJob:
        reading.set()
        assert may_go_on.wait(30)
        return ScoreJob(model, items[:2], None)

    async def ask() -> tuple[Array, Array]:
        large = asyncio.create_task(scoring.score(slowly, alone=True))
        await asyncio.to_thread(reading.wait, 30)
        small = await scoring.score(lambda: ScoreJob(model, items[2:], None), alone=False)
        may_go_on.set()
        return small, await large

    small, large = asyncio.run(ask())
    assert np.array_equal(np.concatenate([large, small]), model.model.score(items))
    assert model.model.rows == [1, 2, 3]  # type: ignore[attr-defined]


def test_what_a_failed_request_held_is_let_go(tmp_path: Path) -> None:
    """Its error lives on in a cycle, and would hold a whole body until the collector comes."""
    held: list[weakref.ref[Array]] = []

    def read() -> ScoreJob:
        body = np.zeros(1000)
        held.append(weakref.ref(body))
        raise ShapeError(f"not {len(body)}")

    with pytest.raises(ShapeError) as caught:
        asyncio.run(gathered().score(read, alone=False))
    assert caught.value.__traceback__ is not None
    assert held[0]() is None


def test_whose_work_another_has_done_takes_no_thread(tmp_path: Path) -> None:
    model = served(tmp_path / "model")
    items = model.model.sample(seed=0, count=8)
    limiter, done = anyio.CapacityLimiter(1), list[bool]()

    async def in_thread(is_done: Callable[[], bool], work: Callable[[], None]) -> None:
        async with limiter:
            done.append(is_done())
            if not done[-1]:
                await anyio.to_thread.run_sync(work)

    scoring: ScoreBatcher[float] = ScoreBatcher(in_thread, lambda job, scores, seconds: seconds)

    def slowly(i: int) -> ScoreJob:
        time.sleep(0.01)
        return ScoreJob(model, items[i : i + 1], None)

    async def ask() -> list[float]:
        reads = [lambda i=i: slowly(i) for i in range(8)]
        return await asyncio.gather(*(scoring.score(read, alone=False) for read in reads))

    seconds = asyncio.run(ask())
    assert done == [False] + [True] * 7
    assert len(set(seconds)) == 1, "they are the batch's"
    assert 0.08 <= seconds[0] < 60


def test_an_answer_that_cannot_be_made_is_that_request_s_error(tmp_path: Path) -> None:
    model = served(tmp_path / "model")
    items = model.model.sample(seed=0, count=3)

    async def in_thread(is_done: Callable[[], bool], work: Callable[[], None]) -> None:
        await anyio.to_thread.run_sync(work)

    def answer(job: ScoreJob, scores: Array, seconds: float) -> int:
        if len(scores) > 1:
            raise ShapeError("not finite")
        return len(scores)

    scoring: ScoreBatcher[int] = ScoreBatcher(in_thread, answer)

    async def ask() -> list[int | BaseException]:
        reads = [lambda own=own: ScoreJob(model, own, None) for own in (items[:2], items[2:])]
        asked = (scoring.score(read, alone=False) for read in reads)
        async with asyncio.timeout(30):
            return await asyncio.gather(*asked, return_exceptions=True)

    failed, made = asyncio.run(ask())
    assert isinstance(failed, ShapeError)
    assert made == 1

    def lacks(*given: object) -> Array:
        raise MemoryError

    model.model.score = lacks  # type: ignore[method-assign]
    assert [type(error) for error in asyncio.run(ask())] == [MemoryError] * 2, "a forward's, all's"


def test_what_is_scored_is_counted_measured_and_kept(tmp_path: Path) -> None:
    metrics, windows, kept = Metrics(), Windows(50, tmp_path), KeptItems(tmp_path / "kept")
    model = served(tmp_path / "model")._replace(name="a")
    items = model.model.sample(seed=0, count=5)
    job, scores = ScoreJob(model, items, None), np.linspace(-3, 0.5, 5).astype(np.float32)
    found = compare(metrics, windows, kept, job, scores, 0.25)
    assert found.served is model
    assert np.array_equal(found.scores, scores)
    assert np.array_equal(found.percentiles, model.model.percentiles(scores))
    assert found.out_of_range.tolist() == (np.abs(scores) > 1).tolist()  # quantiles end at -1 and 1
    text = metrics.render(CollectorRegistry()).decode()
    assert 'wgan_scoring_seconds_sum{model="a",role="champion"} 0.25' in text
    assert 'wgan_scores_total{model="a",role="champion"} 5.0' in text
    report = windows.report(model)
    assert report is not None
    assert report.items == 5
    assert [len(np.load(file)) for file in (tmp_path / "kept").glob("*.npy")] == [5]
    for wrong in (np.nan, np.inf):
        with pytest.raises(ShapeError, match="so large that their scores are not finite"):
            compare(metrics, windows, kept, job, np.append(scores[:4], wrong), 0.25)
    assert metrics.render(CollectorRegistry()).decode() == text, "nothing of it is counted"


@pytest.mark.parametrize("size", [CHUNK, 3 * CHUNK])
def test_who_fills_a_forward_is_scored_after_the_others(tmp_path: Path, size: int) -> None:
    model = served(tmp_path / "model")
    items = model.model.sample(seed=0, count=size)
    scoring = gathered()
    asked = [items[:1], items[1:3], items, items[3:4]]

    async def ask() -> list[Array]:
        reads = [lambda own=own: ScoreJob(model, own, None) for own in asked]
        return await asyncio.gather(*(scoring.score(read, alone=False) for read in reads))

    found = asyncio.run(ask())
    assert model.model.rows == [3, size, 1]  # type: ignore[attr-defined]
    for own, scores in zip(asked, found, strict=True):
        assert np.array_equal(scores, model.model.score(own))


def test_who_leaves_is_not_scored_and_holds_nobody_up(tmp_path: Path) -> None:
    model = served(tmp_path / "model")
    items = model.model.sample(seed=0, count=8)
    scoring = gathered()
    asked: list[int] = []

    def read(i: int) -> ScoreJob:
        asked.append(i)
        time.sleep(0.05)
        return ScoreJob(model, items[i : i + 1], None)

    async def ask() -> list[Array | BaseException]:
        first = asyncio.create_task(scoring.score(lambda: read(0), alone=True))
        while not asked:
            await asyncio.sleep(0.01)
        tasks = [
            asyncio.create_task(scoring.score(lambda i=i: read(i), alone=False))
            for i in range(1, 8)
        ]
        await asyncio.sleep(0)
        for left in (tasks[0], tasks[4]):
            left.cancel()
        await asyncio.wait([tasks[0], tasks[4]])
        assert len(scoring._waiting) == 5, "what nobody waits for is kept"
        return await asyncio.gather(first, *tasks, return_exceptions=True)

    found = asyncio.run(ask())
    expected = model.model.score(items)
    for i, scores in enumerate(found):
        if i in (1, 5):
            assert isinstance(scores, asyncio.CancelledError)
            assert i not in asked
        else:
            assert np.array_equal(scores, expected[i : i + 1])


def test_only_what_is_quick_is_made_without_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quickest of some tries counts, as others may wait for a processor."""
    model = load_artifact(make_artifact(tmp_path / "model", "vector"))
    now, waits = 100.0, list[float]()
    counts = set[int]()

    def sample(seed: int, count: int) -> None:
        nonlocal now
        now += waits[0]
        waits.append(waits.pop(0))
        counts.add(count)

    model.sample = sample  # type: ignore[assignment,method-assign]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    bound = 0.25
    monkeypatch.setattr(module, "MAX_INLINE_SECONDS", bound)
    for tries, expected in (
        ([60, bound - 0.125, 60], CHUNK),
        ([60, bound, 60], 0),
        ([bound + 0.125], 0),
        ([0.0], CHUNK),
    ):
        waits[:] = tries
        assert module.inline_limit(model) == expected
    assert counts == {CHUNK}
    for numbers, expected in ((2 * CHUNK, CHUNK), (2 * CHUNK - 1, 0)):
        monkeypatch.setattr(module, "MAX_INLINE_NUMBERS", numbers)
        assert module.inline_limit(model) == expected
    table = load_artifact(make_artifact(tmp_path / "table", "rows"))
    monkeypatch.setattr(module, "MAX_INLINE_NUMBERS", 10**9)
    monkeypatch.setattr(module, "MAX_INLINE_SECONDS", 60.0)
    assert module.inline_limit(table) == 0


def broken_generator(folder: Path) -> Path:
    weights = load_file(folder / "generator.safetensors")
    save_file({k: v * np.nan for k, v in weights.items()}, folder / "generator.safetensors")
    sign(folder)
    return folder


def test_what_makes_no_numbers_is_not_served(tmp_path: Path) -> None:
    image, critic = (make_artifact(tmp_path / name) for name in ("image", "critic"))
    broken_generator(image)
    spoil_weights(critic)
    with pytest.raises(ArtifactError, match="its generator makes values that are not finite"):
        module.load(image, "a@3", "a", "champion")
    with pytest.raises(ArtifactError, match="its own sample has the score nan"):
        module.load(critic, "a@3", "a", "champion")


def test_a_table_is_run_to_its_rows_before_it_is_served(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "table", "rows"))
    made: list[int] = []

    def rows(samples: Array, seed: int) -> None:
        made.append(len(samples))

    model.rows = rows  # type: ignore[assignment,method-assign]
    module.run_once(model, "a@3")
    assert made == [CHUNK]


def test_a_loaded_version_says_what_it_is(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "model", class_counts={"a": 4, "b": 4})
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        loaded = module.load(folder, None, "a", "champion")
        assert torch.get_num_threads() == 1, "requests run beside each other"
    finally:
        torch.set_num_threads(threads)
    assert loaded.version == loaded.model.digest[:12]
    assert len(loaded.version) == 12
    assert loaded.labels == ("a", "champion")
    assert module.load(folder, "a@3", "a", "challenger").version == "a@3"
    plain = Served(loaded.model, "1", "champion", None, 0.0)
    assert plain.inline_limit == 0, "nothing is made on the event loop unless it was measured"
