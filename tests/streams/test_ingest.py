"""An upstream's bytes and its silences, without a server."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from relay.config import StreamSettings, UpstreamSettings
from relay.protocol.apis import DIALECTS
from relay.protocol.outcomes import Cause, Ending, StreamFailure
from relay.streams.ingest import UpstreamIngest

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
    """Takes events and forgets them."""

    def append(self, block: bytes) -> None: ...

    def token(self) -> None: ...

    def publish(self) -> None: ...


def relayed(meanwhile: Callable[[Body], None], *, api: str = "chat", **limits: Any) -> Any:
    """How a stream ends whose upstream is what `meanwhile` makes of it."""

    async def story() -> Any:
        body = Body()
        settings = StreamSettings(**(limits or {"upstream_idle_timeout": IDLE}))
        timeouts = UpstreamSettings(name="u", base_url="http://127.0.0.1:1").timeouts(settings)
        asked = asyncio.get_running_loop().time()
        watch = DIALECTS[api].watch()
        body.ingest = UpstreamIngest(body, watch, settings, timeouts, asked, Sink(), lambda _: None)  # type: ignore[arg-type]
        body.ingest.start()
        try:
            meanwhile(body)
            return await asyncio.wait_for(body.ingest.finished, 5)
        finally:
            body.ingest.close()
            body.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(story())


def sending(*parts: bytes, every: float = IDLE / 3, times: int = 5, then: bytes = DONE) -> Callable[[Body], None]:
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
        loop.call_later(3.3 * IDLE, body.theirs.sendall, DONE)

    limits: dict[str, Any] = {limit: IDLE}
    assert relayed(wait, **limits) is Ending.COMPLETED


def test_no_timer_is_set_for_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """One a stream, armed again only when it fires."""
    armed: list[float] = []
    listen = UpstreamIngest._listen

    def counted(ingest: UpstreamIngest) -> None:
        armed.append(0.0)
        listen(ingest)

    monkeypatch.setattr(UpstreamIngest, "_listen", counted)
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
