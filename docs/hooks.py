"""What MkDocs does beside rendering docs/: pages from outside, links to the code, --help texts.

The Markdown is written for GitHub: links are relative to the file they stand in, and may lead out
of docs/. Here such links become links within the site, so that both readers follow the same text.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "w1-results.md": "benchmarks/w1/RESULTS.md",
}
"""Pages of the site, and the files outside docs/ that they are made from."""
FOLDERS = "how-it-works.md"
"""The page that a link to a folder of code leads to."""
LINK = re.compile(r'(\]\(|<img src=")(?![a-z]+:|#)([^)"#]+)')
HELP = re.compile(r"<!-- help: (.*) -->")
HELP_OF = """
import contextlib, io, json, sys
import wgan_cli

def help_of(words):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = wgan_cli.main([*words, "--help"])
    assert code == 0, words
    return out.getvalue()

print(json.dumps([help_of(words) for words in json.loads(sys.argv[1])]))
"""
"""Prints the help of commands, whose words are in its argument, as a list in JSON."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose sources lie outside docs/."""
    for uri, path in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to where their targets are in the site, and fill in help texts."""
    uri = page.file.src_uri
    folder = posixpath.dirname(OUTSIDE.get(uri, f"docs/{uri}"))

    def lead(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[2]))
        target = _site_uri(path, files, config)
        if match[1].startswith("<img") and not (ROOT / path).is_file():
            log.warning("%s: no such picture: %s", uri, match[2])  # MkDocs checks Markdown's alone
        return match[1] + (match[2] if target is None else target)

    helps = help_texts(commands) if (commands := HELP.findall(markdown)) else {}
    return HELP.sub(lambda match: helps[match[1]], LINK.sub(lead, markdown))


def _site_uri(path: str, files: Files, config: MkDocsConfig) -> str | None:
    """Where the site has a file or folder of the repository; files of code are copied into it."""
    pages = {source: uri for uri, source in OUTSIDE.items()}
    if path in pages:
        return pages[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return FOLDERS
    if not (ROOT / path).is_file():
        return None
    uri = f"source/{path}" + ("" if path.endswith(".json") else ".txt")
    if uri not in files.src_uris:
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return uri


def help_texts(commands: list[str]) -> dict[str, str]:
    """What commands of ours print with --help, each under a heading.

    One process prints all of them: each would import what the others have imported.
    """
    words = [command.split()[1:] for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF, json.dumps(words)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "88", "TERM": "dumb", "NO_COLOR": "1", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        command: f"### {command}\n\n```text\n{text.strip()}\n```\n"
        for command, text in zip(commands, json.loads(done.stdout), strict=True)
    }


class ExamplesAsCode(griffe.Extension):
    """Shows the section "Example:" of a docstring as code; griffe knows only "Examples:"."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section of an object's docstring."""
        if obj.docstring:
            value = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", value, flags=re.MULTILINE)
