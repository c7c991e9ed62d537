"""What one replica is made of."""

from __future__ import annotations

from dataclasses import dataclass

from relay.config import Settings
from relay.streams.registry import Registry
from relay.upstream import UpstreamClient


@dataclass(frozen=True, slots=True)
class Replica:
    settings: Settings
    registry: Registry
    upstreams: UpstreamClient
