"""What one replica is made of."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass

import httpx

from relay.auth.gate import Gate
from relay.config import Settings
from relay.metrics import Meter, Metrics
from relay.protocol.errors import ApiError
from relay.protocol.headers import Headers
from relay.streams.registry import Registry
from relay.upstream.client import UpstreamClient


def _store_of_others() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Replica:
    settings: Settings
    registry: Registry
    upstreams: UpstreamClient
    metrics: Metrics
    gate: Gate
    store_lost: Callable[[], bool] = _store_of_others
    """The relay's own store has ended and does not come back: nothing that it begins can be resumed."""

    async def ask(
        self, meter: Meter, method: str, url: str, headers: Headers, body: bytes | AsyncIterable[bytes]
    ) -> httpx.Response:
        """An upstream's answer, counted. Raises as `UpstreamClient.send` does."""
        try:
            response = await self.upstreams.send(method, url, headers, body)
        except ApiError as error:
            meter.upstream_answered("timeout" if error.status == 504 else "unreachable")
            raise
        meter.upstream_answered(response.status_code)
        return response
