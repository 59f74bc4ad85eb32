"""Tables and phrases that the pages made from results share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def put_between(page: Path, begin: str, end: str, content: str) -> None:
    """Put content between two marks of a page, in place of what stands there."""
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n{content}{end}{rest.partition(end)[2]}")


def mean_and_range(values: Sequence[float], form: str) -> str:
    """The mean over seeds and, of several, the lowest and the highest."""
    text, low, high = (written(f(values), form) for f in (mean, min, max))
    return text if low == high else f"{text} ({low} to {high})"


def written(value: float, form: str) -> str:
    """A value in a form; a large one that would need an exponent is written out: 1,067."""
    text = form.format(value)
    return f"{value:,.0f}" if "e+" in text else text


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
