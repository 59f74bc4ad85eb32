"""Images in and out: decoding within bounds, grids, PNG."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageColor
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from models.errors import DataError, OversizeError, ShapeError
from models.image_parts import (
    GIF_STARTS,
    JPEG_START,
    PNG_START,
    TIFF_STARTS,
    ImageParts,
    bmp_parts,
    gif_parts,
    jpeg_parts,
    orientation,
    png_parts,
    tiff_parts,
)

Array = np.ndarray
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels in an image file."""
PNG_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's colour type for each number of channels."""
MAX_PIXELS = 2**24
"""Largest image that is decoded, in pixels."""
MAX_SCANNED = 16 * MAX_PIXELS
"""Pixels of a progressive JPEG times its scans, of which encoders write about ten."""
BLOCK = 2**13
"""Bytes of a file that are decoded between two checks; those of a PNG may be 8 MB of pixels."""
STRIP = 2**18
"""Pixels that are laid on a background at once."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright."""
EXCHANGING = [TURNS[i] for i in (5, 6, 7, 8)]
"""Turns that make the width the height."""
BROKEN = (
    *(OSError, SyntaxError, ValueError, RuntimeError, struct.error),
    Image.DecompressionBombError,
)
"""What Pillow and we raise for a broken file."""
MAX_WEBP_SIDE = 16383
MARGIN = 2
"""Pixels between the images of a grid, which would otherwise run together."""


def decode_image(
    content: bytes,
    name: str,
    max_pixels: int = MAX_PIXELS,
    admit: Callable[[int, int], None] | None = None,
    check: Callable[[], object] | None = None,
) -> Array:
    """Decode one PNG, JPEG, WebP, GIF, TIFF, BMP or AVIF file; of several images, the first.

    Args:
        content: the file's bytes.
        name: the file's name, for error messages.
        max_pixels: an image with more is refused before it is decoded.
        admit: called with the height and width before the image is decoded; may raise.
        check: called before each `BLOCK` of the file of a PNG, JPEG, GIF or BMP; may raise, and so
            stop the decoding. The other formats are decoded as a whole.

    Returns:
        uint8 ``(H, W, C)`` with the file's own channels (a palette becomes RGB or RGBA, and one
        colour that is transparent an alpha channel), rotated by its EXIF orientation. Of 16 bits
        the upper 8 are read.

    Raises:
        DataError: the file is no such image, or is broken.
        OversizeError: it has too many pixels, or scans.
    """
    try:
        parts, file = _open(content, name, max_pixels, check)
        with file:
            turn = TURNS.get(orientation(parts.exif or file.info.get("exif", b"")))
            if admit is not None:
                sides = (file.height, file.width)
                admit(*(sides[::-1] if turn in EXCHANGING else sides))
            if file.width * file.height > max_pixels:
                raise OversizeError(
                    f"{name}: {file.width}x{file.height} is over {max_pixels} pixels"
                )
            if file.width * file.height * parts.scans > MAX_SCANNED:
                raise OversizeError(
                    f"{name}: {file.width}x{file.height} in {parts.scans} scans; save it as PNG"
                )
            image = _with_alpha(file, parts.key)
            if image.mode not in MODES.values():
                raise DataError(
                    f"{name}: {image.mode} pixels; only grey and RGB of 8 or 16 bits are read"
                )
            pixels = np.asarray(image if turn is None else image.transpose(turn))
    except BROKEN as error:
        raise DataError(f"{name}: a broken image ({error})") from None
    return pixels.reshape(*pixels.shape[:2], -1)


class _Checked(io.BytesIO):
    """A file that calls ``check`` whenever it is read."""

    def __init__(self, content: bytes, check: Callable[[], object]) -> None:
        super().__init__(content)
        self._check = check

    def read(self, size: int | None = -1) -> bytes:
        """Read as any file does, if the check lets it."""
        self._check()
        return super().read(size)


def _open(
    content: bytes, name: str, max_pixels: int, check: Callable[[], object] | None
) -> tuple[ImageParts, ImageFile]:
    """Read an image's header, of the parts alone that its pixels come from."""
    reader: type[ImageFile]
    brands = content[8 : int.from_bytes(content[:4])] if content[4:8] == b"ftyp" else b""
    if content.startswith(PNG_START):
        parts, reader = png_parts(content, name), PngImageFile
    elif content.startswith(JPEG_START):
        parts, reader = jpeg_parts(content, name), JpegImageFile
    elif content.startswith(b"RIFF") and content[8:12] == b"WEBP":  # Pillow reads no other parts
        parts, reader = ImageParts(content, b""), WebPImageFile
    elif content.startswith(GIF_STARTS):
        parts, reader = gif_parts(content, name), GifImageFile
    elif content.startswith(TIFF_STARTS):
        parts, reader = tiff_parts(content, name, max_pixels), TiffImageFile
    elif content.startswith(b"BM"):
        parts, reader = bmp_parts(content, name), BmpImageFile
    elif b"avif" in brands or b"avis" in brands:
        parts, reader = ImageParts(content, b""), AvifImageFile
    else:
        raise DataError(f"{name}: not a PNG, JPEG, WebP, GIF, TIFF, BMP or AVIF image")
    if check is None:
        return parts, reader(io.BytesIO(parts.content))
    file = reader(_Checked(parts.content, check))
    file.decodermaxblock = BLOCK
    return parts, file


def _with_alpha(file: ImageFile, key: tuple[int, ...]) -> Image.Image:
    """Read the pixels in 8 bits; the key of `ImageParts`, if there is one, as an alpha channel."""
    file.load()
    is_transparent = "transparency" in file.info
    if file.mode == "P":
        return file.convert("RGBA" if is_transparent else "RGB")
    if file.mode == "L" and is_transparent:  # a GIF whose palette is all greys
        key = (file.info["transparency"],)
    image: Image.Image = file
    if file.mode == "1":
        image = file.convert("L")
    elif file.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(file) >> 8).astype(np.uint8))
    if key:
        values = np.asarray(image if file.mode == "1" else file)
        planes = np.moveaxis(values.reshape(*values.shape[:2], -1), 2, 0)
        differing = [plane != level for plane, level in zip(planes, key, strict=False)]
        is_shown = np.logical_or.reduce(differing)
        image.putalpha(Image.fromarray(is_shown.astype(np.uint8) * 255))
    return image


def opaque(image: Array, background: str = "white") -> Array:
    """Lay uint8 ``(H, W, C)`` with an alpha channel (C of 2 or 4) on a colour; keep other images.

    Args:
        image: what is laid.
        background: the colour, as ``data.background`` names it.

    Returns:
        uint8 ``(H, W, C - 1)``; grey on a colour that is not grey becomes RGB.
    """
    height, width, channels = image.shape
    if channels not in (2, 4):
        return image
    ground = np.array(ImageColor.getrgb(background), np.uint16)
    if channels == 2 and len(set(ground.tolist())) == 1:
        ground = ground[:1]
    result = np.empty((height, width, max(len(ground), channels - 1)), np.uint8)
    rows = max(1, STRIP // max(1, width))  # a few at a time: in 16 bits, all would take much memory
    for top in range(0, height, rows):
        strip = image[top : top + rows]
        alpha = strip[..., -1:].astype(np.uint16)
        mixed = strip[..., :-1] * alpha + ground * (255 - alpha)
        # Adding 127 rounds the division to nearest.
        result[top : top + rows] = (mixed + 127) // 255
    return result


def fit(
    image: Array,
    height: int,
    width: int,
    channels: int | None = None,
    background: str = "white",
) -> Array:
    """Bring an image to a size and a number of channels, for training and for scoring alike.

    The middle is cut out in the proportions wanted and resized (Lanczos). Transparency is laid on
    the background, colour becomes grey by its luma, and grey becomes colour.

    Args:
        image: uint8 or numbers ``(H, W, C)``. An image of the size wanted is not resampled.
        height: height of the result, in pixels.
        width: width of the result, in pixels.
        channels: 1, 3, or as many as the image has; None keeps the image's.
        background: see `opaque`.

    Returns:
        ``(height, width, channels)``, uint8 of uint8, else float32 if it was resampled.

    Raises:
        ShapeError: these channels cannot be made from the image's.
    """
    channels = channels or image.shape[2]
    if image.shape[2] != channels and image.dtype == np.uint8:
        image = opaque(image, background)
    if image.shape[2] != channels:
        if {image.shape[2], channels} != {1, 3} or image.dtype != np.uint8:
            raise ShapeError(f"{image.shape[2]} channels cannot be made {channels}")
        image = np.asarray(_picture(image).convert(MODES[channels])).reshape(
            *image.shape[:2], channels
        )
    if image.shape[:2] == (height, width):
        return image
    scale = min(image.shape[0] / height, image.shape[1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    middle = image[top : top + rows, left : left + columns]
    if channels in MODES and image.dtype == np.uint8:
        fitted = _picture(middle).resize((width, height), Image.Resampling.LANCZOS)
        return np.asarray(fitted).reshape(height, width, channels)
    resized = [
        np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.LANCZOS))
        for channel in _singly(middle)
    ]
    # The filter overshoots at edges, which 8 bits cut off by themselves.
    return np.stack(resized, axis=2).clip(middle.min((0, 1)), middle.max((0, 1)))


def _singly(image: Array) -> Array:
    """The channels of ``(H, W, C)``, one after the other, in a type that Pillow resizes."""
    channels = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    return channels if image.dtype == np.uint8 else channels.astype(np.float32)


def encode_png(image: Array) -> bytes:
    """Encode one uint8 ``(H, W, C)`` image, C of 1 to 4, as PNG (ISO/IEC 15948), fast.

    Each row is stored as its difference from the one above, and only runs are compressed. Pillow
    tries five filters per row, which at its level 1 takes two to four times as long for a file of
    about the same size.

    Raises:
        ShapeError: an image file cannot have so many channels.
    """
    height, width, channels = image.shape
    _require_channels(channels)
    pixels = image.reshape(height, width * channels)
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = 2  # the filter "up"
    rows[:, 1:] = pixels
    rows[1:, 1:] -= pixels[:-1]
    deflate = zlib.compressobj(1, strategy=zlib.Z_RLE)
    data = deflate.compress(rows.data) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, PNG_TYPES[channels], 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        file += struct.pack(">I", len(content)) + kind + content + checksum
    return file


def encode_small_png(image: Array) -> bytes:
    """Encode one uint8 ``(H, W, C)`` image as PNG with Pillow's best compression, slowly.

    Raises:
        ShapeError: see `encode_png`.
    """
    out = io.BytesIO()
    _picture(image).save(out, format="PNG", compress_level=9)
    return out.getvalue()


def encode_webp(image: Array) -> bytes:
    """Encode one uint8 ``(H, W, C)`` image, C of 1 to 4, as WebP without loss.

    Raises:
        ShapeError: WebP has no such image.
    """
    if max(image.shape[:2]) > MAX_WEBP_SIDE:
        raise ShapeError(f"a WebP image has at most {MAX_WEBP_SIDE} pixels a side; ask for png")
    out = io.BytesIO()
    # Transparent pixels keep their colour, so every pixel can be read back.
    _picture(image).save(out, format="WEBP", lossless=True, quality=20, method=0, exact=True)
    return out.getvalue()


def is_written_here(content: bytes, pixels: Array) -> bool:
    """Tell if an image file is to the byte what `encode_png` or `encode_webp` makes of its pixels.

    Other programs choose other filters or parts. So samples and pictures of ours are known
    wherever they lie, without a mark that would change their bytes.

    Args:
        content: the file's bytes.
        pixels: as `decode_image` returned them.
    """
    if content.startswith(PNG_START):
        # First what is quick: all data follow the header in one chunk, at zlib's lowest level.
        return content[37:43] == b"IDAT\x78\x01" and content == encode_png(pixels)
    return content[12:16] == b"VP8L" and content == encode_webp(pixels)


def _picture(image: Array) -> Image.Image:
    _require_channels(image.shape[2])
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _require_channels(count: int) -> None:
    if count not in MODES:
        raise ShapeError(f"an image file has 1 to 4 channels, not {count}; ask for npz")


def grid(images: Array, columns: int | None = None) -> Array:
    """Arrange uint8 ``(N, H, W, C)`` images, row by row, on white with a margin between them.

    Args:
        images: at least one image.
        columns: images per row; None: a grid as square as possible.

    Returns:
        uint8 ``(H', W', C)``.
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full(
        (rows * (height + MARGIN) + MARGIN, columns * (width + MARGIN) + MARGIN, channels),
        255,
        np.uint8,
    )
    for i, image in enumerate(images):
        top = MARGIN + (i // columns) * (height + MARGIN)
        left = MARGIN + (i % columns) * (width + MARGIN)
        sheet[top : top + height, left : left + width] = image
    return sheet


def enlarge(images: Array, factor: int) -> Array:
    """Repeat each pixel of ``(N, H, W, C)`` images ``factor`` times in both directions."""
    return images.repeat(factor, axis=1).repeat(factor, axis=2)
