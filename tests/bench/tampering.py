"""A gateway that is wrong on purpose: it reads a whole stream from the upstream, changes its frames, and answers.

Raw sockets and a thread per connection; it frames its answers as told, and hangs up behind each.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from tests.support.sseclient import open_stream


@dataclass(frozen=True)
class Faults:
    """What is done to a stream."""

    frames: Callable[[list[bytes]], list[bytes]] = list
    framing: Literal["chunked", "length", "close"] = "chunked"
    cut: bool = False
    """Hang up before the body's end as the head had announced it."""
    status: int = 200
    calls: int = 1
    """Requests to the upstream for each of a client's."""
    piece: int = 1 << 16
    """Bytes in a chunk."""


class Tampering:
    """Use it as a context manager."""

    def __init__(self, upstream: str, faults: Faults) -> None:
        self._upstream = upstream
        self._faults = faults
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._ending = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        socket.create_connection(self._listener.getsockname()).close()
        for thread in list(self._threads):
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._ending:
                connection.close()
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(1 << 16)
            head, _, body = received.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            while len(body) < int(fields[b"content-length"]):
                body += connection.recv(1 << 16)
            connection.sendall(self._answer(head.split(b" ")[1].decode(), body))

    def _answer(self, path: str, body: bytes) -> bytes:
        faults = self._faults
        for _ in range(faults.calls):
            with open_stream(self._upstream + path, body=body) as stream:
                frames = [frame + b"\n\n" for frame in stream.read().split(b"\n\n")[:-1]]
        text = b"".join(faults.frames(frames))
        fields = [f"HTTP/1.1 {faults.status} -", "content-type: text/event-stream", "connection: close"]
        if faults.framing == "length":
            fields.append(f"content-length: {len(text) + faults.cut}")
        elif faults.framing == "chunked":
            fields.append("transfer-encoding: chunked")
            pieces = [text[i : i + faults.piece] for i in range(0, len(text), faults.piece)]
            text = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            text += b"" if faults.cut else b"0\r\n\r\n"
        return "\r\n".join([*fields, "", ""]).encode() + text
