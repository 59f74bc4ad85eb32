"""Rows under conditions: how like real rows that meet the same conditions they are.

    python -m benchmarks.tables_conditions --answers FOLDER

``FOLDER`` is that of `benchmarks.tables`, with the model of ``diamonds`` of the first seed. Writes
``benchmarks/results/tables_conditions.json`` and the table of ``docs/tables.md``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

import wgan
from benchmarks.markdown import put_between, table
from models.tables.conditions import parse_conditions

RESULTS = Path(__file__).with_name("results") / "tables_conditions.json"
PAGE = Path(__file__).parents[1] / "docs" / "tables.md"
BEGIN, END = "<!-- made by benchmarks.tables_conditions -->", "<!-- end of conditions -->"
CONDITIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((), "price > 0"),
    (("cut=Ideal",), "cut == 'Ideal'"),
    (("price>5000",), "price > 5000"),
    (("cut=Ideal", "price>5000"), "cut == 'Ideal' and price > 5000"),
    (("carat=0.7",), "carat == 0.7"),
)
"""Conditions, and the same for pandas."""
COUNT = 5000
FREE_COUNT = 100_000
"""Rows that are made without conditions; those that meet conditions by chance are compared too."""


def shapes(made: pd.DataFrame, real: pd.DataFrame, left_out: set[str]) -> float:
    """Mean over columns of one less the KS statistic, or the total variation of categories."""
    scores = []
    for name in set(real) - left_out:
        a, b = made[name], real[name]
        if pd.api.types.is_numeric_dtype(b):
            scores.append(1 - ks_2samp(a, b).statistic)
        else:
            shares = (side.astype(str).value_counts(normalize=True) for side in (a, b))
            scores.append(
                1 - np.abs(pd.concat(shares, axis=1).fillna(0).diff(axis=1).iloc[:, 1]).sum() / 2
            )
    return float(mean(scores))


def measure(folder: Path) -> list[dict[str, object]]:
    """The figures of each set of conditions."""
    model = wgan.load(folder / "ours-0" / "artifact")
    train, test = (pd.read_csv(folder / f"{name}.csv") for name in ("train", "test"))
    free = model.sample(FREE_COUNT, seed=2)
    found = []
    for texts, query in CONDITIONS:
        conditions = parse_conditions(texts)
        known, unseen = train.query(query), test.query(query)
        made = model.sample(COUNT, seed=1, where=conditions)
        assert len(made.query(query)) == COUNT, "each row meets the conditions"
        given = {name for name, condition in conditions.items() if condition.one_of}
        found.append(
            {
                "conditions": texts,
                "unseen": len(unseen),
                "made": shapes(made, unseen, given),
                "free": shapes(free.query(query), unseen, given),
                "real": shapes(known, unseen, given),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=Path, required=True, help="folder")
    found = measure(parser.parse_args().answers / "diamonds")
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    rows = [
        [
            ", ".join(f"`{text}`" for text in one["conditions"]) or "none",
            f"{one['unseen']:,}",
            f"{one['made']:.3f}",
            f"{one['free']:.3f}",
            f"{one['real']:.3f}",
        ]
        for one in found
    ]
    made = table(["conditions", "unseen rows", "made", "made freely", "real rows"], rows)
    put_between(PAGE, BEGIN, END, made)


if __name__ == "__main__":
    main()
