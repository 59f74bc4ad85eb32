"""The parts of image files that pixels come from; all others are left out before decoding.

Pillow reads every part, and some cost far more than their bytes: a thousand colour profiles that
each unpack to a megabyte, a hundred thousand scans of one JPEG. A small file could so take minutes.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from models.errors import DataError

MAX_PARTS = 4096
"""Chunks of a PNG, or segments of a JPEG. libpng writes 16 MiB of pixels as 2,048 chunks."""
PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8\xff"
PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
JPEG_MARKER = re.compile(rb"((?:[^\xff]++|\xff++[\x00\xd0-\xd7])*+)\xff++([\x01-\xcf\xd8-\xfe])")
"""Scan data, in which a byte 255 is followed by 0 or a restart, and the marker that ends them. Fill
bytes, any number of 255 before a marker, go. It never goes back: its time grows with the bytes."""
SCAN, END, EXIF = 0xDA, 0xD9, 0xE1
JPEG_DROPPED = {*range(0xE1, 0xEE), 0xEF, 0xFE}
"""What applications add, and comments. APP0 and APP14 stay: they tell the colours."""
EXIF_START = b"Exif\0\0"
ORIENTATION = 0x0112
SHORT = 3


class ImageParts(NamedTuple):
    """What is left of a file."""

    content: bytes
    exif: bytes
    """Its EXIF data; empty without any."""
    scans: int = 1
    """Passes over the pixels, at most."""


def png_parts(content: bytes, name: str) -> ImageParts:
    """Keep the chunks of a PNG (ISO/IEC 15948) that its pixels come from; of an APNG, one image.

    Raises:
        DataError: there are over `MAX_PARTS` chunks.
    """
    kept, exif, position, count = [PNG_START], b"", len(PNG_START), 0
    while position + 8 <= len(content):
        count = _counted(count, name)
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if kind in PNG_KEPT:
            kept.append(content[position:end])
        elif kind == b"eXIf":
            exif = content[position + 8 : end - 4]
        if kind == b"IEND":
            break
        position = end
    return ImageParts(b"".join(kept), exif)


def jpeg_parts(content: bytes, name: str) -> ImageParts:
    """Keep the segments of a JPEG (ITU-T T.81) that its pixels come from; count its scans.

    Where a decoder may take a broken file otherwise, more scans are counted, never fewer.

    Raises:
        DataError: there are over `MAX_PARTS` segments.
    """
    kept, exif, position, count, scans = [content[:2]], b"", 2, 0, 0
    while match := JPEG_MARKER.match(content, position):
        count = _counted(count, name)
        marker, end = match[2][0], match.end()
        if scans:
            kept.append(match[1])
        if marker >= 0xC0 and marker not in (0xD8, END):  # the others have no length
            end += max(2, int.from_bytes(content[end : end + 2]))
        segment = content[match.end() - 2 : end]
        scans += marker == SCAN
        if marker == EXIF and not exif and segment[4:].startswith(EXIF_START):
            exif = segment[4:]
        if marker not in JPEG_DROPPED:
            kept.append(segment)
        position = end
        if marker == END:
            return ImageParts(b"".join(kept), exif, scans)
    rest = content[position:] if scans else b""  # it may be cut short within a scan
    return ImageParts(b"".join([*kept, rest]), exif, scans)


def orientation(exif: bytes) -> int:
    """Read the orientation, 1 to 8, of EXIF data (CIPA DC-008); 1, upright, of damaged data.

    EXIF data are no part of the picture: whatever is wrong with them, it can be seen.
    """
    tiff = exif.removeprefix(EXIF_START)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, first)
        for position in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, position)
            if tag == ORIENTATION and kind == SHORT:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:  # they end too early
        pass
    return 1


def _counted(count: int, name: str) -> int:
    if count == MAX_PARTS:
        raise DataError(f"{name}: over {MAX_PARTS} chunks or segments; save the image anew")
    return count + 1
