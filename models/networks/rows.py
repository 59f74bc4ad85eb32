"""Networks of a table's rows: codes whose parts are numbers and choices, made under conditions.

A condition is a set of allowed values per column, coded as restrictions (`models.tables.layout`).
Like CTGAN (Xu et al. 2019), we show networks conditions that real rows meet, and give them to
generator and critic alike. CTGAN's condition is one category of one column, and its loss asks the
generator to obey. Here conditions may be on any columns, ranges of numbers too, and the
generator's last layer obeys by construction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.special import ndtr, ndtri

from models.networks.parts import Critic
from models.tables.layout import LARGEST_SCORE, Choice, Part, place, restriction_width

TEMPERATURE = 0.5
"""Of the softmax of a choice: below 1 its largest share is nearer to 1."""
FORBIDDEN = 1e9
"""Taken off the logit of an option that is not allowed: its share is exactly 0."""
EXACT_NUMBERS, EXACT_CHOICES = 0.4, 0.7
"""Shares of restrictions that allow one value only, and no range or several options."""
FARTHEST_CUT = 3.0
"""Largest absolute value of a random end of a range, on the scale of scores."""


class RowHeads(nn.Module):
    """Last layer of a generator of rows: brings each part into what it may be.

    A number x becomes the value at the same rank of a standard normal distribution that is cut off
    at the ends of what is allowed: ``F^-1(F(a) + (F(b) - F(a)) F(x))`` with the normal's
    distribution function F and ends a, b. So if x is normal, the row's number has the
    distribution that a normal has within the ends; and without a restriction it is x itself, but
    for a tail of 0.05%. Of a choice, the shares of the options sum to 1, by a softmax over the
    allowed ones.

    Args:
        parts: of a row's code.
    """

    restriction_order: Tensor
    code_order: Tensor

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        placed = list(place(parts))
        values = [p for p in placed if not isinstance(p.part, Choice)]
        choices = [p for p in placed if isinstance(p.part, Choice)]
        # What comes in has an order of its own: numbers, then choices by their number of options,
        # since those between equally many go through one softmax.
        self.value_count = len(values)
        self.widths = sorted(Counter(p.part.width for p in choices).items())
        choices.sort(key=lambda p: p.part.width)
        ends = [p.restriction for p in values]
        self._index(
            "restriction_order",
            [end.start for end in ends]
            + [end.start + 1 for end in ends]
            + [k for p in choices for k in _numbers(p.restriction)],
        )
        codes = [k for p in (*values, *choices) for k in _numbers(p.code)]
        self._index("code_order", torch.tensor(codes).argsort().tolist())

    def _index(self, name: str, numbers: list[int]) -> None:
        """Hold column numbers where the weights are; they are no weights themselves."""
        self.register_buffer(name, torch.tensor(numbers, dtype=torch.long), persistent=False)

    def forward(self, x: Tensor, restrictions: Tensor) -> Tensor:
        """Bring ``(N, width)`` into what ``(N, restriction_width)`` allows.

        Args:
            x: numbers, then choices by their number of options.
            restrictions: in the order of the parts, as the codes that are returned.
        """
        count = self.value_count
        ordered = restrictions.index_select(1, self.restriction_order)
        raised, lowered, forbidden = ordered.tensor_split([count, 2 * count], dim=1)
        low, high = raised - LARGEST_SCORE, LARGEST_SCORE - lowered
        ranks = torch.lerp(ndtr(low), ndtr(high), ndtr(x[:, :count]))
        pieces = [ndtri(ranks).clamp(low, high)]
        logits = x[:, count:] / TEMPERATURE - FORBIDDEN * forbidden
        start = 0
        for width, choices in self.widths:
            alike = logits[:, start : start + choices * width].reshape(x.shape[0], choices, width)
            pieces.append(alike.softmax(dim=2).flatten(1))
            start += choices * width
        return torch.cat(pieces, dim=1).index_select(1, self.code_order)


class RowGenerator(nn.Module):
    """Generator of latents ``(N, latent_size)`` and restrictions to codes ``(N, width)``."""

    def __init__(self, body: nn.Sequential, parts: Sequence[Part]) -> None:
        super().__init__()
        self.body = body
        self.heads = RowHeads(parts)
        self.restriction_width = restriction_width(parts)

    def forward(self, latents: Tensor, restrictions: Tensor | None = None) -> Tensor:
        """Generate a row under each restriction; without any, whatever rows there are.

        Args:
            latents: ``(N, latent_size)``.
            restrictions: ``(N, restriction_width)``.
        """
        if restrictions is None:
            dtype = torch.promote_types(latents.dtype, torch.float32)
            restrictions = latents.new_zeros(latents.shape[0], self.restriction_width, dtype=dtype)
        # The heads stay in float32 when the body is in bfloat16: a bound must not be rounded.
        inputs = torch.cat([latents, restrictions], dim=1).to(latents.dtype)
        return self.heads(self.body(inputs).to(restrictions.dtype), restrictions)


class RowCritic(Critic):
    """Critic of codes ``(N, width)`` and the restrictions that they were made under.

    It compares real rows that meet a condition with rows that were made under it. A bound on its
    slope by codes and restrictions together bounds its slope by the codes alone.
    """

    def __init__(self, body: nn.Sequential, restriction_width: int) -> None:
        super().__init__(body)
        self.restriction_width = restriction_width

    def forward(self, samples: Tensor, restrictions: Tensor | None = None) -> Tensor:
        """Score each row ``(N, width)``, by default as one made without conditions; ``(N,)``."""
        if restrictions is None:
            restrictions = samples.new_zeros(samples.shape[0], self.restriction_width)
        return super().forward(torch.cat([samples, restrictions], dim=1))


class RestrictionSampler:
    """Draws conditions that real rows meet, so that a generator learns to make rows under them.

    A share of the rows gets conditions, on one part or several: from a single one, as if a user
    asked for a category, to nearly all, as if one gap were to be filled; most often few. A number
    is restricted to its own value, or to the piece that it lies in where one or two random values
    cut the line; a choice to its own option, or to a random set that holds it.

    Rows are drawn as they are, so rows under conditions and rows without are distributed as the
    data: CTGAN draws rare categories more often (training by sampling), and its marginals are off
    by that. And all rows that meet a condition are equally likely to get it, so the rows that got
    it are distributed as those that meet it. Ends drawn beside each row's own value would favour
    rows near the ends.

    Args:
        parts: of a row's code.
        share: of the rows that get conditions, from 0 to 1.
        device: of the rows.
    """

    def __init__(self, parts: Sequence[Part], share: float, device: torch.device) -> None:
        self.share, self.part_count = share, len(parts)
        # For each restriction the number of its part, the number in the row's code that decides
        # it, and a sign: 1 for a lower end, -1 for an upper one, 0 for an option.
        entries = list[tuple[int, int, int]]()
        for number, (part, code, _) in enumerate(place(parts)):
            if isinstance(part, Choice):
                entries += [(number, option, 0) for option in _numbers(code)]
            else:
                entries += [(number, code.start, 1), (number, code.start, -1)]
        self.parts, self.codes, self.signs = torch.tensor(entries, device=device).T
        exact = [EXACT_CHOICES if isinstance(p, Choice) else EXACT_NUMBERS for p in parts]
        self.exact = torch.tensor(exact, device=device)

    def __call__(self, rows: Tensor) -> Tensor:
        """Draw the restrictions of each row.

        Args:
            rows: codes of real rows, ``(N, width)``.

        Returns:
            ``(N, restriction_width)``; 0 where everything is allowed.
        """

        def uniform(width: int) -> Tensor:
            return torch.rand(len(rows), width, device=rows.device)

        rate = uniform(1).square().clamp(min=1 / self.part_count)
        is_restricted = (uniform(self.part_count) < rate) & (uniform(1) < self.share)
        is_exact = (uniform(self.part_count) < self.exact)[:, self.parts]
        own = rows[:, self.codes]
        # Of each end the nearest cut on its side, if there is one.
        cuts = FARTHEST_CUT * (2 * uniform(2 * self.part_count) - 1)
        cuts = cuts.reshape(len(rows), 2, self.part_count)
        cuts[:, 1] = torch.where(uniform(self.part_count) < 0.5, cuts[:, 0], cuts[:, 1])
        turned, value = self.signs * cuts[:, :, self.parts], (self.signs * own)[:, None]
        moved = torch.where(turned <= value, LARGEST_SCORE + turned, 0.0).amax(dim=1)
        moved = torch.where(is_exact, LARGEST_SCORE + self.signs * own, moved)
        # The other options of a choice are dropped, each with the choice's own probability.
        chance = uniform(self.part_count)[:, self.parts]
        is_dropped = is_exact | (uniform(len(self.parts)) < chance)
        forbidden = (is_dropped & (own < 0.5)).to(rows.dtype)
        return is_restricted[:, self.parts] * torch.where(self.signs != 0, moved, forbidden)


def _numbers(where: slice) -> range:
    return range(where.start, where.stop)
