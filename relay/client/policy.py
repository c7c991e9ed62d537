"""When to try again, and when to give up. No I/O: the caller does the waiting."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

logger = logging.getLogger("relay.client")

STEADY_CONNECTION = 5.0
"""Seconds that a connection must have lived for its heartbeats to be progress."""

Bound = Literal["max_attempts", "max_elapsed", "deadline"]


@dataclass(frozen=True, slots=True)
class Moment:
    """What a callback is told of a stream. It holds no credential and no text of the answer."""

    stream: str
    """The value of `Relay-Stream-Id`."""
    last_event_id: str
    """The last event that was handed out."""
    attempts: int
    """Tries since the last new event."""
    elapsed: float
    """Seconds since the outage began."""
    why: str
    """What cut the stream, or ended the tries; empty where it goes on."""


Callback = Callable[[Moment], None]


@dataclass(frozen=True)
class Policy:
    """What a transport's user may set. All times are seconds. Only a new event is progress and begins the tries anew,
    or a heartbeat on a connection that has lived for a while."""

    max_attempts: int | None = None
    """Tries without progress. None: more than fit into `max_elapsed`, so that the time is what ends an outage."""
    max_elapsed: float = 120.0
    """How long one outage may last; a wait that would go beyond it is not begun."""
    deadline: float | None = None
    """How long the whole stream may take, from its request on. None: as long as it takes."""
    first_delay: float = 0.5
    """The wait before try n is random, up to this times 2 to the n-1 …"""
    longest_delay: float = 15.0
    """… or this; never less than what `retry:` or `Retry-After` say."""
    silence: float | None = 60.0
    """A connection to a relayed stream that brings nothing for so long is dead. A shorter read time-out of the request
    goes first; neither counts below twice the heartbeat that the relay announces."""
    max_event_bytes: int = 16 * 2**20
    """The largest event; above the relay's `streams.max_event_bytes`."""
    stop_on_abort: bool = False
    """True: a response that is closed before its stream's end has the generation stopped (`DELETE /streams/{id}`)."""
    assume_relay: bool = False
    """True: every address is a relay's before it has proved it, so the first POST has an Idempotency-Key too."""
    on_cut: Callback | None = None
    """Called when a connection ended before the stream did."""
    on_resume: Callback | None = None
    """Called when the stream goes on over another connection."""
    on_gave_up: Callback | None = None
    """Called before ResumeFailed is raised. What a callback raises is logged and goes no further."""
    clock: Callable[[], float] = time.monotonic
    random: Callable[[], float] = random.random

    @property
    def most_attempts(self) -> float:
        """What `max_attempts` stands for. Without a number there is one all the same: a server that answers and sends
        nothing begins a new outage each time."""
        if self.max_attempts is not None:
            return self.max_attempts
        return max(40.0, 5 * self.max_elapsed / max(self.longest_delay, 1.0))


class Counters:
    """What a transport has seen since it was made. Threads may share it."""

    def __init__(self) -> None:
        self.streams = 0
        """Resumable streams begun."""
        self.cuts = 0
        """Connections that ended before their stream."""
        self.attempts = 0
        """Resumes sent."""
        self.resumes = 0
        """Resumes answered with the rest of the stream."""
        self.gave_up = 0
        """Streams that ended with ResumeFailed."""
        self._lock = threading.Lock()

    def count(self, name: str) -> None:
        """Add one to the counter of that name."""
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)


def notify(callback: Callback | None, moment: Moment) -> None:
    """Call a user's callback, if there is one; what it raises is logged and goes no further."""
    if callback is None:
        return
    try:
        callback(moment)
    except Exception:
        logger.exception("a callback failed for stream %s", moment.stream)


class RetryBudget:
    """The tries and the time that are left, for one request and its stream. Times are seconds of the policy's clock."""

    def __init__(self, policy: Policy) -> None:
        self.attempts = 0
        """Tries since the last progress."""
        self.exhausted: Bound | None = None
        """The bound that allowed no further try."""
        self._policy = policy
        self._since: float | None = None
        self._ends = None if policy.deadline is None else policy.clock() + policy.deadline
        self._at_once = True

    @property
    def elapsed(self) -> float:
        """Seconds since the outage began, 0 where there is none."""
        return 0.0 if self._since is None else self._policy.clock() - self._since

    @property
    def remaining(self) -> float | None:
        """Seconds to the deadline of the whole stream, None where there is none."""
        return None if self._ends is None else self._ends - self._policy.clock()

    @property
    def deadline_passed(self) -> bool:
        """Has the deadline of the whole stream passed?"""
        remaining = self.remaining
        if remaining is None or remaining > 0:
            return False
        self.exhausted = "deadline"
        return True

    def on_event(self) -> None:
        """A new event has come: all tries are there again, and the next clean end may be asked about at once."""
        self.on_sign_of_life()
        self._at_once = True

    def on_sign_of_life(self) -> None:
        """The server has shown for a while that the stream lives."""
        self.attempts = 0
        self.end_outage()

    def end_outage(self) -> None:
        """A connection has lived for a while: what follows is another outage, but nothing was gained."""
        self._since = None

    def next_wait(self, retry_after: float, *, reconnection_time: float = 0.0, at_once: bool = False) -> float | None:
        """Seconds to wait before one more try; None, and `exhausted` says why, where it is time to give up.

        A `reconnection_time` that is longer than the time left shortens to it for a first try, because giving up
        without one would lose a stream that is there.

        Args:
            retry_after: seconds that a response asks for, 0 where it does not (RFC 9110, section 10.2.3).
            reconnection_time: seconds that the stream's `retry:` asks for (WHATWG HTML, section 9.2.6).
            at_once: no wait of the client's own is needed; granted once for each new event.
        """
        policy = self._policy
        if self._since is None:
            self._since = policy.clock()
        if self.deadline_passed:
            return None
        if self.attempts >= policy.most_attempts:
            self.exhausted = "max_attempts"
            return None
        most = min(policy.longest_delay, policy.first_delay * 2.0 ** min(self.attempts, 60))
        own = 0.0 if at_once and self._at_once else policy.random() * most
        left, bound = self._time_left()
        wait = max(own, retry_after, reconnection_time)
        if wait > left and not self.attempts and max(own, retry_after) <= left:
            wait = left
        if wait > left:
            self.exhausted = bound
            return None
        self._at_once = self._at_once and not at_once
        self.attempts += 1
        return wait

    def _time_left(self) -> tuple[float, Bound]:
        left = self._policy.max_elapsed - self.elapsed
        remaining = self.remaining
        if remaining is not None and remaining < left:
            return remaining, "deadline"
        return left, "max_elapsed"


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that a response asks for (RFC 9110, section 10.2.3), 0 where it asks for nothing that can be read.

    A date counts from the response's own `Date`, if it has one.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value).timestamp()
        date = headers.get("date")
        now = parsedate_to_datetime(date).timestamp() if date else time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, until - now)


def heartbeat_interval(headers: Mapping[str, str]) -> float | None:
    """The seconds between signs of life that the relay announces (`Relay-Heartbeat`), None where it does not."""
    value = headers.get("relay-heartbeat", "")
    try:
        seconds = float(value) if len(value) < 16 else 0.0
    except ValueError:
        return None
    return seconds if 0 < seconds <= 3600 else None
