"""What a run leaves to be judged: streams, who read them, how they ended, who was refused, who waited. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from tests.torture.generation import Spec
from tests.torture.timeline import Interval, Timeline


class CallLike(Protocol):
    """What is known of one POST that arrived upstream (`upstream.Call`)."""

    number: int
    replica: int
    attempt: str
    key: str | None
    spec: Spec
    began: float
    sent: int
    sent_at: float
    said_all: float | None
    ended: float | None
    cancelled: bool


@dataclass
class StreamSeen:
    """One stream, as all of its clients together have seen it."""

    id: str
    spec: Spec
    born: float
    logged: bool
    detached: bool = False
    reading: list[tuple[Interval, int]] = field(default_factory=list)
    """When a client was connected to it, and at which replica."""
    agents: list[tuple[Interval, str]] = field(default_factory=list)
    """When an agent was connected to it, which came without its id, and which one."""
    stop_asked: list[float] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)
    """When a DELETE was answered 204."""
    ends: list[tuple[float, str, str]] = field(default_factory=list)
    """When, by which client, which end was seen."""


@dataclass(frozen=True)
class Refusal:
    """An answer that said: this cannot be had."""

    at: float
    client: str
    stream: str | None
    replica: int
    status: int
    code: str
    asked: str
    wanted: int = 0
    """The number of the last event that its client has."""
    held: int | None = None
    """How many events the log held then; None where the store could not be asked."""


@dataclass(frozen=True)
class Wait:
    """A client got nothing though there was something to get; `replicas` are those that it asked meanwhile."""

    client: str
    since: float
    until: float
    replicas: frozenset[int]
    producer: int | None
    mute: bool = False
    """Not even a heartbeat came, on one connection."""


@dataclass
class Evidence:
    timeline: Timeline
    replicas: int
    workers: int
    calls: list[CallLike] = field(default_factory=list)
    streams: dict[str, StreamSeen] = field(default_factory=dict)
    call_of: dict[str, int] = field(default_factory=dict)
    """The call of each stream."""
    refusals: list[Refusal] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    finished: float = 0.0

    def call(self, stream: str | None) -> CallLike | None:
        number = self.call_of.get(stream or "")
        return None if number is None else self.calls[number - 1]


@dataclass(frozen=True)
class Found:
    """One violation: `client` names whose history shows it."""

    kind: str
    detail: str
    client: str = ""
    at: float = 0.0
