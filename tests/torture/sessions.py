"""What clients do with a stream: the ways of EventSource, of a `fetch` that comes back, of SDKs, of `relay.client`.

Each function drives one client until it is done; nothing in here looks at what the events say.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import httpx

from relay.client.httpx import AsyncResumingTransport, Moment, Policy, ResumeFailed
from tests.torture.clients import Client, error_code
from tests.torture.evidence import StreamSeen
from tests.torture.oracle import Violation
from tests.torture.plan import Request
from tests.torture.wire import Parser, Unanswered, ask

if TYPE_CHECKING:
    from tests.torture.world import World

# Between two connections; browsers and SDKs wait longer, which would only make a run longer.
_PAUSE = (0.02, 0.4)
_SDK_POSTS = 3
_STOP_FOR = 30.0


async def session(world: World, request: Request) -> None:
    """One request's clients, together, to their ends."""
    main = [
        _client(world, request, f"s{request.number}{'abc'[i] if request.twins > 1 else ''}")
        for i in range(request.twins)
    ]
    first = main[0]
    first.hops, first.leaves_after, first.slow_at = request.hops, request.leaves_after, request.slow_at
    drive = _DRIVES[request.kind]
    tasks = [asyncio.create_task(_guarded(drive, client, request)) for client in main]
    for n, after in enumerate(request.watchers):
        tasks.append(
            asyncio.create_task(
                _guarded(_watcher, _client(world, request, f"s{request.number}w{n}"), request, first, after)
            )
        )
    if request.stops_after is not None:
        tasks.append(asyncio.create_task(_stopper(first, request.stops_after)))
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _client(world: World, request: Request, name: str) -> Client:
    client = Client(world, name, request.spec, request.owner, request.seed)
    world.clients.append(client)
    client.note(f"{request.kind}: {request.spec}")
    return client


async def _guarded(drive: object, client: Client, *args: object) -> None:
    assert callable(drive)
    try:
        await drive(client, *args)
    except Violation as violation:
        client.violated(violation)
    except asyncio.CancelledError:
        client.note("cancelled by the harness")
        raise


async def _between(client: Client) -> None:
    await asyncio.sleep(client.dice.uniform(*_PAUSE))


async def _poster(client: Client, request: Request) -> None:
    """The same POST again with the last id, until the last event of the API: `fetch` as one writes it by hand."""
    while client.done is None:
        last = client.witness.last_id
        begins = last is None
        if not begins and request.spec.api == "responses" and client.witness.n and client.dice.random() < 0.4:
            result = await client.visit("GET", _starting_after(client), client.headers())
        else:
            result = await client.visit(
                "POST", client.path, client.headers(last_event_id=last), client.body() if begins else b"{}"
            )
        if _is_over(client, result):
            return
        await _between(client)


def _starting_after(client: Client) -> str:
    """The responses API's own way of coming back; its numbers begin at 0."""
    return f"/v1/responses/resp_{client.witness.call}?stream=true&starting_after={client.witness.n - 1}"


def _is_over(client: Client, result: str) -> bool:
    """After a visit of a client that stops at the last event."""
    if client.done is None:
        if result in ("read", "nothing") or (client.witness.end is not None and result in ("cut", "hop")):
            client.end(f"ended: {client.witness.end}")
        elif result in ("cut", "hop") and not client.witness.logged:
            client.end("lost: not logged")
    return client.done is not None


async def _eventsource(client: Client, request: Request) -> None:
    """A backend posts and hangs up; a page reads the stream's address, and comes back until a 204."""
    client.hops = (0,)
    while client.witness.stream is None:
        await client.visit("POST", client.path, client.headers(), client.body())
        if client.done is not None:
            return
        await _between(client)
    if not client.witness.logged:
        client.end("lost: not logged")
        return
    stream = client.witness.stream
    client.witness.restart()
    client.witness.watch(stream, 0)
    client.hops = request.hops
    await _page(client, request)


async def _page(client: Client, request: Request) -> None:
    while client.done is None:
        last = client.witness.last_id
        if request.by_ticket and client.ticket_url is not None:
            result = await client.visit("GET", client.ticket_url, {"last-event-id": last} if last else {})
        else:
            result = await client.visit("GET", f"/streams/{client.witness.stream}", client.headers(last_event_id=last))
        if result == "nothing":
            client.end(f"ended: {client.witness.end}")
        await _between(client)


async def _watcher(client: Client, request: Request, of: Client, after: int) -> None:
    """Somebody else, who has been told of the stream, and reads it from the middle."""
    while of.witness.stream is None or of.witness.n < after:
        if of.done is not None:
            client.end("nothing to watch")
            return
        await asyncio.sleep(0.05)
    if not of.witness.logged:
        client.end("nothing to watch")
        return
    client.witness.watch(of.witness.stream, after)
    client.attempt = of.attempt
    client.note(f"watches {client.witness.last_id}")
    await _page(client, request)


async def _detached(client: Client, request: Request) -> None:
    """A generation that runs on its own, and is read from its address."""
    while client.witness.stream is None:
        result = await client.visit("POST", client.path, client.headers(prefer="respond-async"), client.body())
        if client.done is not None:
            return
        if result == "accepted":
            with client.not_wanting():
                await asyncio.sleep(client.dice.choice((0.0, 0.5, 3.0)))
        else:
            await _between(client)
    if client.witness.logged:
        await _page(client, request)
    else:
        client.end(f"ended: {client.witness.end}" if client.witness.end else "lost: not logged")


async def _sdk(client: Client, request: Request) -> None:
    """An SDK as it ships: posts again where no answer began, raises at a cut and at an error."""
    for attempt in range(_SDK_POSTS):
        headers = client.headers(x_stainless_retry_count=str(attempt))
        result = await client.visit("POST", client.path, headers, client.body())
        if client.done is not None:
            return
        if result in ("again", "unanswered"):
            await _between(client)
            continue
        client.end(f"ended: {client.witness.end}" if client.witness.end else "raised: the connection was cut")
        return
    client.end("raised: no answer")


async def _keyed(client: Client, request: Request) -> None:
    """A retry with the same Idempotency-Key joins the generation; one in mid-stream begins at its start again."""
    key = f"key-{request.number}-{request.seed}"
    while client.done is None:
        last = client.witness.last_id
        if last is not None and client.dice.random() < 0.5:
            result = await client.visit("POST", client.path, client.headers(last_event_id=last), b"{}")
        else:
            if last is not None:
                client.note("begins again, by its key")
                client.witness.restart()
            result = await client.visit("POST", client.path, client.headers(idempotency_key=key), client.body(key))
        if _is_over(client, result):
            return
        await _between(client)


async def _agent(client: Client, request: Request) -> None:
    """After a cut the same request again, in the same session, without a mark: it joins what runs, from the start."""
    turn = f"agent-{request.twins}-{request.number}-{request.seed}"
    while client.done is None:
        if client.witness.stream is not None:
            client.note("asks again")
            client.witness.restart()
        headers = client.headers(session_id=f"session-{request.number}")
        result = await client.visit("POST", client.path, headers, client.body_of_agent(turn))
        if _is_over(client, result):
            return
        await _between(client)


async def _stopper(of: Client, after: float) -> None:
    """Somebody stops the stream, at any replica, and tries until he is told that it is."""
    world = of.world
    await asyncio.sleep(after)
    while of.witness.stream is None:
        if of.done is not None:
            return
        await asyncio.sleep(0.05)
    stream = of.witness.stream
    seen = world.evidence.streams[stream]
    deadline = world.now() + _STOP_FOR
    while world.now() < deadline:
        number = of.dice.randrange(len(world.fronts))
        seen.stop_asked.append(world.now())
        with contextlib.suppress(Unanswered):
            answer = await ask(world.fronts[number].port, "DELETE", f"/streams/{stream}", of.headers(), wait=10.0)
            body = await answer.read(5.0)
            answer.close()
            of.note(f"DELETE at replica {number}: {answer.status}")
            world.count(f"stop {answer.status}")
            if answer.status == 204:
                seen.stopped.append(world.now())
                return
            if answer.status != 503 and seen.logged:
                await of.refused(number, answer.status, error_code(body), "DELETE")
                return
        await asyncio.sleep(0.3)


class _Spread(httpx.AsyncBaseTransport):
    """A load balancer that sends every request to some replica. What `relay.client` waits of its own accord, between a
    cut and its next try, is no time in which a replica owes it anything."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._reading: tuple[StreamSeen, float] | None = None
        self._inner = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        client = self._client
        number = client.dice.randrange(len(client.world.fronts))
        client.away = False
        self.read_no_more()
        client.asks(number)
        request.url = request.url.copy_with(port=client.world.fronts[number].port)
        after = request.headers.get("last-event-id")
        client.note(f"replica {number}: POST of relay.client{f' after {after}' if after else ''}")
        try:
            response = await self._inner.handle_async_request(request)
        except httpx.TransportError as error:
            client.note(f"no answer: {type(error).__name__}")
            client.away = True
            raise
        stream = response.headers.get("relay-stream-id", "")
        client.note(f"{response.status_code} {stream}")
        if response.status_code != 200:
            client.away = True
        elif stream:
            logged = response.headers["relay-resumable"] == "true"
            self._reading = client.world.seen(stream, client.spec, logged=logged), client.world.now()
        if after:
            client.world.count(f"resume {response.status_code}")
        return response

    def read_no_more(self) -> None:
        """The connection has ended."""
        if self._reading is not None:
            seen, began = self._reading
            seen.reading.append(((began, self._client.world.now()), self._client.at))
            self._reading = None

    def cut(self, moment: Moment) -> None:
        self.read_no_more()
        self._client.note(f"cut: {moment.why}")
        self._client.away = True

    async def aclose(self) -> None:
        self.read_no_more()
        self._client.away = False
        await self._inner.aclose()


async def _transport(client: Client, request: Request) -> None:
    """What `relay.client` hands to an SDK: one stream without a seam, or an error."""
    for attempt in range(_SDK_POSTS):
        spread = _Spread(client)
        policy = Policy(
            max_attempts=60, max_elapsed=60.0, first_delay=0.2, longest_delay=0.6, silence=4.0, assume_relay=True,
            random=client.dice.random, on_cut=spread.cut,
        )  # fmt: skip
        transport = AsyncResumingTransport(spread, policy=policy)
        try:
            await _through(client, transport, f"client-{client.name}-{attempt}")
        except ResumeFailed as failure:
            client.note(f"ResumeFailed: {failure}")
            if failure.status in (404, 410) or (failure.status or 500) < 500:
                await client.refused(client.at, failure.status or 0, failure.code or "", "POST")
            client.end(f"raised: {failure.status} {failure.code}")
        except httpx.TransportError as error:
            client.note(f"raised: {type(error).__name__}: {error}")
            if client.witness.stream is not None:
                client.end(f"raised: {type(error).__name__}")
        if client.done is not None:
            return
        await _between(client)
    client.end("raised: no answer")


async def _through(client: Client, transport: httpx.AsyncBaseTransport, key: str) -> None:
    world = client.world
    url = f"http://127.0.0.1:{world.fronts[0].port}{client.path}"
    headers = client.headers(content_type="application/json")
    timeout = httpx.Timeout(60.0)
    async with (
        httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as http,
        http.stream("POST", url, headers=headers, content=client.body(key)) as response,
    ):
        if response.status_code != 200:
            await _not_streamed(client, response)
            return
        client.witness.answered(
            response.headers["relay-stream-id"], resumable=response.headers["relay-resumable"] == "true"
        )
        parser = Parser()
        async for data in response.aiter_raw():
            for event in parser.feed(data):
                client.got(event)
        if parser.rest:
            raise Violation("truncation", f"relay.client handed out a part of an event: {parser.rest[:80]!r}")
        client.witness.ended_cleanly()
        client.end(f"ended: {client.witness.end}")


async def _not_streamed(client: Client, response: httpx.Response) -> None:
    body = await response.aread()
    client.note(f"{response.status_code} {body[:120]!r}")
    if response.status_code in (503, 502, 504, 409):
        return
    if response.status_code == 429 and client.spec.ending == "refused":
        client.end("refused by the upstream")
        return
    raise Violation("answer", f"{response.status_code} {body[:200]!r}")


_DRIVES = {
    "poster": _poster,
    "eventsource": _eventsource,
    "sdk": _sdk,
    "keyed": _keyed,
    "client": _transport,
    "detached": _detached,
    "agent": _agent,
}
