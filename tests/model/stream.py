"""The log's protocol as a model.

Replica A produces, replica B reads the log through a tail, and whoever finds A's lease lapsed ends the stream, or takes
it over. The client begins on A or on B, loses its connection, and comes back to either.

A state is wrong where a reader gets an event twice, misses one, or takes a part for the whole; where a stream is ended
or refused though its producer lives; where something is taken for written that is not; where a tail has no reader, or
has nothing to tell it that it is behind; where two produce at a time, or an answer is stopped upstream under who goes
on with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.explorer import Move
from tests.model.producing import LIVING
from tests.model.reading import Reading
from tests.model.state import Client, Feed, State, normal
from tests.model.succeeding import Succeeding


class StreamModel(Succeeding, Reading):
    """All moves of all actors."""

    def initial(self) -> Iterator[Move[State]]:
        s = State(faults=self.faults)
        if self.second_reader:
            s = s._replace(other=True, feed=Feed(0, subscribed=True, opened=True))
        yield "the client's POST makes the stream on A", s
        if self.client is not Client.SDK:
            yield "the stream is made on A, the client begins elsewhere", s._replace(at="cut")

    def fair(self, state: State) -> Iterator[Move[State]]:
        if state.at == "done":
            return
        for moves in (
            self.producer,
            self.store,
            self.others,
            self.heir_moves,
            self.told_again,
            self.tail,
            self.connected,
            self.elsewhere,
        ):
            for name, successor in moves(state):
                yield name, normal(successor)

    def unfair(self, state: State) -> Iterator[Move[State]]:
        if state.at == "done":
            return
        for moves in (self.upstream, self.late_append, self.at_producer, self.other_leaves):
            for name, successor in moves(state):
                yield name, normal(successor)
        if state.link == "away" and self.outage_lasts:
            for name, successor in self.store_returns(state):
                yield name, normal(successor)
        if state.faults:
            for name, successor in self._faults(state):
                yield name, normal(successor._replace(faults=state.faults - 1))

    def _faults(self, state: State) -> Iterator[Move[State]]:
        for name, successor in self.producer_faults(state):
            killed = successor.process == "dead" and successor.at == "A"
            yield name, self._disconnected(successor) if killed else successor
        yield from self.store_faults(state)
        yield from self.connection_faults(state)
        if not state.other:
            yield from self.other_reader(state)

    def settled(self, state: State) -> bool:
        """The client has its answer, or it is connected and has all that there is."""
        if state.at == "done" or (state.link == "away" and self.outage_lasts and state.at != "A"):
            return True
        if self.heir_lives(state) and state.heir is not None and not state.heir.outcome:
            read = state.at == "B" and state.feed is not None and state.feed.live
            return read and state.seen == len(state.heir.frames)
        running = state.process == "running" and state.mode in LIVING and not state.outcome
        if not running or state.seen < state.made:
            return False
        return state.at == "A" or (state.at == "B" and state.feed is not None and state.feed.live)

    def wrong(self, state: State) -> str:
        feed, log = state.feed, state.log
        if state.wrong or feed is None or feed.dropped:
            return state.wrong
        if not state.other and state.at not in ("opening", "B"):
            return "LEAK: a feed without a reader"
        waits = feed.message or feed.page is not None or not feed.opened
        if waits or not feed.live or log is None or state.link == "away":
            return ""
        if len(log) > feed.top or state.end:
            return "DELAY: nothing tells the tail that it is behind"
        return ""
