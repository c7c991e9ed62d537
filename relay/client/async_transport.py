"""The asynchronous transport and response body, for either library.

A subclass names its library in `http` and its errors, and adds the library's own base class. Each stream has a state of
its own, so threads and tasks may share a transport.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any, ClassVar

from relay.client.cancellation import AsyncCancellation, AsyncSleep, AttemptTimedOut, Cancelled
from relay.client.credentials import AsyncCredentials, AsyncHeaders
from relay.client.decoding import DecodingError, encoding_of
from relay.client.events import MAX_REFUSAL_BYTES, MAX_REFUSAL_TIME, error_code
from relay.client.policy import Counters, Policy, heartbeat_interval, retry_after
from relay.client.request_plan import STOP_TIMEOUT, KnownRelays, RequestPlan
from relay.client.resumable_stream import Action, Reason, Reconnect, ResumableStream, Unresumable, resumable_stream_id

logger = logging.getLogger("relay.client")

_MOST_REDIRECTS = 5


class AsyncTransport:
    """`inner` does the sending: by default the library's own AsyncHTTPTransport, made with `options`."""

    http: ClassVar[Any]
    failure: ClassVar[Any]
    timed_out: ClassVar[Any]
    body: ClassVar[Any]
    refusal_body: ClassVar[Any]

    def __init__(
        self,
        inner: Any = None,
        *,
        policy: Policy | None = None,
        headers: AsyncHeaders | None = None,
        auth: Any = None,
        base_urls: Iterable[str] = (),
        sleep: AsyncSleep | None = None,
        **options: Any,
    ) -> None:
        """Args:
            inner: sends the requests; by default the library's own transport, made with `options`.
            policy: how long to try, what to call, and the bounds.
            headers: called for each request of a stream; what it returns takes the place of the request's own.
            auth: an `Auth` of the library, run for each request of a stream.
            base_urls: further addresses of the same relay, tried in turn when one does not answer.
            sleep: takes the place of the wait between attempts, in seconds, for tests.
            options: what the library's own transport takes.

        Raises TypeError where both `inner` and `options` are given, and ValueError for a base URL that is none.
        """
        if inner is not None and options:
            raise TypeError(f"Give {', '.join(options)} to the inner transport, or leave the inner transport out.")
        self.inner = inner if inner is not None else self.http.AsyncHTTPTransport(**options)
        self.policy = policy or Policy()
        self.counters = Counters()
        self.sleep = sleep
        self.auth = auth
        self.has_fresh_credentials = headers is not None or auth is not None
        self._credentials = AsyncCredentials(headers)
        self._known = KnownRelays(self.http, self.policy, base_urls)

    async def handle_async_request(self, request: Any) -> Any:
        """The response to one request; the body of a relay's stream goes on after each cut.

        Raises what the library's own transport raises. Reading the body raises ResumeFailed where it cannot go on.
        """
        plan = self._known.plan(request)
        if plan is None:
            return await self.inner.handle_async_request(request)
        response = await self._first_response(plan)
        stream = resumable_stream_id(response.status_code, response.headers)
        if stream is None:
            return response
        self._known.add(plan)
        plan.on_stream_confirmed(heartbeat_interval(response.headers))
        state = ResumableStream(
            plan.api,
            stream,
            self.policy,
            requested_event_id=plan.requested_event_id,
            first_number_known=plan.first_number_known,
            encoding=encoding_of(response.headers),
            budget=plan.budget,
            counters=self.counters,
            fresh_credentials=self.has_fresh_credentials,
        )
        kept = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-encoding"]
        return self.http.Response(
            response.status_code,
            headers=kept,
            stream=self.body(self, plan, state, response.stream),
            extensions=response.extensions,
        )

    async def resume(self, plan: RequestPlan, stream: str, last_event_id: str | None) -> tuple[Any, bytes]:
        """The answer to a resume, and what was read of its body where it is a refusal.

        Args:
            plan: the stream's request.
            stream: the stream's id.
            last_event_id: the last event that was handed out; None to send the request as it was at first.

        Raises what the library's own transport raises.
        """
        request = plan.resume_request(stream, last_event_id, await self._credentials.fresh())
        response = await self._send(plan, request, redirects=_MOST_REDIRECTS)
        if response.status_code in (200, 204):
            plan.on_stream_confirmed(heartbeat_interval(response.headers))
            return response, b""
        plan.limit_refusal_time()
        body, rest = await self._read_beginning(response)
        await _close_iterator(rest)
        await response.aclose()
        return response, body

    async def stop(self, plan: RequestPlan, stream: str) -> None:
        """End the generation. Whether the relay hears it or not, whoever has closed the response goes on."""
        try:
            request = plan.stop_request(stream, await self._credentials.fresh())
            response = await self._send(plan, request, redirects=_MOST_REDIRECTS)
            await response.aclose()
        except Exception as error:
            logger.debug("stream %s was not stopped: %s", stream, type(error).__name__)

    async def _first_response(self, plan: RequestPlan) -> Any:
        """The head of the answer, whoever gives it."""
        cancellation = AsyncCancellation(self.sleep)
        while True:
            try:
                response = await self._send(plan, plan.initial_request(await self._credentials.fresh()))
            except self.http.TransportError as error:
                wait = plan.budget.next_wait(0.0) if plan.may_repeat_after_error(error) else None
                if wait is None:
                    plan.remember_lost()
                    raise
            else:
                status, code = response.status_code, None
                if plan.needs_error_code(status):
                    plan.limit_refusal_time()
                    code, response = await self._error_code_of(response)
                if plan.may_drop_key(status, code):
                    await response.aclose()
                    return await self._send(plan, plan.request_without_key(await self._credentials.fresh()))
                repeats = plan.may_repeat_after_refusal(status, code)
                wait = plan.budget.next_wait(retry_after(response.headers)) if repeats else None
                if wait is None:
                    if status != 200:
                        plan.remember_lost()
                    return response
                await response.aclose()
            await cancellation.wait(wait)

    async def _send(self, plan: RequestPlan, request: Any, *, redirects: int = 0) -> Any:
        """The answer after at most so many redirects. The library's own client follows those of an initial request."""
        if self.auth is None:
            return await self._send_following_redirects(plan, request, redirects)
        flow = self.auth.async_auth_flow(request)
        try:
            request = await flow.__anext__()
            while True:
                response = await self._send_following_redirects(plan, request, redirects)
                response.request = request
                try:
                    request = await flow.asend(response)
                except StopAsyncIteration:
                    return response
                await response.aclose()
        finally:
            await flow.aclose()

    async def _send_following_redirects(self, plan: RequestPlan, request: Any, redirects: int) -> Any:
        for _ in range(redirects):
            response = await self.inner.handle_async_request(request)
            target = plan.redirect(request, response)
            if target is None:
                return response
            await response.aclose()
            request = target
        return await self.inner.handle_async_request(request)

    async def _error_code_of(self, refused: Any) -> tuple[str | None, Any]:
        """The code of a refusal, and the refusal as if it had not been read."""
        body, rest = await self._read_beginning(refused)
        return error_code(body), self.http.Response(
            refused.status_code,
            headers=refused.headers,
            stream=self.refusal_body(body, rest, refused.stream),
            extensions=refused.extensions,
        )

    async def _read_beginning(self, refused: Any) -> tuple[bytes, Any]:
        """What a refusal's body begins with, and what brings the rest: its sender may never end it."""
        parts: list[bytes] = []
        size = 0
        until = self.policy.clock() + MAX_REFUSAL_TIME
        rest = refused.stream.__aiter__()
        try:
            while size < MAX_REFUSAL_BYTES and self.policy.clock() < until:
                parts.append(await rest.__anext__())
                size += len(parts[-1])
        except (StopAsyncIteration, self.http.TransportError):
            pass
        return b"".join(parts), rest

    async def aclose(self) -> None:
        """Close the inner transport and its connections."""
        await self.inner.aclose()

    async def __aenter__(self) -> Any:
        await self.inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.inner.__aexit__(*error)


class AsyncRefusalBody:
    """The body of a refusal whose beginning has been read."""

    def __init__(self, beginning: bytes, rest: Any, body: Any) -> None:
        self._beginning = beginning
        self._rest = rest
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._beginning
        async for part in self._rest:
            if part:
                yield part

    async def aclose(self) -> None:
        """Close the refusal's connection, read to its end or not."""
        await self._body.aclose()


class AsyncStreamBody:
    """The body that the SDK reads: one stream, out of as many responses as it takes."""

    def __init__(self, transport: AsyncTransport, plan: RequestPlan, state: ResumableStream, body: Any) -> None:
        self._transport = transport
        self._http = transport.http
        self._plan = plan
        self._state = state
        self._body = body
        self._cancellation = AsyncCancellation(transport.sleep)
        self._cause: Exception | None = None
        self._wanted = transport.policy.stop_on_abort

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self._cause = None
                reads = self._body.__aiter__()
                try:
                    async for data in reads:
                        if whole := self._state.feed(data):
                            yield whole
                            self._state.raise_pending()
                except (self._http.TransportError, DecodingError) as error:
                    self._cause = error
                finally:
                    await _close_iterator(reads)
                await self._body.aclose()
                action = self._state.on_disconnect(None if self._cause is None else type(self._cause).__name__)
                while isinstance(action, Reconnect):
                    action = await self._reconnect(action)
                if action is not Action.READ_BODY:
                    self._wanted = False
                    return
        except Unresumable as failure:
            self._wanted = False  # it may be read on, in another process, too
            await self._body.aclose()
            timed_out = failure.reason is Reason.TIMED_OUT
            raise (self._transport.timed_out if timed_out else self._transport.failure)(failure) from self._cause
        except Cancelled:
            raise self._http.StreamClosed from None

    async def _reconnect(self, to: Reconnect) -> Reconnect | Action:
        await self._cancellation.wait(to.wait)
        try:
            send = partial(self._transport.resume, self._plan, self._state.stream, to.last_event_id)
            response, refusal = await self._cancellation.attempt(send, _discard, self._plan.read_timeout())
        except (self._http.RequestError, AttemptTimedOut) as error:
            self._cause = error
            self._plan.next_address()
            return self._state.on_request_failed(type(error).__name__)
        self._body = response.stream
        try:
            action = self._state.on_response(response.status_code, response.headers, refusal)
        except BaseException:
            await response.aclose()
            raise
        if action is not Action.READ_BODY:
            await response.aclose()
        if isinstance(action, Reconnect):
            self._plan.next_address()
        elif self._cancellation.cancelled:
            await self.aclose()
            raise Cancelled
        return action

    async def aclose(self) -> None:
        """Ends a read, a wait or an attempt at once, whoever calls it."""
        self._cancellation.cancel()
        try:
            await self._body.aclose()
        finally:
            if self._wanted and not self._state.finished:
                self._wanted = False
                stop = partial(self._transport.stop, self._plan, self._state.stream)
                await self._cancellation.last(stop, 2 * STOP_TIMEOUT)


async def _close_iterator(reads: Any) -> None:
    """An iterator that is left before its end, at once: some loops do not wait for the garbage collector."""
    if hasattr(reads, "aclose"):
        await reads.aclose()


async def _discard(answer: tuple[Any, bytes]) -> None:
    await answer[0].aclose()
