"""Colour emoji of 32x32 and 64x64, made from Debian's Noto colour emoji font.

The font holds a bitmap of 136x128 pixels for each emoji. More than half are variants of others, in
skin tone, gender or direction: those form groups, and a group is held out as a whole.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from models.cache import cache_folder
from models.errors import DataError
from models.images import decode_image, fit, opaque
from training.data.sources.debian import download, what_apt_said
from training.data.sources.files import new_file
from training.data.sources.variants import first_of_group

Array = np.ndarray
PACKAGE = "fonts-noto-color-emoji"
FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
GROUPING_SIDE = 32
"""Pixels a side at which emoji are compared, so that sets of all sizes hold out the same ones."""
LAYOUT = 1
"""Version of the cached file: a new number leaves older ones unused."""
MAX_VARIANT_DISTANCE = 0.06
"""Root mean square difference of pixels, as a fraction of 255, below which two are variants."""

# Code points by which variants of one emoji differ (Unicode Technical Standard 51).
DROPPED = {
    0xFE0F,  # "as a picture"
    0x200D,  # the joiner
    *range(0x1F3FB, 0x1F400),  # skin tones
    *range(0x1F9B0, 0x1F9B4),  # hair
    0x2640,
    0x2642,  # female and male
    0x27A1,
    0x2B05,  # facing right and left
}
PERSON = 0x1F9D1
PEOPLE = {0x1F468, 0x1F469, 0x1F466, 0x1F467, 0x1F9D2, 0x1F474, 0x1F475, 0x1F9D3, 0x1F471}


def load_emoji(side: int) -> tuple[Array, tuple[str, ...]]:
    """Read the emoji, making them the first time.

    The font comes from, in this order: the file that ``WGAN_EMOJI_FONT`` names, an installed
    font package, the cache, Debian's package archive.

    Args:
        side: pixels a side.

    Returns:
        uint8 ``(N, side, side, 3)`` on white, and the name of each one's group.

    Raises:
        DataError: the font cannot be found, fetched or read.
    """
    font = _font()
    digest = hashlib.sha256(font).hexdigest()
    cached = cache_folder() / f"emoji{side}" / f"{digest}-{LAYOUT}-pillow{PIL.__version__}.npz"
    if not cached.exists():
        items, groups = make_emoji(font, side)
        with new_file(cached) as new:
            np.savez(new, items=items, groups=groups)
    with np.load(cached, allow_pickle=False) as saved:
        return saved["items"], tuple(saved["groups"].tolist())


def make_emoji(font: bytes, side: int) -> tuple[Array, list[str]]:
    """Draw the emoji of a colour bitmap font, and find the groups of near-duplicates.

    Two emoji are in one group if their code points differ by no more than skin tone, gender, age
    or direction, or if their pixels hardly differ (`first_of_group`).

    Args:
        font: content of a TrueType file with bitmaps (CBDT).
        side: pixels a side.

    Returns:
        uint8 ``(N, side, side, 3)``, in the order of the code points, and N names of groups: the
        code points of each one's first member.

    Raises:
        DataError: the font holds no such bitmaps.
    """
    from fontTools.ttLib import TTFont, TTLibError

    try:
        tables = TTFont(io.BytesIO(font))
        sequences, bitmaps = _sequences(tables), tables["CBDT"].strikeData[0]
    except (TTLibError, KeyError):
        raise DataError("emoji: the font holds no colour bitmaps (CBDT)") from None
    glyphs = sorted((sequences[glyph], glyph) for glyph in bitmaps if glyph in sequences)

    def drawn(side: int) -> Array:
        return np.stack([_draw(bitmaps[glyph].imageData, side) for _, glyph in glyphs])

    items = drawn(side)
    small = items if side == GROUPING_SIDE else drawn(GROUPING_SIDE)
    return items, _groups([codes for codes, _ in glyphs], small)


def _draw(png: bytes, pixels: int) -> Array:
    """Lay a bitmap on white, in the middle of a square, and shrink it."""
    image = opaque(decode_image(png, "emoji"))
    side = max(image.shape[:2])
    top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
    square = np.full((side, side, 3), 255, np.uint8)
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    return fit(square, pixels, pixels)


def _groups(sequences: Sequence[tuple[int, ...]], items: Array) -> list[str]:
    names = [_common(codes) for codes in sequences]
    first = first_of_group(names, items, MAX_VARIANT_DISTANCE)
    return ["-".join(f"{code:x}" for code in sequences[i]) for i in first]


def _common(codes: tuple[int, ...]) -> tuple[int, ...]:
    """Keep the code points that the variants of one emoji have in common."""
    return tuple(PERSON if code in PEOPLE else code for code in codes if code not in DROPPED)


def _sequences(font: Any) -> dict[str, tuple[int, ...]]:
    """The code points that each glyph with a bitmap stands for."""
    codes: dict[str, tuple[int, ...]] = {}
    for code, glyph in sorted(font.getBestCmap().items()):
        codes.setdefault(glyph, (code,))
    ligatures = [
        (ligature.LigGlyph, (first, *ligature.Component))
        for lookup in font["GSUB"].table.LookupList.Lookup
        for table in lookup.SubTable
        for first, several in getattr(table, "ligatures", {}).items()
        for ligature in several
    ]
    for glyph, parts in ligatures:
        if glyph not in codes and all(part in codes for part in parts):
            codes[glyph] = sum((codes[part] for part in parts), ())
    return codes


def _font() -> bytes:
    given = os.environ.get("WGAN_EMOJI_FONT")
    cached = cache_folder() / "fonts" / Path(FONT).name
    installed = Path("/") / FONT
    path = Path(given) if given else installed if installed.exists() else cached
    try:
        if path == cached and not cached.exists():
            _fetch(cached)
        return path.read_bytes()
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(
            f"emoji: no font ({what_apt_said(error)}); where apt-get cannot download "
            f"{PACKAGE}, bring its NotoColorEmoji.ttf and name it in WGAN_EMOJI_FONT"
        ) from None


def _fetch(font: Path) -> None:
    """Download the package as a user may, without installing it, and keep its font."""
    with new_file(font) as new:
        (unpacked,) = download([PACKAGE], new.parent)
        os.replace(unpacked / FONT, new)
