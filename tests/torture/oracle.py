"""What one client may see of one generation, over all its connections. No I/O.

A witness is told of every answer, event and end that its client gets, and raises a Violation at the first that breaks
the promise: a hole, a double, another generation's event, changed bytes, a number that is not the event's, something
behind an end, an end that is none. Whether an end or a refusal was called for is judged later (`judging`).
"""

from __future__ import annotations

from typing import NamedTuple

from relay.protocol.ids import EventId
from tests.torture.generation import DONE, Frame, Generation, Spec, closing, marked

# Replicas from before the ends' own ids number their ends like events.
ENDS_HAVE_IDS = "end" in EventId._fields
# On responses a 429 that comes late is told twice: in the relay's word, and in the one that clients retry at.
LATE_429 = ("upstream_refused", "rate_limit_exceeded")


class Event(NamedTuple):
    """One event as a client got it."""

    id: str | None
    type: str | None
    data: str


class Violation(Exception):
    """The promise is broken: which part of it, and how."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class Witness:
    """`calls` knows the call of each stream, for all witnesses together: a stream is one generation for everybody."""

    def __init__(self, spec: Spec, calls: dict[str, int]) -> None:
        self.spec = spec
        self.stream: str | None = None
        self.logged = True
        self.n = 0
        """How many of the generation's events have been seen."""
        self.end: str | None = None
        """How the stream ended: `complete`, `upstream_error`, or what the relay told."""
        self.last_id: str | None = None
        self.generation: Generation | None = None
        self.first = 1
        """The number of the first event that it has asked for."""
        self._told: str | None = None
        self._ended_by_upstream = False
        self._calls = calls

    @property
    def call(self) -> int | None:
        return None if self.generation is None else self.generation.call

    def watch(self, stream: str, after: int) -> None:
        """Begin in the middle: as one who has been told of the stream by somebody else."""
        self.stream = stream
        self.n = after
        self.first = after + 1
        self.last_id = f"{stream}.{after}"

    def restart(self) -> None:
        """The client throws away what it has and reads from the start."""
        self.__init__(self.spec, self._calls)  # type: ignore[misc]

    def answered(self, stream: str, *, resumable: bool) -> None:
        """A 200 with a stream, which goes on after the last id, or from the start."""
        if self.stream is None:
            self.stream = stream
            self.logged = resumable
            self.last_id = f"{stream}.0"
        elif stream != self.stream:
            raise Violation("splice", f"asked for {self.stream}, was given {stream}")
        self._told = None

    def take(self, event: Event) -> None:
        generation = self._generation(event)
        due = None
        if generation is not None and event.data == DONE and event.id == f"{self.stream}.{self.n}e":
            # A stop between the last chunk and the upstream's own [DONE] has nothing else to say.
            self._told = self._told or ("stopped" if self.n == generation.total - 1 else None)
        if generation is not None and self._told is None and self.n < generation.total:
            due = generation.frame(self.n + 1)
        if generation is not None and due == (event.type, event.data):
            self._next(generation, event)
            return
        found = closing(self.spec.api, event.type, event.data)
        if found is None:
            raise self._wrong(event)
        self._close(event, found.code, last=found.last)

    def ended_cleanly(self) -> None:
        """The body has ended as if it were whole."""
        if self.end is None and not self._error_was_last():
            raise Violation("truncation", f"a clean end without a last event, after {self.last_id} (n={self.n})")

    def nothing_missing(self) -> None:
        """A 204: the client has it all."""
        if self.end is None and not self._error_was_last():
            raise Violation("truncation", f"204 though no end was seen, after {self.last_id} (n={self.n})")

    def _error_was_last(self) -> bool:
        """The upstream's error event is an end that every client is told, also where its producer was lost before the
        [DONE] that follows it came."""
        generation = self.generation
        if generation is None or generation.end != "upstream_error" or self.n != generation.total - 1:
            return False
        if generation.frame(generation.total).data != DONE:
            return False
        self.end = generation.end
        return True

    def _generation(self, event: Event) -> Generation | None:
        if self.generation is None:
            assert self.stream is not None
            call = self._calls.get(self.stream)
            if call is None:
                found = marked(event.data) if closing(self.spec.api, event.type, event.data) is None else None
                if found is None:
                    return None
                call = self._calls[self.stream] = found[0]
            self.generation = Generation(self.spec, call)
        return self.generation

    def _next(self, generation: Generation, event: Event) -> None:
        if self.end is not None:
            raise Violation("after_end", f"event {self.n + 1} after the end {self.end!r}")
        self.n += 1
        if event.id is None:
            if self.logged:
                raise Violation("no_id", f"event {self.n} came without an id, on a stream that is said to be resumable")
        elif event.id != f"{self.stream}.{self.n}":
            raise Violation("wrong_id", f"event {self.n} came as {event.id}")
        else:
            self.last_id = event.id
        if self.n == generation.total and generation.end is not None:
            self.end = generation.end
            self._ended_by_upstream = True

    def _close(self, event: Event, code: str, *, last: bool) -> None:
        if self._ended_by_upstream:
            raise Violation("after_end", f"{event.data[:200]!r} after the upstream's own end, {self.end!r}")
        if self._told is None and not code:
            raise Violation("truncation", f"{event.data!r} after event {self.n}, which is not the last")
        told = self._told = self._told or code
        if code and code != told and (told, code) != LATE_429:
            raise Violation("two_ends", f"{code!r} inside the end {told!r}")
        if self.end is not None and self.end != told:
            raise Violation("two_ends", f"the end was {self.end!r}, and is told again as {told!r}")
        if ENDS_HAVE_IDS and self.logged:
            wanted = f"{self.stream}.{self.n}e" if last else None
            if event.id != wanted:
                raise Violation("wrong_id", f"a frame of the end {told!r} after event {self.n} came as {event.id}")
        if last:
            self.end = told
        self.last_id = event.id or self.last_id

    def _wrong(self, event: Event) -> Violation:
        generation, wanted = self.generation, self.n + 1
        found = marked(event.data)
        seen = f"event {wanted} was due, {event.id} came with {event.data[:160]!r}"
        if self._told is not None:
            return Violation("after_end", f"inside the end {self._told!r}: {seen}")
        if found is None or generation is None:
            return Violation("payload", seen)
        call, n = found
        if call != generation.call:
            return Violation("splice", f"{seen}, of call {call} and not {generation.call}")
        if n > wanted:
            return Violation("hole", seen)
        if n < wanted:
            return Violation("double", seen)
        frame: Frame = generation.frame(n)
        return Violation("payload", f"{seen} instead of {frame.data[:160]!r}")
