"""CSV and JSON files of samples, written piece by piece."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence


def write_csv(
    columns: Sequence[str], parts: Iterable[Iterable[Sequence[object]]]
) -> Iterator[bytes]:
    """Write rows below a header; lines end in line feeds.

    Args:
        columns: the header.
        parts: rows, a piece of the file for each part.
    """
    lines: list[str] = []
    # Python puts in quotes what holds a sign of the line's end; a carriage return ends lines too.
    writer = csv.writer(_Lines(lines), lineterminator="\r\n")
    if columns[0].startswith("#"):  # without quotes, the header would be a comment
        csv.writer(_Lines(lines), lineterminator="\r\n", quoting=csv.QUOTE_ALL).writerow(columns)
    else:
        writer.writerow(columns)
    for part in parts:
        writer.writerows(part)
        yield "".join(lines).encode()
        lines.clear()


def write_json(parts: Iterable[Sequence[object]], facts: Mapping[str, object]) -> Iterator[bytes]:
    """Write an object with a list of samples, and further entries.

    Args:
        parts: samples, a piece of the file for each part.
        facts: the entries after the samples.
    """
    before = '{"samples": ['
    for part in parts:
        piece = (before + json.dumps(part, allow_nan=False)[1:-1]).encode()
        del part  # lists of numbers are several times as large, and the client may read slowly
        yield piece
        before = ", "
    rest = "".join(f", {json.dumps(name)}: {json.dumps(fact)}" for name, fact in facts.items())
    yield f"]{rest}}}".encode()


class _Lines:
    """A file to `csv.writer`, which writes a line at once; they end in line feeds alone."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def write(self, line: str) -> None:
        self.lines.append(line[:-2] + "\n")
