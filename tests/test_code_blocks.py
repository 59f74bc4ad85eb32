"""Every block of commands or Python in the documentation is run by a test, or says why not."""

import argparse
import re
import runpy
import shlex
import sys
import tomllib

import pytest

from models.command_line import assignments
from tests.code_blocks import PAGES, REASONS, ROOT, blocks, lines
from tests.command_line import parsed
from training.presets import build_config

LANGUAGES = {"sh": True, "python": True, "yaml": False, "json": False, "text": False}
LANGUAGES["Dockerfile"] = False
"""Whether a block of a language is run."""
LEFT = [
    (page, line)
    for page in PAGES
    for block in blocks(page)
    if block.language == "sh" and block.reason
    for command in lines(block.text)
    for line in command.split(" && ")
]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    """What is run goes through `to_run` in one of the tests; no block is without a language."""
    found = blocks(page)
    assert 2 * len(found) == len(re.findall(r"^\s*```", (ROOT / page).read_text(), re.MULTILINE))
    for block in found:
        if block.reason:
            assert any(re.fullmatch(rf"{reason}(: .+)?", block.reason) for reason in REASONS), block
        assert block.reason is None or LANGUAGES[block.language], block
    tests = "".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    for language in {b.language for b in found if LANGUAGES[b.language] and b.reason is None}:
        assert f'to_run("{page}", "{language}")' in tests, f"{page}: no test runs its {language}"


class Understood(Exception):
    """The arguments have been parsed."""


def python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a program of this repository, and end it once it has understood its arguments."""
    module, *arguments = words[1:] if words[0] == "-m" else words
    if module in ("venv", "pip"):
        return
    path = ROOT / (module if module.endswith(".py") else f"{module.replace('.', '/')}.py")
    if "parse_args" not in path.read_text():  # it takes none, or looks at them itself
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(parser: argparse.ArgumentParser) -> None:
        parse(parser)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(Understood):
        runpy.run_path(str(path), run_name="__main__")


def wgan(words: list[str]) -> None:
    """Parse a command of ours; of one that trains, its settings too."""
    found = parsed(words)
    if found.command == "train":
        build_config(found.preset, found.data, found.constraint, assignments(found.settings))


@pytest.mark.parametrize(("page", "line"), LEFT)
def test_a_command_that_is_not_run_is_understood(
    page: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as that can be told here: our options, settings, programs, targets and extras."""
    words = shlex.split(line.replace("sha256=...", f"sha256={'0' * 64}"), comments=True)
    while re.match(r"\w+=", words[0]):
        del words[0]
    program, *rest = words
    if program in ("wgan", "torchrun"):
        wgan(words[words.index("wgan") + 1 :])
    elif program in ("python", "python3"):
        python(rest, monkeypatch)
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif "pip" in program:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "optional-dependencies"
        ]
        assert set(re.findall(r"wgan-foundry\[(\w+)\]", line)) <= extras.keys()
    else:  # of other people's programs some lines have tests of their own
        assert program in {
            "docker", "kind", "helm", "kubectl", "curl", "cosign", "sha256sum", "export",
            "openapi-python-client", "npx",
        }  # fmt: skip


def test_some_commands_are_not_run() -> None:
    assert len(LEFT) > 40
