"""POST /v1/anomalies: what the model's detector says, over HTTP and by the client."""

import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from torch import nn

from models import detector as detectors
from models.artifact import load_artifact
from models.detector import Detector, load_detector
from models.errors import ShapeError
from models.images import encode_png
from models.model import Model
from models.tables.files import records
from service.client import Client
from service.endpoints import anomalies
from tests.artifacts import make_artifact
from tests.servers import Server, array_file, is_problem
from tests.test_app import made, talk
from tests.test_detector import CLASSES, with_detector

Array = np.ndarray


def guarded(folder: Path, kind: str = "image", **options: Any) -> Detector:
    """An artifact with a detector in ``folder / "artifact"``."""
    plain = make_artifact(folder / "plain", kind, **options)
    model = load_artifact(plain)
    labels = model.labels(9, 40)
    found = with_detector(model).examine(model.sample(9, 40, labels))
    with_detector(model, np.sort(found.statistics)).save(plain, folder / "artifact")
    detector = load_detector(folder / "artifact", load_artifact(folder / "artifact"))
    assert detector is not None
    return detector


def ask(folder: Path, *requests: dict[str, Any], **settings: object) -> list[httpx.Response]:
    app, answers = made(WGAN_MODEL=str(folder / "artifact"), **settings), list[httpx.Response]()

    async def send(client: httpx.AsyncClient) -> None:
        for request in requests:
            answers.append(await client.post("/v1/anomalies", **request))
        told = (await client.get("/metrics")).text
        assert 'wgan_requests_total{endpoint="/v1/anomalies"' in told

    talk(app, send)
    return answers


def test_an_image_has_a_p_value_and_a_heat_map(tmp_path: Path) -> None:
    detector = guarded(tmp_path)
    items = detector.model.sample(seed=3, count=20)
    expected = detector.examine(items)
    files = [
        ("files", ("a.npy", array_file(items[:19]))),
        ("files", ("b.png", encode_png(items[19]))),
    ]
    plain, of_files, explained = ask(
        tmp_path,
        {"json": {"samples": items.tolist()}},
        {"files": files},
        {"json": {"samples": items.tolist()}, "params": {"explain": "true"}},
    )
    for answer in (plain, of_files, explained):
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-model-version"]
        found = answer.json()
        np.testing.assert_array_equal(found["p_values"], expected.p_values)
        np.testing.assert_allclose(found["statistics"], expected.statistics)
        assert found["calibration_items"] == 40
        assert found["blame"] is None
    assert plain.json()["residuals"] is None
    assert not re.search(r"\d\.\d{7}", explained.text.partition('"residuals"')[2])
    heat = np.array(explained.json()["residuals"])
    np.testing.assert_allclose(heat, detector.residuals(items), atol=1e-6)


def test_of_a_row_each_column_has_its_blame(tmp_path: Path) -> None:
    detector = guarded(tmp_path, "rows")
    codes = detector.model.sample(seed=3, count=4)
    rows = detector.model.rows(codes, 3)
    residuals = detector.residuals(detector.model.codes(rows))
    body = {"rows": records(rows)}
    (answer,) = ask(tmp_path, {"json": body, "params": {"explain": "true"}})
    found = answer.json()
    assert found["residuals"] is None
    expected = detector.blame(residuals)
    for i, blame in enumerate(found["blame"]):
        assert sum(blame.values()) == pytest.approx(1, abs=1e-4)
        assert blame == pytest.approx(
            {name: share[i] for name, share in expected.items()}, abs=1e-5
        )


def test_an_item_of_a_conditional_model_has_a_class(tmp_path: Path) -> None:
    detector = guarded(tmp_path, class_counts=CLASSES)
    items = detector.model.sample(3, 2, np.array([0, 1]))
    body = {"samples": items.tolist()}
    whole, without = ask(tmp_path, {"json": {**body, "classes": ["a", "b"]}}, {"json": body})
    expected = detector.examine(items)
    np.testing.assert_array_equal(whole.json()["p_values"], expected.p_values)
    assert "class" in str(is_problem(without, 422)["detail"])


def test_a_model_without_a_detector_is_404(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact", "vector"))
    (answer,) = ask(tmp_path, {"json": {"samples": model.sample(0, 1).tolist()}})
    assert "`wgan train-detector` makes one" in str(is_problem(answer, 404)["detail"])
    unreadable = {"files": [("files", ("a.png", b"no image"))]}
    for answer in ask(tmp_path, {"json": {"samples": [[1.0] * 9]}}, unreadable):
        is_problem(answer, 404)  # told before the items are looked at


def test_the_model_s_record_says_whether_there_is_a_detector(tmp_path: Path) -> None:
    detector = guarded(tmp_path)
    told = []

    async def send(client: httpx.AsyncClient) -> None:
        told.append((await client.get("/v1/model")).json()["detector"])

    for folder in ("plain", "artifact"):
        talk(made(WGAN_MODEL=str(tmp_path / folder)), send)
    without, found = told
    assert without is None
    assert found.pop("smallest_p_value") == 1 / (detector.card.calibration_count + 1)
    assert found == {**detector.card.model_dump(), "source": Path(detector.card.source).name}


def test_what_cannot_be_answered_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded(tmp_path)
    monkeypatch.setattr(anomalies, "MAX_EXPLAINED", 127)
    image = [[[0] * 8] * 8]
    unclear, much, shape = ask(
        tmp_path,
        {"json": {"samples": image}, "params": {"explain": "yes"}},
        {"json": {"samples": image * 2}, "params": {"explain": "true"}},
        {"json": {"samples": [[0.5]]}},
    )
    assert is_problem(unclear, 400)["errors"] == [
        {"path": "/explain", "message": "is true or false"}
    ]
    assert "fewer items" in str(is_problem(much, 422)["detail"])
    is_problem(shape, 422)


def test_the_channels_of_a_pixel_are_explained_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact", "rgb"))
    monkeypatch.setattr(anomalies, "MAX_EXPLAINED", 2 * 16 * 12)
    anomalies._require_few(model, model.sample(0, 2))
    with pytest.raises(ShapeError, match="over 384 numbers to explain"):
        anomalies._require_few(model, model.sample(0, 3))


def test_of_a_row_too_many_columns_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = guarded(tmp_path, "rows")
    assert detector.model.table is not None
    monkeypatch.setattr(anomalies, "MAX_EXPLAINED", 2 * len(detector.model.table.coded))
    rows = records(detector.model.rows(detector.model.sample(seed=3, count=3), 3))
    explained = {"params": {"explain": "true"}}
    much, few, plain = ask(
        tmp_path,
        {"json": {"rows": rows}, **explained},
        {"json": {"rows": rows[:2]}, **explained},
        {"json": {"rows": rows}},
    )
    assert "fewer items" in str(is_problem(much, 422)["detail"])
    assert few.status_code == plain.status_code == 200


def test_the_generator_is_asked_for_an_explanation_alone_which_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = guarded(tmp_path)
    body = {"json": {"samples": detector.model.sample(seed=3, count=5).tolist()}}
    made = list[int]()
    forward = detectors.squared_residuals

    def counted(model: Model, encoder: nn.Module, items: Array, *more: Any) -> Array:
        made.append(len(items))
        return forward(model, encoder, items, *more)

    monkeypatch.setattr(detectors, "squared_residuals", counted)
    explain = {**body, "params": {"explain": "true"}}
    first, second, explained, again = ask(
        tmp_path, body, body, explain, explain, WGAN_SAMPLES_PER_SECOND=1
    )
    assert first.status_code == second.status_code == explained.status_code == 200
    assert "samples" in str(is_problem(again, 429)["detail"])
    assert made == [5]


def test_the_client_asks(tmp_path: Path) -> None:
    server = Server("image", tmp_path)
    with_detector(server.model, np.arange(40.0)).save(server.artifact, server.artifact)
    items = server.model.sample(seed=3, count=3)
    detector = with_detector(server.model, np.arange(40.0))
    expected = detector.examine(items)
    (tmp_path / "items.npy").write_bytes(array_file(items))
    with server.running(), Client(f"http://127.0.0.1:{server.port}") as client:
        of_items = client.anomalies(items, explain=True)
        of_files = client.anomalies_of_files(tmp_path / "items.npy", model="champion")
    for found in (of_items, of_files):
        np.testing.assert_array_equal(found.p_values, expected.p_values)
        assert found.origin.constraint == "gradient_penalty"
    assert of_items.residuals is not None
    np.testing.assert_allclose(of_items.residuals, detector.residuals(items), atol=1e-6)
    assert of_files.residuals is None
