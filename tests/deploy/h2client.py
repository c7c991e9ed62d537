"""One HTTP/2 connection without TLS ("prior knowledge"), frame by frame, on the h2 package.

It repairs nothing and gives way to nothing: how each stream ended, in what order, is what a test gets.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
import h2.settings
from hyperframe.frame import GoAwayFrame

from tests.support.sseclient import RawEvent


@dataclass
class Answer:
    """One stream of the connection."""

    number: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: str | None = None
    """None while it runs, `end` (END_STREAM) or `reset` (RST_STREAM)."""
    reset_code: int | None = None
    hold: bool = False
    """Give the server no further room to send on this stream."""

    @property
    def status(self) -> int:
        return int(self.headers[":status"])

    def events(self) -> list[RawEvent]:
        """The whole events so far, comments left out."""
        found = []
        for block in self.body.decode().split("\n\n")[:-1]:
            lines = [line.partition(": ") for line in block.split("\n") if not line.startswith(":")]
            fields = {name: value for name, _, value in lines}
            found.append(RawEvent(fields.get("id"), fields.get("event"), fields.get("data"), block.encode()))
        return found


class H2Client:
    """Use it as a context manager. `until` reads from the socket; nothing is read in between."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._authority = parts.netloc
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 80), 20)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="latin-1"))
        # h2 takes a GOAWAY for the end of every stream; by RFC 9113, section 6.8, those up to the last one run on.
        self._h2._frame_dispatch_table[GoAwayFrame] = self._told_to_go
        self.goaways: list[int] = []
        """The last stream of each GOAWAY."""
        self._h2.initiate_connection()
        self._flush()
        self.answers: dict[int, Answer] = {}
        self.goodbye = False
        """The server has sent GOAWAY for an error, or closed."""

    @property
    def allowed_streams(self) -> int:
        """What the server's SETTINGS allow at once."""
        return int(self._h2.remote_settings.max_concurrent_streams)

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: object = None, *, hold: bool = False
    ) -> Answer:
        """A whole request; the body as JSON."""
        answer = self.open(method, path, headers, hold=hold, end=body is None)
        if body is not None:
            self.give(answer, json.dumps(body).encode(), end=True)
        return answer

    def open(
        self, method: str, path: str, headers: Mapping[str, str], *, hold: bool = False, end: bool = False
    ) -> Answer:
        """A request's headers; its body follows by `give`."""
        number = self._h2.get_next_available_stream_id()
        pseudo = {":method": method, ":scheme": "http", ":authority": self._authority, ":path": path}
        self._h2.send_headers(number, [*pseudo.items(), *headers.items()], end_stream=end)
        self._flush()
        self.answers[number] = Answer(number, hold=hold)
        return self.answers[number]

    def give(self, answer: Answer, data: bytes, *, end: bool = False, timeout: float = 20.0) -> None:
        """More of a request's body. TimeoutError when the server makes no room for it in time."""
        number = answer.number
        while data:
            self.until(lambda: self._h2.local_flow_control_window(number) > 0, timeout)
            room = min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size)
            part, data = data[:room], data[room:]
            self._h2.send_data(number, part, end_stream=end and not data)
            self._flush()

    def cancel(self, answer: Answer) -> None:
        """RST_STREAM with CANCEL, as a client that hangs up."""
        self._h2.reset_stream(answer.number, 8)
        answer.ended = "reset"
        self._flush()

    def give_room(self, answer: Answer, size: int) -> None:
        """Let the server send so much more on a stream that is held."""
        self._h2.increment_flow_control_window(size, answer.number)
        self._flush()

    def until(self, condition: Callable[[], bool], timeout: float = 20.0) -> None:
        """Read until the condition holds. TimeoutError when it does not in time."""
        deadline = time.monotonic() + timeout
        while not condition():
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self._socket.recv(1 << 16)
            if not data:
                self.goodbye = True
                assert condition(), "the server closed the connection"
                return
            for event in self._h2.receive_data(data):
                self._take(event)
            self._flush()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        self.until(lambda: h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS in self._h2.remote_settings)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _told_to_go(self, frame: GoAwayFrame) -> tuple[list[Any], list[Any]]:
        self.goaways.append(frame.last_stream_id)
        self.goodbye = self.goodbye or frame.error_code != 0
        return [], []

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                self.answers[event.stream_id].headers = {str(k): str(v) for k, v in event.headers}
            case h2.events.DataReceived():
                answer = self.answers[event.stream_id]
                answer.body += event.data
                if answer.hold:
                    # Room for the connection's other streams, none for this one.
                    self._h2.increment_flow_control_window(event.flow_controlled_length)
                else:
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self.answers[event.stream_id].ended = "end"
            case h2.events.StreamReset():
                self.answers[event.stream_id].ended = "reset"
                self.answers[event.stream_id].reset_code = int(event.error_code)
            case _:
                pass
