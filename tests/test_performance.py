"""Pages with measurements are what their scripts make of the results that are checked in."""

import json

from benchmarks import (
    anger,
    augmentation,
    certified,
    copying,
    imputation,
    intervals,
    micro_batches,
)
from benchmarks.performance import DOCS, page
from benchmarks.performance_gpu import asked, gpu_part
from benchmarks.performance_quality import over, seconds_by_seed


def test_the_page_is_made_from_the_results() -> None:
    for name, content in page().items():
        assert (DOCS / name).read_text() == content, "run: python -m benchmarks.performance"


def test_a_card_that_was_measured_is_named_with_what_it_lacked() -> None:
    found = {
        "command": "make verify-gpu", "card": "Card", "date": "2026-01-01", "torch": "2.13.0",
        "stages": {
            "step": {
                "ended": "done",
                "figures": {"mlp tf32": {"eager": {"device_ms": 1.25}, "compiled, error": "E: no"}},
            },
            "train": {"ended": "done", "figures": {"digits": {"error": "no room"}}},
            "service": {"ended": "done", "figures": {"cuda": {"error": "no model"}}},
            "quality": {"ended": "stopped after its 70 s", "figures": {}},
        },
    }  # fmt: skip
    text = gpu_part(found)
    assert "one Card, 2026-01-01, with torch 2.13.0. Not complete: quality: stopped" in text
    assert "| mlp tf32 | - | 1.250 | - | - | - | - |" in text
    assert "Failed: mlp tf32, compiled: E: no." in text
    assert "| digits | failed: no room | - | - |" in text
    assert "| cuda | error | no model |" in text


def test_what_was_asked_of_a_card_stands_beside_what_was_found() -> None:
    graphed = {"device_ms": 2.0, "mode": "graphed"}
    stages = {
        "whole": {
            "mnist5k tf32": {"graphed": graphed, "textbook": {"device_ms": 9.0}},
            "dcgan28 tf32": {
                "graphed": graphed, "textbook": {"device_ms": 7.0}, "limit": {"device_ms": 1.0}
            },
            "resnet64 tf32": {
                "graphed": {**graphed, "mode": "captured"}, "limit": {"device_ms": 2.0}
            },
        },
        "samples": {"bf16 16": {"bytes_per_s": 2e4}, "bf16 64": {"bytes_per_s": 2e6}},
        "quality": {"mnist5k ours": {"reached": {"seconds": 4.5}, "start_up": {"seconds": 3.0}}},
        "service": {kind: {"1 samples, median ms": 2.0} for kind in ("cuda", "cpu")},
    }  # fmt: skip
    text = asked(stages)
    for row in (
        "mnist5k tf32, textbook over graphed | 4.50 | at least 4 | yes",
        "dcgan28 tf32, textbook over graphed | 3.50 | at least 4 | no",
        "dcgan28 tf32, limit over graphed | 0.50 | at least 0.6 | no",
        "resnet64 tf32, limit over graphed | not measured | at least 0.8 | -",
        "28x28 samples a second, bf16 | 2,000,000.00 | at least 1,000,000 | yes",
        "mnist5k, seconds from its first step to its target | 1.50 | at most 2 | yes",
        "one sample over HTTP, over the CPU's | 1.00 | at most 1 | yes",
    ):
        assert f"| {row} |" in text
    missed = {**stages, "quality": {"mnist5k ours": {"reached": None}}}
    assert "its target | inf | at most 2 | no |" in asked(missed)
    assert asked({}).count("not measured") == 7


def test_tables_are_made_from_the_results() -> None:
    refused = copying.shown(json.loads(copying.RESULTS.read_text()))
    assert refused in (DOCS / "operations.md").read_text()
    held = intervals.shown(json.loads(intervals.RESULTS.read_text()))
    assert held in (DOCS / "extractors.md").read_text()
    filled = imputation.shown(json.loads(imputation.RESULTS.read_text()))
    assert filled in (DOCS / "tables.md").read_text()
    attacked = anger.shown(json.loads(anger.RESULTS.read_text()))
    assert attacked in (DOCS / "operating.md").read_text()
    augmented = augmentation.shown(json.loads(augmentation.RESULTS.read_text()))
    assert augmented in (DOCS / "augmentation.md").read_text()
    saved = micro_batches.shown(json.loads(micro_batches.RESULTS.read_text()))
    assert saved in (DOCS / "memory.md").read_text()
    steep = certified.shown(json.loads(certified.RESULTS.read_text()))
    assert steep in (DOCS / "constraints.md").read_text()


def test_what_was_not_reached_is_shown_as_a_bound() -> None:
    found = {
        "cpu_seconds": [100.0, 90.0, 80.0],
        "reached": [False, True, True],
        "ratio_cpu_seconds": 4.0,
        "ratios_cpu_seconds": [5.0, 3.0, None],
        "is_lower_bound": True,
    }
    assert seconds_by_seed(found) == "> 100, 90, 80"
    assert over(found) == "> 4.0 (> 5.0, 3.0, -)"
    assert over({"cpu_seconds": [1.0], "reached": [True]}).startswith("none")
