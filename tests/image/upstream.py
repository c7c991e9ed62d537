"""The upstream in a container: as many events as the model's name asks for, at its pace. `GET /calls` counts them.

A model of any other name gets a short answer that is not counted.

Only the standard library: it runs in the relay's image.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

calls = 0
counting = threading.Lock()


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = str(calls).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        global calls
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body["model"].startswith("count-"):
            with counting:
                calls += 1
            _, events, millis = body["model"].split("-")  # count-200-50
        else:
            events, millis = "30", "20"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for n in range(1, int(events) + 1):
            delta = {"content": f"w{n}-{(n * 7919) % 104729} "}  # as tests/support/oracle.py expects it
            chunk = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
            self._send(f"data: {json.dumps(chunk)}\n\n".encode())
            time.sleep(int(millis) / 1000)
        self._send(b"data: [DONE]\n\n")
        self._send(b"")

    def _send(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, format: str, *words: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("0.0.0.0", 8000), Upstream)
    server.daemon_threads = True
    server.serve_forever()
