"""A transport's client in all four kinds (httpx and httpx2, synchronous and asynchronous), over scripted answers.

The inner transport is the seam that users have, so what is played here is exactly what a connection may do: answer,
bring bytes, break, or end. Real connections are in `test_survival.py`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import httpx2

import relay.client.httpx
import relay.client.httpx2
from relay.client.policy import Policy

STREAM = "st_" + "s" * 22
HEAD = {"relay-stream-id": STREAM, "relay-resumable": "true", "content-type": "text/event-stream; charset=utf-8"}
PATH = "/v1/chat/completions"
URL = f"http://relay.test{PATH}"
BODY = {"model": "m", "messages": [], "stream": True}
DONE = "[DONE]"


def frame(n: int, data: str = "{}") -> bytes:
    return f"id: {STREAM}.{n}\ndata: {data}\n\n".encode()


@dataclass
class Answer:
    """`parts` are the body's reads; the name of an exception class of the library is the body's break, and `+6` lets
    six seconds pass."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(HEAD))
    parts: list[bytes | str] = field(default_factory=list)
    closed: bool = False
    read: int = 0
    """Parts that were read."""
    was_closed: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        self.closed = True
        self.was_closed.set()


Script = list[Answer | str]


def refused(status: int, code: str, **headers: str) -> Answer:
    body = json.dumps({"error": {"message": "sk-secret", "code": code}}).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, [body])


@dataclass
class Seen:
    """What a client got: the reads of its body, and the error that ended it."""

    status: int | None = None
    parts: list[bytes] = field(default_factory=list)
    error: Any = None

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


class Kind:
    """One library, synchronous or asynchronous. `requests` are those that left, `waits` what it slept."""

    def __init__(self, http: Any, client: Any, *, is_async: bool) -> None:
        self.http = http
        self.client = client
        self.is_async = is_async
        self.requests: list[Any] = []
        self.timeouts: list[dict[str, Any]] = []
        """As they were at the end, for the body."""
        self.heads: list[float | None] = []
        """The read time-outs as the requests left with them."""
        self.waits: list[float] = []
        self.now = 0.0
        """The time of a policy that asks for it: waits and parts like `+6` let it pass."""
        self.run: Callable[..., Any] = anyio.run
        self.script: Script = []

    def headers(self, name: str) -> list[str | None]:
        return [request.headers.get(name) for request in self.requests]

    def transport(self, policy: Policy | None = None, *, inner: Any = None, **more: Any) -> Any:
        made = self.client.AsyncResumingTransport if self.is_async else self.client.ResumingTransport
        policy = policy or Policy(random=lambda: 1.0)
        return made(inner or self._inner(), policy=policy, **{"sleep": self._sleep(), **more})

    def post(self, script: Script, transport: Any = None, url: str = URL, body: Any = BODY, **more: Any) -> Seen:
        """One POST, read to its end."""
        return self.ask("POST", script, transport, url, json=body, **more)

    def ask(self, method: str, script: Script, transport: Any = None, url: str = URL, **more: Any) -> Seen:
        self.script = script
        transport = transport or self.transport()
        seen = Seen()
        try:
            if self.is_async:
                self.run(self._await, seen, transport, method, url, more)
            else:
                client = self.http.Client(transport=transport)
                with client, client.stream(method, url, **more) as response:
                    seen.status = response.status_code
                    seen.parts.extend(response.iter_raw())
        except self.http.HTTPError as error:
            seen.error = error
        return seen

    async def _await(self, seen: Seen, transport: Any, method: str, url: str, more: dict[str, Any]) -> None:
        client = self.http.AsyncClient(transport=transport)
        async with client, client.stream(method, url, **more) as response:
            seen.status = response.status_code
            async for part in response.aiter_raw():
                seen.parts.append(part)

    def _sleep(self) -> Callable[[float], Any]:
        def sleep(seconds: float) -> None:
            self.waits.append(seconds)
            self.now += seconds

        async def awaited(seconds: float) -> None:
            sleep(seconds)

        return awaited if self.is_async else sleep

    def _inner(self) -> Any:
        kind, http = self, self.http

        def answer(request: Any, make: Callable[[Answer], Any]) -> Any:
            kind.requests.append(request)
            kind.timeouts.append(request.extensions.get("timeout", {}))
            kind.heads.append(kind.timeouts[-1].get("read"))
            step = kind.script.pop(0)
            if isinstance(step, str):
                raise getattr(http, step)("it broke")
            return http.Response(step.status, headers=step.headers, stream=make(step))

        def read(part: bytes | str) -> bytes:
            if isinstance(part, str) and part.startswith("+"):
                kind.now += float(part[1:])
                return b""
            if isinstance(part, str):
                raise getattr(http, part)("it broke")
            return part

        class Body(http.SyncByteStream):  # type: ignore[misc,name-defined]
            def __init__(self, step: Answer) -> None:
                self.step = step

            def __iter__(self) -> Iterator[bytes]:
                for part in self.step.parts:
                    self.step.read += 1
                    if data := read(part):
                        yield data

            def close(self) -> None:
                self.step.close()

        class AsyncBody(http.AsyncByteStream):  # type: ignore[misc,name-defined]
            def __init__(self, step: Answer) -> None:
                self.step = step

            async def __aiter__(self) -> AsyncIterator[bytes]:
                for part in self.step.parts:
                    self.step.read += 1
                    if data := read(part):
                        yield data

            async def aclose(self) -> None:
                self.step.close()

        class Inner(http.BaseTransport):  # type: ignore[misc,name-defined]
            def handle_request(self, request: Any) -> Any:
                return answer(request, Body)

        class AsyncInner(http.AsyncBaseTransport):  # type: ignore[misc,name-defined]
            async def handle_async_request(self, request: Any) -> Any:
                return answer(request, AsyncBody)

        return AsyncInner() if self.is_async else Inner()


KINDS = {
    "httpx": lambda: Kind(httpx, relay.client.httpx, is_async=False),
    "httpx-async": lambda: Kind(httpx, relay.client.httpx, is_async=True),
    "httpx2": lambda: Kind(httpx2, relay.client.httpx2, is_async=False),
    "httpx2-async": lambda: Kind(httpx2, relay.client.httpx2, is_async=True),
}


def whole_from(n: int) -> Answer:
    return Answer(parts=[frame(n, DONE)])


def whole() -> Answer:
    return Answer(parts=[frame(1, DONE)])


def known(kind: Kind, policy: Policy | None = None, **more: Any) -> Any:
    """A transport that has met this relay before; what it did action is forgotten."""
    transport = kind.transport(policy, **more)
    assert kind.post([whole()], transport).error is None
    kind.requests.clear()
    kind.timeouts.clear()
    return transport
