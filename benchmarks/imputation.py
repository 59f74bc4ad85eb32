"""Imputation beside simple rules: hidden cells of unseen rows, filled and compared with the truth.

    python -m benchmarks.imputation --answers FOLDER

``FOLDER`` is that of `benchmarks.tables`, with the models of the first seed. A fifth of the cells
of unseen rows, chosen at random, is hidden. Rows with a value that a column of few values never
had in training are left out, since the model has no code for it, and so are columns of one value.
Writes ``benchmarks/results/imputation.json`` and the tables of ``docs/tables.md``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import ks_2samp
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

import wgan
from benchmarks.markdown import put_between, table
from models.tables.number import NumberColumn

RESULTS = Path(__file__).with_name("results") / "imputation.json"
PAGE = Path(__file__).parents[1] / "docs" / "tables.md"
BEGIN, END = "<!-- made by benchmarks.imputation -->", "<!-- end of imputation -->"
TABLES = ("diamonds", "credit", "loans")
ROWS, TRAINING_ROWS = 1000, 20_000
"""Unseen rows with gaps, and training rows that scikit-learn's imputers are fitted to: at most so
many."""
HIDDEN = 0.2
"""Share of the cells that are hidden."""
DRAWS = 20
JUDGED = ("number", "category", "boolean")
FIGURES = ("error", "accuracy", "number_fit", "category_fit")


class Rules:
    """What fills gaps without a network, each fitted to training rows.

    Args:
        train: training rows.
        numbers: names of the columns of numbers; all others are categories.
    """

    def __init__(self, train: pd.DataFrame, numbers: list[str]) -> None:
        self.train, self.numbers = train, numbers
        self.center, self.scale = train[numbers].mean(), train[numbers].std()
        self.options = {n: sorted(train[n].dropna().unique()) for n in set(train) - set(numbers)}

    def typical(self, gaps: pd.DataFrame) -> pd.DataFrame:
        """The mean of a column of numbers, the most frequent category."""
        modes = self.train[list(self.options)].mode().iloc[0]
        return gaps.fillna({**self.center, **modes})

    def random(self, gaps: pd.DataFrame) -> pd.DataFrame:
        """A value of the same column of any training row."""
        rng, filled = np.random.default_rng(0), gaps.copy()
        for name in gaps:
            known = self.train[name].dropna().to_numpy()
            filled[name] = gaps[name].where(gaps[name].notna(), rng.choice(known, len(gaps)))
        return filled

    def neighbours(self, gaps: pd.DataFrame) -> pd.DataFrame:
        """What the five nearest training rows have: their mean, their most frequent category."""
        return self._filled_by(KNNImputer(), gaps, self.options)

    def iterative(self, gaps: pd.DataFrame) -> pd.DataFrame:
        """Numbers by linear regressions on each other, in turns; categories stay gaps.

        Of indicators of categories such regressions make nothing: those of one category give each
        other away, so that all keep the share that they begin with.
        """
        return self._filled_by(IterativeImputer(random_state=0), gaps, {})

    def _filled_by(
        self, imputer: Any, gaps: pd.DataFrame, options: dict[str, list[str]]
    ) -> pd.DataFrame:
        """Fill gaps by an imputer of scikit-learn: numbers, and the categories with ``options``."""
        known = self.train.sample(min(TRAINING_ROWS, len(self.train)), random_state=0)
        codes = imputer.fit(self._coded(known, options)).transform(self._coded(gaps, options))
        filled, start = gaps.copy(), len(self.numbers)
        filled[self.numbers] = codes[:, :start] * [*self.scale] + [*self.center]
        for name, values in options.items():
            shares = codes[:, start : start + len(values)]
            filled[name] = np.array(values, object)[shares.argmax(axis=1)]
            start += len(values)
        return filled

    def _coded(self, rows: pd.DataFrame, options: dict[str, list[str]]) -> np.ndarray:
        """Numbers in standard deviations, then 0 or 1 for each category; NaN in gaps."""
        pieces = [((rows[self.numbers] - self.center) / self.scale).to_numpy(float)]
        for name, values in options.items():
            value = rows[name].to_numpy(object)[:, None]
            chosen = (value == np.array(values, object)).astype(float)
            pieces.append(np.where(pd.isna(value), np.nan, chosen))
        return np.concatenate(pieces, axis=1)


def middle(draws: list[pd.DataFrame], numbers: list[str]) -> pd.DataFrame:
    """Of several completions the mean of numbers, the most frequent category."""
    filled = draws[0].copy()
    for name in filled:
        values = pd.concat([draw[name] for draw in draws], axis=1)
        filled[name] = values.mean(axis=1) if name in numbers else values.mode(axis=1)[0]
    return filled


def figures(
    filled: pd.DataFrame, truth: pd.DataFrame, is_hidden: pd.DataFrame, scale: pd.Series[float]
) -> dict[str, float]:
    """Error, accuracy and fit of filled cells, each the mean over columns.

    Args:
        filled: completed rows.
        truth: the rows as they were.
        is_hidden: bool, the cells that were filled and are judged.
        scale: standard deviations of the columns of numbers; the others are categories.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for name in truth:
        was, now = (rows.loc[is_hidden[name], name] for rows in (truth, filled))
        if now.isna().any():
            continue
        if name in scale:
            found["error"].append(float(np.sqrt(((now - was) ** 2).mean()) / scale[name]))
            found["number_fit"].append(1 - float(ks_2samp(now, was).statistic))
        else:
            found["accuracy"].append(float((now == was).mean()))
            shares = [side.value_counts(normalize=True) for side in (now, was)]
            differences = pd.concat(shares, axis=1).fillna(0).diff(axis=1).iloc[:, 1]
            found["category_fit"].append(1 - float(differences.abs().sum()) / 2)
    return {figure: mean(values) for figure, values in found.items()}


def measure(folder: Path) -> dict[str, Any]:
    """The figures of each method on one table."""
    model = wgan.load(str(folder / "ours-0" / "artifact"))
    assert model.record.data.table is not None
    columns = [c for c in model.record.data.table.columns if c.kind in JUDGED]
    numbers = [column.name for column in columns if isinstance(column, NumberColumn)]
    # Categories as texts, since readers of files differ in what they make of them.
    texts = {column.name: str for column in columns if column.name not in numbers}
    train, test = (pd.read_csv(folder / f"{n}.csv", dtype=texts) for n in ("train", "test"))
    for column in columns:
        if not (isinstance(column, NumberColumn) and column.has_number):  # it has a few values
            values = test[column.name]
            test = test[column.is_valid(pa.array(values, from_pandas=True)) | values.isna()]
    learned = [column.name for column in columns if train[column.name].nunique() > 1]
    train, test = train[learned], test[learned]
    numbers = [name for name in learned if name in numbers]
    truth = test.sample(min(ROWS, len(test)), random_state=0).reset_index(drop=True)
    chosen = np.random.default_rng(0).random(truth.shape) < HIDDEN
    is_hidden = pd.DataFrame(chosen, columns=learned) & truth.notna()
    gaps = truth.mask(is_hidden)
    rules = Rules(train, numbers)

    def judged(fill: Callable[[], pd.DataFrame]) -> dict[str, float]:
        began = time.process_time()
        filled = fill()
        seconds = time.process_time() - began
        return {**figures(filled, truth, is_hidden, rules.scale), "seconds": seconds}

    def ours(seed: int) -> pd.DataFrame:
        filled = model.impute(gaps, seed)[learned]
        return filled.astype({name: str for name in learned if name not in numbers})

    return {
        "rows": len(truth),
        "numbers": len(numbers),
        "categories": len(learned) - len(numbers),
        "methods": {
            "ours, one draw": judged(lambda: ours(0)),
            f"ours, middle of {DRAWS} draws": judged(
                lambda: middle([ours(seed) for seed in range(DRAWS)], numbers)
            ),
            "mean, most frequent": judged(lambda: rules.typical(gaps)),
            "any training row's value": judged(lambda: rules.random(gaps)),
            "`KNNImputer`": judged(lambda: rules.neighbours(gaps)),
            "`IterativeImputer`": judged(lambda: rules.iterative(gaps)),
        },
    }


def shown(found: dict[str, dict[str, Any]]) -> str:
    """The results as tables in Markdown."""
    pieces = []
    for name, one in found.items():
        rows = [
            [method, *(f"{f[k]:.3f}" if k in f else "" for k in FIGURES), f"{f['seconds']:.2g}"]
            for method, f in one["methods"].items()
        ]
        size = f"{one['rows']:,} rows, {one['numbers']} columns of numbers and {one['categories']}"
        head = [f"`{name}`", "error", "accuracy", "fit of numbers", "fit of categories", "CPU s"]
        pieces.append(f"{size} of categories.\n\n{table(head, rows)}")
    return "\n".join(pieces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=Path, required=True, help="folder")
    answers = parser.parse_args().answers
    found = {name: measure(answers / name) for name in TABLES}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    put_between(PAGE, BEGIN, END, shown(found))


if __name__ == "__main__":
    main()
