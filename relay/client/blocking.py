# Written by .ci/twins.py from awaiting.py: change that, and run `make generate`.
"""The synchronous transport and response body, for either library.

A subclass names its library in `http` and its errors, and adds the library's own base class. Each stream has a state of
its own, so threads and tasks may share a transport.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, ClassVar

from relay.client.credentials import BlockingCredentials, Headers
from relay.client.decoding import Garbled, encoding_of
from relay.client.events import MAX_REFUSAL_BYTES, MAX_REFUSAL_TIME, error_code
from relay.client.leaving import BlockingLeaving, Left, Sleep, TookTooLong
from relay.client.planning import KnownRelays, Plan
from relay.client.policy import Counters, Policy, heartbeat, retry_after
from relay.client.resumption import Ask, Reason, Resumption, Then, Unresumable, stream_of

_MOST_REDIRECTS = 5


class BlockingTransport:
    """`inner` does the sending: by default the library's own HTTPTransport, made with `options`."""

    http: ClassVar[Any]
    failure: ClassVar[Any]
    timed_out: ClassVar[Any]
    body: ClassVar[Any]
    rest: ClassVar[Any]

    def __init__(
        self,
        inner: Any = None,
        *,
        policy: Policy | None = None,
        headers: Headers | None = None,
        auth: Any = None,
        base_urls: Iterable[str] = (),
        sleep: Sleep | None = None,
        **options: Any,
    ) -> None:
        """Args:
            policy: how long to try, what to call, and the bounds.
            headers: called for each request of a stream; what it returns takes the place of the request's own.
            auth: an `Auth` of the library, run for each request of a stream.
            base_urls: further addresses of the same relay, tried in turn when one does not answer.
            sleep: takes the place of the wait between attempts, for tests.

        Raises TypeError and ValueError.
        """
        if inner is not None and options:
            raise TypeError(f"Give {', '.join(options)} to the inner transport, or leave the inner transport out.")
        self.inner = inner if inner is not None else self.http.HTTPTransport(**options)
        self.policy = policy or Policy()
        self.counters = Counters()
        self.sleep = sleep
        self.auth = auth
        self.renews = headers is not None or auth is not None
        self._credentials = BlockingCredentials(headers)
        self._known = KnownRelays(self.http, self.policy, base_urls)

    def handle_request(self, request: Any) -> Any:
        """Raises what the library's own transport raises; of the body, ResumeFailed."""
        plan = self._known.plan(request)
        if plan is None:
            return self.inner.handle_request(request)
        response = self._open(plan)
        stream = stream_of(response.status_code, response.headers)
        if stream is None:
            return response
        self._known.proved(plan)
        plan.lives(heartbeat(response.headers))
        state = Resumption(
            plan.api,
            stream,
            self.policy,
            asked_for=plan.asked_for,
            anchored=plan.anchored,
            encoding=encoding_of(response.headers),
            budget=plan.budget,
            counters=self.counters,
            fresh_credentials=self.renews,
        )
        kept = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-encoding"]
        return self.http.Response(
            response.status_code,
            headers=kept,
            stream=self.body(self, plan, state, response.stream),
            extensions=response.extensions,
        )

    def again(self, plan: Plan, stream: str, last_event_id: str | None) -> tuple[Any, bytes]:
        """The answer to a resume, and what there is to know of it where it is a refusal."""
        request = plan.resume(stream, last_event_id, self._credentials.fresh())
        response = self._send(plan, request, redirects=_MOST_REDIRECTS)
        if response.status_code in (200, 204):
            plan.lives(heartbeat(response.headers))
            return response, b""
        plan.hurry()
        body, rest = self._beginning(response)
        _finish(rest)
        response.close()
        return response, body

    def _open(self, plan: Plan) -> Any:
        """The head of the answer, whoever gives it."""
        leaving = BlockingLeaving(self.sleep)
        while True:
            try:
                response = self._send(plan, plan.first(self._credentials.fresh()))
            except self.http.TransportError as error:
                wait = plan.budget.another(0.0) if plan.repeats_lost(error) else None
                if wait is None:
                    plan.died()
                    raise
            else:
                status, code = response.status_code, None
                if plan.looks_into(status):
                    plan.hurry()
                    code, response = self._code_of(response)
                if plan.may_do_without_key(status, code):
                    response.close()
                    return self._send(plan, plan.without_key(self._credentials.fresh()))
                repeats = plan.repeats_refused(status, code)
                wait = plan.budget.another(retry_after(response.headers)) if repeats else None
                if wait is None:
                    if status != 200:
                        plan.died()
                    return response
                response.close()
            leaving.wait(wait)

    def _send(self, plan: Plan, request: Any, *, redirects: int = 0) -> Any:
        """The answer behind so many redirects: those of a first request are the library's client's to follow."""
        if self.auth is None:
            return self._follow(plan, request, redirects)
        flow = self.auth.sync_auth_flow(request)
        try:
            request = flow.__next__()
            while True:
                response = self._follow(plan, request, redirects)
                response.request = request
                try:
                    request = flow.send(response)
                except StopIteration:
                    return response
                response.close()
        finally:
            flow.close()

    def _follow(self, plan: Plan, request: Any, redirects: int) -> Any:
        for _ in range(redirects):
            response = self.inner.handle_request(request)
            target = plan.redirected(request, response)
            if target is None:
                return response
            response.close()
            request = target
        return self.inner.handle_request(request)

    def _code_of(self, refused: Any) -> tuple[str | None, Any]:
        """The code of a refusal, and the refusal as if it had not been read."""
        body, rest = self._beginning(refused)
        return error_code(body), self.http.Response(
            refused.status_code,
            headers=refused.headers,
            stream=self.rest(body, rest, refused.stream),
            extensions=refused.extensions,
        )

    def _beginning(self, refused: Any) -> tuple[bytes, Any]:
        """What a refusal's body begins with, and what brings the rest: its sender may never end it."""
        parts: list[bytes] = []
        size = 0
        until = self.policy.clock() + MAX_REFUSAL_TIME
        rest = refused.stream.__iter__()
        try:
            while size < MAX_REFUSAL_BYTES and self.policy.clock() < until:
                parts.append(rest.__next__())
                size += len(parts[-1])
        except (StopIteration, self.http.TransportError):
            pass
        return b"".join(parts), rest

    def close(self) -> None:
        self.inner.close()

    def __enter__(self) -> Any:
        self.inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)


class BlockingRest:
    """The body of a refusal whose beginning has been read."""

    def __init__(self, beginning: bytes, rest: Any, body: Any) -> None:
        self._beginning = beginning
        self._rest = rest
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        yield self._beginning
        for part in self._rest:
            if part:
                yield part

    def close(self) -> None:
        self._body.close()


class BlockingBody:
    """The body that the SDK reads: one stream, out of as many answers as it takes."""

    def __init__(self, transport: BlockingTransport, plan: Plan, state: Resumption, body: Any) -> None:
        self._transport = transport
        self._http = transport.http
        self._plan = plan
        self._state = state
        self._body = body
        self._leaving = BlockingLeaving(transport.sleep)
        self._cause: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            while True:
                self._cause = None
                reads = self._body.__iter__()
                try:
                    for data in reads:
                        if whole := self._state.feed(data):
                            yield whole
                            self._state.check()
                except (self._http.TransportError, Garbled) as error:
                    self._cause = error
                finally:
                    _finish(reads)
                self._body.close()
                then = self._state.cut(None if self._cause is None else type(self._cause).__name__)
                while isinstance(then, Ask):
                    then = self._ask(then)
                if then is not Then.READ:
                    return
        except Unresumable as failure:
            self._body.close()
            timed_out = failure.reason is Reason.TIMED_OUT
            raise (self._transport.timed_out if timed_out else self._transport.failure)(failure) from self._cause
        except Left:
            raise self._http.StreamClosed from None

    def _ask(self, ask: Ask) -> Ask | Then:
        self._leaving.wait(ask.wait)
        try:
            send = partial(self._transport.again, self._plan, self._state.stream, ask.last_event_id)
            response, refusal = self._leaving.attempt(send, _discard, self._plan.silence())
        except (self._http.RequestError, TookTooLong) as error:
            self._cause = error
            self._plan.turn()
            return self._state.unanswered(type(error).__name__)
        self._body = response.stream
        try:
            then = self._state.answered(response.status_code, response.headers, refusal)
        except BaseException:
            response.close()
            raise
        if then is not Then.READ:
            response.close()
        if isinstance(then, Ask):
            self._plan.turn()
        elif self._leaving.left:
            self.close()
            raise Left
        return then

    def close(self) -> None:
        """Ends a read, a wait or an attempt at once, whoever calls it."""
        self._leaving.leave()
        self._body.close()


def _finish(reads: Any) -> None:
    """An iterator that is left before its end, at once: some loops do not wait for the garbage collector."""
    if hasattr(reads, "close"):
        reads.close()


def _discard(answer: tuple[Any, bytes]) -> None:
    answer[0].close()
