"""Zip archives of many small files, written piece by piece (PKWARE's APPNOTE.TXT 6.3.10).

The standard library keeps an object of 800 bytes for each file until the end: 80 MB for a hundred
thousand samples. Here each takes the 56 bytes that its entry in the archive's list has.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

VERSION, VERSION_64 = 20, 45
"""Versions of the format: 2.0, and 4.5 for archives that need numbers of 64 bits."""
UNIX = 3
SIZES_FOLLOW = 1 << 3
"""Flag: sum and sizes come after the content, as in any archive that is written in one go."""
DATE, TIME = (1 << 5) | 1, 0
"""The first of January 1980, always, so that the same files give the same bytes."""
RIGHTS = 0o600 << 16
OFFSET_LIMIT = 2**31 - 1
"""Largest place of a file in 32 bits, as the standard library has it; beyond it, 64 are taken."""
MANY = 2**16 - 1
BLOCK = 2**16
"""Bytes of the list that are yielded at once."""


def stored_zip(files: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """Write files, uncompressed, as an archive.

    Args:
        files: name, in ASCII, and content of each.

    Yields:
        The archive's bytes, the same as `zipfile` writes to what cannot be sought in.
    """
    entries, offset, count = bytearray(), 0, 0
    for name, content in files:
        encoded, size, check = name.encode("ascii"), len(content), zlib.crc32(content)
        head = VERSION, 0, SIZES_FOLLOW, 0, TIME, DATE
        local = struct.pack("<4s2B4H3L2H", b"PK\3\4", *head, 0, 0, 0, len(encoded), 0) + encoded
        after = struct.pack("<4s3L", b"PK\7\10", check, size, size)
        entries += _entry(encoded, check, size, offset)
        offset += len(local) + size + len(after)
        count += 1
        yield local + content + after
    for start in range(0, len(entries), BLOCK):
        yield bytes(entries[start : start + BLOCK])
    yield _end(count, len(entries), offset)


def _entry(name: bytes, check: int, size: int, offset: int) -> bytes:
    """Describe one file in the list at the end."""
    version, extra = VERSION, b""
    if offset > OFFSET_LIMIT:
        version, extra, offset = VERSION_64, struct.pack("<2HQ", 1, 8, offset), 2**32 - 1
    head = VERSION if not extra else VERSION_64, UNIX, version, 0, SIZES_FOLLOW, 0, TIME, DATE
    lengths = len(name), len(extra), 0, 0, 0
    fixed = struct.pack(
        "<4s4B4H3L5H2L", b"PK\1\2", *head, check, size, size, *lengths, RIGHTS, offset
    )
    return fixed + name + extra


def _end(count: int, size: int, offset: int) -> bytes:
    """End an archive whose list has ``count`` entries, ``size`` bytes, and begins at ``offset``."""
    wide = b""
    if count > MANY or offset > OFFSET_LIMIT:
        totals = count, count, size, offset
        versions = VERSION_64, VERSION_64
        wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, *versions, 0, 0, *totals)
        wide += struct.pack("<4sLQL", b"PK\6\7", 0, offset + size, 1)
        count, offset = min(count, MANY), min(offset, 2**32 - 1)
    return wide + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, offset, 0)
