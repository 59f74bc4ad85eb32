"""The parts of image files that pixels come from; all others are left out before decoding.

Pillow reads every part, and some cost far more than their bytes: a thousand colour profiles that
each unpack to a megabyte, a hundred thousand scans of one JPEG. A small file could so take minutes.
"""

from __future__ import annotations

import re
import struct
from typing import Literal, NamedTuple

from models.errors import DataError

MAX_PARTS = 4096
"""Chunks of a PNG, or segments of a JPEG. libpng writes 16 MiB of pixels as 2,048 chunks."""
MAX_PIECES = 2**14
"""Strips or tiles of a TIFF. Pillow makes a list of them, which takes several times as long as to
read a row; libtiff writes strips of 8 KiB, or of one row."""
PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8\xff"
PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
PNG_KEYED = {0: ">H", 2: ">3H"}
"""How tRNS names the one transparent grey or colour, by the colour type."""
GIF_STARTS = (b"GIF87a", b"GIF89a")
TIFF_STARTS = (b"II*\0", b"MM\0*")
TIFF_WIDTH, TIFF_HEIGHT, TIFF_COMPRESSION, TIFF_SAMPLES, TIFF_PLANAR = 256, 257, 259, 277, 284
TIFF_STRIPS, TIFF_STRIP_ROWS = 273, 278
TIFF_TILES, TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = 324, 322, 323
TIFF_KEPT = {
    *(TIFF_WIDTH, TIFF_HEIGHT, TIFF_COMPRESSION, TIFF_SAMPLES, TIFF_PLANAR),
    *(TIFF_STRIPS, TIFF_STRIP_ROWS, TIFF_TILES, TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT),
    *(258, 262, 266, 279, 292, 293, 317, 320, 325, 338, 339),  # how samples are written
}
TIFF_COMPRESSIONS = {1, 2, 3, 4, 5, 8, 32773, 32946}
"""None, fax, LZW, deflate and PackBits. Of a JPEG within a TIFF nobody would count the scans."""
TIFF_NUMBERS = {3: "H", 4: "I"}
BMP_COMPRESSIONS = {0, 3, 6}
"""None, and none with masks. Run lengths are left: a few bytes of them fill any memory."""
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
    key: tuple[int, ...] = ()
    """The one transparent grey or colour of a PNG, in 8 bits, but of 16-bit grey in 16; empty if
    there is none."""


def png_parts(content: bytes, name: str) -> ImageParts:
    """Keep the chunks of a PNG (ISO/IEC 15948) that its pixels come from; of an APNG, one image.

    Raises:
        DataError: there are over `MAX_PARTS` chunks, or a transparent colour of 16 bits.
    """
    kept, exif, position, count = [PNG_START], b"", len(PNG_START), 0
    key, (bits, colours) = tuple[int, ...](), content[24:26].ljust(2, b"\0")
    keyed = PNG_KEYED.get(colours)
    while position + 8 <= len(content):
        count = _counted(count, name)
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if kind == b"tRNS" and keyed and length == struct.calcsize(keyed):
            if bits == 16 and colours:  # Pillow reads 8 of them, which do not tell colours apart
                raise DataError(f"{name}: a transparent colour of 16 bits; save an alpha channel")
            levels = struct.unpack(keyed, content[end - 4 - length : end - 4])
            scale = {1: 255, 2: 85, 4: 17}.get(bits, 1)
            key = tuple(level % 2**bits * scale for level in levels)
        elif kind in PNG_KEPT:
            kept.append(content[position:end])
        elif kind == b"eXIf":
            exif = content[position + 8 : end - 4]
        if kind == b"IEND":
            break
        position = end
    return ImageParts(b"".join(kept), exif, key=key)


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


def gif_parts(content: bytes, name: str) -> ImageParts:
    """Keep the first image of a GIF (GIF89a specification), and the colour that it leaves out.

    Raises:
        DataError: there are over `MAX_PARTS` extensions before it.
    """
    position = 13 + (3 << (content[10] & 7) + 1 if content[10:11] and content[10] & 128 else 0)
    kept, control, count = content[:position], b"", 0
    while content[position : position + 1] == b"!":
        count = _counted(count, name)
        block = content[position : position + 8]
        if block[1:3] == b"\xf9\x04":  # without what comes after the image: its disposal
            control = block[:3] + bytes([block[3] & 0b11100011]) + block[4:]
        position = _past_blocks(content, position + 2)
    return ImageParts(kept + control + content[position:], b"")


def _past_blocks(content: bytes, position: int) -> int:
    """The place after a GIF's blocks of data, the last of which is empty."""
    while size := content[position : position + 1].rjust(1, b"\0")[0]:
        position += 1 + size
    return position + 1


def tiff_parts(content: bytes, name: str, max_pixels: int) -> ImageParts:
    """Keep the fields of a TIFF's first image (TIFF 6.0) that its pixels come from.

    Raises:
        DataError: it is compressed in a way that is not read, or its strips or tiles are not those
            of an image of its size, or over `MAX_PIECES`.
        struct.error: it is cut.
    """
    order = "<" if content.startswith(b"II") else ">"
    (first,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, first)
    kept, values, counts = list[bytes](), dict[int, int](), dict[int, int]()
    for position in range(first + 2, first + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", content, position)
        if tag in TIFF_KEPT and tag not in counts:
            kept.append(content[position : position + 12])
            counts[tag] = number
            if number == 1 and kind in TIFF_NUMBERS:
                (values[tag],) = struct.unpack_from(
                    order + TIFF_NUMBERS[kind], content, position + 8
                )
    compression = values.get(TIFF_COMPRESSION, 1)
    if compression not in TIFF_COMPRESSIONS:
        raise DataError(f"{name}: TIFF compression {compression} is not read; save it as PNG")
    width, height = values.get(TIFF_WIDTH, 0), values.get(TIFF_HEIGHT, 0)
    across, down = width, min(height, values.get(TIFF_STRIP_ROWS, height))
    if TIFF_STRIPS not in counts:
        across, down = values.get(TIFF_TILE_WIDTH, 0), values.get(TIFF_TILE_HEIGHT, 0)
    pieces = counts.get(TIFF_STRIPS, counts.get(TIFF_TILES, 0))
    planes = values.get(TIFF_SAMPLES, 1) if values.get(TIFF_PLANAR) == 2 else 1
    is_whole = across and down and pieces <= -(-width // across) * -(-height // down) * planes
    if not is_whole or (TIFF_STRIPS not in counts and across * down > max_pixels):
        raise DataError(f"{name}: its strips or tiles are not those of its size; save it as PNG")
    if pieces > MAX_PIECES:
        raise DataError(f"{name}: over {MAX_PIECES} strips or tiles; save it as PNG")
    # The fields point to places in the file, so these stay where they are.
    fields = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    start = content[:4] + struct.pack(order + "I", len(content) + len(content) % 2)
    return ImageParts(start + content[8:] + bytes(len(content) % 2) + fields, content)


def bmp_parts(content: bytes, name: str) -> ImageParts:
    """Take a BMP as it is, if it is not compressed.

    Raises:
        DataError: it is compressed.
        struct.error: it is cut.
    """
    (header,) = struct.unpack_from("<I", content, 14)
    compression = struct.unpack_from("<I", content, 30)[0] if header >= 40 else 0
    if compression not in BMP_COMPRESSIONS:
        raise DataError(f"{name}: a compressed BMP is not read; save it as PNG")
    return ImageParts(content, b"")


def holds_several(content: bytes) -> bool:
    """Tell if a file that can be decoded has pages or frames after the first, which alone is."""
    if content.startswith(PNG_START):
        return b"acTL" in content[: content.index(b"IDAT")]
    if content.startswith(TIFF_STARTS):
        order: Literal["little", "big"] = "little" if content.startswith(b"II") else "big"
        first = int.from_bytes(content[4:8], order)
        fields = first + 2 + 12 * int.from_bytes(content[first : first + 2], order)
        return int.from_bytes(content[fields : fields + 4], order) > 0
    if content.startswith(GIF_STARTS):
        start = gif_parts(content, "").content + bytes(10)
        colours = 3 << (start[10] & 7) + 1 if start[10] & 128 else 0
        image = 13 + colours + (8 if start[13 + colours : 14 + colours] == b"!" else 0)
        own = 3 << (start[image + 9] & 7) + 1 if start[image + 9] & 128 else 0
        position = _past_blocks(start, image + 10 + own + 1)
        while start[position : position + 1] == b"!":
            position = _past_blocks(start, position + 2)
        return start[position : position + 1] == b","
    is_animated_webp = content[8:16] == b"WEBPVP8X" and content[20] & 2
    return bool(is_animated_webp) or content[4:12] == b"ftypavis"


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
