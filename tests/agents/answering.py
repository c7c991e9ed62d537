"""An upstream of the three APIs that generates: it answers an agent's turn at a model's pace, and counts what it makes.

A turn is a text, or some text and a call of the agent's own shell, and then a text about what that gave. A generation
goes on until it is over or its caller hangs up, as a model's does; every word and every part of a call is one delta.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.support import streams
from tests.support.http import chunk, first_line, read_body, read_head, reset
from tests.support.streams import Api, Body
from tests.support.threaded import ServerThread

PATHS: dict[str, Api] = {streams.PATHS[api]: api for api in streams.APIS}
MAIN = "main"
"""The model of an agent's own turns. What it asks of another one (a title) is answered and not counted."""
TEXT = tuple(f"w{n:03d} " for n in range(60))
BEFORE_CALL = tuple(f"t{n:03d} " for n in range(20))
AFTER_CALL = tuple(f"d{n:03d} " for n in range(20))
Trouble = Literal["breaks", "is silent", "refuses late"]
BREAKS_AFTER = 10
SILENCE = 8.0
LATE = 4.0
COMMAND = "echo ran >> runs.txt"
_CALL_ID = "call_rig_1"
_SHELLS = ("exec_command", "shell_command", "shell", "local_shell", "Bash", "bash")


@dataclass
class Generation:
    """One call for the main model."""

    streamed: bool
    whole: int
    """The deltas of the answer, all of it."""
    made: int = 0
    over: bool = False


class Answering(ServerThread):
    """Use it as a context manager. `generations` are those since `begin`, which says what kind of turn it is."""

    limit = 1 << 20

    def __init__(self, pause: float) -> None:
        super().__init__()
        self.generations: list[Generation] = []
        self._pause = pause
        self._tool = False
        self._trouble: Trouble | None = None
        self._changed = threading.Condition()

    def begin(self, *, tool: bool, trouble: Trouble | None = None) -> None:
        """`trouble` befalls the first call for the main model."""
        with self._changed:
            self.generations = []
            self._tool = tool
            self._trouble = trouble

    def wait_idle(self, timeout: float) -> bool:
        """Until nothing is generated any more."""
        with self._changed:
            return self._changed.wait_for(lambda: all(each.over for each in self.generations), timeout)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await read_head(reader)
                body = await read_body(head, reader)
                await self._answer(first_line(head)[1], body, reader, writer)
        writer.close()

    async def _answer(
        self, target: str, raw: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        path = target.partition("?")[0]
        api = PATHS.get(path)
        if api is None:
            listed = path.endswith("/models")
            told: Body = {"data": [], "models": []} if listed else {"error": {"message": "not here"}}
            await _whole(writer, told, 200 if listed else 404)
            return
        body = json.loads(raw)
        parts = self._parts(api, body)
        events = list(_spelled(api, parts))
        generation = Generation(body.get("stream") is True, sum(counts for _, counts in events))
        trouble = None
        with self._changed:
            if body.get("model") == MAIN:
                self.generations.append(generation)
                trouble, self._trouble = self._trouble, None
        gone = asyncio.ensure_future(reader.read(1))
        try:
            if trouble == "refuses late":
                generation.whole = 0
                await asyncio.wait([gone], timeout=LATE)
                await _whole(writer, {"error": {"message": "Slow down.", "type": "rate_limit_error"}}, 429)
            else:
                await self._generate(api, events, parts, generation, writer, gone, trouble)
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            with self._changed:
                generation.over = True
                self._changed.notify_all()

    async def _generate(
        self,
        api: Api,
        events: Sequence[tuple[str, bool]],
        parts: _Parts,
        generation: Generation,
        writer: asyncio.StreamWriter,
        gone: asyncio.Future[bytes],
        trouble: Trouble | None,
    ) -> None:
        if generation.streamed:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for event, counts in events:
            if counts:
                await asyncio.wait([gone], timeout=self._pause)
                generation.made += 1
            if trouble is not None and counts and generation.made == BREAKS_AFTER:
                if trouble == "breaks":
                    reset(writer)
                    raise ConnectionError
                await asyncio.wait([gone], timeout=SILENCE)
            if gone.done():
                raise ConnectionError
            if generation.streamed:
                writer.write(chunk(event.encode()))
                await writer.drain()
        if generation.streamed:
            writer.write(chunk(b""))
            await writer.drain()
        else:
            await _whole(writer, _unstreamed(api, parts))

    def _parts(self, api: Api, body: Body) -> _Parts:
        if body.get("model") != MAIN:
            return _Parts(("A ", "title"))
        if not self._tool:
            return _Parts(TEXT)
        if _CALL_ID in json.dumps(body):
            return _Parts(AFTER_CALL)
        name, arguments = _shell(body)
        return _Parts(BEFORE_CALL, name, tuple(arguments[at : at + 6] for at in range(0, len(arguments), 6)))


@dataclass(frozen=True)
class _Parts:
    words: tuple[str, ...]
    tool: str = ""
    arguments: tuple[str, ...] = ()


def _shell(body: Body) -> tuple[str, str]:
    """The agent's tool that runs a command, and the arguments for ours."""
    offered: dict[str, Any] = {}
    for tool in body.get("tools", []):
        told = tool.get("function") or tool
        offered[str(told.get("name", tool.get("type")))] = told.get("parameters") or told.get("input_schema") or {}
    name = next(name for name in _SHELLS if name in offered)
    fields = offered[name].get("properties", {})
    key = "cmd" if "cmd" in fields else "command"
    listed = fields.get(key, {}).get("type") == "array"
    arguments: Body = {key: ["bash", "-lc", COMMAND] if listed else COMMAND}
    if "description" in fields:
        arguments["description"] = "count"
    return name, json.dumps(arguments)


def _spelled(api: Api, parts: _Parts) -> Iterator[tuple[str, bool]]:
    """The answer's events, and whether each is a delta."""
    count = len(parts.words) + len(parts.arguments)
    match api:
        case "chat":
            bodies = [streams.chunk({"role": "assistant", "content": ""})]
            bodies += [streams.chunk({"content": word}) for word in parts.words]
            if parts.tool:
                bodies.append(streams.tool_delta(0, "", id=_CALL_ID, name=parts.tool))
                bodies += [streams.tool_delta(0, part) for part in parts.arguments]
            bodies += [streams.chunk({}, "tool_calls" if parts.tool else "stop"), streams.chat_usage(9, count)]
        case "messages":
            bodies = [streams.message_start({"input_tokens": 9, "output_tokens": 1})]
            bodies += streams.text_block(0, parts.words)
            if parts.tool:
                start = {"type": "tool_use", "id": _CALL_ID, "name": parts.tool, "input": {}}
                deltas = ({"type": "input_json_delta", "partial_json": part} for part in parts.arguments)
                bodies += streams.block(1, start, deltas)
            bodies += streams.message_end("tool_use" if parts.tool else "end_turn", {"output_tokens": count})
        case "responses":
            items: list[tuple[Body, ...]] = [streams.text_item(0, parts.words)]
            if parts.tool:
                items.append(_call(parts))
            usage = {"input_tokens": 9, "output_tokens": count, "total_tokens": 9 + count}
            end = streams.response_end("completed", items, usage)
            bodies = list(streams.numbered([*streams.response_start(), *(b for each in items for b in each), end]))
    for body in bodies:
        yield streams.event(body), _is_delta(api, body)
    if api == "chat":
        yield streams.DONE, False


def _call(parts: _Parts) -> tuple[Body, ...]:
    return tuple(
        {**body, "item": {**body["item"], "call_id": _CALL_ID}} if "item" in body else body
        for body in streams.call_item(1, parts.arguments, parts.tool)
    )


def _is_delta(api: Api, body: Body) -> bool:
    if api == "chat":
        delta = body["choices"][0]["delta"] if body["choices"] else {}
        return bool(delta.get("content")) or any(c["function"]["arguments"] for c in delta.get("tool_calls", []))
    return str(body.get("type")).endswith("delta") and body.get("type") != "message_delta"


def _unstreamed(api: Api, parts: _Parts) -> Body:
    text, arguments = "".join(parts.words), "".join(parts.arguments)
    if api == "messages":
        content: list[Body] = [{"type": "text", "text": text}]
        if parts.tool:
            content.append({"type": "tool_use", "id": _CALL_ID, "name": parts.tool, "input": json.loads(arguments)})
        reason = "tool_use" if parts.tool else "end_turn"
        message: Body = streams.message_start({"input_tokens": 9, "output_tokens": 9})["message"]
        return {**message, "content": content, "stop_reason": reason}
    if api == "responses":
        end: Body = streams.response_end("completed", [streams.text_item(0, parts.words)], {"total_tokens": 9})
        whole: Body = end["response"]
        return whole
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": MAIN, "choices": [choice]}


async def _whole(writer: asyncio.StreamWriter, value: object, status: int = 200) -> None:
    data = json.dumps(value).encode()
    more = "retry-after: 1\r\n" if status == 429 else ""
    head = f"HTTP/1.1 {status} X\r\n{more}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
