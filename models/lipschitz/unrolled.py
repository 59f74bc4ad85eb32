"""Upper bounds of the slope of recurrent layers, over a known number of steps.

Gates lie between 0 and 1 and candidates between -1 and 1, so every factor in the derivative of a
step is bounded. Norms of the derivative of each state by each step's input make a triangular
matrix of T x T numbers, whose norm bounds that of the whole (the norms of a matrix's blocks make a
matrix of at least its norm).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.lipschitz.operators import ROUNDING, NoBoundError, largest_singular_value
from models.networks.recurrent import GRU, LSTM

Terms = list[tuple[Tensor | float, Tensor]]
"""Matrices, each with the largest factor of its rows: a number, or one for each row ``(W,)``."""


def recurrent_slope(layer: GRU | LSTM, steps: int) -> float:
    """Bound the Lipschitz constant of a recurrent layer on sequences of ``steps`` from above.

    It maps ``(T, D)`` to ``(T, W)``. The bound grows exponentially with T unless the weights of
    the states are small.

    Raises:
        NoBoundError: the bound is too large for a number.
    """
    table = (_gru_table if isinstance(layer, GRU) else _lstm_table)(layer, steps)
    scale = table.max()
    if not scale.isfinite():
        raise NoBoundError(
            f"the bound of the recurrent {type(layer).__name__} grows with each of the {steps} "
            "steps, beyond the largest number"
        )
    if scale == 0:
        return 0.0
    return float(scale) * largest_singular_value(table / scale) * (1 + ROUNDING)


def _gru_table(layer: GRU | LSTM, steps: int) -> Tensor:
    """Norms of the derivative of state t by input s, ``(T, T)``.

    The state ``h' = (1 - u) n + u h`` with the candidate ``n = tanh(a + r p)``, ``p = U h + b``
    has the derivative ``u dh + (1 - u) dn + (h - n) du``. States lie in [-1, 1], so ``|h - n|`` is
    at most 2 and ``|p|`` at most the sum of a row of U with b; at the first step h is 0.
    """
    by_input, by_state = (_chunks(part.weight, 3) for part in (layer.input, layer.state))
    offset = layer.state.bias.detach().double()[-layer.state.in_features :].abs()
    identity = torch.eye(layer.state.in_features, dtype=torch.float64, device=offset.device)

    def norm(parts: list[Tensor], reach: float, own: Terms) -> float:
        reset, update, candidate = parts
        most = (reach * by_state[2].abs().sum(dim=1) + offset) / 4  # 1/4: a sigmoid's slope
        # A mean of two vectors, with weights u and 1 - u of each number, is at most as long as
        # both together; and so their weights sum to 1.
        pair = torch.cat([*(matrix for _, matrix in own), candidate])
        apart = largest_singular_value(pair)
        rest: Terms = [((reach + 1) / 4, update), (most, reset)]
        return min(apart + _apart(rest), _together([*own, (1.0, candidate), *rest], len(own)))

    first, later = (norm(by_input, reach, []) for reach in (0.0, 1.0))
    growth = norm(by_state, 1.0, [(1.0, identity)])
    table = torch.zeros(steps, steps, dtype=torch.float64)
    for step in range(steps):
        if step:
            table[step] = growth * table[step - 1]
        table[step, step] = later if step else first
    return table


def _lstm_table(layer: GRU | LSTM, steps: int) -> Tensor:
    """Norms of the derivative of state t by input s, ``(T, T)``.

    The cell ``c' = f c + i g`` has the derivative ``f dc + c df + g di + i dg``. It grows by at
    most 1 at each step, so before step t (from 0) ``|c|`` is at most t. The state
    ``h = o tanh(c')`` has ``tanh(c') do + o tanh'(c') dc'``.
    """
    by_input, by_state = (_chunks(part.weight, 4) for part in (layer.input, layer.state))

    def norm(parts: list[Tensor], step: int) -> float:
        into, forget, candidate, _ = parts
        terms: Terms = [(0.25, into), (step / 4, forget), (1.0, candidate)]
        return min(_apart(terms), _together(terms, 0))

    outputs = [largest_singular_value(parts[3]) / 4 for parts in (by_input, by_state)]
    table = torch.zeros(steps, steps, dtype=torch.float64)
    cells = torch.zeros(steps, dtype=torch.float64)
    for step in range(steps):
        if step:
            cells = cells + norm(by_state, step) * table[step - 1]
            table[step] = cells + outputs[1] * table[step - 1]
        cells[step] = norm(by_input, step)
        table[step, step] = cells[step] + outputs[0]
    return table


def _chunks(weight: Tensor, count: int) -> list[Tensor]:
    return list(weight.detach().double().chunk(count))


def _apart(terms: Terms) -> float:
    """Bound the norm of a sum of matrices, each row times a factor, by the sum of their norms."""
    return sum(largest_singular_value(_rows(factor, matrix)) for factor, matrix in terms)


def _together(terms: Terms, shared: int) -> float:
    """Bound the norm of such a sum by that of all matrices above one another.

    By Cauchy and Schwarz ``(sum_j k_j v_j)^2 <= (sum_j k_j) (sum_j k_j v_j^2)`` in each row.

    Args:
        terms: the factors k_j and matrices.
        shared: number of terms whose factor sums to 1 with that of the term after them.
    """
    total = sum((factor for factor, _ in terms[shared:]), torch.zeros(()).double())
    return largest_singular_value(
        torch.cat([_rows((total * factor) ** 0.5, matrix) for factor, matrix in terms])
    )


def _rows(factor: Tensor | float, matrix: Tensor) -> Tensor:
    return torch.as_tensor(factor, dtype=matrix.dtype, device=matrix.device).view(-1, 1) * matrix
