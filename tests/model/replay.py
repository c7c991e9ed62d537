"""Traces of the model, replayed: each move is made with the relay's own log, writer, producer, tail and readers.

After every move the log, the producer, B's tail and what the client has got must be what the model says.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import pytest

from relay.streams import reader as reader_module
from relay.streams import tail as tail_module
from tests.model.replay_reading import ReadingMoves
from tests.model.replay_writing import WritingMoves
from tests.model.simulated import Subscriptions
from tests.model.state import State


class Replay(WritingMoves, ReadingMoves):
    """One run. `make` makes one move of the model, and compares."""

    _move = ""

    async def make(self, name: str, after: State) -> None:
        """Make a move that leads to a state of the model, and compare."""
        self._move = name
        self._answer = ""
        await _handler(name)(self, after)
        await self._loop.settle()
        if after.feed is None:  # what a tail that is no more still reads nobody else is to share
            while (read := self.b.node.take("read")) is not None:
                read.deliver()
                await self._loop.settle()
        if (code := re.search(r"\b(204|404|410|503)\b", name)) and self._answer:
            self._check(self._answer, code[1])
        elif self._answer:
            self._check(self._answer, "200")
        self.compare(after)


_Handler = Callable[[Replay, State], Awaitable[None]]
_HANDLERS: list[tuple[str, _Handler]] = [
    ("the upstream sends", Replay.upstream_sends),
    ("the upstream ends", Replay.upstream_ends),
    ("FAULT A ends the stream", Replay.told_end),
    ("A wakes", Replay.wakes),
    ("FAULT A is paused", Replay.paused),
    ("FAULT A is killed", Replay.killed),
    ("FAULT A appends", Replay.append_reply_lost),
    ("FAULT A's append waits", Replay.append_is_late),
    ("A appends", Replay.appends),
    ("the late append is executed", Replay.late_executed),
    ("the late append is dropped", Replay.late_dropped),
    ("the hold is over", Replay.hold_over),
    ("A renews", Replay.renews),
    ("A makes the stream again", Replay.makes_again),
    ("FAULT A does not reach", Replay.cut_off),
    ("A reaches the store again", Replay.reaches_again),
    ("FAULT the store is away", Replay.away),
    ("the store is back for a lease", Replay.back_for_a_lease),
    ("the store is back", Replay.back),
    ("the lease lapses", Replay.lapses),
    ("FAULT failover", Replay.failover),
    ("FAULT the store comes back empty", Replay.failover),
    ("a forced end", Replay.forced_end),
    ("B's tail subscribes and reads", Replay.subscribes),
    ("B's tail takes the page", Replay.takes_page),
    ("B's tail cannot be opened", Replay.cannot_open),
    ("B's tail reads", Replay.tail_reads),
    ("B's tail checks", Replay.tail_checks),
    ("another reader comes", Replay.other_comes),
    ("the other reader leaves", Replay.other_leaves),
    ("FAULT the message to B is lost", Replay.nothing),
    ("FAULT the client's connection breaks", Replay.breaks),
    ("resume at", Replay.resumes_on_a),
    ("B: ", Replay.decides),
    ("B reads the first page", Replay.reads_first_page),
]


def _handler(name: str) -> _Handler:
    if name.startswith("resume") and name.endswith("B looks"):
        return Replay.looks
    for prefix, handler in _HANDLERS:
        if name.startswith(prefix):
            return handler
    if name.endswith("then its connection breaks"):
        return Replay.gets_and_breaks
    if name.endswith(": cut"):
        return Replay.is_cut
    if name.endswith("the end"):
        return Replay.told_the_end
    if "feed is closed" in name:
        return Replay.nothing
    assert "client gets" in name, name
    return Replay.gets


def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands between the code and the trace."""
    monkeypatch.setattr(tail_module, "ShardSubscriptions", Subscriptions)
    monkeypatch.setattr(reader_module, "_WRITE_BYTES", 1)  # the model's client gets events one by one
