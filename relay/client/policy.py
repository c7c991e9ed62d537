"""When to try again, and when to give up. No I/O: the caller does the waiting."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class Policy:
    """What a transport's user may set. An event or a heartbeat that arrives is progress and begins everything anew."""

    max_attempts: int = 10
    """Attempts since the last progress."""
    max_elapsed: float = 120.0
    """Seconds since the relay was last reached; a wait that would go beyond them is not begun."""
    first_delay: float = 0.5
    """The wait before attempt n is random, up to this times 2 to the n-1 …"""
    longest_delay: float = 15.0
    """… or this; never less than what `retry:` or `Retry-After` say."""
    silence: float | None = 60.0
    """A connection to a relayed stream that brings nothing for so long is dead; above the relay's
    `streams.heartbeat`. A shorter read time-out of the request goes first."""
    assume_relay: bool = False
    """True: every address is a relay's before it has proved it, so the first POST has an Idempotency-Key too."""
    clock: Callable[[], float] = time.monotonic
    random: Callable[[], float] = random.random


class Patience:
    """The attempts of one outage."""

    def __init__(self, policy: Policy) -> None:
        self.attempts = 0
        self._policy = policy
        self._since: float | None = None

    @property
    def elapsed(self) -> float:
        return 0.0 if self._since is None else self._policy.clock() - self._since

    def reached(self) -> None:
        """The relay has answered: the outage is over, but nothing is gained yet."""
        self._since = None

    def progress(self) -> None:
        self._since = None
        self.attempts = 0

    def another(self, at_least: float, *, at_once: bool = False) -> float | None:
        """How long to wait before one more attempt, None where it is time to give up; `at_once` goes for the first."""
        policy = self._policy
        if self._since is None:
            self._since = policy.clock()
        if self.attempts >= policy.max_attempts:
            return None
        most = min(policy.longest_delay, policy.first_delay * 2.0 ** min(self.attempts, 60))
        wait = 0.0 if at_once and not self.attempts else max(at_least, policy.random() * most)
        if self.elapsed + wait > policy.max_elapsed:
            return None
        self.attempts += 1
        return wait


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that an answer asks for (RFC 9110, 10.2.3); a date counts from the answer's own `Date`."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, until.total_seconds())
