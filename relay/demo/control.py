"""What the demo's page asks the demo itself: which model there is, and to kill the replica that it reads from.

It listens on loopback only, at a path that only the demo's own replicas tell, and does what it is asked only for their
pages: no other page may end a process here.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

_MOST = 200  # bytes of an address


class Control:
    """Use it as a context manager. `kill` is called in a thread of its own, with one of the `addresses`."""

    def __init__(self, model: str, addresses: Iterable[str], kill: Callable[[str], None]) -> None:
        self.model = model
        self.addresses = list(addresses)  # of the replicas, and so their pages' origins
        self.kill = kill
        self._path = "/" + secrets.token_urlsafe(24)
        control = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 5.0

            def do_GET(self) -> None:
                if control.allows(self):
                    control.answer(self, 200, json.dumps({"model": control.model}).encode())

            def do_POST(self) -> None:
                if control.allows(self):
                    control.asked_to_kill(self)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, name="demo-control", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{self._path}"

    def __enter__(self) -> Control:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def allows(self, request: BaseHTTPRequestHandler) -> bool:
        if not hmac.compare_digest(request.path.encode(), self._path.encode()):
            self.answer(request, 404, b"Nothing is served here.")
        elif request.headers.get("origin") not in self.addresses:
            self.answer(request, 403, b"This is for the pages of the demo's own replicas.")
        else:
            return True
        return False

    def asked_to_kill(self, request: BaseHTTPRequestHandler) -> None:
        size = request.headers.get("content-length", "")
        address = request.rfile.read(int(size)).decode(errors="replace") if size.isdigit() and int(size) < _MOST else ""
        if address in self.addresses:
            self.kill(address)
            self.answer(request, 204, b"")
        else:
            self.answer(request, 400, b"Send the address of one of the demo's replicas.")

    def answer(self, request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        request.send_response(status)
        if (origin := request.headers.get("origin")) in self.addresses:
            request.send_header("access-control-allow-origin", origin)
        request.send_header("vary", "origin")
        if status != 204:
            request.send_header("content-length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
