"""A caller that leaves before the stream's end has the generation stopped, where it has asked for that."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from relay.client.policy import Policy
from tests.client.played import BODY, DONE, KINDS, STREAM, URL, Answer, Kind, Script, frame, refused, whole_from

pytestmark = pytest.mark.slow

STOPPING = Policy(stop_on_abort=True, random=lambda: 1.0)
STOPPED = Answer(204, {})
AUTH = {"authorization": "Bearer sk-1", "x-other": "1"}


def leave(kind: Kind, script: Script, transport: Any, after: int = 1, url: str = URL, method: str = "POST") -> None:
    """Read so many parts, and hang up."""
    kind.script = script
    more: dict[str, Any] = {"json": BODY} if method == "POST" else {}

    async def awaited() -> None:
        client = kind.http.AsyncClient(transport=transport)
        async with client, client.stream(method, url, headers=AUTH, **more) as response:
            left = after
            async for _ in response.aiter_raw():
                left -= 1
                if not left:
                    break

    if kind.is_async:
        anyio.run(awaited)
        return
    client = kind.http.Client(transport=transport)
    with client, client.stream(method, url, headers=AUTH, **more) as response:
        for number, _ in enumerate(response.iter_raw(), start=1):
            if number == after:
                break


def stops(kind: Kind) -> list[str]:
    return [str(request.url) for request in kind.requests if request.method == "DELETE"]


def test_who_leaves_stops_it(kind: Kind) -> None:
    leave(kind, [Answer(parts=[frame(1), frame(2)]), STOPPED], kind.transport(STOPPING))
    assert stops(kind) == [f"http://relay.test/streams/{STREAM}"]
    headers = kind.requests[-1].headers
    assert headers["authorization"] == "Bearer sk-1"
    assert headers["host"] == "relay.test"
    assert not {"content-type", "content-length", "idempotency-key", "last-event-id"} & set(headers)
    assert kind.requests[-1].read() == b"" if not kind.is_async else True
    assert kind.timeouts[-1]["read"] == 5


def test_also_after_a_cut(kind: Kind) -> None:
    script: Script = [Answer(parts=[frame(1), "ReadError"]), Answer(parts=[frame(2), frame(3)]), STOPPED]
    leave(kind, script, kind.transport(STOPPING), after=2)
    assert len(stops(kind)) == 1


@pytest.mark.parametrize(
    "url", [f"http://relay.test/streams/{STREAM}?ticket=t", "http://relay.test/p/v1/chat/completions"]
)
def test_the_address_is_the_stream_s_own(kind: Kind, url: str) -> None:
    method = "GET" if "ticket" in url else "POST"
    leave(kind, [Answer(parts=[frame(1), frame(2)]), STOPPED], kind.transport(STOPPING), url=url, method=method)
    prefix, query = ("/p", "") if method == "POST" else ("", "?ticket=t")
    assert stops(kind) == [f"http://relay.test{prefix}/streams/{STREAM}{query}"]


def test_fresh_credentials_stop_it(kind: Kind) -> None:
    transport = kind.transport(STOPPING, headers=lambda: {"authorization": "Bearer fresh"})
    leave(kind, [Answer(parts=[frame(1), frame(2)]), STOPPED], transport)
    assert kind.requests[-1].headers["authorization"] == "Bearer fresh"


@pytest.mark.parametrize("after", [2, 99], ids=["at its last event", "at its end"])
def test_a_stream_that_is_over_is_not_stopped(kind: Kind, after: int) -> None:
    leave(kind, [Answer(parts=[frame(1), frame(2, DONE)])], kind.transport(STOPPING), after=after)
    assert stops(kind) == []


def test_what_could_not_go_on_is_not_stopped(kind: Kind) -> None:
    """It may be read on, in another process too."""
    script: Script = [Answer(parts=[frame(1), "ReadError"]), "ConnectError", "ConnectError"]
    policy = Policy(stop_on_abort=True, max_attempts=2, random=lambda: 1.0)
    assert kind.post(script, kind.transport(policy)).error is not None
    assert stops(kind) == []


def test_who_has_not_asked_for_it_stops_nothing(kind: Kind) -> None:
    leave(kind, [Answer(parts=[frame(1), frame(2)])], kind.transport())
    assert stops(kind) == []


@pytest.mark.parametrize("answer", ["ConnectError", "ReadTimeout", refused(404, "stream_not_found"), Answer(500, {})])
def test_a_stop_that_is_not_heard_is_nobody_s_trouble(kind: Kind, answer: Answer | str) -> None:
    leave(kind, [Answer(parts=[frame(1), frame(2)]), answer], kind.transport(STOPPING))
    assert len(stops(kind)) == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_task_that_is_cancelled_stops_it_too(backend: str) -> None:
    kind = KINDS["httpx-async"]()

    async def scene() -> None:
        kind.script = [Answer(parts=[frame(1), "ReadError"]), STOPPED]
        waiting = anyio.Event()

        async def wait(seconds: float) -> None:
            waiting.set()
            await anyio.sleep(3600)

        class Awaiting(httpx.AsyncBaseTransport):
            """As a real one does."""

            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                await anyio.lowlevel.checkpoint()
                answer: httpx.Response = await inner.handle_async_request(request)
                return answer

        inner = kind.transport().inner

        async def read() -> None:
            client = httpx.AsyncClient(transport=kind.transport(STOPPING, sleep=wait, inner=Awaiting()))
            async with client, client.stream("POST", URL, json=BODY) as response:
                async for _ in response.aiter_raw():
                    pass

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await waiting.wait()
                group.cancel_scope.cancel()

    anyio.run(scene, backend=backend)
    assert len(stops(kind)) == 1


@pytest.mark.parametrize("max_elapsed", [1.0, 120.0, 900.0, 36_000.0])
def test_the_time_ends_an_outage_and_no_number_of_tries(kind: Kind, max_elapsed: float) -> None:
    policy = Policy(max_elapsed=max_elapsed, clock=lambda: kind.now)
    seen = kind.post([Answer(parts=[frame(1), "ReadError"]), *["ConnectError"] * 20_000], kind.transport(policy))
    assert "max_elapsed" in str(seen.error)


def test_but_answers_that_bring_nothing_are_counted(kind: Kind) -> None:
    """Each of them lives long enough to be another outage."""
    script: Script = [Answer(parts=[frame(1), "ReadError"]), *[Answer(parts=["+6", "ReadError"]) for _ in range(1000)]]
    seen = kind.post(script, kind.transport(Policy(clock=lambda: kind.now)))
    assert "max_attempts" in str(seen.error)
    assert len(kind.requests) < 100


def test_the_end_of_it_all_is_the_relay_s(kind: Kind) -> None:
    """A whole stream is handed out as ever."""
    seen = kind.post([Answer(parts=[frame(1), "ReadError"]), whole_from(2)], kind.transport(STOPPING))
    assert (seen.error, stops(kind)) == (None, [])
