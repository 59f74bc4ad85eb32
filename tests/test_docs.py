"""The documentation: the site builds without a broken link, and the pages say what the code has."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from models.constraints import AnyConstraint
from training.presets import PRESETS
from wgan_cli import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs; `make install` brings it"
)


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a checkout, strictly."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_mkdocs
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {"index.html", "api.html", "decisions.html", "CHANGELOG.html"} <= {p.name for p in pages}
    for page in pages:
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\S+", page.read_text()
        )
        assert not [tag for tag in loaded if re.search(r"=[\"']?(?:https?:)?//", tag)], page.name
    assert "GradientPenalty" in (tmp_path / "api.html").read_text()
    assert "--constraint" in (tmp_path / "commands.html").read_text()
    assert (tmp_path / "source/benchmarks/results/advisor.json").is_file(), (
        "linked files come along"
    )


@needs_mkdocs
def test_broken_links_fail(tmp_path: Path) -> None:
    broken = {
        "docs/data.md": ["[x](no1.md)", "[x](networks.md#no2)", "[x](../models/no3.py)"],
        "README.md": ['<img src="docs/no4.png" alt="x">', "![x](docs/no5.svg)"],
        "CONTRIBUTING.md": ["[x](docs/no6.md)"],
    }
    checkout = tmp_path / "checkout"
    skipped = shutil.ignore_patterns(".*", "__pycache__", "site", "runs", "demo", "tests", "ml*")
    shutil.copytree(ROOT, checkout, ignore=skipped)
    # The helps and the API take most of the time, and are not what is broken.
    for page, made in (("commands.md", r"<!-- help: .* -->"), ("api.md", r":::.*(\n +.*)*")):
        file = checkout / "docs" / page
        text, count = re.subn(rf"^{made}$", "", file.read_text(), flags=re.MULTILINE)
        assert count > 20
        file.write_text(text)
    for page, links in broken.items():
        with (checkout / page).open("a") as file:
            file.write("\n" + "\n".join(links) + "\n")
    done = build(checkout, tmp_path / "site")
    assert done.returncode != 0
    unnoticed = [f"no{i}" for i in range(1, 7) if f"no{i}" not in done.stderr]
    assert not unnoticed, done.stderr


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table whose header begins with ``heading``."""
    lines = (DOCS / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def test_every_constraint_and_hyperparameter_is_listed() -> None:
    listed = {row[0].strip("`"): row[2] for row in table("constraints.md", "`kind`")}
    kinds = typing.get_args(typing.get_args(AnyConstraint)[0])
    assert set(listed) == {kind.model_fields["kind"].default for kind in kinds}
    everything = " ".join(listed.values())
    api = (DOCS / "api.md").read_text()
    for kind in kinds:
        assert f".{kind.__name__}\n" in api, kind.__name__
        for name in set(kind.model_fields) - {"kind"}:
            assert f"`{name}`" in everything, f"{kind.__name__}.{name}"


def test_every_preset_is_listed() -> None:
    assert [row[0].strip("`") for row in table("presets.md", "preset")] == list(PRESETS)


def test_the_diagram_is_what_its_script_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = tmp_path / "flow.svg"
    subprocess.run([sys.executable, DOCS / "diagram.py", drawn], check=True, timeout=120)
    texts = [
        re.findall(r"<text.*?>(.*?)</text>", p.read_text()) for p in (drawn, DOCS / "flow.svg")
    ]
    assert texts[0] == texts[1] != []


def test_the_commands_of_the_table_are_those_of_the_help() -> None:
    page = (DOCS / "commands.md").read_text()
    listed = {row[0].strip("`") for row in table("commands.md", "command")}
    assert listed | {"wgan"} == set(re.findall(r"<!-- help: (.*) -->", page))
    assert {name.split()[1] for name in listed} == set(COMMANDS)


def test_the_modules_that_the_pages_name_exist() -> None:
    pages = [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for page in pages:
        names = re.findall(
            r"\b((?:models|training|service|benchmarks|deploy)/[\w/]+\.py)\b", page.read_text()
        )
        missing = [name for name in names if "NAME" not in name and not (ROOT / name).is_file()]
        assert not missing, page.name


def test_the_names_that_how_it_works_gives_exist() -> None:
    page = (DOCS / "how-it-works.md").read_text()
    named = re.findall(r"`([\w/]+\.py)`\s+\(`(\w+)`\)", page)
    assert len(named) > 10
    for path, name in named:
        defined = re.search(rf"^(?:async )?(?:def|class) {name}\b", (ROOT / path).read_text(), re.M)
        assert defined, f"{path} has no {name}"
