"""How long an upstream may be silent while its stream is read: its limits, on one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from relay import timers
from relay.config import Timeouts
from relay.upstream.reading import READ_FIRST


def _nothing(message: str) -> None: ...


class Silence:
    """Calls `on_exceeded` with what was exceeded, once, unless it is closed before.

    Its owner keeps up to date when bytes came (`heard`; of bytes that brought an event only the next is), when an event
    did (`event_at`), and whether a token did. `asked` is the loop's time at which the upstream was sent the request.
    """

    def __init__(self, timeouts: Timeouts, asked: float, on_exceeded: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeouts = timeouts
        self._asked = asked
        self._on_exceeded = on_exceeded
        self._timer: timers.Timer | None = None
        self._paused_at: float | None = None
        self.heard = self.event_at = self._loop.time()
        self.has_token = False

    def listen(self) -> None:
        """The timer is armed again only when it fires. A limit that is over is exceeded once the sockets were read: a
        process that was paused wakes up to its timers first."""
        due, _ = self._next_limit()
        if self._loop.time() >= due:
            self._timer = timers.call_later(READ_FIRST, self._give_up)
        else:
            self._timer = timers.call_at(due, self.listen)

    def close(self) -> None:
        """Let go of its owner."""
        self._on_exceeded = _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause(self, paused: bool) -> None:
        """The upstream is made to wait, or may go on. The time until then does not count."""
        now = self._loop.time()
        if paused and self._paused_at is None:
            self._paused_at = now
        elif not paused and self._paused_at is not None:
            self.heard = self.event_at = now
            self._asked += now - self._paused_at
            self._paused_at = None

    def _give_up(self) -> None:
        due, message = self._next_limit()
        if self._loop.time() < due:
            self.listen()
        else:
            self._on_exceeded(message)

    def _next_limit(self) -> tuple[float, str]:
        """When the upstream will have exceeded a limit, and which."""
        limits = self._timeouts
        idle, stall, first = limits.upstream_idle_timeout, limits.upstream_stall_timeout, limits.first_token_timeout
        dues = [
            (max(self.heard, self.event_at) + idle, "nothing for upstream_idle_timeout", idle),
            (self.event_at + stall, "no event for upstream_stall_timeout", stall),
        ]
        if not self.has_token:
            dues.append((self._asked + first, "no output within first_token_timeout", first))
        due, what, seconds = min(dues)
        paused = 0.0 if self._paused_at is None else self._loop.time() - self._paused_at
        return due + paused, f"The upstream sent {what} ({seconds:g} s)."
