"""Tables and phrases that the pages made from results share."""

from __future__ import annotations

from typing import Any


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def with_quartiles(found: dict[str, Any]) -> str:
    """A ratio and, in brackets, its quartiles over rounds."""
    low, high = found["spread"]
    return f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"


def load_note(result: dict[str, Any]) -> str:
    """A sentence on how busy the machine was, and the result's own note."""
    return (
        f"The load average when it began was {result['load_average'][0]:.1f}; others at work on "
        f"the two cores make ratios spread. {result.get('note', '').strip()}"
    ).rstrip()
