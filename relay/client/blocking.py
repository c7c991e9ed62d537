"""The synchronous transport and response body, for either library; `awaiting` is the same with `await`.

A subclass names its library in `http` and its error in `failure`, and adds the library's own base class. Each stream
has a state of its own, so threads may share a transport.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from relay.client.events import error_code
from relay.client.planning import Desk, Plan
from relay.client.policy import Patience, Policy, retry_after
from relay.client.resumption import Ask, Resumption, Then, Unresumable, stream_of

Sleep = Callable[[float], None]


class BlockingTransport:
    """`inner` does the sending: by default the library's own HTTPTransport, made with `options`."""

    http: ClassVar[Any]
    failure: ClassVar[Any]
    body: ClassVar[Any]

    def __init__(
        self, inner: Any = None, *, policy: Policy | None = None, sleep: Sleep | None = None, **options: Any
    ) -> None:
        """`sleep` takes the place of the wait between attempts, which a `close` of the response ends at once."""
        if inner is not None and options:
            raise TypeError(f"Give {', '.join(options)} to the inner transport, or leave the inner transport out.")
        self.inner = inner if inner is not None else self.http.HTTPTransport(**options)
        self.policy = policy or Policy()
        self.sleep = sleep
        self._desk = Desk(self.http, self.policy)

    def handle_request(self, request: Any) -> Any:
        plan = self._desk.plan(request)
        if plan is None:
            return self.inner.handle_request(request)
        response = self._open(plan)
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

    def _open(self, plan: Plan) -> Any:
        """The head of the answer, whoever gives it."""
        patience = Patience(self.policy)
        while True:
            try:
                response = self.inner.handle_request(plan.first())
            except self.http.TransportError as error:
                wait = patience.another(0.0) if plan.repeats_lost(error) else None
                if wait is None:
                    raise
            else:
                if plan.may_do_without_key(response.status_code):
                    return self._without_key(plan, response)
                repeats = plan.repeats_refused(response.status_code)
                wait = patience.another(retry_after(response.headers)) if repeats else None
                if wait is None:
                    return response
                response.close()
            (self.sleep or threading.Event().wait)(wait)

    def _without_key(self, plan: Plan, refused: Any) -> Any:
        try:
            body = b"".join(refused.stream)
        finally:
            refused.close()
        if error_code(body) == "store_unavailable":
            return self.inner.handle_request(plan.without_key())
        return self.http.Response(
            refused.status_code,
            headers=refused.headers,
            stream=self.http.ByteStream(body),
            extensions=refused.extensions,
        )

    def close(self) -> None:
        self.inner.close()

    def __enter__(self) -> Any:
        self.inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)


class BlockingBody:
    """The body that the SDK reads: one stream, out of as many answers as it takes."""

    def __init__(self, transport: BlockingTransport, plan: Plan, state: Resumption, body: Any) -> None:
        self._transport = transport
        self._http = transport.http
        self._plan = plan
        self._state = state
        self._body = body
        self._closed = threading.Event()
        self._cause: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            while True:
                self._cause = None
                try:
                    for data in self._body:
                        if whole := self._state.feed(data):
                            yield whole
                except self._http.TransportError as error:
                    self._cause = error
                self._body.close()
                then = self._state.cut(None if self._cause is None else type(self._cause).__name__)
                while isinstance(then, Ask):
                    then = self._ask(then)
                if then is Then.AS_IT_IS and self._cause is not None:
                    raise self._cause
                if then is not Then.READ:
                    return
        except Unresumable as failure:
            raise self._transport.failure(failure) from self._cause

    def _ask(self, ask: Ask) -> Ask | Then:
        (self._transport.sleep or self._closed.wait)(ask.wait)
        if self._closed.is_set():
            raise self._http.StreamClosed
        try:
            response = self._transport.inner.handle_request(self._plan.resume(ask.last_event_id))
            try:
                refusal = b"" if response.status_code == 200 else response.read()
                then = self._state.answered(response.status_code, response.headers, refusal)
            except BaseException:
                response.close()
                raise
        except self._http.RequestError as error:
            self._cause = error
            return self._state.unanswered(type(error).__name__)
        if then is Then.READ:
            self._body = response.stream
            if self._closed.is_set():
                self.close()
                raise self._http.StreamClosed
        else:
            response.close()
        return then

    def close(self) -> None:
        self._closed.set()
        self._body.close()
