"""An upstream's bytes and its silences, without a server."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import uvloop

from relay.config import StreamSettings
from relay.protocol.apis import DIALECTS
from relay.protocol.outcomes import Cause, Ending, StreamFailure
from relay.streams.ingest import UpstreamIngest

IDLE = 0.3


class Body:
    """An upstream's answer that arrives through a socket, as the loop reads it."""

    def __init__(self) -> None:
        self.theirs, self._ours = socket.socketpair()
        self._ours.setblocking(False)

    def push_to(self, sink: Any) -> None:
        asyncio.get_running_loop().add_reader(self._ours, lambda: sink.data_received(self._ours.recv(1 << 16)))

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ours)
        self._ours.close()
        self.theirs.close()


class Sink:
    """Takes events."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []

    def append(self, block: bytes) -> None:
        self.blocks.append(block)

    def token(self) -> None: ...

    def publish(self) -> None: ...


class Silent:
    """A body that the test makes arrive."""

    def push_to(self, sink: Any) -> None: ...


def begun(
    body: Any, api: str, sink: Sink, settings: StreamSettings, *, choices: int = 1, forward: bool = True
) -> UpstreamIngest:
    dialect = DIALECTS[api]
    watch = dialect.watch(choices=choices)
    named: Callable[[str], None] = lambda _: None  # noqa: E731
    return UpstreamIngest(body, dialect, watch, settings, sink, named, request_id="req_1", forward_malformed=forward)


def relayed(meanwhile: Any) -> Any:
    """How a stream ends whose upstream is what `meanwhile` makes of it."""

    async def story() -> Any:
        body = Body()
        settings = StreamSettings(upstream_idle_timeout=IDLE)
        ingest = begun(body, "chat", Sink(), settings)
        ingest.start()
        ingest.open()
        try:
            meanwhile(body)
            return await asyncio.wait_for(ingest.finished, 5)
        finally:
            ingest.close()
            body.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(story())


def test_a_silent_upstream_has_timed_out() -> None:
    with pytest.raises(StreamFailure) as failed:
        relayed(lambda _: None)
    assert failed.value.cause is Cause.UPSTREAM_TIMEOUT


def test_a_process_that_was_stopped_reads_what_has_arrived_before_it_calls_its_upstream_silent() -> None:
    """It wakes up to its timers, before it has read anything."""

    def stop(body: Body) -> None:
        def busy() -> None:
            body.theirs.sendall(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\ndata: [DONE]\n\n')
            time.sleep(2 * IDLE)

        asyncio.get_running_loop().call_later(IDLE / 3, busy)

    assert relayed(stop) is Ending.COMPLETED


HI = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
STOP = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
START = b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1"}}\n\n'
CLOSING = b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n'
CREATED = b'data: {"type":"response.created","sequence_number":4,"response":{"id":"resp_1","status":"in_progress"}}\n\n'
COMPLETED = b'data: {"type":"response.completed","response":{"id":"resp_1","status":"completed"}}'
ERROR = b'event: error\ndata: {"type":"error","sequence_number":5,"error":{"code":"too_long","message":"Too long"}}\n\n'


def taken(api: str, data: bytes, *, cut: bool = False, **more: Any) -> tuple[Any, list[bytes], UpstreamIngest]:
    """How a stream ends whose body is this, what was forwarded, and who read it."""
    return asyncio.run(_taken(api, data, cut, more))


async def _taken(api: str, data: bytes, cut: bool, more: Any) -> tuple[Any, list[bytes], UpstreamIngest]:
    sink = Sink()
    ingest = begun(Silent(), api, sink, StreamSettings(), **more)
    ingest.start()
    ingest.open()
    for at in range(0, len(data), 7):
        ingest.data_received(data[at : at + 7])
    ingest.eof_received(httpx.ReadError("cut") if cut else None)
    try:
        ended: Any = await ingest.finished
    except StreamFailure as failure:
        ended = failure.cause
    return ended, sink.blocks, ingest


@pytest.mark.parametrize(
    ("api", "data", "ends", "forwarded"),
    [
        ("chat", HI + STOP + DONE, Ending.COMPLETED, 3),
        ("chat", HI + STOP, Ending.COMPLETED, 2),
        ("chat", HI + STOP[:-1], Ending.COMPLETED, 2),
        ("chat", HI + STOP + b"data: [DONE]", Ending.COMPLETED, 3),
        ("chat", HI + STOP[:-9], Cause.UPSTREAM_DISCONNECTED, 1),
        ("chat", HI, Cause.UPSTREAM_DISCONNECTED, 1),
        ("chat", DONE, Cause.UPSTREAM_DISCONNECTED, 0),
        ("chat", b": x\n\ndata: ping\n\nevent: ping\ndata: {}\n\ndata: : x\n\n" + HI + DONE, Ending.COMPLETED, 2),
        ("chat", HI + b'error: {"message":"Boom"}\n\n' + DONE, Cause.UPSTREAM_ERROR, 3),
        ("chat", HI + b"data: Error: worker died\n\n", Cause.UPSTREAM_ERROR, 2),
        ("chat", HI[:-1] + HI + DONE, Ending.COMPLETED, 3),
        ("chat", HI + b"data: {torn\n\n" + HI + DONE, Ending.COMPLETED, 4),
        ("chat", b"upstream connect error", Cause.UPSTREAM_MALFORMED, 0),
        ("messages", START + CLOSING, Ending.COMPLETED, 3),
        ("messages", START, Cause.UPSTREAM_DISCONNECTED, 1),
        ("messages", START + b'data: {"error":{"message":"Busy","code":"503"}}\n\n', Cause.UPSTREAM_ERROR, 2),
        ("responses", CREATED + COMPLETED, Ending.COMPLETED, 2),
        ("responses", CREATED + DONE, Cause.UPSTREAM_DISCONNECTED, 1),
        ("responses", CREATED + ERROR, Cause.UPSTREAM_ERROR, 3),
        ("responses", CREATED + ERROR + DONE, Cause.UPSTREAM_ERROR, 4),
    ],
)
def test_bodies(api: str, data: bytes, ends: object, forwarded: int) -> None:
    ended, blocks, _ = taken(api, data)
    assert (ended, len(blocks)) == (ends, forwarded), blocks


@pytest.mark.parametrize(("api", "data"), [("chat", HI + STOP), ("messages", START + CLOSING), ("responses", CREATED)])
def test_a_cut_completes_nothing(api: str, data: bytes) -> None:
    ended, _, _ = taken(api, data, cut=True)
    assert ended is Cause.UPSTREAM_DISCONNECTED


def test_every_choice_that_was_asked_for_has_to_finish() -> None:
    assert (taken("chat", HI + STOP, choices=2))[0] is Cause.UPSTREAM_DISCONNECTED


def test_an_error_alone_gets_response_failed_with_the_id_the_next_number_and_the_code() -> None:
    _, blocks, _ = taken("responses", CREATED + ERROR)
    failed = json.loads(blocks[-1].partition(b"data: ")[2])
    assert failed["sequence_number"] == 6
    response = failed["response"]
    assert (response["id"], response["status"]) == ("resp_1", "failed")
    assert response["error"] == {"code": "too_long", "message": "Too long"}


def test_an_unreadable_error_is_told_in_the_form_of_the_api() -> None:
    _, blocks, _ = taken("messages", START + b'data: {"error":{"message":"Busy","code":"503"}}\n\n')
    assert blocks[-1].startswith(b"event: error\n")
    assert b'"Busy"' in blocks[-1]


def test_what_is_malformed_is_counted_or_ends_the_stream() -> None:
    torn = HI + b"data: {torn\n\n" + HI + DONE
    _, blocks, ingest = taken("chat", torn)
    assert blocks[1] == b"data: {torn\n\n"
    assert ingest._watch.malformed == 1
    assert (taken("chat", torn, forward=False))[0] is Cause.UPSTREAM_MALFORMED


def test_an_end_without_its_last_line_says_so() -> None:
    assert (taken("messages", START + CLOSING))[2]._watch.end_missing
    assert not (taken("chat", HI + STOP + DONE))[2]._watch.end_missing
