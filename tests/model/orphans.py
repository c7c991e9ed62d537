"""Joining without a key as a model: one generation, which replica A produces, and requests that are the same on two.

The first request reads at A from the beginning. Its reader may go, unseen at first; other requests come to A or B, look
for the generation, join it, or go on with one of their own. What A and B tell the store (who went, who came, who had
all of it) is on its way for a while, may be executed twice, and may be lost with what the store had.

A state is wrong where two requests read the generation at once, where one joins what failed or was read to its end, and
where one pays again though nothing is on its way and nobody reads what it could have joined. A process that is paused
for longer than a lease cannot be told from one without readers, and is left out; so is a window longer than a lease in
a store that loses what it had.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from tests.model.explorer import Move


class OrphanMutation(Enum):
    """A rule of joining without a key, broken. The value says what is done instead."""

    NOT_AT_ONCE = "looking whether it is an orphan and taking it are two steps"
    TAKES_BACK = "what is told of readers may lower what was told before"
    READERS_ELSEWHERE = "readers of other replicas do not count"
    READERS_HERE = "a replica's own readers do not count there"
    LEAVING_NOT_AWAITED = "a replica takes an orphan again before the store knows that it has left it"
    DELIVERED_NOT_SAID = "a replica that does not produce it does not say that it was read to its end"
    FAILURES_JOINED = "how it has ended does not count"
    NOT_TOLD_AGAIN = "a store that may have lost it is not told again"
    RETURN_NOT_AWAITED = "a store that has just come back is believed"
    DEAD_READ = "a replica that nobody listens at any more counts as a reader"
    REPLY_LOST = "who was not answered does not give back what it may have taken"
    NAME_KEPT = "a generation that failed keeps its name"


class Meta(NamedTuple):
    """What the store has: of the stream, and whether it is noted under its name."""

    orphan: int = 0
    taken: int = 0
    reads_b: bool = False
    delivered: bool = False
    noted: bool = True


class OrphanState(NamedTuple):
    """`requests`: each new, waiting, checked, reading, dead (its client has gone, and nobody has seen it), gone, apart,
    done, with the replica. `gone`, `taken`, `over` and `told` are what A holds, `held`, `leaving` and `marking` B."""

    requests: tuple[str, ...]
    meta: Meta = Meta()
    former: Meta | None = None
    generation: str = "runs"  # completed, failed, past (the window is over)
    gone: int = 0
    taken: int = 0
    over: bool = False
    told: tuple[bool | None, int, int] = (True, 0, 0)
    held: bool = False
    leaving: bool = False
    marking: bool = False
    late: tuple[int, int] | None = None
    recent: bool = False
    dead: str = ""  # which replica
    wrong: str = ""
    faults: int = 0


class OrphanModel:
    """All moves of the clients, the replicas, the store and the upstream."""

    def __init__(self, *, requests: int = 3, faults: int = 2, mutation: OrphanMutation | None = None) -> None:
        self.requests = requests
        self.faults = faults
        self.mutation = mutation

    def _broken(self, mutation: OrphanMutation) -> bool:
        return self.mutation is mutation

    # -- what the search asks -----------------------------------------------------------------------------

    def initial(self) -> Iterator[Move[OrphanState]]:
        others = ("new",) * (self.requests - 1)
        yield "the first request reads at A", OrphanState(("reading A", *others), faults=self.faults)

    def fair(self, state: OrphanState) -> Iterator[Move[OrphanState]]:
        yield from self._telling(state)
        for n, request in enumerate(state.requests):
            what, _, at = request.partition(" ")
            if at and at == state.dead:
                continue
            if what == "dead":
                yield f"{at} sees that {n} has gone", self._left(self._set(state, n, "gone"), at)
            elif what in ("waiting", "checked"):
                yield from self._waiting(state, n, at, what)

    def unfair(self, state: OrphanState) -> Iterator[Move[OrphanState]]:
        for n, request in enumerate(state.requests):
            what, _, at = request.partition(" ")
            if what == "new":
                for where in "AB":
                    if where != state.dead:
                        yield f"request {n} comes to {where}", self._set(state, n, f"waiting {where}")
            elif what == "reading":
                yield f"{n}'s client goes", self._set(state, n, f"dead {at}")
                if state.generation in ("completed", "past") and at != state.dead:
                    yield f"{n} has read it to its end", self._delivered(self._set(state, n, "done"), at)
        if state.generation == "runs" and state.dead != "A":
            yield "the generation is complete", state._replace(generation="completed")
            failed = state._replace(generation="failed", over=not self._broken(OrphanMutation.NAME_KEPT))
            yield "the generation fails", failed
        if state.generation == "completed":
            yield "the window is over", state._replace(generation="past", over=True)
        if state.late is not None:
            yield "what was told is executed once more", self._executed(state._replace(late=None), *state.late)
        if state.faults:
            for name, successor in self._faults(state):
                yield f"FAULT {name}", successor._replace(faults=state.faults - 1)

    def settled(self, state: OrphanState) -> bool:
        """Nobody waits, and what can be joined no more has no name."""
        if any(request.startswith(("waiting", "checked")) for request in state.requests):
            return False
        return not state.meta.noted or state.generation in ("runs", "completed") or state.dead == "A"

    def wrong(self, state: OrphanState) -> str:
        if state.wrong:
            return state.wrong
        if self._live(state) > 1:
            return "SHARED: two requests read one generation"
        return ""

    @staticmethod
    def _live(state: OrphanState) -> int:
        return sum(r.startswith("reading") and r[-1] != state.dead for r in state.requests)

    @staticmethod
    def _set(state: OrphanState, n: int, what: str) -> OrphanState:
        return state._replace(requests=(*state.requests[:n], what, *state.requests[n + 1 :]))

    @staticmethod
    def _readers(state: OrphanState, at: str) -> int:
        """For all that the replica knows."""
        return sum(request in (f"reading {at}", f"dead {at}") for request in state.requests)

    # -- a request that is the same ------------------------------------------------------------------------

    def _waiting(self, state: OrphanState, n: int, at: str, what: str) -> Iterator[Move[OrphanState]]:
        busy = bool(self._readers(state, at))
        busy = busy or (at == "B" and state.held and not self._broken(OrphanMutation.LEAVING_NOT_AWAITED))
        busy = busy and not self._broken(OrphanMutation.READERS_HERE)
        found = "read" if busy else self._found(state, at)
        if what == "checked":
            yield f"{n} takes it at {at}", self._joined(state, n, at)
        elif state.recent and not self._broken(OrphanMutation.RETURN_NOT_AWAITED):
            yield f"{n} does without, the store has just come back", self._set(state, n, "apart")
        elif found == "taken" and self._broken(OrphanMutation.NOT_AT_ONCE):
            yield f"{n} finds an orphan at {at}", self._set(state, n, f"checked {at}")
        elif found == "taken":
            yield f"{n} joins at {at}", self._joined(state, n, at)
        elif found == "over" or not self._on_its_way(state):
            yield f"{n} goes on by itself", self._apart(state, n)

    def _found(self, state: OrphanState, at: str) -> str:
        """What `adopt.lua` answers, with what the caller knows of dead replicas."""
        meta = state.meta
        if state.dead == "A" or not meta.noted:
            return "over"
        if state.generation in ("failed", "past") and not self._broken(OrphanMutation.FAILURES_JOINED):
            return "over"
        if meta.delivered:
            return "over"
        counts = state.dead != "B" or self._broken(OrphanMutation.DEAD_READ)
        elsewhere = at != "B" and meta.reads_b and counts and not self._broken(OrphanMutation.READERS_ELSEWHERE)
        return "taken" if meta.orphan > meta.taken and not elsewhere else "read"

    def _joined(self, state: OrphanState, n: int, at: str) -> OrphanState:
        if state.generation == "failed" or "done" in state.requests:
            return state._replace(wrong="OVER: joins what failed, or was read to its end")
        return self._set(self._taken(state, at), n, f"reading {at}")

    @staticmethod
    def _taken(state: OrphanState, at: str) -> OrphanState:
        meta = state.meta
        if at == "A":
            told = (*state.told[:2], state.gone)
            after = meta._replace(taken=meta.orphan)
            return state._replace(meta=after, former=meta, taken=state.gone, told=told)
        return state._replace(meta=meta._replace(reads_b=True), former=meta, held=True)

    def _apart(self, state: OrphanState, n: int) -> OrphanState:
        lost = state.generation in ("failed", "past") or state.dead == "A" or "done" in state.requests
        if not lost and not self._live(state):
            return state._replace(wrong="PAID TWICE: nobody reads what could be joined")
        return self._set(state, n, "apart")

    def _on_its_way(self, state: OrphanState) -> bool:
        """May what the store says change by itself within the second that a request waits?"""
        unseen = any(r.startswith("dead") and r[-1] != state.dead for r in state.requests)
        return unseen or any(True for _ in self._telling(state))

    # -- what the replicas tell ------------------------------------------------------------------------------

    def _left(self, state: OrphanState, at: str) -> OrphanState:
        if at == "B":
            return state._replace(leaving=True)
        if not self._readers(state, "A") and state.gone == state.taken:
            return state._replace(gone=state.gone + 1)
        return state

    def _delivered(self, state: OrphanState, at: str) -> OrphanState:
        if at == "A":
            return state._replace(over=True)
        return state._replace(marking=True)

    def _telling(self, state: OrphanState) -> Iterator[Move[OrphanState]]:
        meta, said = state.meta, state.told
        moves: list[Move[OrphanState]] = []
        if state.dead != "A":
            if said[1:] != (state.gone, state.taken):
                told = state._replace(told=(said[0], state.gone, state.taken))
                moves.append((f"A tells {told.told[1:]}", self._executed(told, *told.told[1:])))
            elif said[0] is not (not state.over):
                noted = meta._replace(noted=not state.over)
                told = state._replace(meta=noted, former=meta, told=(not state.over, *said[1:]))
                moves.append(("A notes it, or no more", told))
        if state.dead != "B":
            if state.leaving:
                left = meta._replace(reads_b=False)
                moves.append(("B has left", state._replace(meta=left, former=meta, leaving=False, held=False)))
            elif state.marking:
                read = meta._replace(delivered=True, reads_b=meta.reads_b)
                if self._broken(OrphanMutation.DELIVERED_NOT_SAID):
                    read = meta._replace(reads_b=False)
                moves.append(
                    ("B says that it was read", state._replace(meta=read, former=meta, marking=False, held=False))
                )
            elif self._readers(state, "B") and not meta.reads_b and not self._broken(OrphanMutation.NOT_TOLD_AGAIN):
                moves.append(("B says again that it reads", state._replace(meta=meta._replace(reads_b=True))))
        if state.recent and not moves:
            lapsed = meta._replace(reads_b=meta.reads_b and self._readers(state, "B") > 0)  # nobody has said it again
            moves.append(("the store has been back for a lease", state._replace(recent=False, meta=lapsed)))
        yield from moves

    def _executed(self, state: OrphanState, gone: int, taken: int) -> OrphanState:
        meta = state.meta
        if not self._broken(OrphanMutation.TAKES_BACK):
            gone, taken = max(gone, meta.orphan), max(taken, meta.taken)
        return state._replace(meta=meta._replace(orphan=gone, taken=taken), former=meta)

    # -- faults -------------------------------------------------------------------------------------------------

    def _faults(self, state: OrphanState) -> Iterator[Move[OrphanState]]:
        truth = (state.gone, state.taken)
        if state.late is None and state.told[1:] != truth and state.dead != "A":
            told = state._replace(told=(state.told[0], *truth), late=truth)
            yield "what A tells is executed, and once more later", self._executed(told, *truth)
        if state.former is not None:
            yield "failover, the last command is lost", self._returned(state._replace(meta=state.former, former=None))
        yield "the store comes back empty", self._returned(self._empty(state))
        if not state.dead:
            yield "B is killed", self._killed(state, "B")
            yield "A is killed", self._killed(state, "A")
        for n, request in enumerate(state.requests):
            what, _, at = request.partition(" ")
            if what != "waiting" or at == state.dead or self._readers(state, at) or (at == "B" and state.held):
                continue
            if not state.recent and self._found(state, at) == "taken":
                taken = self._set(self._taken(state, at), n, "apart")  # 503 from the store: it does without
                if self._broken(OrphanMutation.REPLY_LOST):
                    yield f"{n} takes it at {at}, and the reply is lost", taken._replace(held=state.held)
                elif at == "B":
                    yield f"{n} takes it at B, and the reply is lost", taken._replace(leaving=True)
                else:
                    yield f"{n} takes it at A, and the reply is lost", self._left(taken, "A")

    def _empty(self, state: OrphanState) -> OrphanState:
        """The stream's producer makes it again, with what it holds of its readers; an ended one nobody does."""
        if state.dead == "A" or state.generation != "runs":
            return state._replace(meta=Meta(noted=False), generation="past", over=True, former=None)
        return state._replace(meta=Meta(state.gone, state.taken, noted=False), former=None)

    def _returned(self, state: OrphanState) -> OrphanState:
        if state.generation == "completed":  # the window is no longer than a lease
            state = state._replace(generation="past", over=True)
        again = not self._broken(OrphanMutation.NOT_TOLD_AGAIN)
        told = (None, -1, -1) if again and state.dead != "A" else state.told
        return state._replace(recent=True, late=None, told=told)

    @staticmethod
    def _killed(state: OrphanState, at: str) -> OrphanState:
        requests = tuple("gone" if request.endswith(f" {at}") else request for request in state.requests)
        if state.marking:  # that it was read to its end died with B
            requests = tuple("gone" if request == "done" else request for request in requests)
        if at == "B":
            return state._replace(requests=requests, dead="B", held=False, leaving=False, marking=False)
        return state._replace(requests=requests, dead="A")
