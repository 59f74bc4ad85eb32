"""Archives are those of the standard library byte for byte, in a tenth of the memory."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Iterator

import pytest

from models.pipe import Pipe
from models.stored_zip import stored_zip


def files(count: int) -> Iterator[tuple[str, bytes]]:
    return ((f"{i:06d}.png", b"%d" % i) for i in range(count))


def standard(members: Iterator[tuple[str, bytes]]) -> bytes:
    pipe, written = Pipe(), []
    with zipfile.ZipFile(pipe, "w") as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
            written.append(pipe.take())
    return b"".join([*written, pipe.take()])


@pytest.mark.parametrize("count", [0, 1, 3, 2**16 - 1, 2**16])
def test_the_bytes_are_the_standard_library_s(count: int) -> None:
    archive = b"".join(stored_zip(files(count)))
    assert archive == standard(files(count))
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert len(opened.namelist()) == count
        assert opened.testzip() is None


def test_beyond_two_gigabytes_the_list_is_the_standard_library_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit is lowered for both."""
    monkeypatch.setattr("models.stored_zip.OFFSET_LIMIT", 5000)
    monkeypatch.setattr("zipfile.ZIP64_LIMIT", 5000)
    assert b"".join(stored_zip(files(200))) == standard(files(200))


def test_a_hundred_thousand_files_take_little_memory() -> None:
    tracemalloc.start()
    try:
        sizes = map(len, stored_zip(files(100_000)))
        assert max(sizes) < 2**17
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()
