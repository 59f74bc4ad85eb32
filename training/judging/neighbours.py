"""Distances from points to the nearest of many others."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from training.judging.metrics import Device, checked, tensors

Array = np.ndarray


def nearest_distances(
    points: Array, others: Array | Iterable[Array], chunk: int = 1024, device: Device = "cpu"
) -> Array:
    """Euclidean distance from each point to the nearest point of another set, which may be large.

    Every other point is compared with. Matrix products find the nearest one of a chunk, and the
    distance from it is then computed without their rounding, which is 1e-7 of the points' spread.

    Args:
        points: ``(N, D)``.
        others: ``(M, D)``, or several such arrays, which are taken one after the other.
        chunk: other points at a time; memory grows with ``N * (chunk + D)``.
        device: where to compute.

    Returns:
        float64 ``(N,)``, in the points' units.

    Raises:
        ValueError: the arrays do not fit each other.

    Example:
        >>> nearest_distances(np.array([[0.0], [9.0]]), np.array([[1.0], [5.0]])).tolist()
        [1.0, 4.0]
    """
    return nearest(points, others, chunk=chunk, device=device)[0]


def nearest(
    points: Array,
    others: Array | Iterable[Array],
    own: Array | None = None,
    chunk: int = 1024,
    device: Device = "cpu",
) -> tuple[Array, Array]:
    """The distances of `nearest_distances`, and which other point is so near.

    Args:
        points: ``(N, D)``.
        others: see `nearest_distances`.
        own: int64 ``(N,)``, for each point the number of the other one that is not compared with,
            since it is the point itself; then there are at least two others.
        chunk: see `nearest_distances`.
        device: where to compute.

    Returns:
        float64 ``(N,)``, and int64 ``(N,)``, numbers of the others.

    Raises:
        ValueError: the arrays do not fit each other.
    """
    distances: Tensor | None = None
    start = 0
    for array in [others] if isinstance(others, np.ndarray) else others:
        points, array_64 = checked(points, array, fewest=1)
        if distances is None:
            (x,) = tensors(device, points)
            distances, center = torch.full_like(x[:, 0], torch.inf), x.mean(dim=0)
            numbers = torch.zeros_like(distances, dtype=torch.long)
            doubled = 2 * (x - center)
            left_out = None if own is None else torch.from_numpy(own).to(device)[:, None]
        for first in range(0, len(array_64), chunk):
            (candidates,) = tensors(device, array_64[first : first + chunk])
            centred = candidates - center
            # The squared distance of each point from each candidate, less the point's own square.
            squares = torch.addmm(centred.square().sum(dim=1), doubled, centred.T, alpha=-1)
            if left_out is not None:
                places = torch.arange(start + first, start + first + len(candidates), device=device)
                squares[places == left_out] = torch.inf
            least, found = squares.min(dim=1)
            apart = (x - candidates[found]).norm(dim=1)
            apart[least == torch.inf] = torch.inf
            nearer = apart < distances
            distances = torch.where(nearer, apart, distances)
            numbers = torch.where(nearer, found + start + first, numbers)
        start += len(array_64)
    if distances is None:
        raise ValueError("need at least 1 point in each set, got none")
    return distances.cpu().numpy(), numbers.cpu().numpy()
