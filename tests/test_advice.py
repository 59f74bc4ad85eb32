"""Advice in messages, followed: each leads to what works, and none to another refusal."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models import registry
from models.artifact import load_artifact
from models.config import EvaluationConfig
from models.errors import ArtifactError, ConfigError, DataError, ShapeError, UserError, suggestion
from models.formats import encode
from models.networks import build_networks
from models.trained import load
from tests.artifacts import make_artifact
from training.data.dataset import load_data
from training.judging.evaluate import judge_again
from training.judging.extractors import load_extractor
from training.presets import build_config, fill_in
from training.tracking import track_and_register

RNG = np.random.default_rng(0)
ARRAYS = {
    "vector": RNG.normal(size=(400, 3)).astype(np.float32),
    "sequence": RNG.normal(size=(400, 8, 2)).astype(np.float32),
    "image": RNG.integers(0, 256, (400, 16, 16, 3), np.uint8),
}


@pytest.fixture(autouse=True)
def _in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, items in ARRAYS.items():
        np.save(f"{kind}.npy", items)


def prepare(preset: str, source: str, **settings: Any) -> None:
    """Do all that a run does before it trains."""
    config = build_config(
        preset, source, None, {k.replace("__", "."): v for k, v in settings.items()}
    )
    data = load_data(config.data, config.training.batch_size)
    build_networks(fill_in(config, data.card), data.card.shape, 0, data.card.parts)


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("preset", ["digits", "images", "table", "ar2", "8gaussians"])
def test_another_kind_of_data_leads_to_its_preset(preset: str, kind: str) -> None:
    suits = {
        "vector": ("table", "8gaussians"),
        "sequence": ("ar2",),
        "image": ("digits", "images"),
    }
    of_images = {"data__size": None} if preset == "images" and kind != "image" else {}
    if preset in suits[kind]:
        prepare(preset, f"{kind}.npy")
        return
    with pytest.raises(ConfigError) as caught:
        prepare(preset, f"{kind}.npy", **of_images)
    advice = str(caught.value).partition("start from the preset ")[2]
    advised, _, settings = advice.partition("; or,")[0].partition(", or set ")
    prepare(advised, f"{kind}.npy")
    if preset == "images":  # whose settings are for images alone
        assert not settings
        return
    told = dict(setting.split("=") for setting in settings.split(" and "))
    assert set(told) == {"generator.architecture", "critic.architecture"}, "all at once"
    if kind != "sequence":  # whose normalisation is another question
        prepare(preset, f"{kind}.npy", **told)


def test_a_size_of_what_is_no_image_leads_to_the_preset() -> None:
    with pytest.raises(DataError, match="say null, or take a preset without it"):
        prepare("images", "vector.npy")
    with pytest.raises(ConfigError, match="start from the preset table"):
        prepare("images", "vector.npy", data__size=None)


def test_an_encoding_that_reads_every_byte_is_named() -> None:
    rows = "".join(f"M\xfcller{i % 5},{i}\n" for i in range(300)).encode("latin-1")
    Path("latin.csv").write_bytes(b"name,x\n" + rows + b"\x81,3\n")
    for told in ({}, {"data__csv.encoding": "utf-8"}):
        with pytest.raises(DataError, match=r"set data.csv.encoding to another, such as latin-1"):
            prepare("table", "latin.csv", **told)
    prepare("table", "latin.csv", **{"data__csv.encoding": "latin-1"})


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("format", ["csv", "parquet", "arrow", "png"])
def test_formats_that_are_advised_exist(kind: str, format: str) -> None:
    samples = ARRAYS[kind][:4]
    try:
        encode(samples, format)
    except ShapeError as error:
        for advised in str(error).partition("ask for ")[2].split(" or "):
            assert encode(samples, advised)


def test_a_broken_version_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    folder = make_artifact(tmp_path / "artifact", "vector")
    track_and_register(load_artifact(folder), folder)
    stored = registry.client().get_model_version_download_uri("tiny", "1").removeprefix("file://")
    (Path(stored) / "MODEL_CARD.md").write_text("changed")
    with pytest.raises(ArtifactError, match=r"^tiny@1/MODEL_CARD.md: changed or truncated"):
        load("tiny@1")


def test_evaluation_takes_the_size_that_it_advises(tmp_path: Path) -> None:
    folder = make_artifact(
        tmp_path / "artifact", "image", evaluation={"extractor": "pixels", "samples": 20}
    )
    np.save("large.npy", RNG.integers(0, 256, (200, 16, 16, 1), np.uint8))
    with pytest.raises(UserError, match=r"--set data.size=8"):
        judge_again(folder, "large.npy")
    told = build_config("table", "large.npy", None, {"data.size": 8}).data
    assert judge_again(folder, "large.npy", told=told).data.card.shape == (1, 8, 8)
    np.save("colour.npy", RNG.integers(0, 256, (200, 16, 16, 3), np.uint8))
    with pytest.raises(UserError, match=r"\(1, 8, 8\): bring grey images and --set data.size=8$"):
        judge_again(folder, "colour.npy")
    told = build_config("table", "colour.npy", None, {"data.size": 8}).data
    with pytest.raises(UserError, match=r"\(1, 8, 8\): bring grey images$"):
        judge_again(folder, "colour.npy", told=told)


@pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="the extra inception is not here"
)
def test_nobody_is_told_to_load_weights_unsafely() -> None:
    Path("weights.pth").write_bytes(b"no weights")
    digest = hashlib.sha256(b"no weights").hexdigest()
    config = EvaluationConfig(
        extractor="inception", inception_weights="weights.pth", inception_sha256=digest
    )
    with pytest.raises(ConfigError, match="not the weights that torch-fidelity loads") as caught:
        load_extractor("inception", config)
    assert "pickle" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_no_names_are_told_as_such() -> None:
    assert suggestion("x", []) == "; there are none"


def test_columns_that_float64_does_not_hold() -> None:
    frame = pd.DataFrame({"x": RNG.normal(size=300), "i": 2**60 + 3 * RNG.integers(0, 50, 300)})
    frame.to_parquet("large.parquet")
    with pytest.raises(DataError, match="say that its kind is identifier, category or left_out"):
        prepare("table", "large.parquet")
    for kind in ("identifier", "category", "left_out"):
        prepare("table", "large.parquet", **{"data__columns.i.kind": kind})
