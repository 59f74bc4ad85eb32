"""Writes expected.json: small tables, and what sdmetrics says of them.

    pip install sdmetrics==0.32.0
    python tests/sdmetrics/make.py

sdmetrics is no dependency of ours; `tests/test_table_likeness.py` reads the file.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sdmetrics.reports.single_table import QualityReport

warnings.filterwarnings("ignore")
KINDS = {
    "size": "numerical", "price": "numerical", "count": "numerical", "sold": "datetime",
    "cut": "categorical", "place": "categorical", "shop": "categorical", "is_new": "boolean",
}  # fmt: skip


def rows(seed: int, count: int, noise: float, missing: float) -> pd.DataFrame:
    """A table whose columns depend on each other, less so with more noise."""
    rng = np.random.default_rng(seed)
    size = rng.gamma(2, 2, count)
    price = (100 * size * np.exp(noise * rng.standard_normal(count))).round(2)
    cut = np.array(["fair", "good", "ideal"])[(size > 2).astype(int) + (size > 5)]
    swapped = rng.random(count) < noise / 2
    cut[swapped] = rng.choice(["fair", "good", "ideal"], swapped.sum())
    place = np.where(cut == "ideal", "north", rng.choice(["north", "south", "east"], count))
    shop = np.char.add("shop ", rng.zipf(1.6, count).clip(max=9).astype(str))
    table = pd.DataFrame(
        {
            "size": size.round(3),
            "price": price,
            "count": rng.poisson(size),
            "sold": pd.Timestamp("2024-01-01") + pd.to_timedelta((40 * size).astype(int), "D"),
            "cut": cut,
            "place": place,
            "shop": shop,
            "is_new": rng.random(count) < 0.3,
        }
    )
    table.loc[rng.random(count) < missing, "price"] = np.nan
    table.loc[rng.random(count) < missing, "place"] = None
    table["is_new"] = table["is_new"].astype(str)
    return table


def judged(real: pd.DataFrame, fake: pd.DataFrame) -> dict:
    """The report's two properties, and the details of each."""
    report = QualityReport()
    metadata = {"columns": {name: {"sdtype": kind} for name, kind in KINDS.items()}}
    report.generate(real, fake, metadata, verbose=False)
    shapes, trends = (report.get_details(p) for p in ("Column Shapes", "Column Pair Trends"))
    trends = trends[trends["Meets Threshold?"].fillna(False).astype(bool)]
    scores = report.get_properties().set_index("Property")["Score"]
    return {
        "column_shapes": scores["Column Shapes"],
        "pair_trends": scores["Column Pair Trends"],
        "columns": dict(zip(shapes["Column"], shapes["Score"], strict=True)),
        "pairs": [[row["Column 1"], row["Column 2"], row["Score"]] for _, row in trends.iterrows()],
    }


def plain(table: pd.DataFrame) -> dict:
    """Columns as lists that JSON holds."""
    table = table.assign(sold=table["sold"].dt.strftime("%Y-%m-%d")).astype(object)
    return table.where(table.notna(), None).to_dict("list")


if __name__ == "__main__":
    cases = {
        "alike": (rows(0, 90, 0.2, 0.0), rows(1, 90, 0.2, 0.0)),
        "gaps": (rows(2, 90, 0.2, 0.2), rows(3, 70, 0.6, 0.05)),
        "unlike": (rows(4, 60, 0.1, 0.1), rows(5, 80, 3.0, 0.3).assign(place="west")),
    }
    answer = {
        name: {"real": plain(real), "fake": plain(fake), "sdmetrics": judged(real, fake)}
        for name, (real, fake) in cases.items()
    }
    text = json.dumps(answer, separators=(",", ":"))
    Path(__file__).with_name("expected.json").write_text(text + "\n")
