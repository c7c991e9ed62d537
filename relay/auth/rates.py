"""How often: token buckets of this replica, in memory that does not grow with the number of callers.

A rate such as `60/m` is a bucket of 60 that fills up in a minute. A bucket is one number, the time at which it is full
again (the generic cell rate algorithm), and a full one is forgotten. Where more than `BOUND` are in use, the one that
was used longest ago is forgotten as if it were full: who makes up credentials to get there wins nothing by it, since a
credential never seen has a full bucket anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from relay.config.units import Rate

BOUND = 16384


class Buckets:
    """`names` are short and of a fixed length: they are what is kept of a caller."""

    def __init__(self, bound: int = BOUND, clock: Callable[[], float] = time.monotonic) -> None:
        self._bound = bound
        self._clock = clock
        self._full_at: dict[bytes, float] = {}  # in the order of use

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, name: bytes, rate: Rate) -> float:
        """How many seconds until one may be taken; 0 where it may be now."""
        full_in = self._full_at.get(name, 0.0) - self._clock()
        return max(0.0, full_in - rate.seconds * (1 - 1 / rate.count))

    def take(self, name: bytes, rate: Rate, count: int = 1) -> None:
        """Take so many. What is missing for the last of them is a debt, to be waited for."""
        now = self._clock()
        full_at = max(self._full_at.pop(name, 0.0), now) + count * rate.seconds / rate.count
        self._full_at[name] = full_at
        while len(self._full_at) > self._bound or self._oldest() <= now:
            del self._full_at[next(iter(self._full_at))]

    def give_back(self, name: bytes, rate: Rate) -> None:
        """One that was taken, for nothing."""
        if name in self._full_at:
            self._full_at[name] -= rate.seconds / rate.count
            if self._full_at[name] <= self._clock():
                del self._full_at[name]

    def _oldest(self) -> float:
        return next(iter(self._full_at.values()))
