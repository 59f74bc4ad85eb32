"""Array files, of one array or with one chosen: NumPy's .npy and .npz, HDF5 and Zarr."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.config import DataConfig
from models.errors import DataError, needs
from models.formats import SAMPLES_MARK
from training.data.raw import RawData
from training.data.sources.files import Location, reading, reason

ARRAYS = (".npy", ".npz")
HDF5 = (".h5", ".hdf5")
ZARR = (".zarr",)
USUAL_NAME = "samples"
"""Name of the array that is read of several, if nobody names another."""


def load_array(location: Location, config: DataConfig) -> RawData:
    """Read the items of a NumPy file into memory; objects are never unpickled.

    Raises:
        DataError: it cannot be read, or holds several arrays and none is named.
    """
    source, is_ours = location.source, False
    try:
        # Opened here, since numpy leaves a broken npz file open.
        with location.open() as file:
            items = np.load(file, allow_pickle=False)
            if not isinstance(items, np.ndarray):
                is_ours = items.zip.comment == SAMPLES_MARK
                items = items[_chosen(dict.fromkeys(items.files), config)]
            elif config.key is not None:
                raise DataError(f"{source}: holds one array without a name; leave data.key out")
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds on a broken file
        why = reason(error)
        if "Object arrays" in why:
            why = "an object array (items of mixed shapes?): save one array of one shape"
        elif "pickle" in why:  # numpy takes whatever it does not know for a pickle
            why = "no NumPy file, as its first bytes show; save the array with numpy.save"
        raise DataError(f"{source}: cannot be read: {why}") from error
    return RawData(items, location.name, source, is_ours=is_ours, is_array=True)


@needs("arrays")
def load_hdf5(location: Location, config: DataConfig) -> RawData:
    """Read one data set of an HDF5 file into memory.

    Links are not followed, nor is what lies in other files read.

    Raises:
        DataError: it cannot be read, or holds several data sets and none is named.
    """
    import h5py

    with reading(location.source), location.open() as file, h5py.File(file, "r") as opened:
        found = dict[str, Any]()

        def note(name: str, member: Any) -> None:
            if isinstance(member, h5py.Dataset):
                found[name] = member

        opened.visititems(note)
        chosen = found[_chosen({name: data.shape for name, data in found.items()}, config)]
        if chosen.external or chosen.is_virtual:
            raise DataError(
                f"{location.source}: {chosen.name} lies in other files; copy it into one"
            )
        items = _numbers_of(chosen, location)
    return RawData(items, location.name, location.source, is_array=True)


@needs("arrays")
def load_zarr(location: Location, config: DataConfig) -> RawData:
    """Read one array of a Zarr folder into memory; zarr refuses what is pickled.

    Raises:
        DataError: it cannot be read, or holds several arrays and none is named.
    """
    import zarr

    if location.fs is not None:
        raise DataError(f"{location.source}: Zarr is read from this machine only; copy it here")
    with reading(location.source):
        opened: Any = zarr.open(location.path, mode="r")
        if isinstance(opened, zarr.Array):
            if config.key is not None:
                raise DataError(f"{location.source}: is one array; leave data.key out (null)")
            chosen = opened
        else:
            found = {n: m for n, m in opened.members(max_depth=None) if isinstance(m, zarr.Array)}
            chosen = found[_chosen({name: a.shape for name, a in found.items()}, config)]
        items = _numbers_of(chosen, location)
    return RawData(items, location.name, location.source, is_array=True)


def _chosen(shapes: Mapping[str, Any], config: DataConfig) -> str:
    """The name of the array to read: the user's, the usual one, or the only one.

    Args:
        shapes: of the arrays there are, by name; None where it is not known.
        config: with the user's word.

    Raises:
        DataError: none of these is there.
    """
    usual = next(iter(shapes)) if len(shapes) == 1 else USUAL_NAME
    name = usual if config.key is None else config.key
    if name in shapes:
        return name
    listed = ", ".join(f"{name} {shape or ''}".strip() for name, shape in sorted(shapes.items()))
    wanted = "name one of them by data.key" if config.key is None else f"there is no {config.key}"
    raise DataError(f"{config.source}: holds the arrays {listed or '(none)'}; {wanted}")


def _numbers_of(chosen: Any, location: Location) -> np.ndarray:
    if chosen.dtype.kind not in "uif":
        raise DataError(f"{location.source}: holds {chosen.dtype}, not numbers")
    return np.asarray(chosen[...])
