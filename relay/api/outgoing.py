"""A request on its way upstream: its url, its headers as they cross, how it is counted, and its bytes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeGuard

from relay import access
from relay.api.bodies import Charge
from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.client.resumable_stream import resumable_stream_id
from relay.config import Timeouts, UpstreamSettings
from relay.metrics import Meter
from relay.model_labels import ModelLabels
from relay.protocol import application_headers, credentials
from relay.protocol import headers as rules
from relay.protocol.apis import BY_PATH
from relay.protocol.dialect import JsonObject
from relay.protocol.errors import ApiError, BadRequest, UpstreamDisconnected, UpstreamTimeout, UpstreamUnreachable
from relay.protocol.headers import Headers
from relay.protocol.json_edit import Parts, TooLong, edited
from relay.protocol.json_rpc import Id
from relay.protocol.legs import LONGEST_QUERY
from relay.upstream.client import Response, UpstreamClient
from relay.upstream.resuming import Continuing, StreamRequest
from relay.upstream.routing import Route

# Of a pair that UTF-16 would need: no text in UTF-8 has one by itself.
_HALF = re.compile("[\ud800-\udfff]")
_SMALL_BODY = 16 * 1024
_NO_ANSWER = {UpstreamUnreachable: "unreachable", UpstreamDisconnected: "disconnected", UpstreamTimeout: "timeout"}


def is_name(model: object) -> TypeGuard[str]:
    """Text that can name a model: some, without half a character."""
    return isinstance(model, str) and model != "" and not _HALF.search(model)


class Lender(Protocol):
    """Has the place of a body that may be sent to several upstreams."""

    def take_charge(self) -> Charge | None:
        """The place is another's to give back from now on."""


class RequestBody:
    """The bytes of a request: whoever takes them is the only one that holds them, and their place among the bodies in
    flight is given back with them."""

    __slots__ = ("_charge", "_lender", "_parts", "size")

    def __init__(self, *parts: bytes | memoryview, charge: Charge | None = None, lender: Lender | None = None) -> None:
        """`lender` has the place while other upstreams may be sent it, too."""
        self._parts = [part for part in parts if part]
        self._charge = charge
        self._lender = lender
        self.size = sum(map(len, parts))

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._let_go()
        return data

    async def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        try:
            while self._parts:
                yield self._parts.pop(0)
        finally:
            self._let_go()

    def to_send(self) -> bytes | RequestBody:
        """A small body goes out in one write with its head, and is let go of at the upstream's answer."""
        return self.take() if self.size <= _SMALL_BODY else self

    def keep(self) -> KeptBody:
        """To be sent more than once."""
        charge, self._charge = self._charge, None
        return KeptBody(self.take(), charge, self._lender)

    def _let_go(self) -> None:
        self._parts.clear()
        charge, self._charge = self._charge, None
        if charge is not None:
            charge.release()


class KeptBody:
    """The bytes of a request that may be sent again: until `let_go` they have their place among the bodies in flight,
    and once `spare` was called, until that is needed for another."""

    __slots__ = ("_charge", "_lender", "data")

    def __init__(self, data: bytes, charge: Charge | None, lender: Lender | None) -> None:
        self.data: bytes | None = data
        self._charge = charge
        self._lender = lender

    def spare(self) -> None:
        lender, self._lender = self._lender, None
        if lender is not None:
            self._charge = lender.take_charge()
        if self._charge is not None:
            self._charge.spare(self.let_go)

    def let_go(self) -> None:
        """Once or more often."""
        self.data = None
        charge, self._charge = self._charge, None
        if charge is not None:
            charge.release()


class ClientBody:
    """A client's JSON body as it was sent, from which each upstream's is made: with the model's name there, and with
    what the relay asks for itself. Nothing else of it is another byte."""

    __slots__ = ("_charge", "_layout", "_model", "_raw", "asking")

    def __init__(self, exchange: Exchange, raw: bytes, model: str | None, asking: JsonObject | None = None) -> None:
        """`model` is the one that it names, None where that is not to be changed; `asking` are the members to set for
        upstreams that are asked for usage, None where there are none."""
        self._raw = raw
        self._layout = exchange.layout
        self._charge = exchange.take_charge()
        self._model = model
        self.asking = asking

    def asks(self, route: Route) -> bool:
        """Is this upstream asked for usage by the relay alone?"""
        return self.asking is not None and route.upstream.usage != "passthrough"

    def written_for(self, route: Route) -> RequestBody:
        """For one of several upstreams: this is kept. Raises BadRequest."""
        return RequestBody(*self._parts(route), lender=self)

    def take_charge(self) -> Charge | None:
        """The place is another's to give back from now on."""
        charge, self._charge = self._charge, None
        return charge

    def _parts(self, route: Route) -> Parts:
        patch: JsonObject = dict(self.asking or {}) if self.asks(route) else {}
        if self._model is not None and self._model != route.model:
            patch["model"] = route.model
        try:
            return edited(self._raw, self._layout, patch)
        except TooLong as name:
            raise BadRequest(f"`{name}` is longer than 64 KiB. Send a shorter one.") from None

    def sent_once(self, route: Route) -> RequestBody:
        """For the only upstream that gets it. Raises BadRequest."""
        parts = self._parts(route)
        charge = self.take_charge()
        self.let_go()
        return RequestBody(*parts, charge=charge)

    def let_go(self) -> None:
        """It is not sent again."""
        self._raw = b""
        charge, self._charge = self._charge, None
        if charge is not None:
            charge.release()


@dataclass(slots=True)
class UpstreamRequest:
    """All of a request but its body. Nothing of it changes, but a frozen one of so many fields takes 1 µs more."""

    client: UpstreamClient
    upstream: UpstreamSettings
    meter: Meter
    method: str
    url: str
    headers: Headers
    answer: tuple[str, float]
    """The setting that says how long the answer may take, and its seconds."""
    timeouts: Timeouts
    max_event_bytes: int
    abandon_after: float
    """For how many seconds a relay there is to go on when it loses this one."""
    model: str
    """The model's name there, "" where it names none."""
    models: ModelLabels
    request_id: str
    path: str
    """One that the relay knows, or `other`."""
    again: str | None = None
    """The query with which another replica can ask for the rest of a stream, None where none can."""

    async def stream(
        self,
        body: RequestBody,
        api: str,
        key: str,
        *,
        background: bool,
        on_continued: Callable[[], None] | None = None,
        rpc: tuple[Id, ...] = (),
    ) -> Response:
        """The answer to a request for a stream, which goes on after a loss where the upstream can do that. `key` names
        this generation and no other; `on_continued` hears of each further call that goes on with the answer, None where
        there is to be none; `rpc` are the ids of the JSON-RPC requests that it has. Raises as `UpstreamClient.send`
        does."""
        upstream = self.upstream
        joins = upstream.going_on == "auto" and upstream.base_url in self.client.relays
        continuing = None
        if on_continued is not None and upstream.continues:
            continuing = Continuing(self._send_again, partial(self._continued, on_continued))
        kept = body.keep() if joins or continuing or upstream.going_on == "last-event-id" else None
        sent = StreamRequest(
            upstream,
            self.timeouts,
            api,
            self.url,
            self.headers,
            self._ask,
            key,
            self.meter.upstream_resumed,
            background,
            self.max_event_bytes,
            self.abandon_after,
            continuing,
            self.again,
            self.method,
            rpc,
        )
        if kept is None or kept.data is None:
            response = await self.send(body.to_send())
        else:
            try:
                response = await (sent.joining(kept.data) if joins else self.send(kept.data))
            except BaseException:
                kept.let_go()
                raise
        resumable = sent.resumable(response, kept)
        if resumable is not response and upstream.going_on == "auto" and resumable_stream_id(200, response.headers):
            self.client.relays.add(upstream.base_url)
        return resumable

    async def _ask(self, method: str, url: str, headers: Headers, body: bytes) -> Response:
        """One request that generates nothing of its own."""
        return await self.client.send(
            self.upstream, method, url, headers, body, answer=self.answer, idle=self.timeouts.upstream_idle_timeout
        )

    def _continued(self, on_continued: Callable[[], None], found: bool) -> None:
        self.meter.upstream_resumed("continued" if found else "lost")
        if found:
            on_continued()

    async def _send_again(self, headers: Headers, body: bytes) -> Response:
        return await self.send(body, headers)

    async def send(self, body: bytes | AsyncIterable[bytes | memoryview], headers: Headers | None = None) -> Response:
        """The upstream's answer, counted. Raises as `UpstreamClient.send` does."""
        idle = self.timeouts.upstream_idle_timeout
        headers = self.headers if headers is None else headers
        try:
            response = await self.client.send(
                self.upstream, self.method, self.url, headers, body, answer=self.answer, idle=idle
            )
        except ApiError as error:
            word = _NO_ANSWER.get(type(error), "other")
            self.meter.upstream_answered(word)
            self._refused(word)
            raise
        self.meter.upstream_answered(response.status_code)
        if response.status_code < 300:
            self.models.accepted(self.model)
        elif response.status_code >= 400:
            self._refused(response.status_code)
        return response

    def _refused(self, status: int | str) -> None:
        fields = {"upstream": self.upstream.name, "api": self.meter.api, "path": self.path, "status": status}
        access.of_stream("upstream refused", {**fields, "model": self.meter.model, "request_id": self.request_id})


def upstream_request(
    services: Services,
    exchange: Exchange,
    route: Route,
    api: str,
    *,
    identity: bool,
    length: int | None,
    incremental: bool = False,
    headers: Headers | None = None,
    query: str | None = None,
    streamed: bool = False,
    abandon_after: float | None = None,
) -> UpstreamRequest:
    """The client's request as it goes to the upstream of a route.

    `api` is the API's name in metrics, `identity` asks for an answer that is not compressed, `incremental` for an event
    stream, `length` is the body's in bytes where it is known, `headers` and `query` stand for the client's own where
    some of these are not to cross, `streamed` is True where a stream is asked for, and `abandon_after` is for how many
    seconds its client wants that to go on unread.
    """
    upstream = route.upstream
    timeouts = upstream.timeouts(services.settings.streams)
    own_key = upstream.api_key()
    if query is None:
        query = exchange.query
    if own_key is not None and query:
        query = credentials.without_credentials(
            query, exchange.caller.shown if exchange.caller.key is not None else b""
        )
    given = exchange.headers if headers is None else headers
    if api == "sse":
        crossing = application_headers.to_application(
            given,
            cookies=upstream.cookies,
            api_key=own_key,
            length=length,
            request_id=exchange.request_id,
            more=upstream.headers,
        )
    else:
        crossing = rules.to_upstream(
            given,
            api_key=own_key,
            identity=identity,
            length=length,
            request_id=exchange.request_id,
            more=upstream.headers,
            incremental=incremental,
        )
    url = route.url(exchange.target + (f"?{query}" if query else ""))
    return UpstreamRequest(
        services.upstreams,
        upstream,
        route.meter(services.metrics, api),
        exchange.method,
        url,
        crossing,
        timeouts.answer_limit(streamed=streamed),
        timeouts,
        services.settings.streams.max_event_bytes,
        _kept_for(services, timeouts, abandon_after),
        route.model,
        services.metrics.models,
        exchange.request_id,
        path if (path := exchange.scope["path"]) in BY_PATH else "other",
        _again(exchange, own_key, query) if streamed else None,
    )


def _again(exchange: Exchange, own_key: str | None, query: str) -> str | None:
    """Who asks again has the upstream's own key, or shows the credential of who began it: where that was none, nobody
    can be told for them."""
    query = credentials.without_credentials(query)
    may = own_key is not None or exchange.caller.can_come_back
    return query if may and len(query) <= LONGEST_QUERY else None


def _kept_for(services: Services, timeouts: Timeouts, said: float | None) -> float:
    """Not less than it takes to come back, nor than this relay keeps the generation itself."""
    streams = services.settings.streams
    own = min(streams.abandon_after, streams.abandon_limit) if said is None else said
    return max(timeouts.upstream_resume, own)
