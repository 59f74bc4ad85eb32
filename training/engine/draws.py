"""Calls of torch's random functions, caught so that somebody else draws the numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Shape = tuple[int, ...]
Draw = Callable[[Shape, torch.Generator | None], Tensor]
"""Draws random numbers of a shape, from a generator or, for None, from torch's global one."""

UNSUPPORTED = {
    torch.normal,
    torch.bernoulli,
    torch.multinomial,
    torch.randint,
    torch.randint_like,
    torch.randperm,
    torch.Tensor.bernoulli_,
    torch.Tensor.exponential_,
    torch.Tensor.random_,
    F.alpha_dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.feature_alpha_dropout,
}


class RandomCalls(TorchFunctionMode, ABC):
    """A context in which `drawn` supplies the numbers of every call of a random function.

    It knows ``rand``, ``randn``, ``rand_like``, ``randn_like``, ``uniform_``, ``normal_`` and
    dropout. Other random functions raise RuntimeError.
    """

    over: str
    """Named in errors: the things that the numbers are divided over."""

    @abstractmethod
    def drawn(self, shape: Shape, draw: Draw) -> Tensor:
        """Return random numbers of a shape, made with ``draw``."""

    def fill(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Return what an in-place function returns: ``x``, filled with the numbers."""
        return x.copy_(numbers)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rand, torch.randn):
            shape = kwargs.pop("size", None) or args
            shape = shape[0] if isinstance(shape[0], tuple | list | torch.Size) else shape
            return self.drawn(
                tuple(shape), lambda size, source: func(size, **kwargs, **_from(source))
            )
        if func in (torch.rand_like, torch.randn_like):
            plain = torch.rand if func is torch.rand_like else torch.randn
            like = {**_like(args[0]), **kwargs}
            return self.drawn(
                tuple(args[0].shape), lambda size, source: plain(size, **like, **_from(source))
            )
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_):
            x, *rest = args
            like = _like(x)
            return self.fill(
                x,
                self.drawn(
                    tuple(x.shape),
                    lambda size, source: func(
                        torch.empty(size, **like), *rest, **kwargs, **_from(source)
                    ),
                ),
            )
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func in UNSUPPORTED:
            raise RuntimeError(
                f"{func.__name__} cannot be divided over {self.over}; draw otherwise"
            )
        return func(*args, **kwargs)

    def _dropout(self, x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        if not training or not p:
            return x
        like = _like(x)
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            like["memory_format"] = torch.channels_last  # numbers come in the order of memory

        def mask(size: Shape, source: torch.Generator | None) -> Tensor:
            if source is None:
                return F.dropout(torch.empty(size, **like).fill_(1), p)
            # Dropout takes no generator. On a processor this draws the same numbers.
            return torch.empty(size, **like).bernoulli_(1 - p, generator=source).div_(1 - p)

        return x * self.drawn(tuple(x.shape), mask)


class RowDraws(RandomCalls):
    """Draws for the rows of a whole batch, in their order, and keeps those of a part.

    The first axis may be several batches long, as for real and fake samples together.

    Args:
        rows: the part's.
        size: of the batch.
    """

    def __init__(self, rows: slice, size: int) -> None:
        super().__init__()
        self.rows, self.size = rows, size

    def whole(self, shape: Shape, draw: Draw) -> Tensor:
        """Return the numbers of whole batches."""
        return draw(shape, None)

    def drawn(self, shape: Shape, draw: Draw) -> Tensor:
        """Draw for all rows, and keep the part's."""
        share = self.rows.stop - self.rows.start
        batches, rest = divmod(shape[0], share)
        if rest:
            raise RuntimeError(f"a draw of {shape[0]} rows is no multiple of the batch's {share}")
        whole = self.whole((batches * self.size, *shape[1:]), draw)
        return torch.unflatten(whole, 0, (batches, self.size))[:, self.rows].flatten(0, 1)


def _like(x: Tensor) -> dict[str, Any]:
    return {"dtype": x.dtype, "device": x.device}


def _from(source: torch.Generator | None) -> dict[str, Any]:
    return {} if source is None else {"generator": source}
