"""32x32 colour emoji, made from Debian's Noto colour emoji font.

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
from training.data.sources.files import new_file
from training.progress import phase

Array = np.ndarray
PACKAGE = "fonts-noto-color-emoji"
FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
SIDE = 32
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


def load_emoji32() -> tuple[Array, tuple[str, ...]]:
    """Read the emoji, making them the first time.

    The font comes from, in this order: the file that ``WGAN_EMOJI_FONT`` names, an installed
    font package, the cache, Debian's package archive.

    Returns:
        uint8 ``(N, 32, 32, 3)`` on white, and the name of each one's group.

    Raises:
        DataError: the font cannot be found, fetched or read.
    """
    font = _font()
    digest = hashlib.sha256(font).hexdigest()
    cached = cache_folder() / "emoji32" / f"{digest}-{LAYOUT}-pillow{PIL.__version__}.npz"
    if not cached.exists():
        items, groups = make_emoji32(font)
        with new_file(cached) as new:
            np.savez(new, items=items, groups=groups)
    with np.load(cached, allow_pickle=False) as saved:
        return saved["items"], tuple(saved["groups"].tolist())


def make_emoji32(font: bytes) -> tuple[Array, list[str]]:
    """Draw the emoji of a colour bitmap font, and find the groups of near-duplicates.

    Two emoji are in one group if their code points differ by no more than skin tone, gender, age
    or direction, or if their pixels hardly differ; and so are the members of two such pairs that
    share one.

    Args:
        font: content of a TrueType file with bitmaps (CBDT).

    Returns:
        uint8 ``(N, 32, 32, 3)``, in the order of the code points, and N names of groups: the
        code points of each one's first member.

    Raises:
        DataError: the font holds no such bitmaps.
    """
    from fontTools.ttLib import TTFont, TTLibError

    try:
        tables = TTFont(io.BytesIO(font))
        sequences, bitmaps = _sequences(tables), tables["CBDT"].strikeData[0]
    except (TTLibError, KeyError):
        raise DataError("emoji32: the font holds no colour bitmaps (CBDT)") from None
    glyphs = sorted((sequences[glyph], glyph) for glyph in bitmaps if glyph in sequences)
    items = np.stack([_draw(bitmaps[glyph].imageData) for _, glyph in glyphs])
    return items, _groups([codes for codes, _ in glyphs], items)


def _draw(png: bytes) -> Array:
    """Lay a bitmap on white, in the middle of a square, and shrink it."""
    image = opaque(decode_image(png, "emoji"))
    side = max(image.shape[:2])
    top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
    square = np.full((side, side, 3), 255, np.uint8)
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    return fit(square, SIDE, SIDE)


def _groups(sequences: Sequence[tuple[int, ...]], items: Array) -> list[str]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[tuple[int, ...], int] = {}
    same = [first.setdefault(_common(codes), i) for i, codes in enumerate(sequences)]
    pixels = items.reshape(len(items), -1).astype(np.float32) / 255
    squares = (pixels**2).sum(axis=1)
    mean_square = (squares[:, None] + squares - 2 * pixels @ pixels.T) / pixels.shape[1]
    rows, columns = np.nonzero(mean_square < MAX_VARIANT_DISTANCE**2)
    rows = np.concatenate([rows, np.arange(len(items))])
    columns = np.concatenate([columns, same])
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(items), len(items)))
    _, group = connected_components(links, directed=False)
    leader = {g: i for i, g in reversed(list(enumerate(group.tolist())))}
    return ["-".join(f"{code:x}" for code in sequences[leader[g]]) for g in group.tolist()]


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
        said = getattr(error, "stderr", None) or str(error)
        raise DataError(
            f"emoji32: no font ({said.strip().splitlines()[-1]}); where apt-get cannot download "
            f"{PACKAGE}, bring its NotoColorEmoji.ttf and name it in WGAN_EMOJI_FONT"
        ) from None


def _fetch(font: Path) -> None:
    """Download the package as a user may, without installing it, and keep its font."""
    with new_file(font) as new:
        folder = new.parent
        with phase(f"downloading {PACKAGE}"):
            _call("apt-get", "--quiet", "download", PACKAGE, cwd=folder)
        (package,) = folder.glob("*.deb")
        _call("dpkg-deb", "-x", str(package), str(folder), cwd=folder)
        os.replace(folder / FONT, new)


def _call(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
