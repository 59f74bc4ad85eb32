"""Networks of a table's rows: codes whose parts are numbers and choices, made under conditions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.special import ndtr, ndtri

from models.networks.parts import Critic
from models.tables.layout import LARGEST_SCORE, Choice, Part, place, restriction_width

TEMPERATURE = 0.5
"""Of the softmax of a choice: below 1 its largest share is nearer to 1."""


class RowHeads(nn.Module):
    """Last layer of a generator of rows: brings each part into what it may be.

    A number lies between its ends, by a logistic function; of a choice, the shares of the options
    sum to 1, and those of options that are not allowed are 0.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.values = [p for p in place(parts) if not isinstance(p.part, Choice)]
        self.choices = [p for p in place(parts) if isinstance(p.part, Choice)]

    def forward(self, x: Tensor, restrictions: Tensor) -> Tensor:
        """Bring ``(N, width)`` into what ``(N, restriction_width)`` allows."""
        pieces = list[tuple[int, Tensor]]()
        for placed in self.values:
            raised, lowered = restrictions[:, placed.restriction].chunk(2, dim=1)
            low, high = raised - LARGEST_SCORE, LARGEST_SCORE - lowered
            ranks = torch.lerp(ndtr(low), ndtr(high), x[:, placed.code].sigmoid())
            pieces.append((placed.code.start, ndtri(ranks).clamp(low, high)))
        for placed in self.choices:
            forbidden = restrictions[:, placed.restriction]
            logits = x[:, placed.code] / TEMPERATURE - 1e9 * forbidden
            pieces.append((placed.code.start, logits.softmax(dim=1)))
        return torch.cat([piece for _, piece in sorted(pieces, key=lambda p: p[0])], dim=1)


class RowGenerator(nn.Module):
    """Generator of latents ``(N, latent_size)`` and restrictions to codes ``(N, width)``."""

    def __init__(self, body: nn.Sequential, parts: Sequence[Part]) -> None:
        super().__init__()
        self.body = body
        self.heads = RowHeads(parts)
        self.restriction_width = restriction_width(parts)

    def forward(self, latents: Tensor, restrictions: Tensor | None = None) -> Tensor:
        """Generate a row under each restriction; without any, whatever rows there are."""
        if restrictions is None:
            dtype = torch.promote_types(latents.dtype, torch.float32)
            restrictions = latents.new_zeros(len(latents), self.restriction_width, dtype=dtype)
        # The heads stay in float32 when the body is in bfloat16: a bound must not be rounded.
        inputs = torch.cat([latents, restrictions], dim=1).to(latents.dtype)
        return self.heads(self.body(inputs).to(restrictions.dtype), restrictions)


class RowCritic(Critic):
    """Critic of codes ``(N, width)`` and the restrictions that they were made under."""

    def __init__(self, body: nn.Sequential, restriction_width: int) -> None:
        super().__init__(body)
        self.restriction_width = restriction_width

    def forward(self, samples: Tensor, restrictions: Tensor | None = None) -> Tensor:
        """Score each row; returns ``(N,)``."""
        if restrictions is None:
            restrictions = samples.new_zeros(len(samples), self.restriction_width)
        return super().forward(torch.cat([samples, restrictions], dim=1))


def draw_restrictions(parts: Sequence[Part], codes: Tensor, share: float) -> Tensor:
    """Draw conditions that real rows meet, so that a generator learns to make rows under them.

    A share of the rows gets conditions, on one part or several. A number is restricted to its own
    value, to one side of a random value, or to a random interval around it; a choice to its own
    option, or to a random set that holds it.

    Args:
        parts: of a row's code.
        codes: real rows, ``(N, width)``.
        share: of the rows that get conditions.

    Returns:
        ``(N, restriction_width)``; 0 where everything is allowed.
    """
    count, device = len(codes), codes.device
    parts = list(parts)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device)

    # How often a part of a row is restricted: from one part to nearly all, most often few.
    rate = uniform(count, 1).square().clamp(min=1 / len(parts))
    is_restricted = (uniform(count, len(parts)) < rate) & (uniform(count, 1) < share)
    pieces = []
    for number, placed in enumerate(place(parts)):
        code, chosen = codes[:, placed.code], is_restricted[:, number, None]
        if isinstance(placed.part, Choice):
            is_exact = uniform(count, 1) < 0.7
            dropped = is_exact | (uniform(count, placed.part.width) < uniform(count, 1))
            pieces.append((chosen & dropped & (code < 0.5)).to(codes.dtype))
        else:
            is_exact = uniform(count, 1) < 0.4
            # Ends at random between the value and the outermost score, or beyond: not restricted.
            below, above = code + LARGEST_SCORE, LARGEST_SCORE - code
            kept = torch.where(is_exact, 1.0, (1.5 * uniform(count, 2)).clamp(max=1.0))
            kept = torch.where(~is_exact & (uniform(count, 2) < 0.4), 0.0, kept)
            pieces.append(chosen * kept * torch.cat([below, above], dim=1))
    return torch.cat(pieces, dim=1)
