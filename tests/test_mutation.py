"""Mutation testing itself: the faults that it makes, and that tests are asked about them."""

import ast
import json
import subprocess
import sys

import pytest

from benchmarks.mutants import mutants
from tests.servers import ROOT


@pytest.mark.parametrize(
    ("module", "fault"),
    [
        ("service/limits.py", "self.load.buffer.give_back(caller, held) -> pass"),
        ("service/limits.py", "_check(self.load.places, exchange) -> pass"),
        (
            "service/limits.py",
            "len(scope['headers']) > MAX_HEADER_LINES -> len(scope['headers']) >= MAX_HEADER_LINES",
        ),
        (
            "training/engine/optimisers.py",
            "min(decay, (1 + step) / (10 + step)) -> max(decay, (1 + step) / (10 + step))",
        ),
        ("training/retraining/gates.py", "1.96 -> 5.88"),
        ("models/sampling.py", "0.5 -> 0.0"),
        ("training/engine/checkpoint.py", "put(new, path) -> pass"),
    ],
)
def test_faults_that_once_went_unnoticed_are_made(module: str, fault: str) -> None:
    found = [mutant.what.replace('"', "'") for mutant in mutants((ROOT / module).read_text())]
    assert fault in found


def test_a_mutant_is_a_program_with_one_fault_on_its_lines() -> None:
    source = (ROOT / "service/limits.py").read_text()
    before = source.splitlines()
    found = list(mutants(source))
    assert len({mutant.source for mutant in found}) == len(found) > 100
    for mutant in found:
        ast.parse(mutant.source)
        after = mutant.source.splitlines()
        assert len(after) == len(before)
        changed = [
            n for n, lines in enumerate(zip(before, after, strict=True), 1) if len({*lines}) > 1
        ]
        assert changed
        assert mutant.line <= changed[0]


def test_types_texts_and_what_is_only_told_stay() -> None:
    source = '''
from typing import Literal
Kind = Literal[1, 2]
if TYPE_CHECKING:
    LIMIT = 3
def f(x: Literal[4], s="text") -> Literal[5]:
    """6."""
    log.info("%d", 7)
    raise ValueError(f"{x + 8}")
'''
    assert [mutant.what.split("(")[0] for mutant in mutants(source)] == [
        "7 -> 8",
        "raise ValueError",
    ]


EXAMINE = """
import json, sys
from benchmarks.mutation import examine
if __name__ == "__main__":
    print(json.dumps(examine(*json.loads(sys.argv[1]))))
"""


@pytest.mark.slow
def test_tests_are_asked_by_the_lines_that_they_reach() -> None:
    test = "tests/test_shares.py::test_one_place_can_be_taken"
    done = subprocess.run(
        [sys.executable, "-c", EXAMINE, json.dumps(["service/shares.py", [test]])],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    left = [line.partition(": ")[2] for line in found["left"]]
    # The test takes one place of one: too many are taken as well as just enough,
    assert "self.taken += amount -> pass" not in left
    assert "self.taken >= self.size -> self.taken > self.size" not in left
    # two of one would be, and it gives nothing back, which it does not reach.
    assert not [line for line in left if "-= amount" in line]
    assert found["not_reached"] > 10
    assert found["killed"] >= 3
