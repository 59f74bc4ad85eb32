"""No file of code is longer than a reader holds in mind, but for those that CONTRIBUTING names."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST = 400
FOLDERS = ("models", "training", "service", "deploy", "benchmarks")
SUFFIXES = {".py", ".js", ".css", ".html"}


def lengths() -> dict[str, int]:
    """The lines of each file of code, by its path in the repository."""
    files = [*ROOT.glob("wgan*.py")]
    for folder in FOLDERS:
        files += [p for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES]
    return {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}


def exceptions() -> set[str]:
    """The longer files that CONTRIBUTING gives a reason for."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Length of files")[1]
    rows = re.findall(r"^\| `(\S+)` \| (.*\S) \|$", section, re.MULTILINE)
    assert all(len(reason) > 20 for _, reason in rows), "each with its reason"
    return {path for path, _ in rows}


def test_no_file_is_too_long() -> None:
    found = lengths()
    assert len(found) > 100
    too_long = {path: count for path, count in found.items() if count > LONGEST}
    assert set(too_long) <= exceptions(), too_long


def test_each_exception_is_still_needed() -> None:
    found = lengths()
    assert not {path for path in exceptions() if found.get(path, 0) <= LONGEST}
