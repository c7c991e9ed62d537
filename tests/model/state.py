"""What the model of the log's protocol knows: one generation, one store, a reader of it and its connections.

Events are the numbers 1, 2, …; the log is a tuple of them. Time is not counted: what takes time (a lease, the hold) is
a move that is possible when the time may have passed, and everybody who could act in that time has acted.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from tests.model.rules import Mutation

ERROR_FRAME = 0  # in the log of a protocol whose forced end takes a number

# How a stream ends: by itself, by its producer's own words (a stop, a bound), by another replica.
COMPLETED, TOLD, FORCED = "completed", "told", "forced"


class Client(Enum):
    """How a client behaves."""

    EVENT_SOURCE = "comes back after a cut, an error and a clean end, until it is told 204 or refused"
    RELAY_CLIENT = "comes back after a cut, stops at an end or an error"
    SDK = "never comes back, raises where it is cut"


class Page(NamedTuple):
    """What a read of the log has answered: events, the end after them, or that the log will never go on from there."""

    frames: tuple[int, ...]
    end: str
    gap: bool


class Feed(NamedTuple):
    """B's tail: `frames` are those after `base`. It subscribes, reads once, and then after every message."""

    base: int
    frames: tuple[int, ...] = ()
    end: str = ""
    closed: bool = False
    subscribed: bool = False
    opened: bool = False
    message: str = ""  # "sent": one has come since the last read began, "lost": one should have
    page: Page | None = None  # a read whose answer is on its way
    dropped: bool = False  # nothing is read into it any more, though a reader holds it

    @property
    def top(self) -> int:
        return self.base + len(self.frames)

    @property
    def live(self) -> bool:
        return not (self.end or self.closed or self.dropped)


class Heir(NamedTuple):
    """Who has taken A's stream over: the log's events and what came since, of which the log is known to hold `acked`;
    `upstream` is the last event that its upstream has told it. `base` is what the log had."""

    frames: tuple[int, ...]
    upstream: int
    acked: int
    base: int
    outcome: str = ""
    ended: bool = False
    fenced: bool = False


class Look(NamedTuple):
    """What a look has answered: `top` -1 where the stream is unknown, `recent` where the store has just come back,
    `lapsed` where the lease has: then B may end the stream, and looks again."""

    top: int
    end: str
    recent: bool
    lapsed: bool


class State(NamedTuple):
    """One state of the whole."""

    # The store. `log` None: it does not know the stream. `recent`: it came back less than a lease ago, and a producer
    # that can has not renewed yet. `late`: an append that is still on its way in a frozen store's socket.
    log: tuple[int, ...] | None = ()
    end: str = ""
    fenced: bool = False
    lapsed: bool = False
    recent: bool = False
    link: str = "up"  # "away": nobody reaches the store, "cut off": A does not
    late: tuple[int, int, str] | None = None
    # The producer, on A. `made` events came from its upstream, the log has taken `acked`, readers are shown `shown`.
    process: str = "running"  # paused, dead
    mode: str = "writing"  # ahead, ended, fenced
    remaking: bool = False
    made: int = 0
    outcome: str = ""
    acked: int = 0
    shown: int = 0
    end_shown: bool = False  # ahead of the log
    # Who goes on with it where A is lost, and whether the upstream was told by A that nobody wants its answer.
    heir: Heir | None = None
    stopped: bool = False
    # B. `other`: a second reader is on the feed.
    feed: Feed | None = None
    other: bool = False
    deciding: bool = False  # a replica is about to end the stream and will not look at its lease again
    # The client. `at`: A, B, log (reads pages), looked (its look is answered), opening (it waits for B's feed), cut,
    # error (was told one), end (was told a clean one), done.
    at: str = "A"
    look: Look | None = None
    begun: Page | None = None  # the first page, read before anything was answered
    cursor: int = 0
    last: int = 0  # the last id it has
    last_end: bool = False  # which is that of an end
    seen: int = 0
    # What has happened: A was killed, paused or cut off (`excused`), the store has lost something or A was ahead of it
    # (`lost`). What went wrong. How many faults may still happen.
    excused: bool = False
    lost: bool = False
    wrong: str = ""
    faults: int = 0


class Rules:
    """What the parts of the model share: its bounds, its client, and the rule that is broken."""

    def __init__(
        self,
        *,
        events: int = 2,
        faults: int = 3,
        client: Client = Client.EVENT_SOURCE,
        mutation: Mutation | None = None,
        outage_lasts: bool = False,
        second_reader: bool = False,
        terminal: bool = False,
        takeover: bool = False,
    ) -> None:
        """Streams of `events` events, runs with so many faults. `outage_lasts`: a store that is away need not come
        back. `second_reader`: another one is on B from the start. `terminal`: the last event says that it is the
        last, else the end of the upstream's body does. `takeover`: another replica can go on with what A has begun."""
        self.events = events
        self.faults = faults
        self.client = client
        self.mutation = mutation
        self.outage_lasts = outage_lasts
        self.second_reader = second_reader
        self.terminal = terminal
        self.takeover = takeover

    def broken(self, mutation: Mutation) -> bool:
        return self.mutation is mutation


def normal(s: State) -> State:
    """States that differ only in what nobody will ever ask for are the same."""
    if s.process == "dead":
        link = "up" if s.link == "cut off" else s.link
        s = s._replace(mode="fenced", remaking=False, made=0, acked=0, shown=0, end_shown=False, link=link)
    elif s.mode in ("fenced", "ended") and (s.acked != s.made or (s.mode == "ended" and s.end_shown)):
        s = s._replace(acked=s.made, end_shown=s.end_shown and s.mode == "fenced")
    if s.heir is not None and (s.heir.ended or s.heir.fenced):
        s = s._replace(heir=s.heir._replace(frames=(), upstream=0, acked=0, base=0, outcome=""))
    if s.lapsed and s.end:
        s = s._replace(lapsed=False)
    if s.recent and s.log is not None and not s.lapsed:
        s = s._replace(recent=False)
    if s.feed is not None and not s.feed.live and (s.feed.message or s.feed.page):
        s = s._replace(feed=s.feed._replace(message="", page=None))
    return s
