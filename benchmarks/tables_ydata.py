"""The part of `benchmarks.tables` that runs ydata-synthetic's WGAN-GP, in its own environment.

    python benchmarks/tables_ydata.py FOLDER OUT.csv SEED [SECONDS]

Needs `pip install ydata-synthetic`, which wants TensorFlow 2.15 and an older pandas than the other
peers. Prints one line of JSON.
"""

from __future__ import annotations

import builtins
import itertools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

MISSING = "(missing)"


def fit(folder: Path, out: Path, seed: int, seconds: float | None = None) -> dict[str, Any]:
    """Fit it, and make as many rows as there are in ``train.csv``.

    It takes no missing values: in columns of numbers the median stands for them, in others a
    category of their own, which is turned back. Dates are numbers to it.

    Args:
        folder: with ``train.csv``.
        out: where the rows go, CSV.
        seed: of all random numbers.
        seconds: of CPU time after which it begins no other epoch; None: its 300 epochs.
    """
    import tensorflow as tf

    builtins.warn = warnings.warn  # type: ignore[attr-defined]  # the package forgets to import it
    import ydata_synthetic.synthesizers.regular.wgangp.model as wgangp
    from ydata_synthetic.synthesizers import ModelParameters, TrainParameters

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.keras.utils.set_random_seed(seed)
    dates = json.loads((folder / "table.json").read_text())["dates"]
    train = pd.read_csv(folder / "train.csv", low_memory=False)
    for name in dates:
        times = pd.to_datetime(train[name], utc=True).dt.tz_localize(None)
        train[name] = times.astype("int64").astype(float)
    numbers = [
        name
        for name in train
        if pd.api.types.is_numeric_dtype(train[name]) and train[name].dtype != bool
    ]
    categories = [name for name in train if name not in numbers]
    known = train.copy()
    known[numbers] = known[numbers].fillna(known[numbers].median())
    known[categories] = known[categories].astype(object).fillna(MISSING).astype(str)

    start = time.process_time()

    def epochs(count: int) -> Iterator[int]:
        if seconds is None:
            return iter(range(count))
        return itertools.takewhile(
            lambda _: time.process_time() < start + seconds, itertools.count()
        )

    wgangp.trange = epochs  # it can be stopped in no other way
    settings = ModelParameters(betas=(0.5, 0.9))  # its default of none is an error
    with tempfile.TemporaryDirectory() as scratch, chdir(scratch):  # it writes where it stands
        synthesizer = wgangp.WGAN_GP(settings)
        synthesizer.fit(known, TrainParameters(), num_cols=numbers, cat_cols=categories)
        fitted = time.process_time()
        made = synthesizer.sample(len(train)).iloc[: len(train)]
        sampled = time.process_time()
    made = made[list(train)].replace(MISSING, np.nan)
    for name in dates:
        made[name] = pd.to_datetime(made[name].astype("int64"))
    made.to_csv(out, index=False)
    return {"seconds": fitted - start, "sampling_seconds": sampled - fitted}


def main() -> None:
    match sys.argv[1:]:
        case [folder, out, seed, *seconds]:
            answer = fit(
                Path(folder).absolute(), Path(out).absolute(), int(seed), *map(float, seconds)
            )
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
