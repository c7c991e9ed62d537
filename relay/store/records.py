"""What the log answers: what a stream is, a page of its events, what a renewal has said."""

from __future__ import annotations

from dataclasses import dataclass

from relay.encryption import Binding
from relay.protocol.end_mark import End
from relay.protocol.headers import Headers


@dataclass(frozen=True, slots=True)
class Status:
    """What a stream is, as its hash says: `top` its last event, `outcome` how it ended or "", `lease_left` in seconds
    (below 0: its producer is lost), `kept` False where its events have expired, `born` and `ended` Unix seconds,
    `headers` what every answer with it has of its upstream's, `end_mark` the log's own word of the end (see
    `Log.confirm_end`), `joinable` whether a request that is the same may join it; `leg` how its upstream is come back
    to and `at` where that stood last (`relay.protocol.legs`), `abandon_after` for how many seconds at most its readers
    want it to go on unread, None where none has said."""

    stream: str
    top: int
    outcome: str
    lease_left: float
    kept: bool
    born: float
    ended: float
    fence: str
    api: str
    owner: str
    upstream: str
    model: str
    replica: str
    usage: str
    headers: Headers
    end_mark: bytes
    joinable: bool
    leg: bytes = b""
    at: bytes = b""
    abandon_after: float | None = None

    @property
    def binding(self) -> Binding:
        return Binding(self.owner, self.api)


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive events: `frames` are those after the position asked for, `end` is the end mark after them or None.
    `gap` is True where the log will never hold the next one, `full` where more may follow."""

    frames: list[bytes]
    end: End | None
    gap: bool
    full: bool

    @property
    def size(self) -> int:
        return sum(map(len, self.frames))


@dataclass(frozen=True, slots=True)
class Renewed:
    """What a renewal has said of a stream: a code of `scripts`, the log's top, whether another replica has readers of
    it, how many seconds ago one was last known to have (infinite: never), and for how many seconds at most such readers
    have asked that it goes on unread."""

    code: int
    top: int
    read_elsewhere: bool
    unseen: float
    abandon_after: float | None = None


@dataclass(frozen=True, slots=True)
class Succeeded:
    """What an attempt to take a stream over has come to: a code of `scripts`, the log's top, and how many seconds ago
    the stream was made and its lease lapsed."""

    code: int
    top: int
    age: float
    lapsed: float
