"""Retries and time limits: who is asked again, after how long, and who is waited for no longer."""

import threading
from collections.abc import Callable

import pytest

from models.errors import AbsentError, ArtifactError, AwayError, MachineError
from service import retries
from service.retries import FIRST_WAIT, JITTER, TRIES, jittered, retry, within


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which are not waited for, without what varies them."""
    found: list[float] = []
    monkeypatch.setattr("time.sleep", found.append)
    monkeypatch.setattr(retries, "jittered", lambda seconds: seconds)
    return found


def failing(times: int, error: Exception) -> tuple[list[int], Callable[[], str]]:
    asked: list[int] = []

    def ask() -> str:
        asked.append(1)
        if len(asked) <= times:
            raise error
        return "an answer"

    return asked, ask


def test_each_wait_is_twice_as_long_and_the_last_error_is_raised(waits: list[float]) -> None:
    asked, ask = failing(TRIES - 1, AwayError("away"))
    assert retry(ask) == "an answer"
    assert (len(asked), waits) == (3, [FIRST_WAIT, 2 * FIRST_WAIT])
    asked, ask = failing(TRIES, AwayError("away"))
    with pytest.raises(AwayError, match="away"):
        retry(ask)
    assert (len(asked), len(waits)) == (3, 4), "nobody waits after the last try"


@pytest.mark.parametrize(
    ("error", "transient", "tries"),
    [
        (AbsentError("the registry answered"), (), 1),
        (AbsentError("the registry answered"), (ArtifactError,), 1),
        (ArtifactError("cut short"), (), 1),
        (ArtifactError("cut short"), (ArtifactError,), 3),
        (MachineError("a full disk"), (), 3),
        (ValueError("a mistake of ours"), (ArtifactError,), 1),
    ],
)
def test_only_what_may_pass_is_tried_again(
    waits: list[float], error: Exception, transient: tuple[type[Exception], ...], tries: int
) -> None:
    asked, ask = failing(9, error)
    with pytest.raises(type(error)):
        retry(ask, *transient)
    assert (len(asked), len(waits)) == (tries, tries - 1)


def test_waits_vary_by_a_fifth_to_both_sides() -> None:
    found = [jittered(10.0) for _ in range(500)]
    assert JITTER == 0.2
    assert 8 <= min(found) < 8.5
    assert 11.5 < max(found) <= 12


def test_an_answer_or_an_error_comes_through() -> None:
    assert within(30, "it", lambda: threading.current_thread().daemon) is True
    with pytest.raises(KeyError):
        within(30, "it", lambda: {}["a"])
    with pytest.raises(TimeoutError, match="the call's own"):  # it is no late answer
        within(30, "it", lambda: exec("raise TimeoutError('the call\\'s own')"))


def test_a_late_answer_is_waited_for_no_longer() -> None:
    goes_on = threading.Event()
    with pytest.raises(AwayError, match=r"^it did not answer within 0\.05 seconds$"):
        within(0.05, "it", lambda: goes_on.wait(30))
    goes_on.set()


def test_without_room_for_a_thread_the_machine_is_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(MachineError, match="it cannot be asked: can't start new thread"):
        within(30, "it", lambda: 1)
