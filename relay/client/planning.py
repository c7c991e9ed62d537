"""Which requests a transport covers, and what it sends for them. Works on the requests of either library.

A request to a server that has not proved to be a relay goes out as it came. Only from the first `Relay-Stream-Id` of
that address on (scheme, host, port and path in front of `/v1`) its streaming POSTs get an `Idempotency-Key`, unless
they have one, and may be repeated when they die before their answer begins.
"""

from __future__ import annotations

import uuid
from typing import Any

from relay.client.events import PATHS, asks_for_stream
from relay.client.policy import Policy

Address = tuple[str, str, int | None, str]

# Nothing of the request has left: the SDK repeats these by itself, and nothing was paid for.
_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError")
# What stands in front of a relay says so when the relay behind it has gone.
_GATEWAY = (502, 503, 504)


class Plan:
    """One streaming POST: the requests to send for it, and what may be repeated."""

    def __init__(self, http: Any, request: Any, api: str, address: Address, policy: Policy, *, relay: bool) -> None:
        headers = request.headers
        self.api = api
        self.address = address
        self.asked_for: str | None = headers.get("last-event-id")
        self._http = http
        self._request = request
        self._silence = policy.silence
        self._timeout: dict[str, Any] = dict(request.extensions.get("timeout", {}))
        # A key of the SDK's user does what ours would; a resume generates nothing.
        needs_key = self.asked_for is None and "idempotency-key" not in headers
        self._own_key = f"relay-client-{uuid.uuid4()}" if relay and needs_key else None
        self._repeatable = relay
        self._lost = False

    def first(self) -> Any:
        """The request to begin with."""
        added = {} if self._own_key is None else {"Idempotency-Key": self._own_key}
        return self._copy(added)

    def without_key(self) -> Any:
        """The request as it came; it may not be repeated."""
        self._own_key = None
        self._repeatable = False
        return self._copy({})

    def resume(self, last_event_id: str) -> Any:
        self.watch_for_silence()
        added = {"Last-Event-ID": last_event_id}
        if self._own_key is not None:
            # Where something on the way drops Last-Event-ID, the key still joins this generation.
            added["Idempotency-Key"] = self._own_key
        return self._copy(added)

    def watch_for_silence(self) -> None:
        """The stream is the relay's, which gives signs of life: the body's read time-out may be its own."""
        read = self._timeout.get("read")
        if self._silence is not None and (read is None or self._silence < read):
            self._timeout["read"] = self._silence

    def repeats_lost(self, error: Exception) -> bool:
        """May the request be sent again after it died of this before its answer began?"""
        self._lost = self._lost or type(error).__name__ not in _NEVER_SENT
        return self._lost and self._repeatable

    def repeats_refused(self, status: int) -> bool:
        """A gateway's refusal after a loss: the SDK's own retry would have another key, and may pay twice."""
        return self._lost and status in _GATEWAY

    def may_do_without_key(self, status: int) -> bool:
        """A relay whose store is away streams without a log, but it cannot honour a key."""
        return status == 503 and self._own_key is not None and not self._lost

    def _copy(self, added: dict[str, str]) -> Any:
        request = self._request
        headers = self._http.Headers(request.headers.raw)
        headers.update(added)
        extensions = {**request.extensions, "timeout": self._timeout}
        # `stream=`, because `content=` would add headers of its own.
        return self._http.Request(
            request.method, request.url, headers=headers, stream=request.stream, extensions=extensions
        )


class Desk:
    """What a transport knows of the servers it has talked to. Threads may share it."""

    def __init__(self, http: Any, policy: Policy) -> None:
        self._http = http
        self._policy = policy
        self._relays: set[Address] = set()

    def plan(self, request: Any) -> Plan | None:
        """None for a request that is none of this transport's business."""
        path: str = request.url.path
        suffix = next((known for known in PATHS if path.endswith(known)), None)
        if request.method != "POST" or suffix is None:
            return None
        try:
            body: bytes = request.content
        except self._http.RequestNotRead:
            return None  # a body that is made while it is sent cannot be sent twice
        if not asks_for_stream(body):
            return None
        url = request.url
        address = (url.scheme, url.host, url.port, path.removesuffix(suffix))
        relay = self._policy.assume_relay or address in self._relays
        return Plan(self._http, request, PATHS[suffix], address, self._policy, relay=relay)

    def is_relay(self, plan: Plan) -> None:
        self._relays.add(plan.address)
