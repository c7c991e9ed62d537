"""What a proxy meets on its way to relays: DNS whose answers change, and a peer that is gone without a word."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_RESPONSE = 0x8180  # of a recursive server, without an error
_A, _IN, _TTL = 1, 1, 1


class Names:
    """A DNS server on loopback: every name has the IPv4 addresses in `addresses`. `asked` counts its questions."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.asked = 0
        names = self

        class Answering(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                question, sock = self.request
                names.asked += 1
                sock.sendto(names.answer(question), self.client_address)

        self._server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), Answering)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def answer(self, question: bytes) -> bytes:
        """One question, as RFC 1035 has it; the name in an answer points to the question's."""
        end = question.index(b"\0", 12) + 5
        (kind,) = struct.unpack(">H", question[end - 4 : end - 2])
        found = self.addresses if kind == _A else []
        head = question[:2] + struct.pack(">HHHHH", _RESPONSE, 1, len(found), 0, 0)
        records = [struct.pack(">HHHIH", 0xC00C, _A, _IN, _TTL, 4) + socket.inet_aton(each) for each in found]
        return head + question[12:end] + b"".join(records)

    def __enter__(self) -> Names:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def silent_peer(address: str, port: int) -> Iterator[None]:
    """Who connects there hears nothing, neither yes nor no: the kernel drops what comes for a listener whose backlog is
    full."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(0)
        waiting: list[socket.socket] = []
        try:
            while True:
                one = socket.socket()
                waiting.append(one)
                one.settimeout(0.3)
                one.connect((address, port))
        except TimeoutError:
            yield
        finally:
            for one in waiting:
                with suppress(OSError):
                    one.close()
