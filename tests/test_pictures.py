"""Pictures of samples: sizes, colours and places, and the same pixels each time."""

import numpy as np
from PIL import ImageColor

from training.reporting.pictures import FAKE_COLOUR, REAL_COLOUR, marginals, scatter, traces

Array = np.ndarray
RNG = np.random.default_rng(5)


def pixels_of(picture: Array, colour: str) -> tuple[Array, Array]:
    """Rows and columns of the pixels that have exactly a colour."""
    rows, columns = np.nonzero((picture == ImageColor.getrgb(colour)).all(axis=2))
    assert len(rows)
    return rows, columns


def test_points_lie_where_they_belong() -> None:
    real = RNG.uniform(-1, 1, (2000, 2))
    fake = np.full((5, 2), [-0.9, -0.9])
    picture = scatter(real, fake)
    assert picture.shape == (480, 480, 3)
    assert picture.dtype == np.uint8
    rows, columns = pixels_of(picture[60:], FAKE_COLOUR)  # below the legend
    assert rows.mean() + 60 > 360
    assert columns.mean() < 120
    assert len(pixels_of(picture, REAL_COLOUR)[0]) > 2000
    assert scatter(real[:, :1], fake[:, :1]).shape == (480, 480, 3)


def test_sequences_of_both_kinds_share_a_scale() -> None:
    real = np.zeros((3, 10, 2)) + np.linspace(0, 1, 10)[:, None]
    picture = traces(real, real / 2)
    assert picture.shape == (480, 960, 3)
    inside = picture[30:430, 40:]  # text has grey pixels too
    (rows, columns), (others, right) = (pixels_of(inside, c) for c in (REAL_COLOUR, FAKE_COLOUR))
    assert columns.max() + 40 < 480 < right.min() + 40
    assert abs(np.ptp(rows) - 2 * np.ptp(others)) < 8


def test_a_picture_is_always_the_same_pixels() -> None:
    real, fake = RNG.standard_normal((2, 100, 3))
    names = ["a", "$b$", "日本"]
    for draw in (lambda: marginals(names, real, fake), lambda: scatter(real, fake)):
        np.testing.assert_array_equal(draw(), draw())
