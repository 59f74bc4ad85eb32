"""The data of `benchmarks.anomalies`: what a model is trained on, and what does not belong."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from training.data.builtin import BUILT_IN

Array = np.ndarray
LETTERS = "ABCDEFGHIJ"
VARIANTS = 20
"""Images of each letter in each font."""
FONTS = [
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    "cmr10", "cmb10", "cmss10", "cmtt10",
]  # fmt: skip
"""Fonts that come with matplotlib."""
SIDE, DRAWN = 28, 112
"""Pixels of a letter's image, and of the picture that it is made of."""


class Case(NamedTuple):
    """A data set, and how a model of it is trained."""

    preset: str
    steps: int
    left_out: tuple[str, ...] = ()
    """Classes that the model never sees."""


CASES = {
    "digits": Case("digits", 800, ("1", "4", "8")),
    "diamonds": Case("table", 800),
    "mnist5k": Case("mnist5k", 400, ("1", "4", "8")),
    "letters": Case("mnist5k", 400, ("B", "E", "I")),
}
"""Named before anything was measured on them."""
ROWS = 5000
"""Of the diamonds, the first in the file."""


def labelled(name: str) -> tuple[Array, Array]:
    """Images, uint8 ``(N, H, W)``, and the name of each one's class."""
    if name == "letters":
        return letters()
    raw = BUILT_IN[name]()
    assert raw.labels is not None
    images = raw.items if raw.items.ndim == 3 else raw.items[..., 0]
    return images, np.array(raw.classes)[raw.labels]


def letters() -> tuple[Array, Array]:
    """Draw letters, white on black, in many fonts, slightly turned, moved and scaled."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rng = np.random.default_rng(0)
    images, names = [], []
    for font, letter, _ in itertools.product(FONTS, LETTERS, range(VARIANTS)):
        size = int(rng.uniform(70, 95))
        picture = Image.new("L", (DRAWN, DRAWN))
        where = tuple(DRAWN / 2 + rng.uniform(-6, 6, 2))
        face = ImageFont.truetype(str(folder / f"{font}.ttf"), size)
        ImageDraw.Draw(picture).text(where, letter, 255, face, anchor="mm")
        picture = picture.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)
        images.append(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX)))
        names.append(letter)
    return np.stack(images), np.array(names)


def known_images(name: str, left_out: tuple[str, ...]) -> tuple[Array, dict[str, Array]]:
    """The images to train on, and those of each class that is left out."""
    images, names = labelled(name)
    unknown = {kind: images[names == kind] for kind in left_out}
    return images[~np.isin(names, left_out)], unknown


def corrupted(images: Array, rng: np.random.Generator) -> dict[str, Array]:
    """Images ``(N, H, W)`` spoilt in four ways."""
    side = images.shape[1]
    noise = images + rng.normal(0, 50, images.shape)
    blurred = ndimage.gaussian_filter(images.astype(float), (0, side / 14, side / 14))
    turned = ndimage.rotate(images.astype(float), 45, axes=(1, 2), reshape=False, order=1)
    covered, width = images.copy(), side // 3
    for image in covered:
        top, left = rng.integers(side - width + 1, size=2)
        image[top : top + width, left : left + width] = 127
    changed = {"noise": noise, "blur": blurred, "rotation": turned, "occlusion": covered}
    return {name: x.round().clip(0, 255).astype(np.uint8) for name, x in changed.items()}


def with_errors(rows: pd.DataFrame, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Rows of the diamonds with one kind of error each."""
    swapped = rows.copy()
    swapped[["depth", "table"]] = rows[["table", "depth"]].to_numpy()
    grams = rows.assign(carat=(0.2 * rows["carat"]).round(2))
    price = rows.assign(price=rng.permutation(rows["price"].to_numpy()))
    cut = rows.assign(x=rows["y"] * 0.8)
    return {
        "depth and table swapped": swapped,
        "carat in grams": grams,
        "price of another row": price,
        "x a fifth too small": cut.round({"x": 2}),
    }
