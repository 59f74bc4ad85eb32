"""Recurrent layers for sequences ``(N, T, D)`` that can be differentiated twice.

A gradient penalty needs second derivatives, which cuDNN's ``nn.GRU`` and ``nn.LSTM`` do not have.
These are made of dense layers, so constraints on dense layers act on them too.
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
        """Return the state after each step; the state before the first is zero."""
        width = self.state.in_features
        h = x.new_zeros(x.shape[0], width)
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
        """Return the state after each step; the state before the first is zero."""
        h = cell = x.new_zeros(x.shape[0], self.state.in_features)
        states = []
        for step in self.input(x).unbind(dim=1):
            input_gate, forget, candidate, output_gate = (step + self.state(h)).chunk(4, dim=1)
            cell = self.gate(forget) * cell + self.gate(input_gate) * self.candidate(candidate)
            h = self.gate(output_gate) * self.output(cell)
            states.append(h)
        return torch.stack(states, dim=1)


class StepsFirst(nn.Module):
    """Swap of features and steps: ``(N, D, T)`` to ``(N, T, D)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Swap the last two axes."""
        return x.transpose(1, 2)


class PoolSteps(nn.Module):
    """Sum over steps, divided by the square root of T: ``(N, T, W)`` to ``(N, W)``.

    Its Lipschitz constant is 1 for any T; that of a mean falls as T grows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool the steps."""
        return x.sum(dim=1) * x.shape[1] ** -0.5
