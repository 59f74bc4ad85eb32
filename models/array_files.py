"""Files of several arrays: which is read, and HDF5 and Zarr, for training and scoring alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from models.errors import DataError, needs

Array = np.ndarray
HDF5_START = b"\x89HDF\r\n\x1a\n"
"""First bytes of a file of HDF5."""
ZARR = ".zarr"
"""End of the name of a Zarr folder."""
USUAL_NAME = "samples"
"""Name of the array that is read of several, if nobody names another."""
LABELS = "labels"
"""Name of the array that has the class of each item of the one beside it."""


class FoundArray(NamedTuple):
    """An array of a file."""

    items: Array
    labels: Array | None
    """The array `LABELS` beside it, whatever that holds."""


def choose_array(shapes: Mapping[str, Any], key: str | None, source: str) -> tuple[str, str | None]:
    """Choose the array to read: the user's, the usual one, or the only one but for labels.

    Args:
        shapes: of the arrays there are, by name; None where it is not known.
        key: the user's word; None: none.
        source: for error messages.

    Returns:
        Its name, and that of the labels beside it if there are any.

    Raises:
        DataError: none of these is there.
    """
    items = [name for name in shapes if name.rpartition("/")[2] != LABELS] or list(shapes)
    name = key or (items[0] if len(items) == 1 else USUAL_NAME)
    if name not in shapes:
        listed = ", ".join(f"{n} {shape or ''}".strip() for n, shape in sorted(shapes.items()))
        wanted = "name one of them by data.key" if key is None else f"there is no {key}"
        raise DataError(f"{source}: holds the arrays {listed or '(none)'}; {wanted}")
    group, slash, _ = name.rpartition("/")
    labels = f"{group}{slash}{LABELS}"
    return name, labels if labels in shapes and labels != name else None


@needs("arrays")
def read_hdf5(file: IO[bytes], key: str | None, source: str) -> FoundArray:
    """Read one data set of an HDF5 file into memory.

    Links are not followed, nor is what lies in other files read.

    Args:
        file: the file.
        key: see `choose_array`.
        source: for error messages.

    Raises:
        DataError: it is broken, holds no numbers, or several data sets and none is named.
    """
    import h5py

    def read() -> FoundArray:
        with h5py.File(file, "r") as opened:
            found = dict[str, Any]()

            def note(name: str, member: Any) -> None:
                if isinstance(member, h5py.Dataset):
                    found[name] = member

            opened.visititems(note)
            shapes = {name: data.shape for name, data in found.items()}
            name, labels = choose_array(shapes, key, source)
            for data in (found[name], found[labels or name]):
                if data.external or data.is_virtual:
                    raise DataError(f"{source}: {data.name} lies in other files; copy it into one")
            return _found(found[name], labels and found[labels], source)

    return _told(read, source)


@needs("arrays")
def read_zarr(path: str, key: str | None, source: str) -> FoundArray:
    """Read one array of a Zarr folder into memory; zarr refuses what is pickled.

    Args:
        path: of the folder.
        key: see `choose_array`.
        source: for error messages.

    Raises:
        DataError: it is broken, holds no numbers, or several arrays and none is named.
    """
    import zarr

    def read() -> FoundArray:
        opened: Any = zarr.open(path, mode="r")
        if isinstance(opened, zarr.Array):
            if key is not None:
                raise DataError(f"{source}: is one array; leave data.key out (null)")
            return _found(opened, None, source)
        found = {n: m for n, m in opened.members(max_depth=None) if isinstance(m, zarr.Array)}
        name, labels = choose_array({n: a.shape for n, a in found.items()}, key, source)
        return _found(found[name], labels and found[labels], source)

    return _told(read, source)


def _found(chosen: Any, labels: Any, source: str) -> FoundArray:
    if chosen.dtype.kind not in "uif":
        raise DataError(f"{source}: holds {chosen.dtype}, not numbers")
    beside = None if labels is None else np.asarray(labels[...])
    return FoundArray(np.asarray(chosen[...]), beside)


def _told(read: Callable[[], FoundArray], source: str) -> FoundArray:
    try:
        return read()
    except (DataError, ModuleNotFoundError):
        raise
    except Exception as error:  # h5py and zarr raise many kinds on a broken file
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{source}: cannot be read: {why}") from error
