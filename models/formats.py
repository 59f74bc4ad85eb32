"""Samples to bytes, and bytes to items: the same formats for the command line and the service."""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Sequence

import numpy as np

from models.errors import DataError, ShapeError
from models.images import decode_image, encode_png, enlarge, grid

Array = np.ndarray
SAMPLE_FORMATS = ("png", "zip", "npz", "npy", "csv")
LEGIBLE = 32
"""Pixels: smaller images are enlarged in a grid, by a whole factor, for the eye."""
MAX_BYTES = 2**28
"""Of one decoded array: a small file can claim, or unpack to, far more."""


def encode(samples: Array, format: str, columns: Sequence[str] = ()) -> bytes:
    """Encode samples as one file.

    Args:
        samples: uint8 ``(N, H, W, C)``, float32 ``(N, D)`` or ``(N, T, D)``.
        format: one of `SAMPLE_FORMATS`; png is one grid, zip one PNG for each sample, csv one
            row for each vector.
        columns: names for the header row of a csv; without them x1, x2 and so on.

    Raises:
        ShapeError: only images have a picture, and only vectors a row.
    """
    if format == "csv":
        return _encode_csv(samples, columns)
    out = io.BytesIO()
    if format == "npz":
        np.savez(out, samples=samples)
        return out.getvalue()
    if format == "npy":
        np.save(out, samples)
        return out.getvalue()
    if samples.ndim != 4:
        kind = "vectors" if samples.ndim == 2 else "sequences"
        raise ShapeError(f"the model makes {kind}, which have no {format}; ask for npz")
    if format == "png":
        factor = max(1, LEGIBLE // max(samples.shape[1:3]))
        return encode_png(grid(enlarge(samples, factor)))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:  # PNGs do not shrink further
        for i, image in enumerate(samples):
            # A fixed date, so that the same samples give the same bytes.
            archive.writestr(zipfile.ZipInfo(f"{i:06d}.png"), encode_png(image))
    return out.getvalue()


def _encode_csv(samples: Array, columns: Sequence[str]) -> bytes:
    if samples.ndim != 2:
        raise ShapeError("only vectors make a csv; ask for npz or, of images, png")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns or [f"x{i + 1}" for i in range(samples.shape[1])])
    # As text, each float32 has the fewest digits that give it back exactly.
    writer.writerows(samples.astype(str).tolist())
    return text.getvalue().encode()


def read_items(content: bytes, name: str) -> Array:
    """Read the items in one file: an image, or an array of items in .npy or .npz.

    Args:
        content: the file's bytes.
        name: its name; the content alone decides what it is.

    Returns:
        ``(1, H, W, C)`` of an image, or the array as it is.

    Raises:
        DataError: none of these, broken, or too large.
    """
    if content.startswith(b"\x93NUMPY"):
        return _read_array(io.BytesIO(content), name)
    if content.startswith(b"PK"):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = archive.namelist()
                wanted = "samples.npy" if "samples.npy" in members else members[0]
                if wanted != "samples.npy" and len(members) > 1:
                    raise DataError(f"{name}: holds several arrays; name one 'samples'")
                with archive.open(wanted) as file:
                    return _read_array(file, name)
        except DataError:
            raise
        except Exception as error:  # zipfile and zlib raise many kinds on a broken file
            raise DataError(f"{name}: a broken npz file ({error})") from None
    return decode_image(content, name)[None]


def _read_array(file: object, name: str) -> Array:
    """Read one array whose header promises no more than `MAX_BYTES`, and never an object."""
    from typing import IO, cast

    stream = cast(IO[bytes], file)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or dtype.kind not in "uif":
            raise DataError(f"{name}: holds {dtype}, not plain numbers")
        if size > MAX_BYTES:
            raise DataError(f"{name}: an array of {size} bytes is over {MAX_BYTES}")
        content = stream.read(size)
        if len(content) != size:
            raise DataError(f"{name}: truncated ({len(content)} of {size} bytes)")
    except DataError:
        raise
    except Exception as error:  # numpy's header parser raises many kinds
        raise DataError(f"{name}: a broken array ({error})") from None
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
