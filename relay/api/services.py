"""What the API needs of its replica."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from relay.api.bodies import Bodies
from relay.auth.gate import Gate
from relay.config import Settings
from relay.http.beginnings import Beginnings
from relay.metrics import Metrics
from relay.streams.registry import Registry
from relay.upstream.client import UpstreamClient


def _store_of_others() -> bool:
    return False


def _no_fault() -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    registry: Registry
    upstreams: UpstreamClient
    metrics: Metrics
    gate: Gate
    bodies: Bodies
    store_lost: Callable[[], bool] = _store_of_others
    """The relay's own store has ended and does not come back: nothing that it begins can be resumed."""
    store_fault: Callable[[], str | None] = _no_fault
    """Why the store cannot be used just now, None where it can."""
    beginnings: Beginnings = field(default_factory=Beginnings)
    """Of what takes a millisecond and more of the loop: a stream, and who comes back to one."""
