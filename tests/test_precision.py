"""Data that float32 does not hold well: large identifiers, timestamps, small spreads far from 0."""

import copy
import csv
import hashlib
import io
import json
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.random import default_rng

from models.artifact import load_artifact
from models.config import DataConfig
from models.errors import DataError
from models.formats import encode, read_items
from models.model import Model
from models.sampling import Scaling
from models.trained import TrainedModel
from tests.artifacts import tiny_config
from tests.runs import trained
from tests.servers import array_file, npz_file
from tests.test_app import made, talk
from training.data.dataset import Dataset, load_data
from training.data.inspection import precision_problems
from training.judging.doctor.diagnosis import diagnose_run
from training.judging.evaluate import evaluate_artifact
from training.judging.figures import FIGURES
from training.judging.metrics import precision_recall_density_coverage
from training.reporting.pictures import _ends
from training.retraining.evidence import judged_data
from training.run import run_training

pytestmark = pytest.mark.usefixtures("charts_undrawn")
DAY = 86_400.0
COLUMNS = ["time", "identifier", "level"]


def rows(*shape: int) -> np.ndarray:
    """Numbers of a unix time, of an identifier and of a level at 1e6: float64 ``(*shape, 3)``."""
    random = default_rng(0)
    return np.stack(
        [
            1.7e9 + DAY * random.random(shape),
            1e9 + random.integers(0, 5000, shape),
            1e6 + random.normal(size=shape),
        ],
        axis=-1,
    )


def saved(folder: Path, items: np.ndarray) -> str:
    np.save(folder / "items.npy", items)
    return str(folder / "items.npy")


def load(folder: Path, items: np.ndarray) -> Dataset:
    return load_data(DataConfig(source=saved(folder, items)))


class Trained:
    """A short run on vectors or on sequences, with its data."""

    def __init__(self, kind: str, folder: Path) -> None:
        source = saved(folder, rows(400) if kind == "vector" else rows(300, 4))
        preset = "table" if kind == "vector" else kind
        self.config = tiny_config(
            preset,
            data={"source": source},
            training={"critic_step": "eager"},  # to capture it takes longer than all the run
            evaluation={"samples": 60},
        )
        self.folder = folder / "run"
        self.model, *_ = trained(self.config, self.folder, register=False)
        self.data = load_data(self.config.data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    return {kind: Trained(kind, tmp_path_factory.mktemp(kind)) for kind in ("vector", "sequence")}


@pytest.fixture(params=["vector", "sequence"])
def run(request: pytest.FixtureRequest, runs: dict[str, Trained]) -> Trained:
    return runs[request.param]


# ---- which data are held in float64 ----------------------------------------------------------


def test_ordinary_data_are_held_and_split_as_before(tmp_path: Path) -> None:
    """The hashes are of the commit before data could be float64."""
    random = default_rng(0)
    vectors = load(tmp_path, random.normal([5.0, -1.0, 1000.0], [3.0, 0.1, 1.0], (400, 3)))
    sequences = load(tmp_path, random.normal([5.0, -1.0], [3.0, 0.1], (300, 6, 2)))
    for data, sha256, heldout, count in (
        (vectors, "17afb63e68d6e9f3", "62ac407abcf4767a", 86),
        (sequences, "ceb5136cdd0a7216", "cbfed2b0ec3d5d44", 59),
    ):
        assert data.items.dtype == np.float32
        assert data.card.sha256[:16] == sha256
        assert data.card.heldout_count == count
        packed = np.packbits(data.is_heldout).tobytes()
        assert hashlib.sha256(packed).hexdigest()[:16] == heldout
        assert "dtype" not in data.card.model_dump_json()
        assert data.scaling.to_data(torch.zeros(1, *data.card.shape)).dtype == torch.float32
    assert vectors.card.offset == [4.561027046803171, -0.9993097322761633, 1000.0507449010375]
    assert vectors.card.scale == [2.933270833708647, 0.0990882527627373, 0.9971640121757644]


def spike(x: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(x)) == 7, 1e6 / 3, 0)


CASES = {
    "near 0": (lambda x: x, "float32"),
    "at 1000": (lambda x: 1000 + x, "float32"),
    "years": (lambda x: 2000 + np.round(9 * x), "float32"),
    "one that is constant": (lambda x: 0 * x + 0.1, "float32"),
    "one far value": (spike, "float32"),
    "a heavy tail": (lambda x: np.exp(9 * x), "float32"),
    "identifiers all over": (lambda x: np.round(1e9 * (5 + x)), "float32"),
    "rounded by who saved it": (lambda x: np.float32(1e6 + x), "float32"),
    "at 1e6": (lambda x: 1e6 + x, "float64"),
    "a day of seconds": (lambda x: 1.7e9 + 2e4 * x, "float64"),
    "half of them the same": (lambda x: 1e6 + 0.1 + np.maximum(x, 0.3), "float64"),
    "a missing time": (lambda x: np.where(x == x.max(), 0, 1.7e9 + 2e4 * x), "float64"),
    "whole numbers": (lambda x: (10**9 + np.round(9 * x)).astype(np.int64), "float64"),
    "below float32's range": (lambda x: 1e-60 * x, "float64"),
}


@pytest.mark.parametrize(("column", "dtype"), CASES.values(), ids=CASES)
def test_float64_is_for_data_that_float32_does_not_hold(tmp_path, column, dtype) -> None:
    x = default_rng(1).normal(size=1000)
    values = column(x)
    table = np.stack([values, np.float32(x)], axis=1)
    if values.dtype == np.float32:
        table = table.astype(np.float32)
    data = load(tmp_path, table)
    assert data.items.dtype == dtype
    assert data.card.dtype == dtype
    sequences = load(tmp_path, table.reshape(250, 4, 2))
    assert sequences.card.dtype == dtype


def test_a_constant_beside_a_time_has_no_scale(tmp_path: Path) -> None:
    table = np.stack([rows(300)[:, 0], np.full(300, 0.1)], axis=1)
    data = load(tmp_path, table)
    assert data.items.dtype == np.float64
    assert data.card.scale[1] == 1
    assert data.scaling.to_model(torch.from_numpy(data.items))[:, 1].abs().max() < 1e-12


def test_numbers_that_float32_cannot_reach_are_refused_still(tmp_path: Path) -> None:
    table = rows(300)
    table[3, 0] = 1e39
    with pytest.raises(DataError, match=r"1 of 300 items .* item 3"):
        load(tmp_path, table)


# ---- scaling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(400,), (300, 4)])
def test_scaling_loses_nothing(tmp_path: Path, shape: tuple[int, ...]) -> None:
    items = rows(*shape)
    data = load(tmp_path, items)
    np.testing.assert_array_equal(data.items, items)
    known = data.training.astype(np.longdouble).reshape(-1, 3)
    mean, sd = known.mean(axis=0), known.std(axis=0)
    scaled = data.scaling.to_model(torch.from_numpy(data.items))
    assert scaled.dtype == torch.float32
    # Half a step of float32, at most, from the closed form; 128 s are 5e-3 of this time's spread.
    exact = (items - mean) / sd
    assert np.abs(scaled.numpy() - exact).max() <= 2**-24 * np.abs(exact).max() + 1e-9
    back = data.scaling.to_data(scaled).numpy()
    assert back.dtype == np.float64
    # What the network put out is scaled back without loss: the error is that of its own float32.
    assert np.abs((back - (mean + sd * scaled.numpy())) / sd).max() < 1e-9


def test_items_of_more_digits_than_a_models_own_data_keep_them() -> None:
    """A champion from before scales new data, by which both models are compared."""
    scaling = Scaling((1,), [1e6], [2.0])
    items = 1e6 + torch.tensor([[0.0], [0.01]], dtype=torch.float64)
    assert scaling.to_model(items).diff(dim=0).item() == pytest.approx(0.005, rel=1e-6)


def test_figures_do_not_depend_on_where_the_origin_lies(tmp_path: Path) -> None:
    random = default_rng(2)
    mixed = random.normal(size=(2, 300, 3)) @ random.normal(size=(3, 3))
    # Multiples of 2^-20 stay exact in float64 when 1e6 is added.
    near = np.round(mixed * [1, 1, 2] * 2**20) / 2**20
    data = load(tmp_path, np.concatenate(near) + 1e6)
    assert data.items.dtype == np.float64
    there = Scaling((3,), [x - 1e6 for x in data.card.offset], data.card.scale)
    pairs = [
        [scaling.to_model(torch.from_numpy(x)).double().numpy() for x in sets]
        for scaling, sets in ((data.scaling, near + 1e6), (there, np.float32(near)))
    ]
    for name, figure in FIGURES.items():
        if figure.distance and name != "pair_distance":  # which compares rows of tables
            far, close = (figure.distance(real, 0.9 * fake + 0.2) for real, fake in pairs)
            assert far == pytest.approx(close, rel=1e-6), name
    far, close = (precision_recall_density_coverage(*pair) for pair in pairs)
    assert far == close


# ---- runs ------------------------------------------------------------------------------------


def test_a_run_keeps_the_digits(run: Trained) -> None:
    assert precision_problems(run.data) == []
    assert run.model.run.data.dtype == "float64"
    samples = run.model.sample(seed=3, count=200)
    assert samples.dtype == np.float64
    flat = samples.reshape(-1, 3)
    assert (flat == flat.astype(np.float32)).mean() < 0.01
    gaps = np.diff(np.sort(flat[:, 0]))
    assert np.median(gaps[gaps > 0]) < DAY / 200  # on float32's grid none is below 128
    offset, scale = (np.array(x) for x in (run.data.card.offset, run.data.card.scale))
    assert np.abs((flat - offset) / scale).max() < 10


def test_a_run_is_judged_again_on_the_same_items(run: Trained) -> None:
    again = evaluate_artifact(run.folder / "artifact")
    assert again == run.model.run.results
    found = {finding.name: finding.value for finding in diagnose_run(run.folder)}
    assert found == {finding.name: finding.value for finding in run.model.run.findings}


def test_a_model_from_before_is_judged_on_the_items_held_out_then(tmp_path: Path) -> None:
    source = saved(tmp_path, rows(400))
    config = tiny_config("table", data={"source": source}, evaluation={"samples": 60})
    card = load_data(config.data).card.model_copy(update={"dtype": "float32"})
    data = load_data(config.data, card=card)
    # As the commit before split these rows.
    assert data.card.sha256[:16] == "e5b64ddd4509c152"
    run_training(config, tmp_path / "run", torch.device("cpu"), register=False, data=data)
    model = load_artifact(tmp_path / "run/artifact")
    assert model.run.data.dtype == "float32"
    assert model.sample(0, 3).dtype == np.float32
    assert evaluate_artifact(tmp_path / "run/artifact") == model.run.results
    assert {f.name: f.value for f in diagnose_run(tmp_path / "run")} == {
        f.name: f.value for f in model.run.findings
    }


def test_reference_items_are_held_out_as_those_of_the_data(run: Trained, tmp_path: Path) -> None:
    """Float32 would hold the reference; the hashes of its items must be those in the data."""
    items = run.data.items.copy()
    near = np.float32(default_rng(3).normal(size=items.shape))
    np.save(tmp_path / "reference.npy", near)
    reference = judged_data(str(tmp_path / "reference.npy"), run.config, run.data)
    assert reference.card.dtype == "float64"
    together = DataConfig(source=saved(tmp_path, np.concatenate([items, near])))
    both = load_data(together, card=run.data.card)
    np.testing.assert_array_equal(both.is_heldout[len(items) :], reference.is_heldout)


def by_hand(model: Model, items: np.ndarray) -> np.ndarray:
    card = model.run.data
    exact = (items.astype(np.float64) - card.offset) / np.array(card.scale)
    with torch.no_grad():
        return copy.deepcopy(model.critic).double()(torch.from_numpy(exact)).numpy()


def test_scores_are_those_of_float64(run: Trained) -> None:
    items = run.data.heldout[:40]
    expected = by_hand(run.model, items)
    model = TrainedModel(run.folder / "artifact")
    found = model.score(items)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    coarse = model.score(np.float32(items))
    assert np.abs(coarse - expected).max() > 1e-3  # so that the test can fail
    if items.ndim == 2:
        frame = pd.DataFrame(items, columns=COLUMNS).astype({"identifier": np.int64})
        np.testing.assert_array_equal(model.score(frame), found)


def test_every_file_gives_the_samples_back(run: Trained) -> None:
    samples = run.model.sample(seed=5, count=30)
    for format in ("npy", "npz"):
        read = read_items(encode(samples, format), f"samples.{format}")
        assert read.dtype == np.float64
        np.testing.assert_array_equal(read, samples)
    read = np.array(json.loads(encode(samples, "json"))["samples"])
    np.testing.assert_array_equal(read, samples)
    if samples.ndim == 2:
        text = encode(samples, "csv", COLUMNS).decode()
        header, *lines = csv.reader(io.StringIO(text))
        assert header == COLUMNS
        np.testing.assert_array_equal(np.array(lines, np.float64), samples)
        assert "e+" not in text


def test_the_service_keeps_the_digits(run: Trained) -> None:
    app = made(WGAN_MODEL=str(run.folder / "artifact"))
    samples = run.model.sample(seed=7, count=9)
    items = run.data.heldout[:20]
    expected = run.model.score(items)

    async def ask(client: httpx.AsyncClient) -> None:
        wanted = {"count": 9, "seed": 7}
        answer = await client.post("/v1/samples", json={**wanted, "format": "json"})
        np.testing.assert_array_equal(np.array(answer.json()["samples"]), samples)
        answer = await client.post("/v1/samples", json={**wanted, "format": "npz"})
        read = read_items(answer.content, "samples.npz")
        assert read.dtype == np.float64
        np.testing.assert_array_equal(read, samples)
        assert (await client.get("/v1/model")).json()["data"]["dtype"] == "float64"
        answer = await client.post("/v1/scores", json={"samples": items.tolist()})
        np.testing.assert_array_equal(np.float32(answer.json()["scores"]), expected)
        for content in (array_file(items), npz_file(samples=items)):
            answer = await client.post("/v1/scores", files={"files": ("items", content)})
            np.testing.assert_array_equal(np.float32(answer.json()["scores"]), expected)

    talk(app, ask)


def test_labels_of_an_axis_tell_its_ends_apart() -> None:
    assert _ends(-1.23456, 1000.0) == ["-1.235", "1000"]
    assert _ends(1.7e9, 1.7e9 + DAY) == ["1.7e+09", "1.7001e+09"]
