"""NumPy's array files: .npy, and .npz with one array, or one named 'samples'."""

from __future__ import annotations

import numpy as np

from models.config import DataConfig
from models.errors import DataError
from training.data.raw import RawData
from training.data.sources.files import Location, reason

ARRAYS = (".npy", ".npz")


def load_array(location: Location, config: DataConfig) -> RawData:
    """Read the items of an array file into memory; objects are never unpickled.

    Raises:
        DataError: it cannot be read, or holds several arrays.
    """
    source = location.source
    try:
        # Opened here, since numpy leaves a broken npz file open.
        with location.open() as file:
            items = np.load(file, allow_pickle=False)
            if not isinstance(items, np.ndarray):
                names = list(items.files)
                name = "samples" if "samples" in names else names[0] if len(names) == 1 else None
                if name is None:
                    raise DataError(
                        f"{source}: holds the arrays {', '.join(names) or '(none)'}; "
                        "save one array, or name one 'samples'"
                    )
                items = items[name]
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds on a broken file
        why = reason(error)
        if "Object arrays" in why:
            why = "an object array (items of mixed shapes?): save one array of one shape"
        elif "pickle" in why:  # numpy takes whatever it does not know for a pickle
            why = "no NumPy file, as its first bytes show; save the array with numpy.save"
        raise DataError(f"{source}: cannot be read: {why}") from error
    return RawData(items, location.name, source)
