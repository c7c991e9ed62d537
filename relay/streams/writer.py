"""A producer's side of its stream's log: every frame, which of them the log holds, and which of them readers are shown.

It is a table, (state, what the store said) -> (state, effect), and knows no task and no clock. The states:

* WRITING: an event is shown once the log holds it.
* AHEAD: the store has been away for `store.hold`, and events are shown before the log holds them, with their ids: the
  writer has every frame, and the log gets what is missing once the store is back.
* ENDED: the log holds the end. FENCED: another replica has ended the stream, or has taken it over. Nothing changes
  any more.
* UNLOGGED: a stream that has no log. What its one reader has taken is forgotten.

Promise: ids are given once and never taken back, whatever the store loses.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from relay.encryption import UNBOUND, Binding
from relay.metrics import Meter
from relay.protocol.end_mark import End
from relay.protocol.legs import Offsets
from relay.protocol.outcomes import Cause, StreamFailure
from relay.store import scripts
from relay.store.link import pack_arguments
from relay.store.log import Log
from relay.streams.ahead import Ahead
from relay.streams.entries import EntryWriter
from relay.streams.feed import Feed
from relay.streams.listener import Listener as Listener
from relay.streams.listener import Nobody

WRITING: Final = "writing"
AHEAD: Final = "ahead"
ENDED: Final = "ended"
FENCED: Final = "fenced"
UNLOGGED: Final = "unlogged"
STATES = (WRITING, AHEAD, ENDED, FENCED, UNLOGGED)

FIRST_FENCE: Final = "1"  # of a stream that nobody has taken over

# What the store says: the codes of append.lua and renew.lua, OK_END where the end went along, AWAY where it has said
# nothing for `store.hold`.
OK: Final = scripts.OK
OK_END: Final = -1
MISMATCH: Final = scripts.MISMATCH
GONE: Final = scripts.GONE
AWAY: Final = -2
REPLIES = (OK, OK_END, MISMATCH, scripts.FENCED, GONE, AWAY)

NOTHING: Final = "nothing"
ADVANCE: Final = "advance"  # the log holds what was sent: show it
END: Final = "end"  # and the end with it
REWIND: Final = (
    "rewind"  # the log holds more than was known (a reply was lost) or less (entries were): go on from there
)
REMAKE: Final = "remake"  # the store came back without the stream: make it again and write all of it
CLOSE: Final = "close"  # readers take the rest from the log, the producer stops
SHOW: Final = "show"  # show all there is

TRANSITIONS: dict[tuple[str, int], tuple[str, str]] = {
    (WRITING, OK): (WRITING, ADVANCE),
    (WRITING, OK_END): (ENDED, END),
    (WRITING, MISMATCH): (WRITING, REWIND),
    (WRITING, GONE): (WRITING, REMAKE),
    (WRITING, scripts.FENCED): (FENCED, CLOSE),
    (WRITING, AWAY): (AHEAD, SHOW),
    (AHEAD, OK): (WRITING, ADVANCE),
    (AHEAD, OK_END): (ENDED, END),
    (AHEAD, MISMATCH): (WRITING, REWIND),
    (AHEAD, GONE): (AHEAD, REMAKE),
    (AHEAD, scripts.FENCED): (FENCED, CLOSE),
    (AHEAD, AWAY): (AHEAD, SHOW),
    **{(state, reply): (state, NOTHING) for state in (ENDED, FENCED, UNLOGGED) for reply in REPLIES},
}

_RETRY_MILLIS = (500, 2500)
# How much an unlogged stream may run ahead of its reader.
_UNLOGGED_AHEAD = 1 << 20
# How much a logged stream may run ahead of its log while that answers: seconds of what a model says. With more,
# upstreams that send as fast as they can would be read whole before any of it is shown.
_HELD_BACK = 256 << 10


class LogWriter:
    """`feed` has every frame, of which the log is known to hold the first `acked`. `queued` is the commit's mark.
    `offsets` are those of a relay upstream, None where another replica does not need them; `visits` is how often
    readers have come on other replicas, once the log holds the end."""

    __slots__ = (
        "_ahead",
        "_binding",
        "_dropped",
        "_first_token_n",
        "_id",
        "_last_token",
        "_log",
        "_max_bytes",
        "_size",
        "_submit",
        "_waits",
        "acked",
        "end",
        "entries",
        "feed",
        "fence",
        "held",
        "keys",
        "listener",
        "meter",
        "offsets",
        "outcome",
        "packed_keys",
        "queued",
        "state",
        "stream",
        "unacked",
        "visits",
    )

    def __init__(
        self,
        stream: str,
        log: Log,
        listener: Listener,
        *,
        submit: Callable[[LogWriter], None],
        meter: Meter,
        ahead: Ahead,
        max_bytes: int,
        logged: bool = True,
        fence: str = FIRST_FENCE,
        binding: Binding = UNBOUND,
    ) -> None:
        self.feed = Feed()
        self.fence = fence
        self.listener = listener
        self.acked = 0
        self.unacked = 0
        self.end: End | None = None
        self.outcome = ""
        self.queued = False
        self.visits = 0
        self.held = False  # nothing is to be appended yet: the stream is being made again, or a name of its own
        self.state = WRITING if logged else UNLOGGED
        self.offsets: Offsets | None = None
        self._submit = submit
        self.meter = meter
        self._waits = False  # has the upstream been told to wait?
        self._ahead = ahead
        self._dropped = False  # the one reader of a stream without a log has gone
        self._max_bytes = max_bytes
        self._size = 0
        self._last_token: float | None = None
        self._first_token_n = 0  # the event that carries the first token, until it is shown
        self._binding = binding
        self._name(stream, log)

    def _name(self, stream: str, log: Log) -> None:
        self.stream = stream
        self._log = log
        self.keys = (log.names.log(stream), log.names.meta(stream))
        self.packed_keys = pack_arguments(*self.keys)
        self.entries = EntryWriter(log, stream, self._binding)
        self._id = stream.encode() + b"."

    def take_over(self, fence: str, frames: list[bytes], offsets: Offsets) -> None:
        """Before its first event: the log has these frames of another replica's."""
        self.fence = fence
        self.feed.frames += frames
        self.feed.top = self.acked = len(frames)
        self._size = sum(map(len, frames))
        self.offsets = offsets

    def know_offset(self, theirs: int) -> None:
        """A relay upstream has given this number to the last event."""
        if self.offsets is None:
            self.offsets = Offsets()
        self.offsets.know(self.last, theirs)

    def note(self, upto: int) -> str | bytes:
        """What the log is to note with the events up to this one of where the upstream stands."""
        note = "" if self.offsets is None else self.offsets.note(upto)
        return self._log.note_at_rest(self.stream, note, self._binding) if note else ""

    def go_unlogged(self, stream: str, log: Log) -> None:
        """Before its first event: the stream has no log, and a name that says so."""
        self.state = UNLOGGED
        self._name(stream, log)

    @property
    def last(self) -> int:
        """The number of the last event."""
        return self.feed.base + len(self.feed.frames)

    # -- events, as the upstream sends them -----------------------------------------------------------------

    def append(self, block: bytes, has_token: bool = False) -> None:
        """The next event: its lines and its blank line. Raises StreamFailure."""
        feed = self.feed
        frames = feed.frames
        if self.state == UNLOGGED:
            frame = block
        elif frames:
            frame = b"id: %b%d\n%b" % (self._id, feed.base + len(frames) + 1, block)
        else:
            # Clients of a replica that dies come back spread out. Never in a block of its own: a lone retry
            # kills some clients.
            retry = random.uniform(*_RETRY_MILLIS)
            frame = b"id: %b%d\nretry: %d\n%b" % (self._id, feed.base + 1, retry, block)
        size = len(frame)
        self._size += size
        if self._size > self._max_bytes and self.state != UNLOGGED:
            raise StreamFailure(Cause.STREAM_TOO_LARGE)
        self.unacked += size
        frames.append(frame)
        if has_token:
            now = time.monotonic()
            if self._last_token is None:
                self._first_token_n = self.last
            else:
                self.meter.gap(now - self._last_token)
            self._last_token = now

    def had_token(self) -> None:
        """Another replica has shown the first one."""
        self._last_token = time.monotonic()

    def publish(self) -> None:
        """That is all for now: hand it to the commit, or show it."""
        state = self.state
        if state == WRITING:
            if not self.queued and not self.held and (self.unacked or self.outcome):
                self._submit(self)
            if self.unacked > _HELD_BACK:
                self.balance()
        elif state == AHEAD:
            self._show_all()
            if not self.held:
                self._submit(self)
        elif state == UNLOGGED:
            self._show_all()
            if self._dropped:
                self.consumed(self.last)

    def finish(self, end: End) -> None:
        """There are no more events."""
        self.end = end
        self.outcome = end.outcome
        self.publish()

    def end_content(self, n: int, usage: str) -> tuple[str, bytes]:
        """The usage that the stream's hash has, and what the log's end mark after event n holds."""
        assert self.end is not None
        return self.entries.end(n, self.end, usage)

    def release(self) -> None:
        """It may be appended to now."""
        self.held = False
        self.publish()

    def close(self) -> None:
        """Its producer is gone, whether the log holds the end or not."""
        if self.state in (WRITING, AHEAD):
            self.state = FENCED
        self._ahead.set(self, 0)
        self.listener = Nobody()

    def made_again(self) -> None:
        """The stream is in the store again, with none of its events."""
        self._rewind(0)
        self.release()

    # -- the store's replies ----------------------------------------------------------------------------------

    def on_append_result(self, code: int, top: int, sent: int, ended: bool) -> bool:
        """The log's answer to frames up to `sent` (`ended`: with the end mark). True where there is more to append."""
        if code == OK and not ended and self.state == WRITING:
            self._advance(sent)
        else:
            self._reply(OK_END if code == OK and ended else code, top, sent)
        more = self.unacked > 0 or bool(self.outcome)
        return more and not self.held and self.state in (WRITING, AHEAD)

    def on_renewed(self, code: int, top: int) -> None:
        """A renewal's answer. The log may have lost events that it had acknowledged, which nobody else would notice
        before the upstream's next event; an append that is on its way has an answer of its own."""
        if code != OK:
            self._reply(code, top, 0)
        elif top < self.acked and not self.queued and not self.held and self.state == WRITING:
            self._reply(MISMATCH, top, 0)
            self.publish()

    def on_store_away(self) -> None:
        """The store has said nothing for `store.hold`."""
        self._reply(AWAY, 0, 0)

    def _reply(self, reply: int, top: int, sent: int) -> None:
        before = self.state
        self.state, effect = TRANSITIONS[before, reply]
        if effect == ADVANCE:
            self._advance(sent)
        elif effect == REWIND:
            self._rewind(top)
        elif effect == SHOW:
            self._show_all()
        elif effect == END:
            self._advance(sent)
            self._show_end()
            self.listener.on_end_persisted()
        elif effect == CLOSE:
            self.feed.close()
            self.listener.on_fenced()
        elif effect == REMAKE and not self.held:
            self.held = True
            self.listener.on_log_gone()
        if before == AHEAD and self.state != AHEAD:
            self._ahead.set(self, 0)
            self.balance()

    def _advance(self, sent: int) -> None:
        feed = self.feed
        if sent - feed.base == len(feed.frames):
            self.unacked = 0
        else:
            self.unacked -= sum(map(len, feed.frames[self.acked - feed.base : sent - feed.base]))
        self.acked = sent
        if self._waits:
            self.balance()
        self._show(sent)

    def _rewind(self, top: int) -> None:
        self.entries.forget()
        self.acked = min(top, self.last)
        self.unacked = sum(map(len, self.feed.frames[self.acked - self.feed.base :]))
        self.balance()
        self._show(self.acked)

    # -- what readers see ---------------------------------------------------------------------------------------

    def _show_all(self) -> None:
        self._show(self.last)
        if self.end is not None:
            self._show_end()
        self.balance()

    def _show(self, upto: int) -> None:
        feed = self.feed
        if upto > feed.top:
            self.meter.events += upto - feed.top
            if self._first_token_n and upto >= self._first_token_n:
                self._first_token_n = 0
                self.listener.on_first_token()
            feed.advance(upto)

    def _show_end(self) -> None:
        if self.feed.end is None and self.end is not None:
            self.listener.on_end_shown()
            self.feed.finish(self.end)

    def consumed(self, upto: int) -> None:
        """A reader has taken events; what the one reader of a stream without a log has taken is forgotten."""
        if self.state == UNLOGGED:
            self.feed.forget(upto)
            if self._waits:
                self.balance()

    def drop(self) -> None:
        """Nobody will take the events of a stream without a log any more."""
        self._dropped = True
        self.consumed(self.last)

    def balance(self) -> None:
        """What is held back for a store is bounded, and so is what is shown ahead of it; without a log nobody but the
        one reader wants the events. Beyond the bounds the upstream waits."""
        if self.state == WRITING:
            wait = self.unacked > _HELD_BACK
        elif self.state == AHEAD:
            self._ahead.set(self, self.unacked)
            wait = self._ahead.full
        elif self.state == UNLOGGED:
            wait = sum(map(len, self.feed.frames)) > _UNLOGGED_AHEAD
        else:
            wait = False
        if wait != self._waits:
            self._waits = wait
            self.listener.on_pressure(wait)
