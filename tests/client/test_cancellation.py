"""Whoever leaves ends what is under way at once, from another thread or task, on both loops."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import httpx
import pytest
import trio

from relay.client.httpx import AsyncResumingTransport, ResumingTransport
from relay.client.policy import Policy
from tests.client.played import (
    BODY,
    DONE,
    KINDS,
    URL,
    Answer,
    Kind,
    Script,
    frame,
    whole_from,
)

# -- leaving ----------------------------------------------------------------------------------------------------------


def test_closing_from_another_thread_ends_a_wait_at_once() -> None:
    kind = KINDS["httpx"]()
    kind.script = [Answer(parts=[frame(1), "ReadError"]), whole_from(2)]
    transport = kind.transport(
        Policy(first_delay=3600, longest_delay=3600, max_elapsed=7200, random=lambda: 1.0), sleep=None
    )
    request = httpx.Request("POST", URL, json=BODY)
    response = transport.handle_request(request)
    reads = iter(response.stream)
    assert next(reads) == frame(1)
    closing = threading.Timer(0.05, response.stream.close)
    closing.start()
    with pytest.raises(httpx.StreamClosed):
        next(reads)
    closing.join()
    assert len(kind.requests) == 1


def test_closing_from_another_thread_ends_an_attempt_at_once() -> None:
    kind = KINDS["httpx"]()
    begun, over = threading.Event(), threading.Event()
    late = whole_from(2)

    class Hanging(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if "last-event-id" in request.headers:
                begun.set()
                over.wait(20)
            return inner.handle_request(request)

    inner = kind.transport().inner
    kind.script = [Answer(parts=[frame(1), "ReadError"]), late]
    transport = ResumingTransport(Hanging(), sleep=lambda seconds: None)
    response = transport.handle_request(httpx.Request("POST", URL, json=BODY))
    reads = iter(response.stream)
    assert next(reads) == frame(1)

    def close() -> None:
        begun.wait(20)
        response.stream.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(httpx.StreamClosed):
        next(reads)
    closing.join()
    assert not late.closed
    over.set()
    assert late.was_closed.wait(20)  # what the attempt brought later is nobody's


def test_closing_from_another_task_ends_an_attempt_at_once() -> None:
    kind = KINDS["httpx-async"]()

    class Hanging(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if "last-event-id" in request.headers:
                begun.set()
                await anyio.sleep(60)
            return await inner.handle_async_request(request)

    async def no_wait(seconds: float) -> None:
        pass

    async def scene() -> None:
        transport = AsyncResumingTransport(Hanging(), sleep=no_wait)
        response = await transport.handle_async_request(httpx.Request("POST", URL, json=BODY))
        reads = aiter(response.stream)
        assert await anext(reads) == frame(1)

        async def close() -> None:
            await begun.wait()
            await response.stream.aclose()

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(close)
                with pytest.raises(httpx.StreamClosed):
                    await anext(reads)

    inner = kind.transport().inner
    for run in (asyncio.run, trio.run):
        kind.script = [Answer(parts=[frame(1), "ReadError"])]
        begun = anyio.Event()
        run(scene if run is trio.run else scene())  # type: ignore[operator]


def test_an_attempt_has_a_time_as_a_whole(kind: Kind) -> None:
    """However busy it is: a head that drips never times out a read."""
    over = threading.Event()

    inner = kind.transport().inner

    class Busy(kind.http.BaseTransport):  # type: ignore[misc,name-defined]
        def handle_request(self, request: Any) -> Any:
            if len(kind.requests) == 1:
                kind.requests.append(request)
                over.wait(20)
                raise kind.http.ReadError("late")
            return inner.handle_request(request)

    class AsyncBusy(kind.http.AsyncBaseTransport):  # type: ignore[misc,name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            if len(kind.requests) == 1:
                kind.requests.append(request)
                await anyio.sleep(20)
            return await inner.handle_async_request(request)

    busy = AsyncBusy() if kind.is_async else Busy()
    script: Script = [Answer(parts=[frame(1), "ReadError"]), whole_from(2)]
    seen = kind.post(script, kind.transport(Policy(silence=0.1), inner=busy))
    over.set()
    assert (seen.error, seen.body) == (None, frame(1) + frame(2, DONE))
    assert len(kind.requests) == 3


def test_cancelling_the_task_ends_a_wait_at_once() -> None:
    kind = KINDS["httpx-async"]()
    waiting = asyncio.Event()

    async def wait(seconds: float) -> None:
        waiting.set()
        await asyncio.sleep(3600)

    async def read() -> list[bytes]:
        client = httpx.AsyncClient(transport=kind.transport(sleep=wait))
        async with client, client.stream("POST", URL, json=BODY) as response:
            return [part async for part in response.aiter_raw()]

    async def scene() -> None:
        task = asyncio.create_task(read())
        await asyncio.wait_for(waiting.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)

    kind.script = [Answer(parts=[frame(1), "ReadError"]), whole_from(2)]
    asyncio.run(scene())
    assert len(kind.requests) == 1


def test_closing_from_another_task_ends_a_wait_at_once() -> None:
    kind = KINDS["httpx-async"]()
    kind.script = [Answer(parts=[frame(1), "ReadError"]), whole_from(2)]
    policy = Policy(first_delay=3600, longest_delay=3600, max_elapsed=7200, random=lambda: 1.0)

    async def scene() -> None:
        transport = kind.transport(policy, sleep=None)
        response = await transport.handle_async_request(httpx.Request("POST", URL, json=BODY))
        reads = aiter(response.stream)
        assert await anext(reads) == frame(1)
        next_read = asyncio.ensure_future(anext(reads))
        await asyncio.sleep(0)
        await response.stream.aclose()
        with pytest.raises(httpx.StreamClosed):
            await asyncio.wait_for(next_read, 10)

    asyncio.run(scene())
    assert len(kind.requests) == 1


def test_leaving_early_closes_the_connection(kind: Kind) -> None:
    first = Answer(parts=[frame(1), frame(2)])
    kind.script = [first]
    if kind.is_async:

        async def leave() -> None:
            async with kind.http.AsyncClient(transport=kind.transport()).stream("POST", URL, json=BODY) as response:
                async for _ in response.aiter_raw():
                    break

        asyncio.run(leave())
    else:
        with kind.http.Client(transport=kind.transport()).stream("POST", URL, json=BODY) as response:
            next(response.iter_raw())
    assert first.closed
    assert len(kind.requests) == 1


def test_the_asynchronous_transport_runs_on_trio_s_loop_too() -> None:
    kind = KINDS["httpx-async"]()
    kind.script = [Answer(parts=[frame(1), "ReadError"]), whole_from(2)]

    async def read() -> bytes:
        transport: AsyncResumingTransport = kind.transport(Policy(first_delay=0.01), sleep=None)
        response = await transport.handle_async_request(httpx.Request("POST", URL, json=BODY))
        return b"".join([part async for part in response.stream])

    assert trio.run(read) == frame(1) + frame(2, DONE)
