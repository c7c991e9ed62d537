"""An upstream's bytes and its silences, without a server."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

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
    """Takes events and forgets them."""

    def append(self, block: bytes) -> None: ...

    def token(self) -> None: ...

    def publish(self) -> None: ...


def relayed(meanwhile: Any) -> Any:
    """How a stream ends whose upstream is what `meanwhile` makes of it."""

    async def story() -> Any:
        body = Body()
        settings = StreamSettings(upstream_idle_timeout=IDLE)
        ingest = UpstreamIngest(body, DIALECTS["chat"].watch(), settings, Sink(), lambda _: None)  # type: ignore[arg-type]
        ingest.start()
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
            body.theirs.sendall(b"data: [DONE]\n\n")
            time.sleep(2 * IDLE)

        asyncio.get_running_loop().call_later(IDLE / 3, busy)

    assert relayed(stop) is Ending.COMPLETED
