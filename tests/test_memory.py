"""What a step frees is there for the next one."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNTED = """
import resource
import torch
from training.engine.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10_000_000)  # over 32 MB, above which glibc never keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
given_back = faults()
keep_freed_memory()
faults(), faults()  # a place is found for them
print(given_back, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's allocator")
def test_a_step_does_not_map_again_what_the_last_one_freed() -> None:
    found = subprocess.check_output([sys.executable, "-c", COUNTED], text=True)
    given_back, kept = map(int, found.split())
    assert given_back > 40_000  # 40 MB five times, in pages of 4 KiB
    assert kept < 100
