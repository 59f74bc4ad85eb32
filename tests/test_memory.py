"""What a step frees is there for the next one; a shortage is told with what helps."""

from __future__ import annotations

import ctypes
import importlib
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import wgan_cli
from tests.artifacts import tiny_config
from tests.runs import forked
from training.engine.memory import keep_freed_memory, shortage_told
from training.presets import build_config

COUNTED = """
import ctypes, json, resource
import torch
from training.engine.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10_000_000)  # over 32 MB, above which glibc never keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_size_t
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_size_t]
libc.sbrk.argtypes = [ctypes.c_ssize_t]

def ends(size):
    # How a block moves the end of the heap, and freeing it, and if it is in it; it stays empty.
    before, block, with_it = libc.sbrk(0), libc.malloc(size), libc.sbrk(0)
    assert block
    libc.free(block)
    return with_it - before, libc.sbrk(0) - with_it, block < with_it

faults()
given_back, mapped = faults(), ends(700 * 2**20)
keep_freed_memory()
faults(), faults()  # a place is found for them
kept = faults()
then = [ends(700 * 2**20), ends(700 * 2**20), ends(2**30 + 2**20)]
print(json.dumps([given_back, kept, mapped, *then]))
"""


@pytest.fixture(scope="module")
def counted() -> list[Any]:
    """Page faults before and after, and what blocks do to the heap, in one process."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("of glibc's allocator")
    return json.loads(subprocess.check_output([sys.executable, "-c", COUNTED], text=True))


def test_a_step_does_not_map_again_what_the_last_one_freed(counted: list[Any]) -> None:
    given_back, kept = counted[:2]
    assert given_back > 40_000  # 40 MB five times, in pages of 4 KiB
    assert kept < 100


def test_freed_blocks_stay_in_the_heap_and_very_large_ones_go_back(counted: list[Any]) -> None:
    mapped, (grown, change, is_in_heap), again, larger = counted[2:]
    assert mapped == larger == [0, 0, False]  # as by default, and where it is above 2^30 bytes
    assert is_in_heap
    assert grown < 1.5 * 700 * 2**20  # no more than is asked for
    assert change == 0  # freed, it stays, also where nothing lies above it
    assert again[0] < 2**20  # so the next one finds its place


@pytest.mark.parametrize(("system", "has_mallopt"), [("darwin", True), ("linux", False)])
def test_other_allocators_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, system: str, has_mallopt: bool
) -> None:
    def refuse(*_: int) -> int:
        raise AssertionError("there is no such allocator")

    library = SimpleNamespace(mallopt=refuse) if has_mallopt else SimpleNamespace()
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    keep_freed_memory()


TRAIN = [
    "train", "--preset", "digits", "--no-register", "--steps", "1", "--device", "cpu",
    "--set", "training.batch_size=1000", "--set", "critic.width=512",
    "--set", "generator.normalization=layer",
]  # fmt: skip


def within_little_memory(arguments: list[str]) -> int:
    """Run a command that finds 500 MB beside what is imported."""
    for module in ("training.commands", "training.run", "torch._dynamo"):
        importlib.import_module(module)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 500 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return wgan_cli.main(arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="reads how large the process is")
def test_a_step_that_finds_too_little_memory_says_what_helps(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = forked(within_little_memory, [*TRAIN, "--out", tmp_path / "run"], log)
    process.join(200)
    assert process.exitcode == 1, log.read_text()
    line = log.read_text().splitlines()[-1]
    assert "there is not enough memory (for a step with gradients of 1000 items at once: " in line
    assert "training.micro_batch_size=500 or training.activation_checkpointing=true" in line


@pytest.mark.parametrize(
    ("settings", "processes", "advised"),
    [
        ({"generator.normalization": "layer"}, 1, {"training.micro_batch_size": 32}),
        ({"generator.normalization": "layer"}, 4, {"training.micro_batch_size": 8}),
        ({}, 1, {"training.micro_batch_size": 32, "generator.normalization": "layer"}),
        (
            {"constraint.kind": "max_gradient_penalty"},
            1,
            {"training.activation_checkpointing": True},
        ),
    ],
)
def test_what_is_advised_can_be_set(
    settings: dict[str, object], processes: int, advised: dict[str, object]
) -> None:
    config = build_config("digits", overrides=settings)
    with pytest.raises(MemoryError) as caught, shortage_told(config, processes):
        raise MemoryError
    first, _, _ = str(caught.value).partition(": set ")[2].partition(" or ")
    told = dict(part.split("=") for part in first.split(" with "))
    assert told == {key: str(value).lower() for key, value in advised.items()}
    build_config("digits", overrides={**settings, **advised})


LAYER = {"generator.normalization": "layer"}
STAGES, SMALLER = "training.activation_checkpointing=true", "smaller networks"


@pytest.mark.parametrize(
    ("settings", "processes", "at_once", "ways"),
    [
        (LAYER, 1, 64, ["training.micro_batch_size=32", STAGES]),
        (
            {**LAYER, "training.micro_batch_size": 10},
            1,
            10,
            ["training.micro_batch_size=5", STAGES],
        ),
        (
            {**LAYER, "training.micro_batch_size": 40},
            4,
            16,
            ["training.micro_batch_size=8", STAGES],
        ),
        ({**LAYER, "training.micro_batch_size": 2}, 1, 2, ["training.micro_batch_size=1", STAGES]),
        ({**LAYER, "training.micro_batch_size": 1}, 1, 1, [STAGES]),
        (
            {**LAYER, "training.activation_checkpointing": True},
            1,
            64,
            ["training.micro_batch_size=32"],
        ),
        (
            {"training.batch_size": 2},
            1,
            2,
            ["training.micro_batch_size=1 with generator.normalization=layer", STAGES],
        ),
        ({"constraint.kind": "max_gradient_penalty", **LAYER}, 1, 64, [STAGES]),
    ],
)
def test_everything_that_helps_is_told_and_nothing_else(
    settings: dict[str, object], processes: int, at_once: int, ways: list[str]
) -> None:
    config = build_config("digits", overrides=settings)
    with pytest.raises(MemoryError) as caught, shortage_told(config, processes):
        raise MemoryError
    assert str(caught.value) == (
        f"for a step with gradients of {at_once} items at once: set "
        f"{' or '.join([*ways, SMALLER])}, and another --out"
    )


def test_a_private_run_is_told_of_smaller_networks_alone() -> None:
    private = {"epsilon": 1.0, "public": ["schema"]}
    config = tiny_config("rows", privacy=private, data={"source": "rows.csv"})
    says = "of 8 items at once: set smaller networks, and another"
    with pytest.raises(MemoryError, match=says), shortage_told(config):
        raise MemoryError


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_a_shortage_is_known_by_what_torch_says(error: Exception) -> None:
    with pytest.raises(MemoryError) as caught, shortage_told(tiny_config()):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("not enough memory")])
def test_another_error_is_no_shortage(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, shortage_told(tiny_config()):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("ask", "is_shortage"),
    [
        (lambda: torch.empty(2**55), True),
        (lambda: np.empty(2**55), True),
        (lambda: torch.ones(2) @ torch.ones(3), False),
    ],
)
def test_a_shortage_is_told_from_other_errors(ask: Callable[[], object], is_shortage: bool) -> None:
    config = tiny_config(training={"micro_batch_size": 1, "activation_checkpointing": True})
    with pytest.raises((MemoryError, RuntimeError)) as caught, shortage_told(config):
        ask()
    told = "for a step with gradients of 1 items at once: set smaller networks, and another --out"
    assert (str(caught.value) == told) == is_shortage
