"""Distances between generated and real samples, and shares of samples that are good.

Every metric takes ``(real, fake)``: float arrays of shapes ``(N, D)`` and ``(M, D)``, points or
an extractor's features, and computes in float64. All of them raise `ValueError` for arrays of other
shapes, with too few points, or with NaN or infinity. `training.judging.intervals` puts an interval
around each, and `training.judging.figures` says which way is better.

What compares all pairs of points takes a ``device`` too, a CUDA device for many points: the figures
are those of a CPU to a relative 1e-9, in float64 on both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

Array = np.ndarray
Device = torch.device | str
Points = TypeVar("Points", Array, Tensor)
Metric = Callable[[Array, Array], dict[str, float]]
"""Figures by name, from real and fake points."""


def wasserstein_1(
    real: Array,
    fake: Array,
    real_weights: Array | None = None,
    fake_weights: Array | None = None,
) -> float:
    """Exact Wasserstein-1 distance between two point clouds, in the points' own units.

    The linear programme over couplings (Peyré & Cuturi 2019, "Computational Optimal Transport",
    eq. 2.11) with uniform weights and Euclidean cost, solved by network simplex (Bonneel et al.
    2011). Between n samples it exceeds the distance between their distributions, by about
    ``n**(-1/D)`` for D > 2: compare it only with a floor at the same n. Time grows faster than
    ``n**2``.

    Args:
        real: ``(N, D)``.
        fake: ``(M, D)``.
        real_weights: ``(N,)``, with the sum 1; by default all alike.
        fake_weights: ``(M,)``, likewise.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: the arrays do not fit each other.
        RuntimeError: the solver stopped before the optimum.

    Example:
        A shift by (3, 4) moves every point by 5:

        >>> real = np.array([[0.0, 0.0], [1.0, 0.0]])
        >>> wasserstein_1(real, real + [3, 4])
        5.0
    """
    import ot  # takes seconds to import, and only this function needs it

    real, fake = checked(real, fake, fewest=1)
    # POT's answers are wrong where all costs are below 1e-11 or so, and squares must not overflow.
    # Powers of two change no digit.
    exponent = max(_exponent(real), _exponent(fake))
    cost = cdist(np.ldexp(real, -exponent), np.ldexp(fake, -exponent))
    of_cost = _exponent(cost)
    with warnings.catch_warnings():
        # POT says by a warning that its answer is not the optimum: that is no answer.
        warnings.simplefilter("error", UserWarning)
        try:
            found = ot.emd2(
                ot.unif(len(real)) if real_weights is None else real_weights,
                ot.unif(len(fake)) if fake_weights is None else fake_weights,
                np.ldexp(cost, -of_cost, out=cost),
                numItermax=10**9,
            )
        except UserWarning as warning:
            raise RuntimeError(f"exact optimal transport failed: {warning}") from warning
    return math.ldexp(float(found), exponent + of_cost)


def _exponent(values: Array) -> int:
    """The least power of two above all values."""
    return math.frexp(max(float(values.max(initial=0)), -float(values.min(initial=0))))[1]


def sliced_wasserstein_1(real: Array, fake: Array, projections: int = 256, seed: int = 0) -> float:
    """Mean Wasserstein-1 distance between the two clouds' projections on random lines.

    The sliced distance (Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters of
    Measures") with p = 1: exact along each line, where it is the area between the quantile
    functions, and a Monte Carlo mean over uniform directions. In the points' units, and never
    more than `wasserstein_1`.

    Args:
        real: ``(N, D)``.
        fake: ``(M, D)``.
        projections: number of directions, at least 1.
        seed: of the directions; two calls with one seed use the same.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: the arrays do not fit each other, or there is no direction.

    Example:
        In one dimension there is only one line, and the distance is exact:

        >>> sliced_wasserstein_1(np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]]))
        2.0
    """
    real, fake = checked(real, fake, fewest=1)
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}")
    directions = np.random.default_rng(seed).standard_normal((projections, real.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return float(_line_distances(directions @ real.T, directions @ fake.T).mean())


def _line_distances(real: Array, fake: Array) -> Array:
    """Wasserstein-1 distances of points on lines: ``(L, N)`` and ``(L, M)`` to ``(L,)``."""
    real, fake = np.sort(real, axis=1), np.sort(fake, axis=1)
    # Both quantile functions are constant between these levels, in units of 1 / (N * M): whole
    # numbers, because i / N and j / M that are equal may differ in floating point.
    n, m = real.shape[1], fake.shape[1]
    levels = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    gaps = np.abs(real[:, levels[:-1] // m] - fake[:, levels[:-1] // n])
    distances: Array = gaps @ np.diff(levels) / (n * m)
    return distances


def marginal_wasserstein_1(real: Array, fake: Array) -> float:
    """Mean over the columns of the exact Wasserstein-1 distance between their values.

    Args:
        real: ``(N, D)``.
        fake: ``(M, D)``.

    Returns:
        The mean distance, at least 0, in the columns' units.

    Raises:
        ValueError: the arrays do not fit each other.

    Example:
        Only the second column has moved, by 4:

        >>> real = np.array([[0.0, 0.0], [1.0, 1.0]])
        >>> marginal_wasserstein_1(real, real + [0, 4])
        2.0
    """
    real, fake = checked(real, fake, fewest=1)
    return float(_line_distances(real.T, fake.T).mean())


def correlation_difference(real: Array, fake: Array) -> float:
    """Largest difference between two columns' correlation (Pearson's) among real and fake rows.

    Args:
        real: ``(N, D)``, N at least 2.
        fake: ``(M, D)``, M at least 2.

    Returns:
        From 0 to 2. A column that is constant is correlated with nothing; 0 for one column.

    Raises:
        ValueError: the arrays do not fit each other.
    """
    real, fake = checked(real, fake, fewest=2)
    differences = np.abs(correlations(real) - correlations(fake))
    np.fill_diagonal(differences, 0)
    return float(differences.max(initial=0))


def correlations(rows: Array) -> Array:
    """Correlations (Pearson's) of columns ``(N, D)``, as ``(D, D)``; those of a constant are 0."""
    centred = rows.astype(np.float64) - rows.mean(axis=0)
    norms = np.linalg.norm(centred, axis=0)
    units = centred / np.where(norms == 0, 1, norms)
    products: Array = units.T @ units
    return products


def mode_coverage(samples: Array, centers: Array, sd: float) -> tuple[int, float]:
    """Count the modes found and the share of good samples, for a mixture of round Gaussians.

    The protocol of Lin et al. 2018 ("PacGAN", synthetic data): a mode is covered when at least one
    sample is within 3 `sd` of its center (Euclidean, 3 `sd` included), and a sample is good when
    it is within 3 `sd` of any center. A perfect sampler of modes far apart in the plane has
    ``1 - exp(-9 / 2)`` = 98.9% good samples.

    Args:
        samples: ``(N, D)``.
        centers: ``(K, D)``.
        sd: standard deviation of each mode along each axis, in the samples' units.

    Returns:
        Number of covered modes (0 to K), and share of good samples (0 to 1).

    Raises:
        ValueError: the arrays do not fit each other.

    Example:
        >>> centers = np.array([[0.0, 0.0], [10.0, 0.0]])
        >>> mode_coverage(np.array([[0.0, 1.0], [5.0, 0.0]]), centers, sd=1.0)
        (1, 0.5)
    """
    samples, centers = checked(samples, centers, fewest=1)
    is_near = cdist(samples, centers) <= 3 * sd
    return int(is_near.any(axis=0).sum()), float(is_near.any(axis=1).mean())


def kernel_distance(real: Array, fake: Array, device: Device = "cpu") -> float:
    """Squared maximum mean discrepancy with the cubic kernel ``(x.y / D + 1)**3``, unbiased.

    Bińkowski et al. 2018 ("Demystifying MMD GANs", eq. 4; the kernel is of section 4), over all
    points at once. Its mean does not depend on n, and is 0 between equal distributions: a
    single value may be below 0.

    Args:
        real: ``(N, D)``, N at least 2.
        fake: ``(M, D)``, M at least 2.
        device: where to compute.

    Returns:
        The estimate. It has no unit, and does not compare between extractors.

    Raises:
        ValueError: the arrays do not fit each other.
    """
    x, y = tensors(device, *checked(real, fake, fewest=2))

    def mean_of_pairs(x: Tensor) -> float:
        # A point paired with itself is what biases the plain mean.
        values = cubic_kernel(x, x)
        return float((values.sum() - values.trace()) / (len(x) * (len(x) - 1)))

    between = float(cubic_kernel(x, y).mean())
    return mean_of_pairs(x) + mean_of_pairs(y) - 2 * between


def cubic_kernel(x: Points, y: Points) -> Points:
    """The kernel of `kernel_distance`, of points ``(N, D)`` and ``(M, D)``: ``(N, M)``."""
    values: Points = (x @ y.T / x.shape[1] + 1) ** 3
    return values


def tensors(device: Device, *arrays: Array) -> list[Tensor]:
    """Bring float64 arrays to a device."""
    return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]


def frechet_distance(real: Array, fake: Array) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of features.

    ``|m1 - m2|**2 + tr(C1 + C2 - 2 (C1 C2)**(1/2))`` (Dowson & Landau 1982; Heusel et al. 2017,
    eq. 6), with unbiased covariances. It depends on the features and falls with n: name
    the extractor beside it, and compare it only with a floor at the same n.

    Args:
        real: ``(N, D)``, N at least 2.
        fake: ``(M, D)``, M at least 2.

    Returns:
        The squared distance, at least 0, in squared units of the features.

    Raises:
        ValueError: the arrays do not fit each other.

    Example:
        Equal covariances leave the squared shift of the mean:

        >>> real = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> round(frechet_distance(real, real + [3, 4]), 6)
        25.0
    """
    real, fake = checked(real, fake, fewest=2)

    def root(x: Array) -> Array:
        """The triangular ``R`` of ``R.T @ R = C``, without forming the covariance C."""
        r: Array = np.linalg.qr((x - x.mean(axis=0)) / np.sqrt(len(x) - 1)).R
        return r

    # C1 C2 has the eigenvalues of (R1 R2')(R1 R2')', so the trace of its root is the sum of the
    # singular values of R1 R2'. They are real and positive even for fewer points than features,
    # where the root of the product itself comes out complex or wrong.
    r1, r2 = root(real), root(fake)
    overlap = np.linalg.svd(r1 @ r2.T, compute_uv=False).sum()
    shift = real.mean(axis=0) - fake.mean(axis=0)
    # Rounding may take the distance of a set from itself just below 0.
    return max(0.0, float(shift @ shift + (r1**2).sum() + (r2**2).sum() - 2 * overlap))


def precision_recall_density_coverage(
    real: Array, fake: Array, k: int = 5, device: Device = "cpu"
) -> dict[str, float]:
    """Fidelity and diversity, counted in balls that reach to each point's k-th neighbour.

    - precision: share of fake points inside any real point's ball (Kynkäänniemi et al. 2019,
      eqs. 1 and 2).
    - recall: share of real points inside any fake point's ball (the same).
    - density: mean number of real balls that a fake point is in, over k; may be above 1 (Naeem
      et al. 2020, eqs. 3 to 5).
    - coverage: share of real balls that hold a fake point (the same).

    A point is not its own neighbour. A ball does not hold its surface (``<``), as in Naeem's
    reference package ``prdc``, where Kynkäänniemi's equation has ``<=``. The two differ only for
    exactly equal distances: a point that is k more times in its set has an empty ball.

    Args:
        real: ``(N, D)``, N at least k + 1.
        fake: ``(M, D)``, M at least k + 1.
        k: which neighbour, at least 1.
        device: where to compute.

    Returns:
        The four figures by name. Equal distributions do not get 1: compare with a floor.

    Raises:
        ValueError: the arrays do not fit each other, or k is below 1.

    Example:
        Samples of one of two modes are precise, and miss half of the data:

        >>> real = np.array([[0.0], [1.0], [50.0], [51.0]])
        >>> fake = np.array([[0.1], [0.9]])
        >>> precision_recall_density_coverage(real, fake, k=1)
        {'precision': 1.0, 'recall': 0.5, 'density': 2.0, 'coverage': 0.5}
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    x, y = tensors(device, *checked(real, fake, fewest=k + 1))

    def distances(x: Tensor, y: Tensor) -> Tensor:
        # Not by matrix products: from a point, its copies would not all be equally far.
        if x.device.type == "cpu":  # SciPy takes down to half the time there
            return torch.from_numpy(cdist(x.numpy(), y.numpy()))
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")

    def radii(x: Tensor) -> Tensor:
        # The smallest of each row is the point's distance from itself: neighbour k comes after k.
        return distances(x, x).topk(k + 1, largest=False).values[:, k]

    between = distances(x, y)
    in_real_ball = between < radii(x)[:, None]
    in_fake_ball = between < radii(y)
    return {
        "precision": float(in_real_ball.any(dim=0).double().mean()),
        "recall": float(in_fake_ball.any(dim=1).double().mean()),
        "density": float(in_real_ball.sum(dim=0).double().mean() / k),
        "coverage": float(in_real_ball.any(dim=1).double().mean()),
    }


def autocovariance(sequences: Array, lags: int) -> Array:
    """Covariance of a sequence with itself a number of steps later, feature by feature.

    The mean of each step is subtracted first; each lag is averaged over the sequences and over the
    steps that have a partner.

    Args:
        sequences: ``(N, T, D)``.
        lags: number of lags, from 0 on; at most T.

    Returns:
        ``(lags, D)``, in squared units of the features.
    """
    x = np.asarray(sequences, dtype=np.float64)
    x = x - x.mean(axis=0)
    steps = x.shape[1]
    pairs = [x[:, : steps - lag] * x[:, lag:] for lag in range(lags)]
    return np.stack([products.mean(axis=(0, 1)) for products in pairs])


def checked(first: Array, second: Array, fewest: int) -> tuple[Array, Array]:
    """Both arrays in float64, or a `ValueError` that says what is wrong with them."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"need shapes (N, D) and (M, D), got {first.shape} and {second.shape}")
    if min(len(first), len(second)) < fewest:
        raise ValueError(
            f"need at least {fewest} points in each set, got {len(first)} and {len(second)}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("points must be finite, got NaN or infinity")
    return first, second
