"""Who takes the next connection, where several workers have one listening socket.

The kernel wakes them all, and who is awake first takes what waits: ten connections that a proxy opens at once and keeps
go to one worker, and with them all that is ever sent over them, while the others idle. So each tells the others how
many it has, and one that is ahead leaves a moment to those behind. It takes them all the same when nobody else did: a
worker that is busy, or stopped, holds no connection up.
"""

from __future__ import annotations

import mmap

# More than one is ahead: of two that are equal, either may take the next.
_SLACK = 1


class Shares:
    """The connections of `workers` processes, made before these are forked."""

    def __init__(self, workers: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 4 * workers)).cast("i")

    def of(self, number: int) -> Share:
        """Of the worker with this number, from 0; one that has died leaves its place to the one that replaces it."""
        return Share(self._counts, number)


class Share:
    """One worker's; no other writes into it."""

    def __init__(self, counts: memoryview[int], number: int) -> None:
        self._counts = counts
        self._number = number
        self.holds(0)

    def holds(self, connections: int) -> None:
        self._counts[self._number] = connections

    def takes_one(self) -> None:
        self._counts[self._number] += 1

    def is_ahead(self) -> bool:
        counts, number = self._counts, self._number
        ahead = counts[number] - _SLACK
        return any(counts[other] < ahead for other in range(len(counts)) if other != number)


ALONE = Shares(1).of(0)
