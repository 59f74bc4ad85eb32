"""A histogram as a line of a chart."""

from __future__ import annotations

import numpy as np

from models.record import Line

Array = np.ndarray


def histogram(name: str, values: Array, edges: Array) -> Line:
    """Count values between edges; values outside are counted at the ends.

    Args:
        name: of the line.
        values: ``(N,)``.
        edges: ``(B + 1,)``, increasing.

    Returns:
        The share of the values in each of the B bins, at the bin's middle.
    """
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    middles = (edges[:-1] + edges[1:]) / 2
    shares = counts / max(len(values), 1)
    return Line(
        name=name,
        x=[float(f"{x:.5g}") for x in middles],
        y=[float(f"{y:.5g}") for y in shares],
    )
