"""Processors: their number follows the cgroup's quota, and callers take turns at them."""

import asyncio
import contextlib
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Gauge

from service import processors
from service.processors import CALLER, CGROUPS, Turns, count_processors, cpu_quota
from service.telemetry import Tracing

REAL = CGROUPS / "cpu/wgan-test"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        # A container with a cgroup namespace, version 2.
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        # Without one: its own group, or those around it, are where the host says, or at the root.
        ("0::/pods/a\n", {"pods/a/cpu.max": "200000 100000", "pods/cpu.max": "50000 100000"}, 0.5),
        ("0::/pods/a\n", {"cpu.max": "100000 50000"}, 2.0),
        # A runtime may write colons into its name; what lies above the mount is not ours.
        ("0::/pods:a:b\n", {"pods:a:b/cpu.max": "200000 100000"}, 2.0),
        ("0::/a\n", {"a/cpu.max": "200000 100000", "../cpu.max": "50000 100000"}, 2.0),
        # Version 1, alone and beside version 2; other controllers' groups do not count.
        (
            "4:memory:/m\n3:cpu,cpuacct:/a\n0::/\n",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:memory:/m\n1:cpuset:/\n", {"m/cpu.max": "100000 100000"}, None),
        ("", {}, None),
    ],
)
def test_the_quota_is_read(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float | None
) -> None:
    (tmp_path / "own").write_text(groups)
    for name, content in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert cpu_quota(tmp_path / "own", tmp_path / "mount") == quota


def test_a_system_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path) is None


@pytest.fixture
def group() -> Iterator[Path]:
    """A real cgroup, where this machine lets us make one."""
    try:
        REAL.mkdir()
    except OSError:
        pytest.skip("no cgroup of version 1 can be made here")
    yield REAL
    REAL.rmdir()


@pytest.mark.parametrize(("quota", "count"), [(50_000, 1), (100_000, 1), (110_000, 2)])
def test_a_real_quota_holds(group: Path, quota: int, count: int) -> None:
    (group / "cpu.cfs_quota_us").write_text(str(quota))
    code = "from service.processors import count_processors; print(count_processors())"
    command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" -c "{code}"']
    told = subprocess.check_output([*command, sys.executable], text=True)
    assert int(told) == min(count, len(os.sched_getaffinity(0)))


def test_without_a_quota_all_processors_count() -> None:
    if (quota := cpu_quota()) is None:
        assert count_processors() == len(os.sched_getaffinity(0))
    else:
        assert count_processors() <= math.ceil(quota)


def test_processors_are_those_that_the_process_may_run_on_within_its_quota(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processors, "cpu_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", {0: {1, 4, 7}}.get, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert count_processors() == 3
    for quota, count in ((0.5, 1), (1.0, 1), (1.1, 2), (8.0, 3)):
        monkeypatch.setattr(processors, "cpu_quota", lambda quota=quota: quota)
        assert count_processors() == count
    monkeypatch.setattr(processors, "cpu_quota", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity")  # another system
    assert count_processors() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_processors() == 1


def test_work_is_done_in_threads_as_many_at_once_as_there_are_processors() -> None:
    async def run() -> None:
        waiting, most, now = Gauge("waiting", "", registry=None), 0, 0
        ours = processors.Processors(Tracing(False, "test"), waiting)
        count, both = count_processors(), threading.Lock()

        def work(number: int) -> tuple[int, int]:
            nonlocal most, now
            with both:
                now += 1
                most = max(most, now)
            time.sleep(0.05)
            with both:
                now -= 1
            return number, threading.get_ident()

        crowd = [asyncio.create_task(ours.run("work", lambda n=n: work(n))) for n in range(12)]
        await asyncio.sleep(0)
        assert waiting._value.get() == 12 - count
        answers = await asyncio.gather(*crowd)
        assert [number for number, _ in answers] == list(range(12))
        assert threading.get_ident() not in {thread for _, thread in answers}
        assert (most, waiting._value.get()) == (count, 0)
        done: list[str] = []
        await ours.run_unless(lambda: True, "work", lambda: done.append("needless"))
        await ours.run_unless(lambda: False, "work", lambda: done.append("needed"))
        assert done == ["needed"]

    asyncio.run(run())


def test_callers_take_turns() -> None:
    """A crowd of one caller's comes first, and makes nobody else wait for more than one of it."""

    async def order() -> list[str]:
        turns, done = Turns(1), []

        async def work(caller: str) -> None:
            CALLER.set(caller)
            await turns.acquire()
            done.append(caller)
            await asyncio.sleep(0)
            turns.release()

        await asyncio.gather(*map(asyncio.create_task, map(work, "aaaaaaaaaabbc")))
        return done

    assert "".join(asyncio.run(order())) == "aabcabaaaaaaa"


def test_no_processor_is_lost_or_given_twice() -> None:
    async def run() -> None:
        rng, turns, held = random.Random(0), Turns(3), 0

        async def work(number: int) -> None:
            nonlocal held
            CALLER.set(str(number % 5))
            await turns.acquire()
            held += 1
            assert held <= 3
            try:
                await asyncio.sleep(0.0005 * rng.random())
            finally:
                held -= 1
                turns.release()

        tasks = []
        for number in range(500):
            tasks.append(asyncio.create_task(work(number)))
            if rng.random() < 0.5:
                await asyncio.sleep(0)
            tasks[rng.randrange(len(tasks))].cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert not held
        for _ in range(3):
            assert not turns.must_wait
            await turns.acquire()
        assert turns.must_wait

    asyncio.run(run())


def test_a_turn_that_is_held_is_handed_to_the_next_caller() -> None:
    order: list[str] = []

    async def hold(turns: Turns, caller: str) -> None:
        CALLER.set(caller)
        async with turns:
            order.append(caller)
            await asyncio.sleep(0)

    async def crowd() -> None:
        turns = Turns(1)
        await asyncio.gather(*(hold(turns, caller) for caller in ["a"] * 8 + ["b"]))

    asyncio.run(crowd())
    assert order.index("b") <= 2
