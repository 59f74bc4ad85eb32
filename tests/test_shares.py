"""Shares of places and rates: a fair division for any number of callers, by exact arithmetic."""

import hashlib
import math
from fractions import Fraction
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import shares
from service.exchange import Exchange
from service.limits import Load
from service.shares import Rate, Shares
from tests.artifacts import make_artifact
from tests.test_app import made, talk


def take_all(places: Shares, names: list[str]) -> list[int]:
    """Have callers take in turns until each has its share; what each holds then."""
    while asking := [n for n in names if not places.is_full and not places.has_its_share(n)]:
        for name in asking:
            if not places.is_full and not places.has_its_share(name):
                places.take(name)
    return [places._held[name] for name in names]


@pytest.mark.parametrize("callers", [1, 2, 3, 10, 63])
@pytest.mark.parametrize("size", [64, 1000])
@pytest.mark.parametrize("greed", [0.5, 1, 3])
def test_equal_callers_get_equal_shares_and_a_newcomer_finds_room(
    size: int, callers: int, greed: float
) -> None:
    places = Shares(size, greed)
    names = [str(n) for n in range(callers)]
    held = take_all(places, names)
    share = greed * size / (1 + greed * callers)  # h = a (size - n h)
    assert max(held) - min(held) <= 1
    assert abs(held[0] - share) <= 1
    if callers * greed < size:
        assert not places.is_full
        assert not places.has_its_share("new")
    for name, count in zip(names, held, strict=True):
        for _ in range(count):
            places.give_back(name)
    assert (places.taken, dict(places._held)) == (0, {})


@pytest.mark.parametrize(
    ("size", "greed", "callers", "each"),
    [(4, 3, 1, 3), (64, 3, 1, 48), (70, 3, 2, 30), (96, 1, 1, 48), (144, 0.5, 2, 36)],
)
def test_shares_that_come_out_even(size: int, greed: float, callers: int, each: int) -> None:
    assert take_all(Shares(size, greed), [str(n) for n in range(callers)]) == [each] * callers


@pytest.mark.parametrize(
    ("crowd", "at_once", "one_after_the_other"),
    [(0, 48, 48), (1, 32, 32), (2, 24, 22), (4, 16, 10)],
)
def test_a_newcomer_gets_a_useful_share_of_the_places_however_long_a_crowd_keeps_its_own(
    crowd: int, at_once: int, one_after_the_other: int
) -> None:
    """It is what the benchmark's honest clients need at once, 16, beside four greedy callers."""
    names = [str(n) for n in range(crowd)]
    places = Load().places
    size, greed = places.size, Fraction(places.greed)
    take_all(places, names)
    assert take_all(places, ["new"]) == [at_once]
    each = greed * size / (1 + greed * crowd)
    assert at_once == greed * (size - crowd * each) / (1 + greed)
    places, left = Load().places, size
    for name in [*names, "new"]:  # each is there before the next, and takes what it can
        (held,) = take_all(places, [name])
        assert held == math.ceil(greed * left / (1 + greed))
        left -= held
    assert held == one_after_the_other


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from([(144, 0.5), (64, 3), (96, 1), (7, 0.5)]),
    st.lists(st.tuples(st.integers(0, 3), st.integers(-60, 60)), max_size=30),
)
def test_no_history_leaves_less_than_callers_who_come_one_after_the_other(
    kind: tuple[int, float], history: list[tuple[int, int]]
) -> None:
    size, greed = kind
    places = Shares(size, greed)
    for caller, amount in history:
        name = str(caller)
        for _ in range(amount):
            if not places.is_full and not places.has_its_share(name):
                places.take(name)
        for _ in range(min(-amount, places._held[name])):
            places.give_back(name)
    least = size
    for _ in {caller for caller, _ in history}:
        least -= math.ceil(Fraction(greed) * least / (1 + Fraction(greed)))
    assert places.size - places.taken >= least


def test_one_place_can_be_taken() -> None:
    places = Shares(1, 0.5)
    assert not places.has_its_share("a")
    places.take("a")
    assert places.is_full


def test_a_rate_holds_on_average_and_lets_a_second_s_worth_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(shares.time, "monotonic", lambda: now)
    rate, admitted = Rate(5), 0
    for _ in range(1000):  # ten seconds of asking a hundred times in each
        if not rate.wait("a"):
            rate.spend("a", 1)
            admitted += 1
        now += 0.01
    assert 50 <= admitted <= 50 + 6
    assert not rate.wait("b")
    # What is asked for at once may be more than the rate: it is worked off before the next.
    rate.spend("b", 500)
    assert rate.wait("b") == pytest.approx(99)
    now += 99.1
    assert not rate.wait("b")


def test_no_rate_bounds_nothing_and_callers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    none, rate, now = Rate(0), Rate(1), 0.0
    monkeypatch.setattr(shares.time, "monotonic", lambda: now)
    none.spend("a", 10**9)
    assert not none.wait("a")
    for number in range(3 * shares.MAX_CALLERS):
        rate.spend(str(number), 1)
        now += 0.01
    assert len(rate._paid) <= shares.MAX_CALLERS


def test_callers_that_all_matter_are_looked_at_rarely_and_forgotten_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rate, now = Rate(1), 0.0
    monkeypatch.setattr(shares.time, "monotonic", lambda: now)
    looks = [rate._paid]
    for number in range(3 * shares.MAX_CALLERS):
        rate.spend(str(number), 2)
        if rate._paid is not looks[-1]:
            looks.append(rate._paid)
    assert len(rate._paid) == 3 * shares.MAX_CALLERS
    assert len(looks) <= 3  # it doubles
    assert rate.wait("0") == 1
    now = 3.0
    for number in range(3 * shares.MAX_CALLERS):
        rate.spend(f"later {number}", 1)
        now += 0.01
    assert len(rate._paid) <= shares.MAX_CALLERS


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        (Exchange("192.0.2.1"), Exchange("192.0.2.2"), False),
        (Exchange("2001:db8::1"), Exchange("2001:db8::ffff:2"), True),
        (Exchange("2001:db8::1"), Exchange("2001:db8:0:1::1"), False),
        (Exchange("fe80::1%eth0"), Exchange("fe80::2%eth0"), True),
        (Exchange("192.0.2.1", key="a"), Exchange("192.0.2.2", key="a"), True),
        (Exchange("192.0.2.1", key="a"), Exchange("192.0.2.1", key="b"), False),
        (Exchange("192.0.2.1", key="192.0.2.2"), Exchange("192.0.2.2"), False),
    ],
)
def test_who_shares_as_one_caller(one: Exchange, other: Exchange, are_one: bool) -> None:
    assert (one.caller == other.caller) is are_one


@pytest.mark.parametrize(
    ("bound", "count", "says"),
    [
        ({"WGAN_REQUESTS_PER_SECOND": 0.1}, 1, "over 0.1 requests a second"),
        ({"WGAN_SAMPLES_PER_SECOND": 100}, 1000, "over 100 samples a second"),
    ],
)
def test_rates_are_answered_with_429(
    tmp_path: Path, bound: dict[str, float], count: int, says: str
) -> None:
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in "ab"}
    lines = [f"{name}:{digest}:samples\n" for name, digest in keys.items()]
    (tmp_path / "keys").write_text("".join(lines))
    artifact = make_artifact(tmp_path / "artifact")
    app = made(WGAN_MODEL=str(artifact), WGAN_API_KEYS_FILE=str(tmp_path / "keys"), **bound)

    async def ask(client: httpx.AsyncClient) -> None:
        async def asked(key: str) -> httpx.Response:
            headers = {"authorization": f"Bearer {key}"}
            return await client.post("/v1/samples", json={"count": count}, headers=headers)

        assert (await asked("a")).status_code == 200
        answer = await asked("a")
        assert answer.status_code == 429
        assert says in answer.json()["detail"]
        assert 5 <= int(answer.headers["retry-after"]) <= 9
        assert (await asked("b")).status_code == 200
        told = (await client.get("/metrics")).text
        assert 'wgan_rejections_total{reason="rate"} 1.0' in told
        counted = 'wgan_requests_total{endpoint="/v1/samples",model="artifact",status="429"} 1.0'
        assert counted in told

    talk(app, ask)
