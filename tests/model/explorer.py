"""Breadth-first search of a model's states, with the shortest trace to what must not be.

A model says which states it begins with, which moves lead on from a state, what is wrong with a state and whether it is
settled. A move is fair where it happens sooner or later by itself (a retry, a periodic check, a delivery); all others
may never happen (faults, what a client or an upstream chooses to do).

Two kinds of violation are found: a state that is wrong in itself, and a trap, a state from which fair moves alone
cannot reach a settled one: whoever waits there may wait for ever.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)
Move = tuple[str, S]

TRAP = "TRAP: nothing that happens by itself leads on from here"


class Model(Protocol[S]):
    """What the search needs of a model. A state that is wrong is not gone on from."""

    def initial(self) -> Iterator[Move[S]]:
        """The first states, each with a name."""

    def fair(self, state: S) -> Iterator[Move[S]]:
        """Moves that happen sooner or later by themselves."""

    def unfair(self, state: S) -> Iterator[Move[S]]:
        """Moves that may or may not happen."""

    def wrong(self, state: S) -> str:
        """What is wrong with a state, empty where nothing is."""

    def settled(self, state: S) -> bool:
        """Does nobody wait for anything in this state?"""


@dataclass(frozen=True)
class Violation(Generic[S]):
    """What is wrong, and the shortest way there: the moves with the states that they lead to."""

    what: str
    trace: list[Move[S]]

    def __str__(self) -> str:
        steps = [f"  {i:2} {name}" for i, (name, _) in enumerate(self.trace)]
        return "\n".join([self.what, *steps, f"     {self.trace[-1][1]}"])


@dataclass(frozen=True)
class Report(Generic[S]):
    """How many states and moves there are, and the first violation."""

    states: int
    moves: int
    seconds: float
    violation: Violation[S] | None


def explore(model: Model[S], only: str = "") -> Report[S]:
    """All states of a model, or those up to the first wrong one; `only`: up to the first whose fault begins so."""
    gc.disable()  # its states are tuples, up to a million and without a circle: looking through them took a fifth
    try:
        return _Search(model, only).run()
    finally:
        gc.enable()


class _Search(Generic[S]):
    def __init__(self, model: Model[S], only: str) -> None:
        self._model = model
        self._only = only
        self._began = time.monotonic()
        self._number: dict[S, int] = {}
        self._states: list[S] = []
        self._names: list[str] = []
        self._parents = array("l")
        self._wrong: list[int] = []
        self._moves = 0
        # Fair moves as pairs of states: traps are found by going back from the settled ones.
        self._sources = array("l")
        self._targets = array("l")

    def run(self) -> Report[S]:
        for name, state in self._model.initial():
            self._add(state, name, -1)
        place = 0
        while place < len(self._states):
            state = self._states[place]
            what = self._model.wrong(state)
            if what and what.startswith(self._only):
                return self._report(what, place)
            if what:
                self._wrong.append(place)
            else:
                self._expand(place, state)
            place += 1
        trapped = self._first_trapped()
        return self._report("", -1) if trapped < 0 else self._report(TRAP, trapped)

    def _add(self, state: S, name: str, parent: int) -> int:
        number = self._number.setdefault(state, len(self._states))
        if number == len(self._states):
            self._states.append(state)
            self._names.append(name)
            self._parents.append(parent)
        return number

    def _expand(self, place: int, state: S) -> None:
        for name, successor in self._model.fair(state):
            self._moves += 1
            self._sources.append(place)
            self._targets.append(self._add(successor, name, place))
        for name, successor in self._model.unfair(state):
            self._moves += 1
            self._add(successor, name, place)

    def _first_trapped(self) -> int:
        """A state from which fair moves reach no settled one, -1 where there is none. Of those, where it can be, one
        that has no fair move at all: its trace shows what is waited for."""
        incoming: list[list[int]] = [[] for _ in self._states]
        stuck = bytearray(b"\1" * len(self._states))
        for source, target in zip(self._sources, self._targets, strict=True):
            if source != target:
                incoming[target].append(source)
                stuck[source] = 0
        reaches = bytearray(len(self._states))
        front = [place for place, state in enumerate(self._states) if self._model.settled(state)]
        front += self._wrong  # of another fault than those asked for
        for place in front:
            reaches[place] = 1
        while front:
            for source in incoming[front.pop()]:
                if not reaches[source]:
                    reaches[source] = 1
                    front.append(source)
        trapped = [place for place, reached in enumerate(reaches) if not reached]
        return next((place for place in trapped if stuck[place]), trapped[0] if trapped else -1)

    def _report(self, what: str, place: int) -> Report[S]:
        seconds = time.monotonic() - self._began
        violation = Violation(what, self._trace(place)) if what else None
        return Report(len(self._states), self._moves, seconds, violation)

    def _trace(self, place: int) -> list[Move[S]]:
        trace: list[Move[S]] = []
        while place >= 0:
            trace.append((self._names[place], self._states[place]))
            place = self._parents[place]
        return trace[::-1]


def show(what: str, report: Report[S]) -> None:
    """Print how much was searched, and the trace to what must not be."""
    print(f"{what}: {report.states} states, {report.moves} moves, {report.seconds:.1f} s")
    if report.violation is not None:
        print(report.violation)
