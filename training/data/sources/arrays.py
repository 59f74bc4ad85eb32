"""Array files, of one array or with one chosen: NumPy's .npy and .npz, HDF5 and Zarr."""

from __future__ import annotations

import numpy as np

from models import array_files
from models.config import DataConfig
from models.errors import DataError
from models.formats import SAMPLES_MARK
from training.data.layout import are_whole
from training.data.raw import RawData
from training.data.sources.files import Location, reading, reason

Array = np.ndarray
ARRAYS = (".npy", ".npz")
HDF5 = (".h5", ".hdf5")
ZARR = (array_files.ZARR,)


def load_array(location: Location, config: DataConfig) -> RawData:
    """Read the items of a NumPy file into memory; objects are never unpickled.

    Raises:
        DataError: it cannot be read, or holds several arrays and none is named.
    """
    source, is_ours, labels = location.source, False, None
    try:
        # Opened here, since numpy leaves a broken npz file open.
        with location.open() as file:
            items = np.load(file, allow_pickle=False)
            if not isinstance(items, np.ndarray):
                is_ours = items.zip.comment == SAMPLES_MARK
                names = dict.fromkeys(items.files)
                chosen, beside = array_files.choose_array(names, config.key, source)
                if beside is not None:
                    labels = _unless_pickled(items, beside)
                items = items[chosen]
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
    return _data(array_files.FoundArray(items, labels), location)._replace(is_ours=is_ours)


def load_hdf5(location: Location, config: DataConfig) -> RawData:
    """Read one data set of an HDF5 file into memory; see `models.array_files.read_hdf5`.

    Raises:
        DataError: it cannot be read, or holds several data sets and none is named.
    """
    with reading(location.source), location.open() as file:
        return _data(array_files.read_hdf5(file, config.key, location.source), location)


def load_zarr(location: Location, config: DataConfig) -> RawData:
    """Read one array of a Zarr folder into memory; see `models.array_files.read_zarr`.

    Raises:
        DataError: it cannot be read, or holds several arrays and none is named.
    """
    if location.fs is not None:
        raise DataError(f"{location.source}: Zarr is read from this machine only; copy it here")
    return _data(array_files.read_zarr(location.path, config.key, location.source), location)


def _unless_pickled(arrays: np.lib.npyio.NpzFile, name: str) -> Array:
    """Read an array; one of objects, which are never unpickled, as an empty one of that kind."""
    try:
        return np.asarray(arrays[name])
    except ValueError:
        return np.empty(0, object)


def _data(found: array_files.FoundArray, location: Location) -> RawData:
    """Items with their classes; labels that can be none are said in a note."""
    raw = RawData(found.items, location.name, location.source, is_array=True)
    if found.labels is None:
        return raw
    labels = found.labels
    if labels.dtype.kind in "SOT":  # texts, of which each library has its own kind
        texts = labels.ravel().tolist()
        names = [t.decode(errors="backslashreplace") if isinstance(t, bytes) else t for t in texts]
        labels = np.array(names, str).reshape(labels.shape)
    is_whole = labels.dtype.kind == "f" and np.isfinite(labels).all() and are_whole(labels)
    if labels.shape != np.shape(found.items)[:1] or not (is_whole or labels.dtype.kind in "uibU"):
        note = (
            f"the labels, {found.labels.dtype} {labels.shape}, are no classes: those are one "
            "whole number or text for each item"
        )
        return raw._replace(notes=(note,))
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:  # as a folder that holds all others
        return raw
    named = tuple(f"{c:.0f}" if is_whole else str(c) for c in classes.tolist())
    return raw._replace(labels=numbers.astype(np.int64), classes=named)
