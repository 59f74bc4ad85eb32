"""The table of the chart's values in docs/values.md: `python -m deploy.values` writes it.

It is made of values.yaml: each key with a comment above it is a row.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
VALUES = ROOT / "deploy/chart/values.yaml"
PAGE = ROOT / "docs/values.md"
INTRODUCTION = """# Values of the chart

Each value of `deploy/chart/values.yaml`, with its default; `values.schema.json` refuses others.
What each key of `pods.all` adds to every pod, the same key of `pods.serve`, `pods.train` and
`pods.mlflow` adds to those of one component. [operations.md](operations.md) walks through an
installation.

<!-- made by `python -m deploy.values` -->
"""


def rows(content: str) -> list[tuple[str, str, str]]:
    """Return path, default and comment of each commented key of a values file."""
    defaults = yaml.safe_load(content)
    found, above, path = [], [], []
    for line in content.splitlines():
        comment = re.match(r" *# ?(.*)", line)
        key = re.match(r"( *)([\w.]+):", line)
        if comment:
            if not comment[1].startswith("----"):
                above.append(comment[1])
            continue
        if key:
            path = [*path[: len(key[1]) // 2], key[2]]
            if above:
                found.append((path, " ".join(above)))
        above = []
    parents = {tuple(path[:-1]) for path, _ in found}
    return [
        (".".join(path), "" if tuple(path) in parents else _default(defaults, path), comment)
        for path, comment in found
    ]


def page(content: str) -> str:
    """Return the page for a values file's content."""
    lines = ["| value | default | what |", "|---|---|---|"]
    for path, default, comment in rows(content):
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{path}` | {shown} | {comment} |")
    return INTRODUCTION + "\n".join(lines) + "\n"


def _default(values: Any, path: list[str]) -> str:
    for key in path:
        values = values[key]
    text = yaml.safe_dump(values, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip().replace("''", '""')


if __name__ == "__main__":
    PAGE.write_text(page(VALUES.read_text()))
