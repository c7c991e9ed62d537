"""How far the streams of a replica may be ahead of their logs, all of them together, while the store is away."""

from __future__ import annotations

from typing import Protocol


class Bounded(Protocol):
    """A writer that has shown more than its log holds."""

    def balance(self) -> None:
        """Let its upstream wait, or go on, as the bound says now."""


class Ahead:
    """What all streams of a replica are ahead of their logs, in bytes, and the bound on it (`store.ahead`)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used: dict[Bounded, int] = {}
        self._total = 0

    @property
    def full(self) -> bool:
        return self._total >= self._limit

    def set(self, writer: Bounded, size: int) -> None:
        """A writer is so many bytes ahead. The others wait, or go on, with it."""
        was_full = self.full
        self._total += size - self._used.pop(writer, 0)
        if size:
            self._used[writer] = size
        if was_full and not self.full:
            for other in list(self._used):
                other.balance()
