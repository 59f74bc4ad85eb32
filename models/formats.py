"""File formats of samples and items, for the command line and the service alike."""

from __future__ import annotations

import io
import itertools
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING

import numpy as np

from models.errors import DataError, OversizeError, ShapeError
from models.images import MARGIN, MAX_PIXELS, decode_image, encode_png, encode_webp, enlarge, grid
from models.pipe import Pipe
from models.stored_zip import stored_zip
from models.text_files import write_csv, write_json

if TYPE_CHECKING:  # torch is for the service's worker alone: importing it costs its supervisor too
    from models.model import Model
    from models.tables import Condition

Array = np.ndarray
SAMPLE_FORMATS = ("png", "webp", "zip", "npz", "npy", "json", "csv", "parquet", "arrow")
PICTURES = ("png", "webp", "zip")
"""Those of `SAMPLE_FORMATS` that hold images of 256 grey levels."""
TABLE_FORMATS = ("csv", "json", "npz", "parquet", "arrow")
"""Those of `SAMPLE_FORMATS` in which a table of mixed columns is written."""
SAMPLES_MARK = b"wgan samples"
"""The comment of an npz file, and a key in the schema of a Parquet or Arrow file, of samples."""
MIN_TILE_SIDE = 32
"""Pixels; smaller images are enlarged in a grid, by a whole factor."""
MAX_GRID_PIXELS = 2**25
MAX_BYTES = 2**28
"""Largest decoded array; a small file can claim, or unpack to, far more."""
NPZ_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Those that numpy writes; the others take ten times as long for a byte."""
MAX_MEMBERS = 1000
"""Files in an archive: each takes memory when the list of them is read."""
NPY_VERSIONS = ((1, 0), (2, 0), (3, 0))
MAX_NPY_HEADER = 10_000
"""Bytes of an array's header, as numpy bounds it; but numpy does so when it has read it all."""


def encode(samples: Array, format: str, columns: Sequence[str] = ()) -> bytes:
    """Encode samples as one file; see `stream`."""
    return b"".join(stream([samples], len(samples), format, columns))


def stream_samples(
    model: Model,
    parts: Iterable[Array],
    count: int,
    format: str,
    facts: Mapping[str, object] | None = None,
    conditions: Mapping[str, Condition] | None = None,
    first: int = 0,
    *,
    seed: int,
) -> Iterator[bytes]:
    """Encode a model's samples as one file, piece by piece.

    For a table's rows see `models.tables.files.write_rows`, for other samples `stream`.

    Args:
        model: that made them.
        parts: ``count`` samples in all, as `Model.samples` yields them.
        count: number of samples.
        format: one of `SAMPLE_FORMATS`, or for a table's rows of `TABLE_FORMATS`.
        facts: further entries of a json file, after the samples.
        conditions: under which a table's samples were made.
        first: index of the first sample: a row's identifiers and a zip's names go on from there.
        seed: of a table's samples, by which rare categories are drawn.

    Raises:
        ShapeError: the format does not fit what the model makes.
    """
    if model.table is None:
        if format in PICTURES:
            parts = map(model.scaling.to_levels, parts)
        return stream(parts, count, format, model.run.data.columns, facts, first)
    if format not in TABLE_FORMATS:
        raise ShapeError(f"the model makes rows, not {format}; ask for {', '.join(TABLE_FORMATS)}")
    from models.tables.files import write_rows  # with pyarrow, which other data do without

    tables = model.tables(parts, seed, first, conditions)
    marked = (table.replace_schema_metadata({SAMPLES_MARK: b""}) for table in tables)
    return write_rows(marked, format, facts)


def stream(
    parts: Iterable[Array],
    count: int,
    format: str,
    columns: Sequence[str] = (),
    facts: Mapping[str, object] | None = None,
    first_index: int = 0,
) -> Iterator[bytes]:
    """Encode samples as one file, piece by piece; all formats but png and webp need little memory.

    Args:
        parts: ``count`` samples in all: ``(n, H, W, C)``, of uint8 for a picture; ``(n, D)`` or
            ``(n, T, D)``. Their division into parts does not change the file.
        count: number of samples.
        format: one of `SAMPLE_FORMATS`; png and webp are one grid, zip one PNG for each sample,
            csv one row for each vector, json nested lists.
        columns: names for the header row of a csv; default: x1, x2 and so on.
        facts: further entries of a json file, after the samples.
        first_index: index of the first sample, in the names within a zip.

    Raises:
        ShapeError: the format does not fit: pictures need images, and a csv needs vectors.
    """
    remaining = iter(parts)
    first = next(remaining)
    parts = itertools.chain(iter([first]), remaining)  # a list would be kept to the end
    if format in ("npy", "npz"):
        write = _npy if format == "npy" else _npz
        return write(first.dtype, (count, *first.shape[1:]), parts)
    if format == "json":
        return write_json((part.tolist() for part in parts), facts or {})
    if format == "csv":
        if first.ndim != 2:
            others = "npz or png" if first.ndim == 4 else "npz"
            raise ShapeError(f"only vectors make a csv; ask for {others}")
        names = columns or [f"x{i + 1}" for i in range(first.shape[1])]
        # numpy writes a number with the fewest digits that read back exactly.
        return write_csv(names, (part.astype(str).tolist() for part in parts))
    if format in ("parquet", "arrow"):
        others = "npz or csv" if first.ndim == 2 else "npz"
        raise ShapeError(f"only tables of mixed columns make a {format} file; ask for {others}")
    if first.ndim != 4:
        kind = "vectors" if first.ndim == 2 else "sequences"
        raise ShapeError(f"the model makes {kind}, which have no {format}; ask for npz")
    if format == "zip":
        return _zip(parts, first_index)
    return _picture(first, parts, count, encode_png if format == "png" else encode_webp)


def _npy(dtype: np.dtype, shape: tuple[int, ...], parts: Iterable[Array]) -> Iterator[bytes]:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    yield header.getvalue()
    yield from map(np.ndarray.tobytes, parts)


def _npz(dtype: np.dtype, shape: tuple[int, ...], parts: Iterable[Array]) -> Iterator[bytes]:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        archive.comment = SAMPLES_MARK
        # np.savez does this too: the member may exceed 2 GB, and its date is fixed.
        with archive.open("samples.npy", "w", force_zip64=True) as member:
            for _ in map(member.write, _npy(dtype, shape, parts)):
                yield pipe.take()
        yield pipe.take()
    yield pipe.take()


def _zip(parts: Iterable[Array], first_index: int) -> Iterator[bytes]:
    images = enumerate(itertools.chain.from_iterable(parts), first_index)
    # Stored: PNGs do not shrink further.
    return stored_zip((f"{i:06d}.png", encode_png(image)) for i, image in images)


def _picture(
    first: Array, parts: Iterable[Array], count: int, encoded: Callable[[Array], bytes]
) -> Iterator[bytes]:
    height, width = first.shape[1:3]
    factor = max(1, MIN_TILE_SIDE // max(height, width))
    pixels = count * (factor * height + MARGIN) * (factor * width + MARGIN)
    if pixels > MAX_GRID_PIXELS:
        raise ShapeError(
            f"a grid of {count} would have {pixels} pixels, over {MAX_GRID_PIXELS}; ask for fewer, "
            "or for zip"
        )
    yield encoded(grid(enlarge(np.concatenate(list(parts)), factor)))


def read_items(
    content: bytes,
    name: str,
    max_items: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    admit: Callable[[int, int], None] | None = None,
    check: Callable[[], object] | None = None,
) -> Array:
    """Read the items in one file: an image, or an array of items in .npy or .npz.

    Args:
        content: the file's bytes; they alone decide what the file is.
        name: the file's name, for error messages.
        max_items: an array of more items is refused before it is unpacked.
        max_pixels: an image of more pixels is refused before it is decoded.
        max_bytes: an array of more bytes is refused before it is unpacked.
        admit: called with an image's height and width before it is decoded; may raise.
        check: see `decode_image`.

    Returns:
        ``(1, H, W, C)`` for an image, or the array as it is.

    Raises:
        DataError: the file is none of these, or is broken.
        OversizeError: it has more pixels or bytes.
        ShapeError: the array has too many items.
    """
    if content.startswith(b"\x93NUMPY"):
        return _read_array(io.BytesIO(content), name, max_items, max_bytes)
    if content.startswith(b"PK"):
        if content.count(b"PK\x01\x02") > MAX_MEMBERS:  # an entry of the list begins so
            raise OversizeError(f"{name}: holds over {MAX_MEMBERS} files")
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = archive.namelist()
                member = "samples.npy" if "samples.npy" in members else members[0]
                if member != "samples.npy" and len(members) > 1:
                    raise DataError(f"{name}: holds several arrays; name one 'samples'")
                if any(part in member for part in ("/", "\\", "..")):
                    raise DataError(f"{name}: its array's name leads elsewhere")
                if archive.getinfo(member).compress_type not in NPZ_COMPRESSIONS:
                    raise DataError(f"{name}: is compressed in a way that numpy does not use")
                with archive.open(member) as file:
                    return _read_array(file, name, max_items, max_bytes)
        except (DataError, ShapeError):
            raise
        except Exception as error:  # zipfile and zlib raise many kinds on a broken file
            raise DataError(f"{name}: a broken npz file ({error})") from None
    return decode_image(content, name, max_pixels, admit, check)[None]


def _read_array(stream: IO[bytes], name: str, max_items: int | None, max_bytes: int) -> Array:
    """Read one array of plain numbers, if its header keeps to the bounds."""
    try:
        head = stream.read(10)
        version = np.lib.format.read_magic(io.BytesIO(head))
        if version not in NPY_VERSIONS:
            raise DataError(f"{name}: an array in version {version} of npy, which numpy has not")
        length = int.from_bytes(head[8:], "little")
        if version != (1, 0):  # its length has two more bytes
            more = stream.read(2)
            head, length = head + more, length + 2**16 * int.from_bytes(more, "little")
        if length > MAX_NPY_HEADER:
            raise DataError(f"{name}: its array's header is over {MAX_NPY_HEADER} bytes")
        header = io.BytesIO(head[8:] + stream.read(length))
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(header)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or dtype.kind not in "uif":
            raise DataError(f"{name}: holds {dtype}, not plain numbers")
        if min(shape, default=0) < 0:
            raise DataError(f"{name}: claims the shape {shape}")
        if max_items is not None and shape and shape[0] > max_items:
            raise ShapeError(f"{name}: {shape[0]} items; at most {max_items} more are taken")
        if size > max_bytes:
            raise OversizeError(f"{name}: an array of {size} bytes is over {max_bytes}")
        content = stream.read(size)
        if len(content) != size:
            raise DataError(f"{name}: truncated ({len(content)} of {size} bytes)")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    except (DataError, ShapeError):
        raise
    except Exception as error:  # numpy's header parser raises many kinds
        raise DataError(f"{name}: a broken array ({error})") from None
