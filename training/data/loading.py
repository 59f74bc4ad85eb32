"""Reading a data set by its name, path or URL.

To add a kind of file, write a reader (`load_table` is an example) and give it a line in `READERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from models.config import DataConfig
from models.errors import DataError
from models.record import DataCard
from training.data.builtin import BUILT_IN
from training.data.raw import RawData
from training.data.sources.arrays import ARRAYS, HDF5, ZARR, load_array, load_hdf5, load_zarr
from training.data.sources.files import ARCHIVES, Location, locate
from training.data.sources.images import load_images
from training.data.sources.tables import TABLES, load_table

Reader = Callable[[Location, DataConfig], RawData]
READERS: dict[str, Reader] = {
    **dict.fromkeys(ARRAYS, load_array),
    **dict.fromkeys(HDF5, load_hdf5),
    **dict.fromkeys(ZARR, load_zarr),
    **dict.fromkeys(TABLES, load_table),
    **dict.fromkeys(ARCHIVES, load_images),
}
"""The reader of each kind of file, by the suffix of its name. A folder is read for its images,
unless it is a Zarr store."""


def read_source(config: DataConfig, card: DataCard | None = None) -> RawData:
    """Read a built-in set, or a user's own file or folder, here or behind a URL.

    Args:
        config: what to read.
        card: of the data that the model was trained on, if the data are for one.

    Raises:
        DataError: nothing is there, or it cannot be read; one line says why.
    """
    source = config.source
    if source in BUILT_IN:
        return BUILT_IN[source]()
    location = locate(source)
    reader = _reader_of(location)
    if reader is load_table:
        return load_table(location, config, None if card is None else card.table)
    if reader is load_images and card is not None:
        return load_images(location, config, in_colour=card.shape[0] == 3)
    return reader(location, config)


def holds_images(source: str) -> bool:
    """True if a source is a folder or an archive, which is read for its images; none is yet.

    Raises:
        DataError: nothing is there, or it is of no kind that is read.
    """
    return source not in BUILT_IN and _reader_of(locate(source)) is load_images


def _reader_of(location: Location) -> Reader:
    source, kind = location.source, location.kind()
    if kind is None:
        raise DataError(
            f"{source}: no such file or folder, nor a built-in data set ({', '.join(BUILT_IN)})"
        )
    is_images = kind == "folder" and location.suffix not in ZARR
    reader = load_images if is_images else READERS.get(location.suffix)
    if reader is None:
        raise DataError(f"{source}: not a kind of file that is read: {', '.join(READERS)}")
    return reader
