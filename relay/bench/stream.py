"""One stream as the generator reads it: every event's number is checked and its delay noted.

The cost per event decides how much load one core can make, so the whole of it is in `Check.feed`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

from relay.bench.http import BadResponse, Response
from relay.bench.wire import STAMP, Api

_KEPT = 64
"""Bytes behind the last stamp that are looked at again with the next read: a stamp or a mark may be cut."""
_ERROR = re.compile(rb'"error"\s*:\s*[^n\s]|event:\s*error')
_SAMPLES = 5
ERRORS = ("missing", "doubled", "out_of_order", "foreign", "wrong_end", "refused", "repeated")
"""`foreign`: of another stream. `repeated`: generations that the upstream was asked for beyond the requests made."""


@dataclass(slots=True)
class Tally:
    """What all streams of one job add up to."""

    events: int = 0
    """Events that arrived, each counted once."""
    body_bytes: int = 0
    streams: int = 0
    """Streams that were accepted and are over."""
    expected: int = 0
    """Events that the accepted streams should have had."""
    recording: bool = False
    """Whether delays are noted now."""
    delays: list[int] = field(default_factory=list)
    """Nanoseconds from the upstream's write to the generator's read."""
    first: list[int] = field(default_factory=list)
    """Nanoseconds from a request to its first event."""
    first_byte: list[int] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    """Nanoseconds from a request to the end of its answer."""
    errors: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)

    def sample(self, text: str) -> None:
        if len(self.samples) < _SAMPLES and text not in self.samples:
            self.samples.append(text)


def histogram(nanoseconds: list[int]) -> dict[int, int]:
    """How many there are of each microsecond."""
    return Counter([value // 1000 for value in nanoseconds])


class Check:
    """The events of one stream, in the order in which they come."""

    def __init__(self, tally: Tally, api: Api, stream: int, length: int, keep: bytearray | None = None) -> None:
        self.any = False
        self.keep = keep
        """Gets the whole body, where it is wanted."""
        self.ended_well = False
        self._tally = tally
        self._length = length
        self._stream = b"%06d" % stream
        self._over_mark, self._terminal = api.over, api.terminal
        self._next = 1
        self._skipped: set[int] = set()
        self._rest = b""
        self._over = False
        self._failed = False

    def feed(self, body: bytes, now: int) -> None:
        if self.keep is not None:
            self.keep += body
        data = self._rest + body if self._rest else body
        counted = b"" if self._over else data
        if not self._over and (over := data.find(self._over_mark)) >= 0:
            self._over = True
            counted = data[:over]
        found = STAMP.findall(counted)
        if found:
            tally = self._tally
            self.any = True
            fresh = len(found)
            for stream, digits, _ in found:
                number = int(digits)
                if number == self._next <= self._length and stream == self._stream:
                    self._next = number + 1
                else:
                    fresh -= self._odd(stream, number)
            tally.events += fresh
            if tally.recording:
                tally.delays += [now - int(sent) for _, _, sent in found]
            stamp = b":".join(found[-1])
            data = data[data.rfind(stamp, 0, len(counted)) + len(stamp) :]
        if self._terminal in data:
            self.ended_well = True
        if b"error" in data and (error := _ERROR.search(data)):
            self._failed = True
            self._tally.sample(f"an error in the stream: {data[error.start() : error.start() + 300]!r}")
        self._rest = data[-_KEPT:]

    def _odd(self, stream: bytes, number: int) -> int:
        """An event that is not the next one: 1 where it is none of this stream's events that were missing."""
        errors = self._tally.errors
        if stream != self._stream or not 1 <= number <= self._length:
            errors["foreign"] += 1
            return 1
        if number > self._next:
            self._skipped.update(range(self._next, number))
            self._next = number + 1
            return 0
        if number in self._skipped:
            self._skipped.remove(number)
            errors["out_of_order"] += 1
            return 0
        errors["doubled"] += 1
        return 1

    def end(self, whole: bool) -> None:
        """The connection's part is over; `whole`: as its HTTP head had announced."""
        missing = len(self._skipped) + self._length - self._next + 1
        errors = self._tally.errors
        errors["missing"] += missing
        if not (whole and self.ended_well) or self._failed:
            errors["wrong_end"] += 1
            self._tally.sample(
                f"a stream ended {'whole' if whole else 'cut off'}, "
                f"{'with' if self.ended_well else 'without'} its terminal event, {missing} events missing"
            )


class Again:
    """A stream that is read once more: compared, byte by byte, with its body when its numbers were checked, so that not
    the generator but the gateway decides how fast it goes. Its numbers are checked where it differs."""

    def __init__(self, check: Check, known: bytes, length: int, tally: Tally) -> None:
        self.any = False
        self._check = check
        self._known = known
        self._length = length
        self._tally = tally
        self._at = 0
        self._differs = False

    def feed(self, body: bytes, now: int) -> None:
        self.any = True
        if not self._differs:
            if self._known.startswith(body, self._at):
                self._at += len(body)
                return
            self._differs = True
            body = self._known[: self._at] + body
        self._check.feed(body, now)

    def end(self, whole: bool) -> None:
        if whole and not self._differs and self._at == len(self._known):
            self._tally.events += self._length
            return
        if not self._differs:
            self._check.feed(self._known[: self._at], time.monotonic_ns())
        self._check.end(whole)


class Reader(asyncio.Protocol):
    """One connection: sends requests, one after the other, and checks the stream that answers each."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.response = Response()
        self._check: Check | Again | None = None
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self.began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done with the first event, or at the end of an answer without one."""
        self._asked = 0
        self._begun = False
        self._length = 0
        self._refusal = b""

    @property
    def open(self) -> bool:
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclass of it

    def ask(self, request: bytes, check: Check | Again, length: int, asked: int | None = None) -> asyncio.Future[None]:
        """Send a request; the future is done when its answer is over. `asked`: when it was due (now)."""
        assert self._transport is not None
        self.response = Response()
        self._check, self._length = check, length
        self._begun, self._refusal = False, b""
        loop = asyncio.get_running_loop()
        self._done, self.began = loop.create_future(), loop.create_future()
        self._asked = asked or time.monotonic_ns()
        self._transport.write(request)
        return self._done

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        check = self._check
        if check is None or self._done is None:
            return
        try:
            body = self.response.feed(data)
        except BadResponse as error:
            self.tally.sample(str(error))
            self._finish(False)
            return
        if body and self.response.status == 200:
            tally = self.tally
            if not self._begun:
                self._begun = True
                tally.first_byte.append(now - self._asked)
            tally.body_bytes += len(body)
            had_any = check.any
            check.feed(body, now)
            if check.any and not had_any:
                tally.first.append(now - self._asked)
                self.began.set_result(None)
        elif body:
            self._refusal += body[: 300 - len(self._refusal)]
        if self.response.whole:
            self._finish(True)

    def eof_received(self) -> None:
        self.response.eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.response.eof()
        self._finish(self.response.whole)

    def _finish(self, whole: bool) -> None:
        if self._done is None or self._done.done():
            return
        assert self._check is not None
        tally = self.tally
        if self.response.status == 200:
            tally.streams += 1
            tally.expected += self._length
            tally.whole.append(time.monotonic_ns() - self._asked)
            self._check.end(whole)
        else:
            tally.errors["refused"] += 1
            status = f"status {self.response.status}" if self.response.status else "closed without an answer"
            tally.sample(f"refused: {status} {self._refusal.decode(errors='replace')}".rstrip())
        self._check = None
        if not self.began.done():
            self.began.set_result(None)
        self._done.set_result(None)
        if self.response.headers.get(b"connection", b"").lower() == b"close" or not whole:
            self.close()
