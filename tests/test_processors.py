"""The number of processors follows the cgroup's quota, in files of both versions and for real."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.processors import CGROUPS, count_processors, cpu_quota

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
