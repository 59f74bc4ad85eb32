"""One version everywhere: pyproject.toml, CHANGELOG.md, the images and the chart."""

import datetime
import re
import tomllib
from pathlib import Path

import yaml

import models

ROOT = Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
ENTRIES = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_changelog_begins_with_this_version() -> None:
    assert ENTRIES[0].startswith(f"{VERSION} - ")


def test_every_entry_has_a_date_and_the_newest_comes_first() -> None:
    matches = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) - (\d{4}-\d\d-\d\d)", e) for e in ENTRIES]
    assert all(matches), ENTRIES
    entries = [
        (tuple(map(int, m.groups()[:3])), datetime.date.fromisoformat(m[4])) for m in matches
    ]
    versions, dates = zip(*entries, strict=True)
    assert list(versions) == sorted(set(versions), reverse=True)
    assert list(dates) == sorted(dates, reverse=True)


def test_the_code_carries_the_version() -> None:
    assert models.__version__ == VERSION


def test_the_images_and_the_chart_carry_the_version() -> None:
    assert f"\nARG VERSION={VERSION}\n" in (ROOT / "Dockerfile").read_text()
    chart = yaml.safe_load((ROOT / "deploy/chart/Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == VERSION
