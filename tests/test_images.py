"""PNG as we write it is read back by others, and is as small as theirs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from models.errors import ShapeError
from models.images import MODES, encode_png, encode_small_png, fit, grid

Array = np.ndarray


def pillow(image: Array) -> bytes:
    out = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.save(out, format="PNG", compress_level=1)
    return out.getvalue()


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (33, 20)])
def test_every_pixel_is_read_back(channels: int, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, channels), np.uint8)
    for encode in (encode_png, encode_small_png):
        found = Image.open(io.BytesIO(encode(image)))
        assert found.mode == MODES[channels]
        assert np.array_equal(np.asarray(found).reshape(image.shape), image)
    part = np.repeat(image, 2, axis=1)[:, ::2]  # not contiguous in memory
    assert encode_png(part) == encode_png(image)


@pytest.mark.parametrize("name", ["digits", "photo", "drawing"])
def test_files_are_about_as_small_as_pillow_s(name: str) -> None:
    if name == "digits":
        image = grid((load_digits().images[:64, ..., None] * 15.9).astype(np.uint8))
    elif name == "photo":
        image = load_sample_image("china.jpg")
    else:
        image = np.full((200, 300, 3), 255, np.uint8)
        image[50:150, 100:102] = image[100, 20:280] = 0
    # Digits of 16 grey levels are what its choice among filters helps most with.
    assert len(encode_png(image)) < 1.25 * len(pillow(image))


def test_an_image_file_has_four_channels_at_most() -> None:
    with pytest.raises(ShapeError, match="1 to 4 channels, not 5; ask for npz"):
        encode_png(np.zeros((8, 8, 5), np.uint8))


def test_images_are_fitted_as_training_does() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 31, 3), np.uint8)
    middle = Image.fromarray(image[:, 5:25]).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(fit(image, 8, 8, 3), middle)
    assert np.array_equal(fit(image, 8, 8), middle)
    assert fit(image, 16, 12, 1).shape == (16, 12, 1)
    grey = np.full((5, 5, 1), 90, np.uint8)
    assert (fit(grey, 8, 8, 3) == 90).all()
    clear = np.zeros((5, 5, 4), np.uint8)
    assert (fit(clear, 5, 5, 3) == 255).all()
    assert np.array_equal(fit(image[:8, :8], 8, 8, 3), image[:8, :8])
