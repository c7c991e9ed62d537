"""A balancer between agents and relays that knows where in an answer it is, and ends one connection there.

It asks its servers in turn and passes one over that refuses. Bytes are never changed; of the turn's answers one is cut
at the place that was planned (or its server killed), and all else goes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from tests.agents.answering import MAIN, PATHS
from tests.support.http import chunk, first_line, headers, is_chunked, read_body, read_chunk, read_head, reset
from tests.support.threaded import ServerThread

Place = Literal["before the head", "in the first event", "in text", "in the call", "after the call", "at the end"]
How = Literal["rst", "fin"]
WORDS, PARTS = 10, 3
_KINDS = {
    "response.output_text.delta": "word",
    "response.function_call_arguments.delta": "part",
    "response.completed": "end",
    "message_stop": "end",
}


@dataclass(frozen=True)
class Plan:
    """Where the first answer that comes there is cut; with `kill`, its server is killed instead."""

    place: Place | None = None
    how: How = "rst"
    kill: bool = False
    then_kill: bool = False
    """The server of the answer that follows the cut is killed in its text, too."""


class _Cut(Exception):
    """The client's connection has been ended as planned."""


class Cutter(ServerThread):
    """Use it as a context manager. `kill` ends the server of that number; `asked` counts the requests of the main model
    since `begin`."""

    limit = 1 << 20

    def __init__(self, *servers: str, kill: Callable[[int], None] = lambda number: None) -> None:
        super().__init__()
        self.asked = 0
        self._servers = [urlsplit(server) for server in servers]
        self._kill = kill
        self._turn = 0
        self._plans: list[Plan] = []

    def begin(self, plan: Plan) -> None:
        self.asked = 0
        self._plans = [plan] if plan.place is not None else []
        if plan.then_kill:
            self._plans.append(Plan("in text", kill=True))

    async def serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, _Cut):
            while True:
                head = await read_head(reader)
                if "100-continue" in headers(head).get("expect", ""):
                    client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await self._exchange(head, await read_body(head, reader), reader, client)
        client.close()

    async def _connect(self) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in self._servers:
            number, self._turn = self._turn % len(self._servers), self._turn + 1
            with contextlib.suppress(OSError):
                server = self._servers[number]
                return number, *await asyncio.open_connection(server.hostname, server.port, limit=self.limit)
        raise ConnectionError

    async def _exchange(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        number, answer, server = await self._connect()
        main = first_line(head)[1].partition("?")[0] in PATHS and _model(body) == MAIN
        self.asked += main
        plan = self._plans[0] if main and self._plans else None
        lines = [line for line in head.split(b"\r\n")[:-2] if not line.lower().startswith((b"connection:", b"expect:"))]
        if is_chunked(head):
            lines = [line for line in lines if not line.lower().startswith(b"transfer-encoding:")]
            lines.append(b"content-length: %d" % len(body))
        server.write(b"\r\n".join([*lines, b"connection: close", b"", b""]) + body)
        passing = asyncio.ensure_future(self._pass(answer, client, plan, number))
        gone = asyncio.ensure_future(_until_closed(reader))
        try:
            await asyncio.wait([passing, gone], return_when=asyncio.FIRST_COMPLETED)
            if not passing.done():
                raise ConnectionError
            await passing
        finally:
            passing.cancel()
            gone.cancel()
            await asyncio.gather(passing, gone, return_exceptions=True)
            server.transport.abort()

    async def _pass(
        self, answer: asyncio.StreamReader, client: asyncio.StreamWriter, plan: Plan | None, number: int
    ) -> None:
        try:
            head = await read_head(answer)
            if plan is not None and plan.place == "before the head":
                self._end(client, plan, number)
            client.write(b"\r\n".join(ln for ln in head.split(b"\r\n") if not ln.lower().startswith(b"connection:")))
            if not is_chunked(head):
                client.write(await read_body(head, answer))
                return
            place = _Place(plan)
            while data := await read_chunk(answer):
                stop = place.stop(data)
                passed = data if stop is None else data[:stop]
                if passed:  # a chunk of nothing is the body's end
                    client.write(chunk(passed))
                    await client.drain()
                if stop is not None and plan is not None:
                    self._end(client, plan, number)
            client.write(chunk(b""))
            await client.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            reset(client)
            raise _Cut from None

    def _end(self, client: asyncio.StreamWriter, plan: Plan, number: int) -> None:
        self._plans.pop(0)
        if plan.kill:
            self._kill(number)
        if plan.kill or plan.how == "rst":
            reset(client)
        else:
            client.close()
        raise _Cut


class _Place:
    """Looks for the planned place in an answer's bytes."""

    def __init__(self, plan: Plan | None) -> None:
        self._place = None if plan is None else plan.place
        self._block = b""
        self._words = self._parts = 0

    def stop(self, data: bytes) -> int | None:
        """How much of the data goes through before the connection ends, None where all does."""
        if self._place is None:
            return None
        if self._place == "in the first event" and b"data:" in data:
            return data.index(b"data:") + 12
        at = 0
        while (end := data.find(b"\n\n", at)) >= 0:
            block, self._block = self._block + data[at:end], b""
            kind = _kind(block)
            self._words += kind == "word"
            self._parts += kind == "part"
            if self._place == "at the end" and kind == "end":
                return at
            at = end + 2
            if (
                (self._place == "in text" and self._words == WORDS)
                or (self._place == "in the call" and self._parts == PARTS)
                or (self._place == "after the call" and kind == "called")
            ):
                return at
        self._block += data[at:]
        return None


def _kind(block: bytes) -> str:
    data = b"".join(line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:"))
    if data == b"[DONE]":
        return "end"
    try:
        told = json.loads(data)
    except ValueError:
        return ""
    kind = told.get("type", "")
    if "choices" in told:
        choice = told["choices"][0] if told["choices"] else {"delta": {}}
        if choice.get("finish_reason") == "tool_calls":
            return "called"
        return "part" if choice["delta"].get("tool_calls") else "word" if choice["delta"].get("content") else ""
    if kind == "content_block_delta":
        return "word" if told["delta"]["type"] == "text_delta" else "part"
    called = kind == "content_block_stop" and told["index"] == 1
    called = called or (kind == "response.output_item.done" and told["item"]["type"] == "function_call")
    return "called" if called else _KINDS.get(kind, "")


def _model(body: bytes) -> str:
    try:
        return str(json.loads(body).get("model"))
    except ValueError:
        return ""


async def _until_closed(reader: asyncio.StreamReader) -> None:
    """Until the client hangs up: it sends nothing before its answer has ended."""
    await reader.read(1)
