"""Letters drawn from fonts: those that matplotlib brings, so that nothing is fetched."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from models.config import DataConfig
from models.errors import DataError
from training.data.dataset import load_data
from training.data.sources import letters
from training.data.sources.letters import LETTERS, draw, load_letters, readable

FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"
SANS = FONTS / "DejaVuSans.ttf"


@pytest.fixture(autouse=True)
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("WGAN_CACHE", str(folder))
        patch.setenv("WGAN_LETTER_FONTS", str(FONTS))
        yield folder


def drawn(font: Path, side: int = 32) -> np.ndarray:
    images = draw(font, side)
    assert images is not None
    return images


@pytest.mark.parametrize("side", [32, 64])
def test_capitals_stand_on_one_line_and_fill_the_square(side: int) -> None:
    images = drawn(SANS, side)
    assert images.shape == (26, side, side)
    rows = (images > 127).any(axis=2)
    bottom = {letter: side - row[::-1].argmax() for letter, row in zip(LETTERS, rows, strict=True)}
    assert len({bottom[letter] for letter in "AEFHIKLMNPRTXYZ"}) == 1, "no descenders"
    assert bottom["J"] > bottom["H"], "J of this font goes below the line"
    assert bottom["Q"] > bottom["H"]
    ink = (images > 0).any(axis=0)
    tall, wide = ink.any(axis=1).sum(), max((i > 0).any(axis=0).sum() for i in images)
    assert side * 7 / 8 <= max(tall, wide) <= side * 7 / 8 + 2
    # Each letter lies in the middle, from left to right.
    for image in images:
        columns = np.flatnonzero((image > 0).any(axis=0))
        assert abs(columns[0] + columns[-1] - (side - 1)) <= 2


def test_each_image_is_of_its_letter() -> None:
    """The nearest letter of another font of the family, by pixels, is mostly the same letter."""
    sans, bold = (
        drawn(path).reshape(26, -1).astype(float) for path in (SANS, FONTS / "DejaVuSans-Bold.ttf")
    )
    distances = ((sans[:, None] - bold) ** 2).sum(axis=2)
    assert (distances.argmin(axis=1) == np.arange(26)).sum() >= 22


def test_readable_counts_the_letters_nearest_to_their_own_mean() -> None:
    images = np.repeat(drawn(SANS)[None], 5, axis=0)
    images[4] = np.roll(images[4], 13, axis=0)  # each sign is another letter's
    images[3, :6] = images[3, 20:]  # six signs are
    # Four of five fonts make each mean nearly their own.
    assert readable(images).tolist() == [1, 1, 1, 20 / 26, 0]


def test_a_folder_of_fonts_becomes_a_labelled_set(tmp_path: Path) -> None:
    data = load_data(DataConfig(source="letters32", heldout_fraction=0.5))
    assert data.items.shape[1:] == (32, 32, 1)
    assert data.card.classes == list(LETTERS)
    assert data.labels is not None
    assert (np.bincount(data.labels) == len(data.items) // 26).all()
    held = data.is_heldout.reshape(-1, 26)
    assert (held == held[:, :1]).all(), "a font is held out with all its letters"
    larger = load_data(DataConfig(source="letters64", heldout_fraction=0.5))
    assert larger.items.shape == (len(data.items), 64, 64, 1)
    assert (larger.is_heldout == data.is_heldout).all()


def test_a_family_is_one_group() -> None:
    found = load_letters(32)
    groups = [found.groups[i] for i in range(0, len(found.groups), 26)]
    sans = letters._family(SANS)
    assert sans == letters._family(FONTS / "DejaVuSans-BoldOblique.ttf") == "DejaVu Sans"
    assert groups.count(sans) >= 4
    assert letters.STYLES.sub("", "Lato Extra-Light Italic") == "Lato"
    assert letters.STYLES.sub("", "Blackletter") == "Blackletter"


def test_signs_twins_and_damaged_files_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WGAN_LETTER_FONTS", str(tmp_path))
    for name in ("DejaVuSans.ttf", "DejaVuSerif.ttf", "STIXSizOneSymReg.ttf"):
        shutil.copy(FONTS / name, tmp_path)
    shutil.copy(SANS, tmp_path / "twin.ttf")
    (tmp_path / "damaged.otf").write_bytes(SANS.read_bytes()[:5000])
    found = load_letters(32)
    assert len(found.images) == 2 * 26
    assert (found.images[:26] == drawn(SANS)).all()
    assert set(found.groups) == {"DejaVu Sans", "DejaVu Serif"}


def test_without_fonts_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGAN_LETTER_FONTS", str(tmp_path))
    with pytest.raises(DataError, match="none of 0 fonts"):
        load_letters(32)
    monkeypatch.delenv("WGAN_LETTER_FONTS")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="WGAN_LETTER_FONTS"):
        load_letters(32)


def test_the_licence_is_that_of_the_copyright_file(tmp_path: Path) -> None:
    package = tmp_path / "fonts-some"
    copyright_file = package / "usr/share/doc/fonts-some/copyright"
    copyright_file.parent.mkdir(parents=True)
    copyright_file.write_text(
        "Format: DEP 5\n\nFiles: *\nCopyright: 2020\nLicense: SIL Open Font License\n\n"
        "Files: a.ttf\n b.ttf\nLicense: Apache-2.0 or MIT\n\n"
        "Files: debian/*\n debian/rules\nLicense: GPL-2\n\nLicense: BSD\n the text\n"
    )
    assert letters._licence(package) == "Apache-2.0, MIT, OFL-1.1"
    copyright_file.write_text("Free, says the author.\n")
    assert letters._licence(package) == "as the copyright file of fonts-some says"


@pytest.mark.slow
def test_debian_has_more_than_a_thousand_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WGAN_LETTER_FONTS")
    data = load_data(DataConfig(source="letters32"))
    assert len(data.items) > 26_000
    assert "OFL-1.1" in str(data.card.licence)
    # No letter that is held out is nearly one that is trained on.
    pixels = data.items.reshape(-1, 26, 32 * 32).astype(np.float32) / 255
    held = data.is_heldout.reshape(-1, 26)[:, 0]
    train, heldout = (pixels[side].reshape(side.sum(), -1) for side in (~held, held))
    squares = (heldout**2).sum(1)[:, None] + (train**2).sum(1) - 2 * heldout @ train.T
    assert np.sqrt(squares.min() / train.shape[1]) > 0.059


@pytest.mark.parametrize(("side", "times"), [(32, 1), (64, 2)])
def test_no_font_is_drawn_twice_at_one_size(
    side: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[tuple[Path, int]]()

    def counted(path: Path, side: int) -> np.ndarray | None:
        calls.append((path, side))
        return draw(path, side)

    monkeypatch.setattr(letters, "draw", counted)
    letters.draw_letters([letters.FontFile(SANS, "free")], side)
    assert len(calls) == len(set(calls)) == times
