"""A gateway that does its work but for one defect, in a process of its own, so that its CPU and memory are its own.

    python -m tests.bench.defective UPSTREAM '{"burn": 0.005, …}'

Prints its URL. Connections of clients are kept, each request has a connection of its own to the upstream, and bytes
are passed on as they come. Without a defect it is a plain proxy, with which the defective one is compared.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from relay.bench.http import Response
from relay.bench.measure import Target


@dataclass(frozen=True)
class Defects:
    """Every one of them shows in a row of the benchmark."""

    burn: float = 0.0
    """Seconds of CPU for each request, in which nothing else is done."""
    burn_mib: float = 0.0
    """The same for each MiB of a request or an answer."""
    hold: int = 0
    """Bytes of memory for each stream while it is live."""
    leak: int = 0
    """Bytes of memory for each stream, for good."""
    refused: int = 0
    """One request in so many is refused."""
    cut: int = 0
    """One answer in so many is cut in its midst."""
    twisted: int = 0
    """One answer in so many has a byte that the upstream did not send."""


class _Gateway:
    def __init__(self, upstream: str, defects: Defects) -> None:
        parts = urlsplit(upstream)
        self._address = (parts.hostname, parts.port)
        self._defects = defects
        self._requests = 0
        self._leaked: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._request(reader, writer):
                pass
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
        defects = self._defects
        self._requests += 1
        _burn(defects.burn + defects.burn_mib * len(body) / 2**20)
        if defects.refused and not self._requests % defects.refused:
            writer.write(b"HTTP/1.1 503 -\r\ncontent-length: 0\r\n\r\n")
            return True
        cut = bool(defects.cut) and not self._requests % defects.cut
        twisted = bool(defects.twisted) and not self._requests % defects.twisted
        held = b"x" * defects.hold
        if defects.leak:
            self._leaked.append(b"x" * defects.leak)
        upstream, asking = await asyncio.open_connection(*self._address)
        response, passed = Response(), 0
        try:
            asking.write(head + body)
            while not response.whole and (data := await upstream.read(1 << 16)):
                response.feed(data)
                _burn(defects.burn_mib * len(data) / 2**20)
                if twisted and passed:
                    data = data.replace(b"assistant", b"assistent").replace(b"choices", b"choises", 1)
                writer.write(data)
                if cut and passed:
                    return False
                passed += len(data)
                await writer.drain()
        finally:
            asking.close()
        del held
        return response.whole


def _burn(seconds: float) -> None:
    ending = time.process_time() + seconds
    while time.process_time() < ending:
        pass


async def _serve(upstream: str, defects: Defects) -> None:
    gateway = _Gateway(upstream, defects)
    server = await asyncio.start_server(gateway.serve, "127.0.0.1", 0, backlog=4096, limit=1 << 26)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@contextmanager
def gateway(upstream: str, defects: Defects | None = None, name: str = "gateway") -> Iterator[Target]:
    """It ends with its standard input."""
    command = [sys.executable, "-m", "tests.bench.defective", upstream, json.dumps(asdict(defects or Defects()))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Target(name, process.stdout.readline().strip(), pids=(process.pid,))
        process.stdin.close()
        process.wait(10)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Defects(**json.loads(sys.argv[2]))))
