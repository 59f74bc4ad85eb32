"""What callers share, places and bytes, divided fairly; and a rate of each caller's own."""

from __future__ import annotations

import time
from collections import Counter

MAX_CALLERS = 10_000
"""Callers whose rates are remembered before those that no longer matter are forgotten."""


class Shares:
    """Places, or bytes, of which a caller may hold so many times what is left for the others.

    A newcomer finds room however long the others keep theirs: dynamic thresholds, of Choudhury and
    Hahne 1998. Of S, with the greed a, each of n callers who take what they can gets
    a S / (1 + a n), and a newcomer then 1 / (1 + a n) of what one caller alone gets, a S / (1 + a).

    Args:
        size: how many there are.
        greed: a caller may hold so many times what is free, rounded up.
    """

    def __init__(self, size: int, greed: float) -> None:
        self.size = size
        self.greed = greed
        self.taken = 0
        self._held: Counter[str] = Counter()

    @property
    def is_full(self) -> bool:
        """True if nothing is left for anybody."""
        return self.taken >= self.size

    def has_its_share(self, caller: str) -> bool:
        """Return True if a caller holds as much as it may."""
        return self._held[caller] >= self.greed * (self.size - self.taken)

    def take(self, caller: str, amount: int = 1) -> None:
        """Give a caller an amount; the bounds are the caller's to check."""
        self.taken += amount
        self._held[caller] += amount

    def give_back(self, caller: str, amount: int = 1) -> None:
        """Take an amount back."""
        self.taken -= amount
        self._held[caller] -= amount
        if not self._held[caller]:
            del self._held[caller]


class Rate:
    """A bound on what each caller asks for in a second, on average; a second's worth at once.

    What is asked for at once may be more: the caller then waits until the average is kept.

    Args:
        per_second: the bound; 0: none.
    """

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._most = MAX_CALLERS
        self._paid: dict[str, float] = {}
        """The time, by `time.monotonic`, until which a caller has used its rate."""

    def wait(self, caller: str) -> float:
        """Return the seconds that a caller must wait; 0 if it may ask now."""
        return max(0.0, self._paid.get(caller, 0.0) - time.monotonic() - 1)

    def spend(self, caller: str, amount: int) -> None:
        """Count an amount that a caller has asked for."""
        if not self.per_second:
            return
        now = time.monotonic()
        if len(self._paid) >= self._most:
            self._paid = {name: paid for name, paid in self._paid.items() if paid > now}
            self._most = max(MAX_CALLERS, 2 * len(self._paid))  # to look at all is rare
        self._paid[caller] = max(now, self._paid.get(caller, now)) + amount / self.per_second
