"""A small table with every kind of column, and its schema."""

import datetime as dt

import numpy as np
import pyarrow as pa

from models.tables import TableSchema
from training.data.schema import find_structure, fit_schema


def people(count: int = 300) -> pa.Table:
    """Rows with every kind of column, and gaps in two."""
    rng = np.random.default_rng(0)
    income = [None if i % 5 == 0 else round(float(x), 2) for i, x in enumerate(rng.random(count))]
    home = [
        None if i % 7 == 0 else x for i, x in enumerate(rng.choice(["own", "rent, old"], count))
    ]
    age = rng.integers(18, 90, count)
    return pa.table(
        {
            "id": pa.array([f"p{i:04d}" for i in range(count)]),
            "age": pa.array(age),
            "income": pa.array(income),
            "home": pa.array(home),
            "member": pa.array(rng.random(count) < 0.5),
            "since": pa.array([dt.date(2020, 1, 1) + dt.timedelta(int(x)) for x in age * 10]),
            "country": pa.array(["NL"] * count),
            "years": pa.array(age),
        }
    )


def people_schema() -> TableSchema:
    table = people()
    return fit_schema(table, find_structure(table, {}), {}, np.arange(len(table)) % 5 > 0)
