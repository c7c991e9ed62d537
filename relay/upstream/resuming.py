"""A request for a stream, sent so that its answer survives the loss of its connection where the upstream can go on.

Another relay is known by its answers' headers, and from then on by its address: its requests have an `Idempotency-Key`,
so that one that dies before its answer joins what it began, and ask for ids.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from relay.client.events import KEY_IN_FLIGHT, error_code
from relay.client.policy import Policy, RetryBudget, heartbeat_interval, retry_after
from relay.client.resumable_stream import Reason, ResumableStream, Unresumable, resumable_stream_id
from relay.config import Timeouts, UpstreamSettings
from relay.protocol.errors import ApiError, UpstreamDisconnected, UpstreamMalformed, UpstreamUnreachable
from relay.protocol.headers import Headers
from relay.protocol.json_rpc import Id
from relay.protocol.legs import RELAY, RESPONSES, Leg
from relay.upstream.addresses import relay_root
from relay.upstream.client import Body, Response, body_of, is_event_stream
from relay.upstream.json_rpc import RpcStream
from relay.upstream.positions import NumberedStream, OwnIdsStream, RelayStream
from relay.upstream.prefilled import PrefilledStream
from relay.upstream.resuming_body import ResumingBody, beginning_of

Send = Callable[[str, str, Headers, bytes], Awaitable[Response]]
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
class Continuing:
    """How an answer is gone on with by another call: `send` makes it, with these headers and this body, and counts it;
    `on_result` hears of each loss whether it was gone on with."""

    send: Callable[[Headers, bytes], Awaitable[Response]]
    on_result: Callable[[bool], None]


def policy_of(upstream_resume: float, max_event_bytes: int) -> Policy:
    """How an upstream is come back to within `upstream_resume`: whatever is drawn, the last try is in the last twelfth
    of it, so that an outage which is a little shorter ends nothing."""
    return Policy(
        max_attempts=1 << 30,
        max_elapsed=upstream_resume,
        first_delay=min(0.5, upstream_resume / 12),
        longest_delay=min(5.0, upstream_resume / 12),
        max_event_bytes=max_event_bytes,
    )


@dataclass(slots=True)
class StreamRequest:
    """`api` is the API's name, `key` names this generation and no other, `background` is True for a response that
    runs in the background, `abandon_after` is for how many seconds another relay is to go on when it loses this one,
    `rpc` are the ids of the JSON-RPC requests that it has;
    `on_result` hears of each loss of its answer whether it was gone on with; an event of it is at most of
    `max_event_bytes`; `continuing` is None where no other call is to go on with its answer. `query` is what another
    replica is to ask with where it goes on with the answer, None where none can."""

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
    continuing: Continuing | None = None
    query: str | None = None
    method: str = "POST"
    rpc: tuple[Id, ...] = ()

    @property
    def _unread(self) -> tuple[bytes, bytes]:
        return b"relay-abandon-after", b"%ds" % math.ceil(self.abandon_after)

    def _policy(self) -> Policy:
        return policy_of(self.timeouts.upstream_resume, self.max_event_bytes + _LINES_BESIDE)

    async def joining(self, body: bytes) -> Response:
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

    def resumable(self, response: Response, kept: Kept | None) -> Response:
        """The answer, whose body goes on after a loss where the upstream can do that; `kept` is that of the request,
        where it was kept."""
        stream = self._stream_of(response)
        sent_again = type(stream) in (OwnIdsStream, PrefilledStream) and self.timeouts.upstream_resume > 0
        if kept is not None:
            kept.spare() if sent_again else kept.let_go()
        if stream is None or self.timeouts.upstream_resume <= 0:
            return response
        going_on = self._going_on(body_of(response), stream, response.headers, kept if sent_again else None)
        if self.query is not None and isinstance(stream, RelayStream | NumberedStream):
            far = stream.stream if isinstance(stream, RelayStream) else ""
            going_on.leg = Leg(RELAY if far else RESPONSES, self.upstream.name, far, self.query)
        return Response(response.status_code, response.headers, going_on)

    def taken_over(self, leg: Leg, frames: Sequence[bytes], position: int | None) -> ResumingBody | None:
        """What follows after `frames`, the last of which is the event that a relay upstream calls `position`; None
        where it cannot be asked for."""
        if leg.how != self.mode or self.timeouts.upstream_resume <= 0:
            return None
        stream: ResumableStream
        if leg.how == RESPONSES:
            stream = NumberedStream(self._policy())
            stream.skip(frames)
            if not stream.resumable or stream.finished:
                return None
        elif position is None:
            return None
        else:
            stream = RelayStream(self.api, leg.stream, self._policy(), requested_event_id=f"{leg.stream}.{position}")
        return self._going_on(None, stream, {}, None)

    @property
    def mode(self) -> str:
        """How another replica can go on with an answer of the upstream, by its settings."""
        return {"auto": RELAY, "responses": RESPONSES}.get(self.upstream.going_on, "")

    def _going_on(
        self, body: Body | None, stream: ResumableStream, headers: Mapping[str, str], kept: Kept | None
    ) -> ResumingBody:
        """`kept` is that of the request where it is sent again."""
        is_relay = isinstance(stream, RelayStream)
        idle = self.timeouts.upstream_idle_timeout

        async def ask(position: str) -> Response:
            sent = b"{}" if is_relay and self.method == "POST" else b"" if kept is None else kept.data
            if sent is None:
                raise Unresumable("The place of its request was needed for others.", Reason.REFUSED, position)
            return await self._ask(stream, position, sent)

        async def stop() -> None:
            address = f"{relay_root(self.upstream.base_url)}/streams/{stream.stream}"
            answer = await self.send("DELETE", address, self._again(b""), b"")
            await body_of(answer).aclose()

        def silence(headers: Mapping[str, str]) -> float:
            heartbeat = heartbeat_interval(headers) if is_relay else None
            return idle if heartbeat is None else min(idle, 2 * heartbeat + 1)

        return ResumingBody(
            body,
            stream,
            ask,
            stop if is_relay else None,
            silence=silence,
            headers=headers,
            timeouts=self.timeouts,
            on_result=self.continuing.on_result
            if self.continuing is not None and isinstance(stream, PrefilledStream)
            else self.on_result,
            on_over=kept.let_go if kept is not None else lambda: None,
        )

    def _stream_of(self, response: Response) -> ResumableStream | None:
        """What is known of the answer; None where nobody can go on with it."""
        if response.status_code != 200 or not is_event_stream(response):
            return None
        mode = self.upstream.going_on
        if mode == "auto" and self.rpc:
            return RpcStream(self.rpc, self._policy())
        if mode == "last-event-id":
            return OwnIdsStream(self.api, self._policy())
        if mode == "responses" and self.api == "responses" and self.background:
            return NumberedStream(self._policy())
        found = resumable_stream_id(200, response.headers) if mode == "auto" else None
        if found is not None:
            return RelayStream(self.api, found, self._policy())
        return None if self.continuing is None else PrefilledStream(self.api, self.upstream.prefill, self._policy())

    async def _ask(self, stream: ResumableStream, position: str, body: bytes) -> Response:
        found = _RESPONSES.fullmatch(self.url)
        if isinstance(stream, NumberedStream) and stream.response_id is not None and found is not None:
            query = "&".join(filter(None, (found[2], "stream=true", f"starting_after={position}")))
            url = f"{found[1]}/{quote(stream.response_id, safe='')}?{query}"
            return await self.send("GET", url, self._again(b""), b"")
        if isinstance(stream, PrefilledStream) and self.continuing is not None:
            body = await stream.request(body)
            return await self.continuing.send(self._again(body), body)
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
