"""Recurrent layers for sequences ``(N, T, D)``, whose gradients can be differentiated again.

Our own cells, of dense layers, and not ``nn.GRU``: cuDNN's cannot be differentiated twice, which a
gradient penalty needs; and what a constraint does to dense layers it does to these.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GRU(nn.Module):
    """Gated recurrent units (Cho et al. 2014, as in ``nn.GRU``): ``(N, T, D)`` to ``(N, T, W)``."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 3 * width)
        self.state = nn.Linear(width, 3 * width)
        self.gate = nn.Sigmoid()
        self.candidate = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """The state after each step, from zero on."""
        width = self.state.in_features
        h = x.new_zeros(len(x), width)
        states = []
        for step in self.input(x).unbind(dim=1):
            past = self.state(h)
            gates = self.gate(step[:, : 2 * width] + past[:, : 2 * width])
            reset, update = gates.chunk(2, dim=1)
            candidate = self.candidate(step[:, 2 * width :] + reset * past[:, 2 * width :])
            h = candidate + update * (h - candidate)
            states.append(h)
        return torch.stack(states, dim=1)


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997): ``(N, T, D)`` to ``(N, T, W)``."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 4 * width)
        self.state = nn.Linear(width, 4 * width)
        self.gate = nn.Sigmoid()
        self.candidate = nn.Tanh()
        self.output = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """The state after each step, from zero on."""
        h = cell = x.new_zeros(len(x), self.state.in_features)
        states = []
        for step in self.input(x).unbind(dim=1):
            enter, keep, candidate, show = (step + self.state(h)).chunk(4, dim=1)
            cell = self.gate(keep) * cell + self.gate(enter) * self.candidate(candidate)
            h = self.gate(show) * self.output(cell)
            states.append(h)
        return torch.stack(states, dim=1)


class StepsFirst(nn.Module):
    """Swaps features and steps: ``(N, D, T)`` to ``(N, T, D)``."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.transpose(1, 2)


class PoolSteps(nn.Module):
    """The sum over steps over the root of their number: ``(N, T, W)`` to ``(N, W)``.

    Its Lipschitz constant is 1 for any T, where a mean's would vanish.
    """

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.sum(dim=1) * x.shape[1] ** -0.5
