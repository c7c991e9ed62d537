"""What the threats' tests share: bytes on a socket, HTTP/2 frame by frame, and a listener that nothing may reach."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
import h2.exceptions

AUTH = {"authorization": "Bearer sk-one"}


@dataclass
class Heard:
    """All that a server said on a connection; `closed` where it has ended it."""

    data: bytes = b""
    closed: bool = False

    @property
    def statuses(self) -> list[int]:
        """Of every answer: no body here says `HTTP/1.1`."""
        return [int(part[1:4]) for part in self.data.split(b"HTTP/1.1")[1:]]


def connect(url: str, timeout: float = 10.0) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout)


def say(url: str, *pieces: bytes, timeout: float = 10.0) -> Heard:
    """Send the pieces on a connection of their own and listen until the server has closed it, or the time is over."""
    with connect(url, timeout) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                connection.sendall(piece)
        except ConnectionError:
            pass  # it has been refused already; its answer is still to be read
        return listen(connection, timeout)


def listen(connection: socket.socket, timeout: float) -> Heard:
    heard = Heard()
    deadline = time.monotonic() + timeout
    try:
        while not heard.closed:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            data = connection.recv(1 << 16)
            heard.data += data
            heard.closed = not data
    except TimeoutError:
        pass
    except ConnectionError:
        heard.closed = True
    return heard


class Bait:
    """A listener on loopback to which a request must never come."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    self.heard.append(connection.recv(1 << 16))
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                except OSError:
                    pass


@dataclass
class H2Answer:
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    ended: bool = False
    reset: bool = False

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)


class H2:
    """An HTTP/2 client that sends what it is told, however malformed."""

    def __init__(self, url: str) -> None:
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.socket = connect(url)
        self.answers: dict[int, H2Answer] = {}
        self.goodbye: int | None = None
        """The code of the server's GOAWAY."""
        self.closed = False
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.write(self.h2.data_to_send())

    def write(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except ConnectionError:
            self.closed = True

    def send(self, headers: Iterable[tuple[bytes, bytes]], body: bytes | None = None, *, end: bool = True) -> int:
        number: int = self.h2.get_next_available_stream_id()
        self.answers[number] = H2Answer()
        self.h2.send_headers(number, list(headers), end_stream=end and body is None)
        if body is not None:
            self.h2.send_data(number, body, end_stream=end)
        self.flush()
        return number

    def wait(self, number: int | None, timeout: float = 10.0) -> bool:
        """Read until the stream or the connection is over. False when neither is in time."""
        deadline = time.monotonic() + timeout
        while not self.closed:
            answer = self.answers.get(number) if number is not None else None
            if answer is not None and (answer.ended or answer.reset):
                return True
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                return False
            except ConnectionError:
                data = b""
            if not data:
                self.closed = True
                break
            for event in self.h2.receive_data(data):
                self._take(event)
            self.flush()
        return True

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                self.answers[event.stream_id].headers = [(bytes(k), bytes(v)) for k, v in event.headers]
            case h2.events.DataReceived():
                self.answers[event.stream_id].body += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self.answers[event.stream_id].ended = True
            case h2.events.StreamReset():
                self.answers[event.stream_id].reset = True
            case h2.events.ConnectionTerminated():
                self.goodbye = int(event.error_code)
            case _:
                pass


def request(
    method: bytes = b"GET", path: bytes = b"/v1/models", *more: tuple[bytes, bytes]
) -> list[tuple[bytes, bytes]]:
    """The head of a request over HTTP/2."""
    pseudo = [(b":method", method), (b":scheme", b"http"), (b":authority", b"relay.test"), (b":path", path)]
    return [*pseudo, (b"authorization", b"Bearer sk-one"), *more]
