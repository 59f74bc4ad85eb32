"""Images in and out: decoding within bounds, grids, PNG."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from models.errors import DataError, ShapeError

Array = np.ndarray
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels in an image file."""
PNG_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's colour type for each number of channels."""
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 2**24
"""Largest image that is decoded, in pixels."""
MAX_WEBP_SIDE = 16383
MARGIN = 2
"""Pixels between the images of a grid, which would otherwise run together."""


def decode_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Array:
    """Decode one PNG, JPEG or WebP file.

    Args:
        content: the file's bytes.
        name: the file's name, for error messages.
        max_pixels: an image with more is refused before it is decoded.

    Returns:
        uint8 ``(H, W, C)`` with the file's own channels (a palette becomes RGB or RGBA), rotated by
        its EXIF orientation.

    Raises:
        DataError: the file is no such image, is broken, or is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns about a small decompression bomb
            with Image.open(io.BytesIO(content), formats=FORMATS) as file:
                if file.width * file.height > max_pixels:
                    raise DataError(
                        f"{name}: {file.width}x{file.height} is over {max_pixels} pixels"
                    )
                image: Image.Image = file
                if file.mode == "P":
                    image = file.convert("RGBA" if "transparency" in file.info else "RGB")
                elif file.mode == "1":
                    image = file.convert("L")
                if image.mode not in MODES.values():
                    raise DataError(f"{name}: {image.mode} pixels; only 8 bits a channel are read")
                pixels = np.asarray(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise DataError(f"{name}: not a PNG, JPEG or WebP image") from None
    except (OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: a broken image ({error})") from None
    return pixels.reshape(*pixels.shape[:2], -1)


def on_white(image: Array) -> Array:
    """Lay uint8 ``(H, W, C)`` with an alpha channel (C of 2 or 4) on white; keep other images."""
    if image.shape[2] not in (2, 4):
        return image
    alpha = image[..., -1:].astype(np.uint16)
    mixed = image[..., :-1] * alpha + 255 * (255 - alpha)
    # Adding 127 rounds the division to nearest.
    return ((mixed + 127) // 255).astype(np.uint8)


def fit(image: Array, height: int, width: int, channels: int | None = None) -> Array:
    """Bring an image to a size and a number of channels, for training and for scoring alike.

    The middle is cut out in the proportions wanted and resized (Lanczos). Transparency is laid on
    white, colour becomes grey by its luma, and grey becomes colour.

    Args:
        image: uint8 ``(H, W, C)``, C of 1 to 4. An image of the size wanted is not resampled.
        height: height of the result, in pixels.
        width: width of the result, in pixels.
        channels: 1, 3, or as many as the image has; None keeps the image's.

    Returns:
        uint8 ``(height, width, channels)``.

    Raises:
        ShapeError: these channels cannot be made from the image's.
    """
    channels = channels or image.shape[2]
    if image.shape[2] != channels:
        image = on_white(image)
    if image.shape[2] != channels:
        if {image.shape[2], channels} != {1, 3}:
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
    fitted = _picture(middle).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(height, width, channels)


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
