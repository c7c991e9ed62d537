"""A request for a stream, sent so that its answer survives the loss of its connection where the upstream can go on.

Another relay is known by its answers' headers, and from then on by its address: its requests have an `Idempotency-Key`,
so that one that dies before its answer joins what it began, and ask for ids.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import httpx

from relay.client.events import KEY_IN_FLIGHT, error_code
from relay.client.policy import Policy, RetryBudget, heartbeat_interval, retry_after
from relay.client.resumable_stream import Reason, ResumableStream, Unresumable, resumable_stream_id
from relay.config import Timeouts, UpstreamSettings
from relay.protocol.errors import ApiError, UpstreamDisconnected, UpstreamMalformed, UpstreamUnreachable
from relay.protocol.headers import Headers
from relay.protocol.json_rpc import Id
from relay.upstream.addresses import relay_root
from relay.upstream.client import body_of, is_event_stream
from relay.upstream.json_rpc import RpcStream
from relay.upstream.positions import NumberedStream, OwnIdsStream, RelayStream
from relay.upstream.resuming_body import ResumingBody, beginning_of

Send = Callable[[str, str, Headers, bytes], Awaitable[httpx.Response]]
"""Sends a request upstream: method, url, headers, body. Raises as `UpstreamClient.send` does."""

# The bound of an event counts its text alone, this one its `id:` and other lines, too.
_LINES_BESIDE = 64 * 1024
_OF_ONE_REQUEST = (b"content-length", b"content-encoding", b"idempotency-key", b"last-event-id", b"prefer")
_GATEWAY = (502, 503, 504)
_RESPONSES = re.compile(r"(.*/responses)/?(?:\?(.*))?")
_KEY = b"idempotency-key"


class Kept(Protocol):
    """The bytes of a request that may be sent again, None once they had to make room for another's."""

    data: bytes | None

    def spare(self) -> None:
        """From now on they may have to."""

    def let_go(self) -> None:
        """They are not sent again."""


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """`api` is the API's name, `key` names this generation and no other, `background` is True for a response that
    runs in the background, `abandon_after` is for how many seconds another relay is to go on when it loses this one,
    `rpc` are the ids of the JSON-RPC requests that it has;
    `on_result` hears of each loss of its answer whether it was gone on with; an event of it is at most of
    `max_event_bytes`."""

    upstream: UpstreamSettings
    timeouts: Timeouts
    api: str
    url: str
    headers: Headers
    send: Send
    key: str
    on_result: Callable[[bool], None]
    background: bool
    max_event_bytes: int
    abandon_after: float
    method: str = "POST"
    rpc: tuple[Id, ...] = ()

    @property
    def _unread(self) -> tuple[bytes, bytes]:
        return b"relay-abandon-after", b"%ds" % math.ceil(self.abandon_after)

    def _policy(self) -> Policy:
        return Policy(
            max_attempts=1 << 30,
            max_elapsed=self.timeouts.upstream_resume,
            longest_delay=5.0,
            max_event_bytes=self.max_event_bytes + _LINES_BESIDE,
        )

    async def joining(self, body: bytes) -> httpx.Response:
        """The answer of another relay. A request that is lost before it, or for which something on the way answers what
        is none of HTTP, is sent again, for it joins what it began.
        Raises as `UpstreamClient.send` does."""
        headers = [*self.headers, (b"relay-event-ids", b"include"), self._unread]
        if all(name != _KEY for name, _ in headers):
            headers.append((_KEY, self.key.encode()))
        budget = RetryBudget(self._policy())
        lost: ApiError | None = None
        while True:
            try:
                response = await self.send(self.method, self.url, headers, body)
            except (UpstreamDisconnected, UpstreamMalformed, UpstreamUnreachable) as error:
                if not isinstance(error, UpstreamUnreachable):
                    lost = lost or error
                wait = None if lost is None else budget.next_wait(0.0)
                if wait is None:
                    raise lost or error from None
            else:
                passes = lost is not None and response.status_code in (*_GATEWAY, 409)
                wait = budget.next_wait(retry_after(response.headers)) if passes else None
                if wait is None:
                    return response
                code = error_code(await beginning_of(body_of(response)))
                await body_of(response).aclose()
                if response.status_code == 409 and code != KEY_IN_FLIGHT:
                    raise lost from None  # type: ignore[misc]
            await asyncio.sleep(wait)

    def resumable(self, response: httpx.Response, kept: Kept | None) -> httpx.Response:
        """The answer, whose body goes on after a loss where the upstream can do that; `kept` is that of the request,
        where it was kept."""
        stream = self._stream_of(response)
        sent_again = type(stream) is OwnIdsStream and self.timeouts.upstream_resume > 0
        if kept is not None:
            kept.spare() if sent_again else kept.let_go()
        if stream is None or self.timeouts.upstream_resume <= 0:
            return response
        is_relay = isinstance(stream, RelayStream)
        heartbeat = heartbeat_interval(response.headers) if is_relay else None
        idle = self.timeouts.upstream_idle_timeout

        async def ask(position: str) -> httpx.Response:
            body = b"{}" if is_relay and self.method == "POST" else b"" if kept is None or not sent_again else kept.data
            if body is None:
                raise Unresumable("The place of its request was needed for others.", Reason.REFUSED, position)
            return await self._ask(stream, position, body)

        async def stop() -> None:
            address = f"{relay_root(self.upstream.base_url)}/streams/{stream.stream}"
            answer = await self.send("DELETE", address, self._again(b""), b"")
            await body_of(answer).aclose()

        going_on = ResumingBody(
            body_of(response),
            stream,
            ask,
            stop if is_relay else None,
            silence=idle if heartbeat is None else min(idle, 2 * heartbeat + 1),
            timeouts=self.timeouts,
            on_result=self.on_result,
            on_over=kept.let_go if kept is not None else lambda: None,
        )
        return httpx.Response(response.status_code, headers=response.headers.raw, stream=going_on)

    def _stream_of(self, response: httpx.Response) -> ResumableStream | None:
        """What is known of the answer; None where nobody can go on with it."""
        if response.status_code != 200 or not is_event_stream(response):
            return None
        mode = self.upstream.going_on
        if mode == "auto" and self.rpc:
            return RpcStream(self.rpc, self._policy())
        if mode == "last-event-id":
            return OwnIdsStream(self.api, self._policy())
        if mode == "responses":
            return NumberedStream(self._policy()) if self.api == "responses" and self.background else None
        found = resumable_stream_id(200, response.headers) if mode == "auto" else None
        return None if found is None else RelayStream(self.api, found, self._policy())

    async def _ask(self, stream: ResumableStream, position: str, body: bytes) -> httpx.Response:
        found = _RESPONSES.fullmatch(self.url)
        if isinstance(stream, NumberedStream) and stream.response_id is not None and found is not None:
            query = "&".join(filter(None, (found[2], "stream=true", f"starting_after={position}")))
            url = f"{found[1]}/{quote(stream.response_id, safe='')}?{query}"
            return await self.send("GET", url, self._again(b""), b"")
        if isinstance(stream, RpcStream):
            position_header = (b"last-event-id", position.encode("latin-1"))
            return await self.send("GET", self.url, [*self._again(b""), position_header], b"")
        headers = [*self._again(body), (b"last-event-id", position.encode("latin-1"))]
        if isinstance(stream, RelayStream):
            headers.append(self._unread)
        return await self.send(self.method, self.url, headers, body)

    def _again(self, body: bytes) -> Headers:
        """The request's headers for another one."""
        dropped = _OF_ONE_REQUEST if body else (*_OF_ONE_REQUEST, b"content-type")
        kept = [item for item in self.headers if item[0] not in dropped]
        return [*kept, (b"content-length", b"%d" % len(body))] if body else kept
