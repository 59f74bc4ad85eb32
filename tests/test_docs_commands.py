"""The commands and the Python of the pages of docs/, run as they stand by a reader with data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

import wgan
from tests.artifacts import make_artifact
from tests.code_blocks import lines, terminal, to_run
from tests.registries import new_database
from training.data.schema import find_structure, fit_schema
from training.judging import detector

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("charts_undrawn")]
Run = Callable[[str], None]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all pages."""
    return new_database(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str) -> Run:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    return terminal(tmp_path, monkeypatch)


def run_page(page: list[str], run: Run) -> None:
    for line in lines("".join(page)):
        run(line)


def recorded(run: str) -> Any:
    """What the record of an artifact in a run's folder says."""
    return json.loads(Path(f"runs/{run}/artifact/run.json").read_text())


def diamonds(count: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "carat": rng.lognormal(-0.5, 0.5, count).round(2),
            "cut": rng.choice(["Ideal", "Good", "Fair"], count),
            "color": rng.choice(["D", "E", "F"], count),
            "clarity": rng.choice(["SI1", "VS2"], count),
            "price": rng.integers(300, 18_000, count),
        }
    )


def make_diamonds() -> pd.DataFrame:
    """Make a model that knows the columns of the diamonds; return rows with gaps."""
    table = pa.Table.from_pandas(diamonds(), preserve_index=False)
    schema = fit_schema(table, find_structure(table, {}), {}, np.arange(len(table)) % 5 > 0)
    make_artifact(Path("runs/diamonds/artifact"), "rows", table_schema=schema)
    gaps = diamonds(20).astype({"price": "Int64"})
    gaps.loc[::2, "cut"] = None
    gaps.loc[::3, "price"] = None
    gaps.to_csv("gaps.csv", index=False)
    return gaps


def test_the_session_of_the_command_line_page(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # its versions are the first ones
    make_diamonds()
    run_page(to_run("docs/commands.md", "sh"), run)
    assert Path("samples.png").read_bytes().startswith(b"\x89PNG")
    rows = pd.read_parquet("rows.parquet")
    assert len(rows) == 1000
    assert set(rows.cut) <= {"Ideal", "Good"}
    assert rows.price.min() > 5000
    completed, gaps = pd.read_csv("completed.csv"), pd.read_csv("gaps.csv")
    assert not completed.isna().any(axis=None)
    assert (completed == gaps).where(gaps.notna(), True).all(axis=None)
    assert recorded("first")["config"]["training"]["steps"] == 300
    assert recorded("tuned")["config"]["constraint"]["kind"] == "spectral_norm"
    alone, shared = (
        {file.name: file.read_bytes() for file in Path(name).iterdir()}
        for name in ("many", "shared")
    )
    assert alone == shared


def test_the_examples_of_the_python_page(run: Run) -> None:
    gaps = make_diamonds()
    given = {"model": wgan.load("runs/diamonds/artifact"), "frame_with_gaps": gaps}
    found: dict[str, Any] = {}
    for code in to_run("docs/api.md", "python"):
        found |= given
        exec(code, found)
    rows = found["rows"]
    assert len(rows) == 1000
    assert set(rows.cut) <= {"Ideal", "Good"}


def test_the_page_of_detectors(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    train = detector.train_encoder
    monkeypatch.setattr(detector, "train_encoder", lambda *given: train(*given[:2], 20, given[3]))
    make_artifact(Path("runs/digits/artifact"), "image")
    Path("photos").mkdir()
    Image.new("RGB", (48, 40), "red").save("photos/1.png")
    run_page(to_run("docs/anomalies.md", "sh"), run)
    assert Path("runs/guarded/detector.safetensors").is_file()


@pytest.mark.slow
def test_the_page_of_augmentation(run: Run) -> None:
    run_page(to_run("docs/augmentation.md", "sh"), run)
    assert recorded("augmented")["config"]["augmentation"]["strength"] == 1
    assert recorded("adaptive")["data"]["validation_count"] > 100


def test_the_page_of_budgets(run: Run) -> None:
    run_page(to_run("docs/budget.md", "sh"), run)
    assert recorded("selected")["provenance"]["selected"]["figure"] == "kernel_distance"


def test_the_page_of_constraints(run: Run) -> None:
    run_page(to_run("docs/constraints.md", "sh"), run)
    assert recorded("clipped")["config"]["constraint"]["clip_value"] == 0.05


def test_the_page_of_optimisers(run: Run) -> None:
    run_page(to_run("docs/optimisers.md", "sh"), run)
    assert recorded("optimistic")["config"]["training"]["schedule"] == "cosine"
    assert recorded("lazy")["config"]["constraint"]["rescale_adam"] is True


def test_the_page_of_data(run: Run) -> None:
    rng = np.random.default_rng(0)
    with h5py.File("scans.h5", "w") as file:
        file["train/images"] = rng.normal(size=(200, 16, 16, 1)).astype(np.float32)
        file["masks"] = np.zeros((200, 16, 16), np.uint8)
    quality = rng.integers(3, 9, 300)
    wine = {"price.eur": rng.gamma(4, 3, 300).round(2), "quality": quality, "comment": "good"}
    income = np.where(rng.random(300) < 0.5, 0, rng.gamma(4, 1000, 300).round())
    pd.DataFrame({**wine, "income": income}).to_csv("wine.csv", index=False)
    sales = pd.DataFrame({"price": rng.gamma(4, 3, 300).round(2), "count": quality})
    sales.to_csv("sales.csv.gz", index=False, sep=";", decimal=",")
    (corrections,) = to_run("docs/data.md", "yaml")
    Path("columns.yaml").write_text(corrections)
    run_page(to_run("docs/data.md", "sh"), run)
    assert recorded("scans")["data"]["range"] == "own"
    kinds = {c["name"]: c["kind"] for c in recorded("corrected")["data"]["table"]["columns"]}
    assert kinds["quality"] == "category"
    columns = recorded("sales")["data"]["table"]["columns"]
    assert {c["name"]: c["kind"] for c in columns} == {"price": "number", "count": "number"}


def test_the_page_of_networks(run: Run) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("three.png")
    run_page(to_run("docs/networks.md", "sh"), run)
    assert recorded("by-class")["data"]["classes"] == list("0123456789")
    assert Path("threes.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_tables(run: Run) -> None:
    frame = diamonds()
    frame.to_csv("diamonds.csv", index=False)
    frame.head(20).drop(columns="cut").to_csv("gaps.csv", index=False)
    rng = np.random.default_rng(0)
    net, ordered = rng.integers(1, 1000, 300), rng.integers(0, 300, 300)
    shipped = ordered + rng.integers(0, 30, 300)
    start = pd.Timestamp("2026-01-01")
    orders = {"net": net, "tax": net // 5, "total": net + net // 5}
    for name, days in (("ordered", ordered), ("shipped", shipped)):
        orders[name] = (start + pd.to_timedelta(days, "D")).date
    pd.DataFrame(orders).to_csv("orders.csv", index=False)
    run_page(to_run("docs/tables.md", "sh"), run)
    assert set(pd.read_csv("rows.csv").cut) == {"Ideal"}
    assert not pd.read_csv("completed.csv").isna().any(axis=None)
    given: dict[str, Any] = {"frame": frame}
    (code,) = to_run("docs/tables.md", "python")
    exec(code, given)
    assert given["rows"].columns.tolist() == frame.columns.tolist()
    assert set(given["ideal"].cut) == {"Ideal"}
