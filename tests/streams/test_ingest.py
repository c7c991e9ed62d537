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

from relay.config import StreamSettings, UpstreamSettings
from relay.protocol.apis import DIALECTS
from relay.protocol.outcomes import Cause, Ending, StreamFailure
from relay.streams.ingest import UpstreamIngest
from relay.streams.silence import Silence

pytestmark = pytest.mark.slow

IDLE = 0.3
LIMITS = (
    "upstream_answer_timeout",
    "unstreamed_answer_timeout",
    "first_token_timeout",
    "upstream_stall_timeout",
    "upstream_idle_timeout",
)
# One event each: with output, without, and what only keeps a connection alive.
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
COMMENT = b": still there\n\n"
BLANK = b"\n\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
DELTA = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}\n\n'
)
DONE = b"data: [DONE]\n\n"


class Body:
    """An upstream's answer that arrives through a socket, as the loop reads it."""

    grace = 0.0

    def __init__(self) -> None:
        self.theirs, self._ours = socket.socketpair()
        self._ours.setblocking(False)
        self.ingest: UpstreamIngest

    def push_to(self, sink: Any) -> None:
        asyncio.get_running_loop().add_reader(self._ours, lambda: sink.data_received(self._ours.recv(1 << 16)))

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ours)
        self._ours.close()
        self.theirs.close()


class Sink:
    """Takes events."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []

    def append(self, block: bytes, has_token: bool = False) -> None:
        self.blocks.append(block)

    def publish(self) -> None: ...


class Silent:
    """A body that the test makes arrive."""

    grace = 0.0

    def push_to(self, sink: Any) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


def begun(
    body: Any, api: str, sink: Sink, settings: StreamSettings, *, choices: int = 1, forward: bool = True
) -> UpstreamIngest:
    dialect = DIALECTS[api]
    upstream = UpstreamSettings(name="u", base_url="http://127.0.0.1:1", malformed="forward" if forward else "end")
    return UpstreamIngest(
        body,
        dialect,
        dialect.watch(choices=choices),
        settings,
        upstream,
        sink,
        lambda _: None,
        asked=asyncio.get_running_loop().time(),
        request_id="req_1",
    )


def relayed(meanwhile: Callable[[Body], None], *, api: str = "chat", **limits: Any) -> Any:
    """How a stream ends whose upstream is what `meanwhile` makes of it."""

    async def story() -> Any:
        body = Body()
        settings = StreamSettings(**(limits or {"upstream_idle_timeout": IDLE}))
        body.ingest = begun(body, api, Sink(), settings)
        body.ingest.start()
        body.ingest.open()
        try:
            meanwhile(body)
            return await asyncio.wait_for(body.ingest.finished, 5)
        finally:
            body.ingest.close()
            body.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(story())


def sending(
    *parts: bytes, every: float = IDLE / 3, times: int = 5, then: bytes = TOKEN + DONE
) -> Callable[[Body], None]:
    """The parts in turn, `times` in all, one in each `every` seconds, the first at once; then the last one."""

    def begin(body: Body) -> None:
        loop = asyncio.get_running_loop()
        for n in range(times):
            loop.call_later(n * every, body.theirs.sendall, parts[n % len(parts)])
        loop.call_later(times * every, body.theirs.sendall, then)

    return begin


def failure(meanwhile: Callable[[Body], None], *, api: str = "chat", **limits: Any) -> str:
    """The message of a stream that has timed out."""
    with pytest.raises(StreamFailure) as failed:
        relayed(meanwhile, api=api, **limits)
    assert failed.value.cause is Cause.UPSTREAM_TIMEOUT
    return failed.value.message


def test_a_silent_upstream_has_timed_out() -> None:
    assert "upstream_idle_timeout (0.3 s)" in failure(lambda _: None)


@pytest.mark.parametrize("part", [TOKEN, ROLE, COMMENT, BLANK, TOKEN[:20] + TOKEN[20:]])
def test_whatever_arrives_ends_a_silence(part: bytes) -> None:
    assert relayed(sending(part)) is Ending.COMPLETED


@pytest.mark.parametrize(
    ("api", "first", "beat"),
    [("chat", TOKEN, COMMENT), ("chat", b"", BLANK), ("messages", DELTA, PING), ("messages", DELTA, COMMENT)],
    ids=["comments", "blank-blocks-from-the-start", "pings", "comments-on-messages"],
)
def test_keep_alives_alone_are_no_answer(api: str, first: bytes, beat: bytes) -> None:
    began = time.monotonic()
    message = failure(
        sending(first + beat, *[beat] * 11, times=12), api=api, upstream_stall_timeout=IDLE, upstream_idle_timeout=5
    )
    assert "upstream_stall_timeout (0.3 s)" in message
    assert time.monotonic() - began < 3 * IDLE


@pytest.mark.parametrize("part", [TOKEN, ROLE, b"data: {}\n\n"], ids=["token", "role", "empty"])
def test_every_event_of_the_answer_ends_a_stall(part: bytes) -> None:
    assert relayed(sending(part, times=6), upstream_stall_timeout=IDLE, upstream_idle_timeout=5) is Ending.COMPLETED


def test_half_an_event_is_no_event() -> None:
    halves = [b'data: {"choices"', b":", b"[", b"]"]
    assert "upstream_stall_timeout" in failure(sending(*halves, times=8), upstream_stall_timeout=IDLE)


def test_events_without_output_are_no_first_token() -> None:
    message = failure(sending(ROLE, times=8), first_token_timeout=IDLE)
    assert "first_token_timeout (0.3 s)" in message


def test_after_the_first_token_its_time_out_is_over() -> None:
    assert relayed(sending(TOKEN, ROLE, times=6), first_token_timeout=IDLE) is Ending.COMPLETED


@pytest.mark.parametrize("limit", ["upstream_idle_timeout", "upstream_stall_timeout", "first_token_timeout"])
def test_a_process_that_was_stopped_reads_what_has_arrived_before_it_calls_its_upstream_silent(limit: str) -> None:
    """It wakes up to its timers, before it has read anything."""

    def stop(body: Body) -> None:
        loop = asyncio.get_running_loop()
        begin, begun = socket.socketpair()

        def stand_still() -> None:  # after the loop has looked which sockets can be read
            begun.recv(1)
            body.theirs.sendall(TOKEN)
            time.sleep(2 * IDLE)
            loop.remove_reader(begun)
            begin.close()
            begun.close()

        loop.add_reader(begun, stand_still)
        loop.call_later(IDLE / 3, begin.send, b"x")
        loop.call_later(2.8 * IDLE, body.theirs.sendall, DONE)

    limits: dict[str, Any] = {limit: IDLE}
    assert relayed(stop, **limits) is Ending.COMPLETED


@pytest.mark.parametrize("limit", ["upstream_idle_timeout", "upstream_stall_timeout", "first_token_timeout"])
def test_an_upstream_that_is_made_to_wait_is_not_silent(limit: str) -> None:
    def wait(body: Body) -> None:
        loop = asyncio.get_running_loop()
        body.ingest.pause(True)
        loop.call_later(3 * IDLE, body.ingest.pause, False)
        loop.call_later(3.3 * IDLE, body.theirs.sendall, TOKEN + DONE)

    limits: dict[str, Any] = {limit: IDLE}
    assert relayed(wait, **limits) is Ending.COMPLETED


def test_no_timer_is_set_for_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """One a stream, armed again only when it fires."""
    armed: list[float] = []
    listen = Silence.listen

    def counted(silence: Silence) -> None:
        armed.append(0.0)
        listen(silence)

    monkeypatch.setattr(Silence, "listen", counted)
    assert relayed(sending(TOKEN, every=0.002, times=200), upstream_idle_timeout=10) is Ending.COMPLETED
    assert len(armed) == 1


@pytest.mark.parametrize("name", LIMITS)
def test_an_upstream_may_have_time_outs_of_its_own(name: str) -> None:
    streams = StreamSettings()
    plain = UpstreamSettings(name="u", base_url="http://u").timeouts(streams)
    own = UpstreamSettings(name="u", base_url="http://u", **{name: "7s"}).timeouts(streams)
    assert getattr(own, name) == 7
    for other in LIMITS:
        assert getattr(plain, other) == getattr(streams, other)
        assert other == name or getattr(own, other) == getattr(streams, other)


HI = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
STOP = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
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
        # Lines that are events each, without a blank line between them, up to the body's end.
        ("chat", HI[:-1] + STOP[:-1] + b"data: [DONE]\n", Ending.COMPLETED, 3),
        ("chat", HI + STOP[:-1] + b"data: [DONE]", Ending.COMPLETED, 3),
        ("chat", HI + HI[:-1] + STOP[:-1] + HI[:-9], Ending.COMPLETED, 3),
        ("chat", HI[:-1] + HI[:-9], Cause.UPSTREAM_DISCONNECTED, 1),
        ("chat", HI[:-1] + b'data: {"error":{"message":"Boom"}}\n', Cause.UPSTREAM_ERROR, 2),
        ("messages", START + CLOSING[:-1] + b'event: message_stop\ndata: {"type":"message_stop"}', Ending.COMPLETED, 3),
        # What tells how far the upstream has come is no error.
        ("chat", b'data: {"status":"queued","message":"3rd in the queue"}\n\n' + HI + DONE, Ending.COMPLETED, 3),
        (
            "messages",
            START + b'data: {"type":"news","status":"on","message":"x"}\n\n' + CLOSING,
            Ending.COMPLETED,
            4,
        ),
        (
            "chat",
            HI + b'data: {"choices":[{"delta":{},"error":{"code":502,"message":"Gone"}}]}\n\n' + DONE,
            Cause.UPSTREAM_ERROR,
            3,
        ),
        ("chat", b"upstream connect error", Cause.UPSTREAM_MALFORMED, 0),
        # Errors in a vendor's own member, in a list, beside a finish reason, after an event's name or no name at all.
        ("chat", HI + b'data: {"choices":[],"x_groq":{"error":"over capacity"}}\n\n' + DONE, Cause.UPSTREAM_ERROR, 3),
        ("chat", HI + b'data: {"choices":[],"x_groq":{"id":"r","error":null}}\n\n' + DONE, Ending.COMPLETED, 3),
        ("chat", HI + b'data: [{"error":{"code":503,"message":"Overloaded"}}]\n\n', Cause.UPSTREAM_ERROR, 2),
        (
            "chat",
            HI + b'data: {"error":{"code":502,"message":"Lost"},"choices":[{"delta":{"content":""},'
            b'"finish_reason":"error"}]}\n\n',
            Cause.UPSTREAM_ERROR,
            2,
        ),
        (
            "chat",
            HI + b'event: error\ndata: {"error":"Request failed","error_type":"generation"}\n\n',
            Cause.UPSTREAM_ERROR,
            2,
        ),
        ("chat", HI + b'{"error":"unexpected EOF"}\n', Cause.UPSTREAM_ERROR, 2),
        ("chat", b'[{"error":{"code":429,"message":"Quota","status":"RESOURCE_EXHAUSTED"}}]', Cause.UPSTREAM_ERROR, 1),
        ("chat", b'data: {"success":false,"error":[{"code":2009,"message":"No"}]}\n\n', Cause.UPSTREAM_ERROR, 1),
        # What comes beside an answer: a filter's chunks without choices or without a delta, no space after `data:`.
        (
            "chat",
            b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n'
            + HI
            + b'data: {"choices":[{"index":0,"finish_reason":null,"content_filter_offsets":{}}]}\n\n'
            + STOP
            + DONE,
            Ending.COMPLETED,
            5,
        ),
        ("chat", HI + STOP.replace(b"data: ", b"data:") + b"data:[DONE]\n\n", Ending.COMPLETED, 3),
        ("messages", START + b'event: vertex_event\ndata: {"type":"vertex_event"}\n\n' + CLOSING, Ending.COMPLETED, 4),
        (
            "messages",
            START + b'event: error\ndata: {"message":"Slow down","__type":"ThrottlingException"}\n\n',
            Cause.UPSTREAM_ERROR,
            2,
        ),
        (
            "responses",
            CREATED
            + b'data: {"type":"response.queued","response":{"id":"resp_1"}}\n\n'
            + COMPLETED.replace(b"completed", b"incomplete"),
            Ending.COMPLETED,
            3,
        ),
        (
            "responses",
            CREATED + b'data: {"type":"response.completed","response":{"id":"resp_1","status":"failed",'
            b'"error":{"code":"server_error","message":"Boom"}}}\n\n',
            Cause.UPSTREAM_ERROR,
            3,
        ),
        (
            "responses",
            CREATED + b'data: {"type":"response.completed","relay":"stopped","response":{"id":"resp_1",'
            b'"status":"cancelled"}}\n\n',
            Ending.COMPLETED,
            2,
        ),
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


def test_a_type_in_the_json_of_one_of_several_events_forges_no_line() -> None:
    forged = json.dumps({"type": "a\nid: st_x.5\ndata: [DONE]\n\n"}).encode()
    _, blocks, _ = taken("chat", b"event: x\ndata: " + forged + b'\ndata: {"type":"b"}\n\n' + HI + DONE)
    assert blocks[:2] == [b"event: x\ndata: " + forged + b"\n\n", b'event: b\ndata: {"type":"b"}\n\n']
    assert len(blocks) == 4


def test_half_of_a_pair_in_the_type_of_one_of_several_events_ends_nothing() -> None:
    ended, blocks, _ = taken("chat", b'event: x\ndata: {"type":"\\ud800"}\ndata: {"type":"b"}\n\n' + HI + DONE)
    assert (ended, len(blocks)) == (Ending.COMPLETED, 4)


def test_an_end_without_its_last_line_says_so() -> None:
    assert (taken("messages", START + CLOSING))[2]._watch.end_missing
    assert not (taken("chat", HI + STOP + DONE))[2]._watch.end_missing
