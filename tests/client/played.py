"""A transport's client in all four kinds (httpx and httpx2, blocking and awaiting), over answers that a test plays.

The inner transport is the seam that users have, so what is played here is exactly what a connection may do: answer,
bring bytes, break, or end. Real connections are in `test_survival.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

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
    """`parts` are the body's reads; the name of an exception class of the library is the body's break."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(HEAD))
    parts: list[bytes | str] = field(default_factory=list)
    closed: bool = False


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
    """One library, blocking or awaiting. `requests` are those that left, `waits` what it slept."""

    def __init__(self, http: Any, client: Any, *, awaiting: bool) -> None:
        self.http = http
        self.client = client
        self.awaiting = awaiting
        self.requests: list[Any] = []
        self.timeouts: list[dict[str, Any]] = []
        self.waits: list[float] = []
        self.script: Script = []

    def headers(self, name: str) -> list[str | None]:
        return [request.headers.get(name) for request in self.requests]

    def transport(self, policy: Policy | None = None, **more: Any) -> Any:
        made = self.client.AsyncResumingTransport if self.awaiting else self.client.ResumingTransport
        policy = policy or Policy(random=lambda: 1.0)
        return made(self._inner(), policy=policy, **{"sleep": self._sleep(), **more})

    def post(self, script: Script, transport: Any = None, url: str = URL, body: Any = BODY, **more: Any) -> Seen:
        """One POST, read to its end."""
        return self.ask("POST", script, transport, url, json=body, **more)

    def ask(self, method: str, script: Script, transport: Any = None, url: str = URL, **more: Any) -> Seen:
        self.script = script
        transport = transport or self.transport()
        seen = Seen()
        try:
            if self.awaiting:
                asyncio.run(self._await(seen, transport, method, url, more))
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
        async def awaited(seconds: float) -> None:
            self.waits.append(seconds)

        return awaited if self.awaiting else self.waits.append

    def _inner(self) -> Any:
        kind, http = self, self.http

        def answer(request: Any, make: Callable[[Answer], Any]) -> Any:
            kind.requests.append(request)
            kind.timeouts.append(request.extensions.get("timeout", {}))
            step = kind.script.pop(0)
            if isinstance(step, str):
                raise getattr(http, step)("it broke")
            return http.Response(step.status, headers=step.headers, stream=make(step))

        def read(part: bytes | str) -> bytes:
            if isinstance(part, str):
                raise getattr(http, part)("it broke")
            return part

        class Body(http.SyncByteStream):  # type: ignore[misc,name-defined]
            def __init__(self, step: Answer) -> None:
                self.step = step

            def __iter__(self) -> Iterator[bytes]:
                yield from map(read, self.step.parts)

            def close(self) -> None:
                self.step.closed = True

        class AsyncBody(http.AsyncByteStream):  # type: ignore[misc,name-defined]
            def __init__(self, step: Answer) -> None:
                self.step = step

            async def __aiter__(self) -> AsyncIterator[bytes]:
                for part in self.step.parts:
                    yield read(part)

            async def aclose(self) -> None:
                self.step.closed = True

        class Inner(http.BaseTransport):  # type: ignore[misc,name-defined]
            def handle_request(self, request: Any) -> Any:
                return answer(request, Body)

        class AsyncInner(http.AsyncBaseTransport):  # type: ignore[misc,name-defined]
            async def handle_async_request(self, request: Any) -> Any:
                return answer(request, AsyncBody)

        return AsyncInner() if self.awaiting else Inner()


KINDS = {
    "httpx": lambda: Kind(httpx, relay.client.httpx, awaiting=False),
    "httpx-async": lambda: Kind(httpx, relay.client.httpx, awaiting=True),
    "httpx2": lambda: Kind(httpx2, relay.client.httpx2, awaiting=False),
    "httpx2-async": lambda: Kind(httpx2, relay.client.httpx2, awaiting=True),
}
