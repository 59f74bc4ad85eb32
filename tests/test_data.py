"""Data sets: what they hold, how they are split, and what is refused before training."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import DataConfig
from models.errors import DataError
from training.data import batches
from training.data.batches import TrainingItems, batch_indices
from training.data.builtin import BUILT_IN
from training.data.dataset import FEWEST_HELDOUT, load_data
from training.data.sources.arrays import load_array
from training.data.sources.files import locate

RNG = np.random.default_rng(0)


def load(path: Path | str, fraction: float = 0.2, batch_size: int = 8) -> object:
    return load_data(DataConfig(source=str(path), heldout_fraction=fraction), batch_size)


def images(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)


FETCHED = {"mnist5k", "emoji32", "emoji64", "letters32", "letters64"}  # tests/test_fetched.py


@pytest.mark.parametrize("name", sorted({*BUILT_IN} - FETCHED))
def test_built_in_data(name: str) -> None:
    data = load_data(DataConfig(source=name))
    card = data.card
    assert card.name == name
    assert card.count == len(data.items) == card.training_count + card.heldout_count
    assert len(data.training) == card.training_count
    assert abs(card.heldout_count / card.count - 0.2) < 4 * np.sqrt(0.16 / card.count)
    assert card.licence
    assert load_data(DataConfig(source=name)).card == card


def test_the_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    data = load_data(DataConfig(source="digits"))
    assert data.items.shape == (1797, 8, 8, 1)
    np.testing.assert_allclose(data.items[..., 0] * (16 / 255), load_digits().images, atol=0.04)


@pytest.mark.parametrize(
    ("name", "modes", "sd"), [("8gaussians", 8, 0.02 / 1.414), ("25gaussians", 25, 0.05 / 2.828)]
)
def test_the_mixtures_are_as_published(name: str, modes: int, sd: float) -> None:
    data = load_data(DataConfig(source=name))
    assert data.mixture is not None
    centers = data.mixture.centers
    assert centers.shape == (modes, 2)
    assert data.mixture.sd == sd
    nearest = np.linalg.norm(data.items[:, None] - centers, axis=2)
    which = nearest.argmin(axis=1)
    counts = np.bincount(which, minlength=modes)
    expected = len(data.items) / modes
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    spread = data.items - centers[which]
    # The standard error of a standard deviation is sd / sqrt(2 n).
    assert spread.std() == pytest.approx(sd, rel=5 / np.sqrt(2 * spread.size))
    radius = np.linalg.norm(centers, axis=1)
    if modes == 8:
        np.testing.assert_allclose(radius, 2 / 1.414)
    else:
        assert sorted({*np.round(centers[:, 0] * 2.828, 6)}) == [-4, -2, 0, 2, 4]


def test_the_swiss_roll_is_scaled_as_published() -> None:
    data = load_data(DataConfig(source="swissroll"))
    radius = np.linalg.norm(data.items, axis=1) * 7.5  # the roll's angle runs from 1.5 to 4.5 pi
    assert radius.min() == pytest.approx(1.5 * np.pi, abs=1.2)
    assert radius.max() == pytest.approx(4.5 * np.pi, abs=1.2)


def test_a_duplicate_goes_with_its_twin(tmp_path: Path) -> None:
    original = images(300, 8, 8)
    np.save(tmp_path / "d.npy", np.concatenate([original, original[::-1]]))
    data = load(tmp_path / "d.npy")
    assert np.array_equal(data.is_heldout[:300], data.is_heldout[300:][::-1])
    train, heldout = ({x.tobytes() for x in s} for s in (data.training, data.heldout))
    assert not train & heldout


@pytest.mark.parametrize("kind", ["image", "vector"])
def test_membership_never_changes_as_data_grows(tmp_path: Path, kind: str) -> None:
    items = images(500, 8, 8) if kind == "image" else RNG.standard_normal((500, 3))
    np.save(tmp_path / "small.npy", items[:300])
    np.save(tmp_path / "large.npy", items[::-1])
    small, large = load(tmp_path / "small.npy"), load(tmp_path / "large.npy")
    assert np.array_equal(small.is_heldout, large.is_heldout[::-1][:300])


def test_the_share_is_as_asked(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", images(2000, 8, 8))
    for fraction in (0.1, 0.5):
        found = load(tmp_path / "d.npy", fraction).is_heldout.mean()
        assert abs(found - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / 2000)


def test_a_validation_share_comes_out_of_the_training_items(tmp_path: Path) -> None:
    original = images(3000, 8, 8)
    np.save(tmp_path / "d.npy", np.concatenate([original, original[::-1]]))
    plain = load(tmp_path / "d.npy")
    config = DataConfig(source=str(tmp_path / "d.npy"), validation_fraction=0.25)
    data = load_data(config)
    assert np.array_equal(data.is_heldout, plain.is_heldout)
    chosen = data.is_validation
    assert chosen is not None
    assert np.array_equal(chosen[:3000], chosen[3000:][::-1])
    assert not (chosen & data.is_heldout).any()
    rest = int((~plain.is_heldout[:3000]).sum())
    assert abs(chosen[:3000].sum() / rest - 0.25) < 4 * np.sqrt(0.1875 / rest)
    trained_on = data.items[~data.is_heldout & ~chosen]
    assert np.array_equal(data.training, trained_on)
    assert len(TrainingItems(data, torch.device("cpu"))) == len(trained_on)
    assert not {x.tobytes() for x in data.sample(10**4, heldout=False)} & {
        x.tobytes() for x in data.items[chosen]
    }
    counts = data.card.training_count, data.card.validation_count, data.card.heldout_count
    assert counts == (len(trained_on), chosen.sum(), data.is_heldout.sum())
    assert "validation_count" not in plain.card.model_dump(mode="json")
    with pytest.raises(DataError, match=r"items to validate, .* or raise data.validation_fraction"):
        load_data(config.model_copy(update={"validation_fraction": 0.001}))


def test_the_content_hash_sees_content_not_order_or_container(tmp_path: Path) -> None:
    items = images(200, 8, 8)
    np.save(tmp_path / "a.npy", items)
    np.save(tmp_path / "b.npy", items[::-1])
    np.savez(tmp_path / "c.npz", items[..., None])
    changed = items.copy()
    changed[0, 0, 0] ^= 1
    np.save(tmp_path / "d.npy", changed)
    np.save(tmp_path / "e.npy", items[:-1])
    hashes = [load(tmp_path / n).card.sha256 for n in ("a.npy", "b.npy", "c.npz", "d.npy", "e.npy")]
    assert len(set(hashes[:3])) == 1
    assert len(set(hashes)) == 3


def test_vectors_of_any_scale_are_standardised_by_training_items(tmp_path: Path) -> None:
    vectors = RNG.standard_normal((400, 3)) * [1, 1000, 0] + [0, 5000, 7]
    np.save(tmp_path / "v.npy", vectors)
    data = load(tmp_path / "v.npy")
    np.testing.assert_allclose(data.card.offset, data.training.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(data.card.scale[:2], data.training.std(axis=0)[:2], rtol=1e-4)
    assert data.card.scale[2] == 1


def test_negative_zero_is_zero(tmp_path: Path) -> None:
    vectors = RNG.standard_normal((200, 2))
    vectors[0] = [0.0, 1.0]
    vectors[1] = [-0.0, 1.0]
    np.save(tmp_path / "v.npy", vectors)
    data = load(tmp_path / "v.npy")
    assert data.is_heldout[0] == data.is_heldout[1]


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (12, 9, 3), (8, 8, 4)])
def test_image_arrays(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "i.npy", images(200, *shape))
    card = load(tmp_path / "i.npy").card
    channels = shape[2] if len(shape) == 3 else 1
    assert card.kind == "image"
    assert card.shape == (channels, *shape[:2])
    assert card.licence is None


BAD = {
    "empty": (np.zeros((0, 8, 8), np.uint8), "is empty"),
    "no features": (np.zeros((100, 0)), "is empty"),
    "scalar": (np.float32(3), "bring images"),
    "one axis": (np.zeros(100), "bring images"),
    "five axes": (np.zeros((100, 2, 2, 2, 2), np.uint8), "bring images"),
    "NaN": (np.array([[1.0, 2.0]] * 150 + [[np.nan, 0]]), "1 of 151 items hold NaN"),
    "infinite": (np.array([[1.0, 2.0]] * 150 + [[np.inf, 0]]), "the first is item 150"),
    "too large": (np.full((150, 2), 1e300), "too large"),
    "text": (np.array([["a", "b"]] * 150), "not numbers"),
    "complex": (np.zeros((150, 2), complex), "not numbers"),
    "too few": (images(20, 8, 8), "too few items"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    array, says = BAD[name]
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "bad.npy")
    assert says in str(caught.value)
    assert "bad.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_object_arrays_are_refused_and_not_unpickled(tmp_path: Path) -> None:
    mixed = np.empty(2, object)
    mixed[:] = [np.zeros((8, 8)), np.zeros((9, 9))]
    np.save(tmp_path / "o.npy", mixed, allow_pickle=True)
    np.savez(tmp_path / "o.npz", mixed)
    for name in ("o.npy", "o.npz"):
        with pytest.raises(DataError, match="object array"):
            load(tmp_path / name)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.npy"
    np.save(good, images(200, 8, 8))
    (tmp_path / "cut.npy").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "nothing.npy").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04abc")
    with zipfile.ZipFile(tmp_path / "none.npz", "w"):
        pass
    for name in (
        "cut.npy",
        "text.npy",
        "nothing.npy",
        "cut.npz",
        "none.npz",
        "absent.npy",
        "a.txt",
    ):
        with pytest.raises(DataError, match=name) as caught:
            load(tmp_path / name)
        is_other = "no NumPy file, as its first bytes show; save the array" in str(caught.value)
        assert is_other == (name == "text.npy"), caught.value
    with pytest.raises(DataError, match=r"holds one array without a name; leave data\.key out"):
        load_array(locate(str(good)), DataConfig(source=str(good), key="a"))


def test_several_arrays_need_one_called_samples(tmp_path: Path) -> None:
    items = images(200, 8, 8)
    np.savez(tmp_path / "two.npz", a=items, b=items)
    with pytest.raises(DataError, match="a, b"):
        load(tmp_path / "two.npz")
    np.savez(tmp_path / "named.npz", samples=items, labels=np.zeros(200))
    assert load(tmp_path / "named.npz").card.count == 200


def test_as_many_items_as_a_batch_are_needed(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", images(200, 8, 8))
    with pytest.raises(DataError, match=r"training\.batch_size"):
        load(tmp_path / "d.npy", batch_size=180)


def test_enough_held_out_items_are_needed(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", images(60, 8, 8))
    with pytest.raises(DataError, match=f"{FEWEST_HELDOUT} are needed"):
        load(tmp_path / "d.npy")


def test_the_order_is_one_permutation_after_another() -> None:
    whole = batch_indices(seed=3, count=10, first=0, size=30)
    for epoch in np.split(whole, 3):
        assert sorted(epoch) == list(range(10))
    assert not np.array_equal(whole[:10], whole[10:20])
    assert not np.array_equal(whole, batch_indices(4, 10, 0, 30))
    for first, size in ((0, 7), (7, 7), (14, 16), (9, 2), (3, 25)):
        assert np.array_equal(batch_indices(3, 10, first, size), whole[first : first + size])


def test_a_run_s_batches_go_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCHES_AT_ONCE", 3)
    drawn = batches.batches(seed=7, count=50, size=8, first=5)
    for number in range(5, 20):
        np.testing.assert_array_equal(next(drawn), batch_indices(7, 50, number * 8, 8))
