"""The asynchronous transport and response body, for either library; `blocking` is the same without `await`.

Waits are anyio's, as in both libraries, so that asyncio and Trio both work. Cancelling the task that reads ends a wait,
an attempt or a read at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar

import anyio

from relay.client.events import error_code
from relay.client.planning import Desk, Plan
from relay.client.policy import Patience, Policy, retry_after
from relay.client.resumption import Ask, Resumption, Then, Unresumable, stream_of

Sleep = Callable[[float], Awaitable[None]]


class AwaitingTransport:
    """`inner` does the sending: by default the library's own AsyncHTTPTransport, made with `options`."""

    http: ClassVar[Any]
    failure: ClassVar[Any]
    body: ClassVar[Any]

    def __init__(
        self, inner: Any = None, *, policy: Policy | None = None, sleep: Sleep | None = None, **options: Any
    ) -> None:
        """`sleep` takes the place of the wait between attempts, which an `aclose` of the response ends at once."""
        if inner is not None and options:
            raise TypeError(f"Give {', '.join(options)} to the inner transport, or leave the inner transport out.")
        self.inner = inner if inner is not None else self.http.AsyncHTTPTransport(**options)
        self.policy = policy or Policy()
        self.sleep = sleep
        self._desk = Desk(self.http, self.policy)

    async def handle_async_request(self, request: Any) -> Any:
        plan = self._desk.plan(request)
        if plan is None:
            return await self.inner.handle_async_request(request)
        response = await self._open(plan)
        stream = stream_of(response.status_code, response.headers)
        if stream is None:
            return response
        self._desk.is_relay(plan)
        plan.watch_for_silence()
        state = Resumption(plan.api, stream, self.policy, asked_for=plan.asked_for)
        return self.http.Response(
            response.status_code,
            headers=response.headers,
            stream=self.body(self, plan, state, response.stream),
            extensions=response.extensions,
        )

    async def _open(self, plan: Plan) -> Any:
        """The head of the answer, whoever gives it."""
        patience = Patience(self.policy)
        while True:
            try:
                response = await self.inner.handle_async_request(plan.first())
            except self.http.TransportError as error:
                wait = patience.another(0.0) if plan.repeats_lost(error) else None
                if wait is None:
                    raise
            else:
                if plan.may_do_without_key(response.status_code):
                    return await self._without_key(plan, response)
                repeats = plan.repeats_refused(response.status_code)
                wait = patience.another(retry_after(response.headers)) if repeats else None
                if wait is None:
                    return response
                await response.aclose()
            await (self.sleep or anyio.sleep)(wait)

    async def _without_key(self, plan: Plan, refused: Any) -> Any:
        try:
            body = b"".join([part async for part in refused.stream])
        finally:
            await refused.aclose()
        if error_code(body) == "store_unavailable":
            return await self.inner.handle_async_request(plan.without_key())
        return self.http.Response(
            refused.status_code,
            headers=refused.headers,
            stream=self.http.ByteStream(body),
            extensions=refused.extensions,
        )

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def __aenter__(self) -> Any:
        await self.inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.inner.__aexit__(*error)


class AwaitingBody:
    """The body that the SDK reads: one stream, out of as many answers as it takes."""

    def __init__(self, transport: AwaitingTransport, plan: Plan, state: Resumption, body: Any) -> None:
        self._transport = transport
        self._http = transport.http
        self._plan = plan
        self._state = state
        self._body = body
        self._closed = anyio.Event()
        self._cause: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self._cause = None
                try:
                    async for data in self._body:
                        if whole := self._state.feed(data):
                            yield whole
                except self._http.TransportError as error:
                    self._cause = error
                await self._body.aclose()
                then = self._state.cut(None if self._cause is None else type(self._cause).__name__)
                while isinstance(then, Ask):
                    then = await self._ask(then)
                if then is Then.AS_IT_IS and self._cause is not None:
                    raise self._cause
                if then is not Then.READ:
                    return
        except Unresumable as failure:
            raise self._transport.failure(failure) from self._cause

    async def _ask(self, ask: Ask) -> Ask | Then:
        await self._wait(ask.wait)
        if self._closed.is_set():
            raise self._http.StreamClosed
        try:
            response = await self._transport.inner.handle_async_request(self._plan.resume(ask.last_event_id))
            try:
                refusal = b"" if response.status_code == 200 else await response.aread()
                then = self._state.answered(response.status_code, response.headers, refusal)
            except BaseException:
                await response.aclose()
                raise
        except self._http.RequestError as error:
            self._cause = error
            return self._state.unanswered(type(error).__name__)
        if then is Then.READ:
            self._body = response.stream
            if self._closed.is_set():
                await self.aclose()
                raise self._http.StreamClosed
        else:
            await response.aclose()
        return then

    async def _wait(self, seconds: float) -> None:
        if self._transport.sleep is not None:
            await self._transport.sleep(seconds)
            return
        with anyio.move_on_after(seconds):
            await self._closed.wait()

    async def aclose(self) -> None:
        self._closed.set()
        await self._body.aclose()
