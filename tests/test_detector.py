"""Detectors of what does not belong: p-values, residuals, training, and their file."""

import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from models import champions, registry
from models.artifact import DETECTOR, FILES, GENERATOR, SERVED, SUMS, load_artifact, verify
from models.config import DataConfig
from models.detector import (
    Detector,
    DetectorCard,
    build_encoder,
    conformal_p_values,
    critic_features,
    feature_distances,
    item_features,
    load_detector,
    reconstruct,
    squared_residuals,
)
from models.errors import ArtifactError, ClassError, DataError, MachineError, ShapeError, UserError
from models.model import Model
from service.cache import VersionCache
from service.served import load
from service.trust import TrustedKeys
from tests.artifacts import ALL_SHAPES, make_artifact
from tests.test_artifact import resum
from tests.test_constraints import KINDS
from tests.test_judging import dataset
from tests.test_machine import limited
from training.data.dataset import load_data
from training.judging import detector as detector_module
from training.judging.detector import fit_detector, require_split, train_detector, train_encoder
from training.tracking import track_and_register
from wgan_cli import main

Array = np.ndarray
CARD = DetectorCard(
    source="test", sha256="0" * 64, training_count=8, calibration_count=4, steps=1, seed=0,
    wgan_foundry="0",
)  # fmt: skip
CLASSES = {"a": 5, "b": 3}


def with_detector(model: Model, calibration: Array | None = None) -> Detector:
    torch.manual_seed(1)
    encoder = build_encoder(model).eval().requires_grad_(False)
    reference = item_features(model, some_items(model, 20)[0])
    known = np.arange(4.0) if calibration is None else calibration
    return Detector(model, encoder, reference, known, CARD)


def some_items(model: Model, count: int = 5) -> tuple[Array, Array | None]:
    labels = model.labels(seed=3, count=count)
    return model.sample(3, count, labels), labels


# ---- p-values -----------------------------------------------------------------------------------


def one_against_the_others(values: Array) -> Array:
    """The p-value of each item, if all others calibrate."""
    others = [np.sort(np.delete(values, i)) for i in range(len(values))]
    return np.array([conformal_p_values(values[[i]], o)[0] for i, o in enumerate(others)])


def test_p_values_of_exchangeable_items_are_uniform() -> None:
    """Each of n + 1 items may be the new one; then every p-value k / (n + 1) comes exactly once."""
    found = one_against_the_others(np.random.default_rng(0).normal(size=100))
    np.testing.assert_array_equal(np.sort(found), np.arange(1, 101) / 100)


def test_with_ties_p_values_are_never_too_small() -> None:
    found = one_against_the_others(np.random.default_rng(0).integers(4, size=60).astype(float))
    for alpha in np.arange(1, 61) / 60:
        assert (found <= alpha).mean() <= alpha


# ---- statistics ---------------------------------------------------------------------------------


def linear_model(folder: Path, made: Array, features: Array) -> Model:
    """A model of points whose generator and critic's features are linear, of these matrices."""
    sizes = {"generator": {"latent_size": made.shape[1]}, "critic": {"width": 64}}
    model = load_artifact(make_artifact(folder, "vector", **sizes))
    model.generator = linear(made)
    model.critic.body = nn.Sequential(linear(features), nn.Linear(len(features), 1))
    return model


def linear(matrix: Array) -> nn.Linear:
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(matrix).float()
    return layer.requires_grad_(False)


def test_statistics_of_linear_networks_have_a_closed_form(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made, encoding, features = (rng.normal(size=(n, 2)) for n in (2, 2, 3))
    model = linear_model(tmp_path / "artifact", made, features)
    x = rng.normal(size=(40, 2)).astype(np.float32)
    difference = x @ encoding.T @ made.T - x
    residuals = squared_residuals(model, linear(encoding), x)
    np.testing.assert_allclose(residuals, difference**2, rtol=1e-4, atol=1e-6)
    known = rng.normal(size=(30, 2)).astype(np.float32)
    distances = np.linalg.norm((x[:, None] - known) @ features.T, axis=2)
    expected = np.sort(distances, axis=1)[:, :5].mean(axis=1)
    found = feature_distances(model, item_features(model, known), x)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    found = feature_distances(model, item_features(model, known[:3]), x)
    np.testing.assert_allclose(found, distances[:, :3].mean(axis=1), rtol=1e-4)  # of all there are


def test_an_encoder_learns_to_project(tmp_path: Path) -> None:
    """Of a generator of a line, no encoder is better than the projection on it, in both norms."""
    made = np.array([[1.0], [-0.5]])
    # The features are the point itself: of both norms the projection is the same.
    model = linear_model(tmp_path / "artifact", made, np.eye(2))
    rng = np.random.default_rng(3)
    points = rng.normal(size=(1000, 1)) @ made.T + rng.normal(0, 0.1, (1000, 2))
    np.save(tmp_path / "points.npy", points.astype(np.float32))
    data = load_data(DataConfig(source=str(tmp_path / "points.npy")), card=model.run.data)
    encoder = train_encoder(model, data, steps=600, seed=0)
    x = points[:200].astype(np.float32)
    direction = made[:, 0] / np.linalg.norm(made)
    off = x - np.outer(x @ direction, direction)
    found, least = squared_residuals(model, encoder, x).sum(axis=1), (off**2).sum(axis=1)
    assert (found > least - 1e-5).all()
    assert found.mean() < least.mean() + 0.05 * (x**2).sum(axis=1).mean()


@pytest.mark.parametrize("constraint", KINDS)
def test_features_are_what_the_last_layer_takes(tmp_path: Path, constraint: str) -> None:
    changes = {"constraint": {"kind": constraint}, "critic": {"dropout": 0.1}}
    folder = make_artifact(tmp_path / "artifact", **changes)
    critic, x = load_artifact(folder).critic, torch.randn(3, 1, 8, 8)
    seen: list[torch.Tensor] = []
    *_, head = (m for m in critic.modules() if isinstance(m, nn.Linear))
    head.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1)))
    critic(x)
    torch.testing.assert_close(critic_features(critic, x), seen[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", [*ALL_SHAPES, "rows"])
@pytest.mark.parametrize("counts", [None, CLASSES], ids=["plain", "conditional"])
def test_an_item_is_examined_alike_in_any_company(
    tmp_path: Path, kind: str, counts: dict[str, int] | None
) -> None:
    if counts and kind in ("table", "rows"):
        pytest.skip("tables have no classes")
    model = load_artifact(make_artifact(tmp_path / "artifact", kind, class_counts=counts))
    detector, (items, labels) = with_detector(model), some_items(model, 300)
    whole = (*detector.examine(items), detector.residuals(items, labels))
    label = None if labels is None else labels[7:8]
    alone = (*detector.examine(items[7:8]), detector.residuals(items[7:8], label))
    for many, one in zip(whole, alone, strict=True):
        assert len(many) == 300
        np.testing.assert_allclose(many[7], one[0], rtol=1e-4, atol=1e-6)
    expected = items.shape[:3] if model.is_image else items.shape
    assert whole[-1].shape == expected
    if counts:
        with pytest.raises(ClassError, match="give the class"):
            detector.residuals(items)


def test_to_be_rounded_makes_no_item_strange(tmp_path: Path) -> None:
    """Held-out items that are equal to an item tie with it, on whatever processor."""
    model = load_artifact(make_artifact(tmp_path / "artifact", "vector"))
    item = np.array([[3, -2]], np.float32)
    statistic = with_detector(model).examine(item).statistics
    detector = with_detector(model, np.repeat(statistic * (1 - 1e-6), 50))
    assert detector.examine(item).p_values == 1
    assert detector.examine(item * 1.01).p_values == pytest.approx(1 / 51)
    longest = float(detector.reference.norm(dim=1).max())
    assert detector.rounding == pytest.approx(1e-5 * longest)


def test_the_distances_do_not_need_all_features_twice(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact", "vector"))
    items = some_items(model, 1203)[0]
    reference = item_features(model, items)
    distances = torch.cdist(item_features(model, items[:9]).double(), reference.double())
    expected = distances.sort(dim=1).values[:, :5].mean(dim=1)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made = func(*args, **(kwargs or {}))
            nonlocal largest
            if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
                largest = max(largest, len(made))
            return made

    with Watch():
        found = feature_distances(model, reference, items[:9])
    np.testing.assert_allclose(found, expected)
    assert 0 < largest < len(items) / 2


def test_statistics_that_overflow_are_refused(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact", "vector"))
    for parameter in model.critic.parameters():
        parameter.mul_(1e3)
    detector, huge = with_detector(model), np.full((1, 2), 3e38, np.float32)
    for look in (detector.examine, detector.residuals):
        with pytest.raises(ShapeError, match="not finite"):
            look(huge)


def test_blame_is_the_share_of_each_column(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact", "rows"))
    detector, schema = with_detector(model), model.table
    assert schema is not None
    names = [column.name for column in schema.coded if column.parts]
    widths = [sum(p.width for p in column.parts) for column in schema.coded if column.parts]
    owners = np.repeat(np.arange(len(names)), widths)
    residuals = np.random.default_rng(0).random((6, model.shape[0])).astype(np.float32)
    residuals[0] = 0
    blame = detector.blame(residuals)
    for name, share in detector.blame(residuals * 1e-3).items():  # whatever their size
        np.testing.assert_allclose(share, blame[name], rtol=1e-5)
    for i, name in enumerate(names):
        expected = residuals[1:, owners == i].sum(axis=1) / residuals[1:].sum(axis=1)
        np.testing.assert_allclose(blame[name][1:], expected, rtol=1e-5)
        assert blame[name][0] == 0


# ---- its file -----------------------------------------------------------------------------------


def test_an_artifact_keeps_its_detector(tmp_path: Path) -> None:
    source, copy = make_artifact(tmp_path / "artifact", "rgb"), tmp_path / "copy"
    model = load_artifact(source)
    made = with_detector(model, np.array([0, 0.5, 0.5, 2]))  # ties are in order
    made.save(source, copy)
    again = load_artifact(copy)
    loaded = load_detector(copy, again)
    assert loaded is not None
    assert loaded.card == CARD
    with pytest.raises(ValidationError, match="frozen"):
        loaded.card.seed = 1  # type: ignore[misc]
    assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())
    assert not any(module.training for module in loaded.encoder.modules())
    items, _ = some_items(model)
    for first, second in zip(made.examine(items), loaded.examine(items), strict=True):
        assert first.tobytes() == second.tobytes()
    assert again.sample(0, 3).tobytes() == model.sample(0, 3).tobytes()
    for name in FILES:
        assert (copy / name).read_bytes() == (source / name).read_bytes()
    assert load_detector(source, model) is None
    assert load_artifact(copy).digest != model.digest
    loaded.save(copy, tmp_path / "again")  # in place of the one that is there
    assert (tmp_path / "again" / SUMS).read_bytes() == (copy / SUMS).read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = make_artifact(tmp_path / "artifact")
    with_detector(load_artifact(source)).save(source, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing"])
def test_a_damaged_detector_is_named(folder: Path, damage: str) -> None:
    file = folder / DETECTOR
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"flip": content, "truncate": content[:-1], "empty": b""}[damage])
    with pytest.raises(ArtifactError, match=re.escape(DETECTOR)):
        load_artifact(folder)


def test_a_detector_without_a_checksum_is_foreign(folder: Path, tmp_path: Path) -> None:
    plain = make_artifact(tmp_path / "plain")
    (plain / DETECTOR).write_bytes((folder / DETECTOR).read_bytes())
    with pytest.raises(ArtifactError, match=re.escape(f"{DETECTOR}: does not belong")):
        load_artifact(plain)


def test_what_only_samples_does_without_it(folder: Path) -> None:
    whole = verify(folder)
    (folder / DETECTOR).unlink()
    assert verify(folder, SERVED) == whole


def test_a_detector_that_is_exchanged_once_the_model_is_loaded_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    model = load_artifact(folder)
    other = with_detector(model, np.arange(9.0))
    other.save(folder, tmp_path / "other")
    for name in (DETECTOR, SUMS):  # first the file alone, then with its sums
        shutil.copy(tmp_path / "other" / name, folder / name)
        with pytest.raises(ArtifactError, match=r"changed or truncated|another artifact"):
            load_detector(folder, model)


def test_what_is_exchanged_once_the_model_is_loaded_is_not_copied(
    folder: Path, tmp_path: Path
) -> None:
    detector = with_detector(load_artifact(folder))
    plain, other = make_artifact(tmp_path / "plain", seed=1), tmp_path / "other"
    with_detector(load_artifact(plain)).save(plain, other)
    out = tmp_path / "out"
    for name in (GENERATOR, SUMS):
        shutil.copy(other / name, folder / name)
        with pytest.raises(ArtifactError, match=r"changed or truncated|another artifact"):
            detector.save(folder, out)
        assert not out.exists()


UNFIT = {
    "no features": {"reference": torch.zeros(0, 128)},
    "features of another critic": {"reference": torch.zeros(5, 7)},
    "no calibration": {"calibration": None},
    "nothing in the calibration": {"calibration": torch.zeros(0, dtype=torch.float64)},
    "a calibration without order": {"calibration": torch.tensor([2.0, 1.0])},
    "a calibration that is not finite": {"calibration": torch.tensor([1.0, torch.nan])},
}


@pytest.mark.parametrize("what", ["another model's", "no card", "no safetensors", *UNFIT])
def test_a_detector_that_does_not_fit_is_refused(folder: Path, tmp_path: Path, what: str) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / DETECTOR
    if what == "another model's":
        other = make_artifact(tmp_path / "other", "rgb")
        with_detector(load_artifact(other)).save(other, tmp_path / "others")
        file.write_bytes((tmp_path / "others" / DETECTOR).read_bytes())
    elif what == "no card":
        save_file(load_file(file), file)
    elif what in UNFIT:
        tensors = {k: v for k, v in (load_file(file) | UNFIT[what]).items() if v is not None}
        save_file(tensors, file, {"card": CARD.model_dump_json()})
    else:
        file.write_bytes(b"{}")
    resum(folder)
    model = load_artifact(folder)
    with pytest.raises(ArtifactError, match=re.escape(f"{file}: is no detector of this model")):
        load_detector(folder, model)


# ---- making one ---------------------------------------------------------------------------------


def test_no_item_both_trains_and_calibrates(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    np.save(tmp_path / "points.npy", points)
    model = load_artifact(make_artifact(tmp_path / "artifact", "vector"))
    data = load_data(DataConfig(source=str(tmp_path / "points.npy")), card=model.run.data)
    detector = fit_detector(model, data, steps=3)
    statistics = feature_distances(model, detector.reference, data.heldout)
    np.testing.assert_array_equal(detector.calibration, np.sort(statistics))
    data.items[data.is_heldout] += 1  # of these the encoder has seen nothing
    again = fit_detector(model, data, steps=3)
    assert torch.equal(detector.reference, again.reference)
    for first, second in zip(
        detector.encoder.parameters(), again.encoder.parameters(), strict=True
    ):
        assert torch.equal(first, second)
    assert detector.card.calibration_count == data.card.heldout_count


def test_what_was_trained_on_does_not_calibrate(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (150, 8, 8), np.uint8)
    for i, picture in enumerate(pictures):
        for path in (f"split/{'test' if i < 40 else 'train'}/{i}.png", f"flat/{i}.png"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / path)
    split, flat = (
        load_data(DataConfig(source=str(tmp_path / name), split=how)).card
        for name, how in (("split", "folders"), ("flat", "hash"))
    )
    assert split.sha256 == flat.sha256
    said = list[str]()
    require_split("s", split, split, said.append)
    assert said == []
    with pytest.raises(DataError, match="40 of the same were when the model was trained"):
        require_split("s", flat, split, said.append)
    other = flat.model_copy(update={"sha256": "1" * 64})
    require_split("s", other, split, said.append)
    assert "not the data that the model was trained on" in said.pop()


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_an_encoder_is_trained_by_adam_on_both_residuals(
    classes: dict[str, int] | None, tmp_path: Path
) -> None:
    """On batches of training items alone, and at a rate that falls to 0 along a cosine."""
    model = load_artifact(make_artifact(tmp_path / "a", "vector", class_counts=classes))
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=90)
    data = dataset(rng.normal(size=(90, 2)).astype(np.float32), 30, labels, classes=[*CLASSES])
    before = torch.random.get_rng_state()
    found = train_encoder(model, data, steps=4, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = build_encoder(model)
    optimizer = torch.optim.Adam(expected.parameters())
    draws, known = np.random.default_rng(3), np.flatnonzero(~data.is_heldout)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + np.cos(np.pi * step / 4)) / 2
        chosen = draws.choice(known, 64)
        x = model.scaling.to_model(torch.from_numpy(data.items[chosen]))
        of_batch = torch.from_numpy(labels[chosen]) if classes else None
        made = reconstruct(model, expected, x, of_batch)
        seen = [critic_features(model.critic, items) for items in (made, x)]
        loss = ((made - x) ** 2).mean() + ((seen[0] - seen[1]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not found.training
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_detector_takes_so_many_items_and_says_what_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector_module, "MAX_REFERENCE", 25)
    monkeypatch.setattr(detector_module, "MAX_SCORED_ITEMS", 10)
    model = load_artifact(make_artifact(tmp_path / "a", "vector"))
    data = dataset(np.random.default_rng(0).normal(size=(90, 2)).astype(np.float32), 30)
    found = fit_detector(model, data, steps=1, seed=2)
    reference = item_features(model, data.sample(25, heldout=False))
    torch.testing.assert_close(found.reference, reference)
    statistics = feature_distances(model, reference, data.sample(10, heldout=True))
    np.testing.assert_allclose(found.calibration, np.sort(statistics), rtol=1e-6)
    card = found.card
    assert (card.calibration_count, card.training_count, card.steps, card.seed) == (10, 60, 1, 2)
    assert (card.source, card.sha256) == (data.card.source, data.card.sha256)


def test_what_was_said_of_the_data_is_told_and_a_private_model_has_no_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_artifact(tmp_path / "a", class_counts=CLASSES)
    pictures = np.random.default_rng(0).integers(0, 256, (150, 8, 8), np.uint8)
    for name in CLASSES:
        (tmp_path / "set" / name).mkdir(parents=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "set" / "ab"[i % 2] / f"{i}.png")
    said: list[str] = []
    source = str(tmp_path / "set")
    train_detector(folder, tmp_path / "out", source, steps=1, say=said.append)
    assert [line for line in said if "warning" in line] == [said[-1]]
    assert f"warning: {source}: not the data that the model was trained on" in said[-1]
    model = load_artifact(folder)
    model.run = model.run.model_copy(update={"privacy": object()})
    monkeypatch.setattr(detector_module, "load_artifact", lambda *_: model)
    with pytest.raises(UserError, match="is differentially private"):
        train_detector(folder, tmp_path / "private", source, steps=1)
    assert not (tmp_path / "private").exists()


def test_a_detector_is_made_of_the_models_own_data(tmp_path: Path) -> None:
    folder, out = make_artifact(tmp_path / "artifact"), tmp_path / "found"
    before = {name: (folder / name).read_bytes() for name in (*FILES, SUMS)}
    made = train_detector(folder, out, steps=2)
    assert before == {name: (folder / name).read_bytes() for name in (*FILES, SUMS)}
    assert made.card.source.startswith("scikit-learn")
    assert load_detector(out, load_artifact(out)) is not None
    with pytest.raises(UserError, match="is there already"):
        train_detector(folder, out, steps=2)
    with pytest.raises(UserError, match="cannot be written: not a directory"):
        train_detector(folder, folder / SUMS / "out", steps=10**9)
    late = tmp_path / "late"
    full = limited(resource.RLIMIT_FSIZE, 5000)
    with full, pytest.raises(MachineError, match="cannot be written"):
        train_detector(folder, late, steps=2)
    assert not list(tmp_path.glob("*late*"))
    with pytest.raises(DataError, match="items of shape"):
        train_detector(folder, tmp_path / "other", "8gaussians", steps=2)
    conditional = make_artifact(tmp_path / "conditional", class_counts=CLASSES)
    with pytest.raises(DataError, match="not the model's classes: a, b"):
        train_detector(conditional, tmp_path / "other", steps=2)


def test_a_registered_detector_reaches_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    source, out = make_artifact(tmp_path / "artifact"), tmp_path / "guarded"
    command = ["train-detector", str(source), "--out", str(out), "--steps", "2", "--register"]
    assert main(command) == 0
    assert "registered: tiny@1; `wgan promote tiny@1`" in capsys.readouterr().out
    assert registry.champion("tiny") is None
    cache = VersionCache("tiny@champion", tmp_path / "cache", uri, TrustedKeys(None))
    fetched = cache.fetch("1", load_artifact(out).digest)
    assert (fetched / DETECTOR).read_bytes() == (out / DETECTOR).read_bytes()
    served = load(fetched, "tiny@1", "tiny", "champion")
    assert served.detector is not None
    track_and_register(load_artifact(source), source)
    said = list[str]()
    champions.promote("tiny", "1", "the first", say=said.append)
    assert said == []
    champions.promote("tiny", "2", "retrained", say=said.append)
    assert "tiny@2 has no detector, and tiny@1 has one" in said.pop()
    champions.rollback("tiny", "the detector is missed", say=said.append)
    assert said == []
    (fetched / DETECTOR).unlink()  # a version whose detector is gone is no copy of it
    assert (cache.fetch("1", None) / DETECTOR).exists()
