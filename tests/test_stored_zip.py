"""Archives are those of the standard library byte for byte, in a tenth of the memory."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.pipe import Pipe
from models.stored_zip import _end, _entry, stored_zip


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


@pytest.mark.parametrize("offset", [2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32 + 5])
def test_a_file_that_lies_far_behind_is_found_by_the_standard_library(
    offset: int, tmp_path: Path
) -> None:
    """What comes before it is a hole in a file on the disk."""
    content = b"it is here"
    piece = next(iter(stored_zip([("a.png", content)])))
    entry = _entry(b"a.png", zlib.crc32(content), len(content), offset)
    begins = offset + len(piece)
    with (tmp_path / "far.zip").open("wb") as file:
        file.seek(offset)
        file.write(piece + entry + _end(1, len(entry), begins))
    with zipfile.ZipFile(tmp_path / "far.zip") as archive:
        assert archive.infolist()[0].header_offset == offset
        assert archive.read("a.png") == content
    in_entry, in_end = entry[42:46], _end(1, len(entry), begins)[-6:-2]
    most = struct.pack("<L", 2**32 - 1)  # says that the number of 64 bits counts; APPNOTE 4.4.1.4
    assert in_entry == (most if offset >= 2**31 else struct.pack("<L", offset))
    assert in_end == (most if begins >= 2**32 - 1 else struct.pack("<L", begins))


def test_numbers_of_64_bits_begin_where_the_standard_library_s_do() -> None:
    """An archive of fewer bytes is one that programs of before 2001 read, too."""
    wide = b"PK\6\6"
    assert not _end(2**16 - 1, 50, 2**31 - 1).startswith(wide)
    assert _end(2**16, 50, 2**31 - 1).startswith(wide)
    assert _end(2**16 - 1, 50, 2**31).startswith(wide)


def test_what_is_written_into_a_pipe_is_taken_once() -> None:
    pipe = Pipe()
    assert pipe.writable()
    assert [pipe.write(part) for part in (b"ab", memoryview(b"c"), b"")] == [2, 1, 0]
    assert pipe.take() == b"abc"
    assert pipe.take() == b""
