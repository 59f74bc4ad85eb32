"""The capitals A to Z of a thousand and more free fonts, drawn as grey images.

Weights and widths of one family look alike, and so do fonts that copy each other: those form
groups, and a group is held out as a whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import string
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont

from models.cache import cache_folder
from models.errors import DataError
from training.data.sources.debian import download, what_apt_said
from training.data.sources.files import new_file
from training.data.sources.variants import first_of_group
from training.progress import track

Array = np.ndarray
Box = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels."""
LETTERS = string.ascii_uppercase
GROUPING_SIDE = 32
"""Pixels a side at which fonts are compared, so that sets of all sizes hold out the same ones."""
MAX_VARIANT_DISTANCE = 0.06
"""Root mean square difference of pixels, as a fraction of 255, below which two fonts are alike."""
OVERSAMPLING = 4
FILLED = 7 / 8
"""Share of the side that the largest capital fills."""
MIN_READABLE = 0.5
"""Share of a font's signs that must look more like the mean of their own letter than of another."""
FONTS = [
    "3270", "adf-accanthis", "adf-baskervald", "adf-berenis", "adf-gillius", "adf-ikarius",
    "adf-irianis", "adf-libris", "adf-mekanus", "adf-romande", "adf-switzera", "adf-tribun",
    "adf-universalis", "adf-verana", "aenigma", "agave", "alee", "allerta", "anonymous-pro",
    "arabeyes", "arapey", "arkpandora", "arundina", "averia-gwf", "averia-sans-gwf",
    "averia-serif-gwf", "b612", "bebas-neue", "beng-extra", "beteckna", "bpg-georgian", "cabin",
    "cabinsketch", "campania", "cantarell", "cardo", "cegui", "clear-sans", "cmu", "comfortaa",
    "comic-neue", "courier-prime", "croscore", "crosextra-caladea", "crosextra-carlito",
    "dejavu-core", "dejavu-extra", "deva-extra", "dosis", "dustin", "ebgaramond", "eeyek", "elstob",
    "essays1743", "eurofurence", "fantasque-sans", "fanwood", "farsiweb", "firacode", "freefarsi",
    "freefont-otf", "gemunu-libre", "georgewilliams", "gfs-artemisia", "gfs-didot",
    "gfs-neohellenic", "go", "gotico-antiqua", "gujr-extra", "hermit", "hosny-amiri",
    "hosny-thabit", "inter", "inter-variable", "jetbrains-mono", "johnsmith-induni", "jsmath",
    "jura", "karla", "katex", "khmeros", "klaudia-berenika", "lato", "league-mono",
    "league-spartan", "lemonada", "lg-aboriginal", "liberation", "liberation2", "lindenhill",
    "linex", "linuxlibertine", "lmodern", "lyx", "manrope", "mathjax", "monofur", "monoid",
    "monoid-halfloose", "monoid-halftight", "monoid-loose", "monoid-tight", "mononoki", "myanmar",
    "national-park", "noto-mono", "ocr-a", "ocr-b", "oldstandard", "open-sans", "opendyslexic",
    "oxygen", "paratype", "pc", "pc-extra", "play", "povray", "quicksand", "roadgeek",
    "roboto-fontface", "roboto-slab", "roboto-unhinted", "routed-gothic", "senamirmir-washra",
    "sil-dai-banna", "sil-galatia", "sil-gentium", "sil-gentium-basic", "sil-lateef",
    "sil-shimenkan", "sil-sophia-nubian", "smc-gayathri", "smc-manjari", "smc-rachana", "sora",
    "spleen", "taml-tscu", "teluguvijayam", "texgyre", "tiresias", "tlwg-garuda-otf",
    "tlwg-kinnari-otf", "tlwg-laksaman-otf", "tlwg-loma-otf", "tlwg-mono-otf", "tlwg-norasi-otf",
    "tlwg-purisa-otf", "tlwg-sawasdee-otf", "tlwg-typist-otf", "tlwg-umpush-otf", "tlwg-waree-otf",
    "tuffy", "ukij-uyghur", "uralic", "vollkorn", "wine", "yrsa-rasa",
]  # fmt: skip
"""Debian's packages ``fonts-NAME`` that hold two fonts or more with capitals; all are free."""
STYLES = re.compile(
    r"([ _-]*\b(thin|hairline|extra|ultra|semi|demi|light|book|regular|medium|bold|black|heavy|"
    r"condensed|narrow|compressed|expanded|extended|wide|italic|oblique|roman))+$",
    re.IGNORECASE,
)
"""Words at the end of a name that tell the fonts of one family apart."""
OFL = re.compile(r"^(sil|ofl)\b.*$", re.IGNORECASE)
"""Names that packages give the SIL Open Font License 1.1, which has no later version."""
LAYOUT = 1
"""Version of the cached file: a new number leaves older ones unused."""


class FontFile(NamedTuple):
    """A font, and the licence that its package states."""

    path: Path
    licence: str


class Letters(NamedTuple):
    """Letters of N fonts, font by font."""

    images: Array
    """uint8 ``(26 N, side, side)``, white on black."""
    labels: Array
    """int64 ``(26 N,)``, 0 for A."""
    groups: tuple[str, ...]
    """Of each letter, the name of its font's group."""
    licence: str
    """Licences, each with the number of its fonts."""


def load_letters(side: int) -> Letters:
    """Read the letters, drawing them the first time.

    The fonts come from the folder that ``WGAN_LETTER_FONTS`` names, or else from Debian's package
    archive.

    Args:
        side: pixels a side.

    Raises:
        DataError: the fonts cannot be found or fetched.
    """
    given = os.environ.get("WGAN_LETTER_FONTS")
    fonts = [FontFile(path, "not stated") for path in _below(Path(given))] if given else []
    key = hashlib.sha256(" ".join(FONTS).encode())
    for font in fonts:
        key.update(font.path.read_bytes())
    name = f"{key.hexdigest()}-{LAYOUT}-pillow{PIL.__version__}.npz"
    cached = cache_folder() / f"letters{side}" / name
    if not cached.exists():
        with new_file(cached) as new, tempfile.TemporaryDirectory(dir=new.parent) as folder:
            letters = draw_letters(fonts if given else _fetch(Path(folder)), side)
            np.savez_compressed(new, **letters._asdict())
    with np.load(cached, allow_pickle=False) as saved:
        groups = tuple(saved["groups"].tolist())
        return Letters(saved["images"], saved["labels"], groups, str(saved["licence"]))


def draw_letters(fonts: Sequence[FontFile], side: int) -> Letters:
    """Draw the capitals of fonts, and find the groups of fonts that look alike.

    Left out are fonts that `draw` cannot draw, that draw what another one does, or whose signs are
    hardly letters (`MIN_READABLE`).

    Args:
        fonts: files of fonts.
        side: pixels a side.

    Raises:
        DataError: no font is left.
    """
    drawn = dict[bytes, tuple[FontFile, Array]]()
    for font in track(fonts, "drawing letters"):
        small = draw(font.path, GROUPING_SIDE)
        large = small if side == GROUPING_SIDE else draw(font.path, side)
        if small is not None and large is not None:
            drawn.setdefault(small.tobytes(), (font, large))
    if not drawn:
        raise DataError(f"letters{side}: none of {len(fonts)} fonts has the capitals A to Z")
    shape = (-1, len(LETTERS), GROUPING_SIDE, GROUPING_SIDE)
    small = np.frombuffer(b"".join(drawn), np.uint8).reshape(shape)
    kept = readable(small) >= MIN_READABLE
    chosen = [both for both, keep in zip(drawn.values(), kept, strict=True) if keep]
    families = [_family(font.path) for font, _ in chosen]
    first = first_of_group(families, small[kept], MAX_VARIANT_DISTANCE)
    licences = Counter(font.licence for font, _ in chosen)
    return Letters(
        images=np.concatenate([images for _, images in chosen]),
        labels=np.tile(np.arange(len(LETTERS)), len(chosen)),
        groups=tuple(families[i] for i in first for _ in LETTERS),
        licence="; ".join(f"{count} fonts {name}" for name, count in licences.most_common()),
    )


def draw(path: Path, side: int) -> Array | None:
    """Draw a font's capitals, as large as all of them fit, on one base line.

    Args:
        path: of a font file that FreeType reads.
        side: pixels a side.

    Returns:
        uint8 ``(26, side, side)``, white on black; None if the font cannot be read, leaves a
        capital empty, or draws two the same, as it does with two that it lacks.
    """
    canvas = side * OVERSAMPLING
    try:
        capitals = [_ink(_font(path, canvas), letter) for letter in LETTERS]
        width = max(box[2] - box[0] for _, box in capitals)
        height = max(box[3] for _, box in capitals) - min(box[1] for _, box in capitals)
        font = _font(path, canvas * canvas * FILLED / max(width, height))
        capitals = [_ink(font, letter) for letter in LETTERS]
    except (OSError, ValueError):  # as FreeType finds damaged fonts; or a capital has no ink
        return None
    top, bottom = min(box[1] for _, box in capitals), max(box[3] for _, box in capitals)
    images = []
    for ink, (left, above, right, _) in capitals:
        image = Image.new("L", (canvas, canvas))
        image.paste(ink, ((canvas - right + left) // 2, above + (canvas - bottom - top) // 2))
        images.append(np.asarray(image.reduce(OVERSAMPLING)))
    differ = len({image.tobytes() for image in images}) == len(LETTERS)
    return np.stack(images) if differ else None


def readable(images: Array) -> Array:
    """Find how many signs of each font look like letters.

    Args:
        images: uint8 ``(N, 26, side, side)`` of N fonts.

    Returns:
        ``(N,)``, the share of signs that are nearest to the mean, over all fonts, of their letter.
    """
    points = images.reshape(*images.shape[:2], -1).astype(np.float32) / 255
    means = points.mean(axis=0)
    distances = (means**2).sum(axis=1) - 2 * points @ means.T
    share: Array = (distances.argmin(axis=2) == np.arange(len(LETTERS))).mean(axis=1)
    return share


def _font(path: Path, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _ink(font: ImageFont.FreeTypeFont, letter: str) -> tuple[Image.Image, Box]:
    """A letter, white on black and cut to its ink, and where that lies about the base line.

    Raises:
        ValueError: it has none.
    """
    left, top, right, bottom = map(int, font.getbbox(letter, anchor="ls"))  # with room around it
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), letter, fill=255, font=font, anchor="ls")
    box = image.getbbox()
    if box is None:
        raise ValueError(f"no ink in {letter}")
    return image.crop(box), (box[0] + left, box[1] + top, box[2] + left, box[3] + top)


def _family(path: Path) -> str:
    family = _font(path, GROUPING_SIDE).getname()[0] or path.stem
    return STYLES.sub("", family) or family


def _below(folder: Path) -> list[Path]:
    """The font files in a folder and below, in an order of their own."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf")]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def _fetch(folder: Path) -> list[FontFile]:
    try:
        packages = download([f"fonts-{name}" for name in FONTS], folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(
            f"letters: no fonts ({what_apt_said(error)}); where apt-get cannot download Debian's "
            "packages, name a folder of .ttf and .otf files in WGAN_LETTER_FONTS"
        ) from None
    return [FontFile(path, _licence(package)) for package in packages for path in _below(package)]


def _licence(package: Path) -> str:
    """The licences of a package's fonts, from its copyright file (Debian's DEP 5)."""
    text = (package / "usr/share/doc" / package.name / "copyright").read_text(errors="replace")
    names = set[str]()
    for paragraph in re.split(r"\n\s*\n", text):
        files = re.search(r"^Files:\s*((?:.|\n\s)*)$", paragraph, re.MULTILINE)
        licence = re.search(r"^License:\s*(\S.*)$", paragraph, re.MULTILINE)
        if files and licence and not all(f.startswith("debian/") for f in files[1].split()):
            names |= {
                OFL.sub("OFL-1.1", n) for n in re.split(r",? (?:and|or) ", licence[1].strip())
            }
    return ", ".join(sorted(names)) or f"as the copyright file of {package.name} says"
