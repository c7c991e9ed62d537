"""A scripted OpenAI whose responses run in the background: who comes back gets what follows the event is named."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from tests.support.http import chunk, first_line, read_body, read_head
from tests.support.http import headers as headers_of
from tests.support.streams import answer
from tests.support.threaded import ServerThread

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
_REFUSED = (
    b"HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\ncontent-length: 70\r\nconnection: close\r\n\r\n"
    b'{"error": {"message": "Incorrect API key.", "code":"invalid_api_key"}}'
)


@dataclass
class Generation:
    """One response: `events` as far as it has come, `credential` who began it."""

    name: str
    credential: str
    events: list[bytes] = field(default_factory=list)
    over: bool = False
    changed: asyncio.Condition = field(default_factory=asyncio.Condition, repr=False)


def events_of(name: str, words: int) -> list[bytes]:
    """All events of a response of so many words."""
    made = answer("responses", [f"w{n} " for n in range(1, words + 1)]).events
    return [event.replace('"resp_1"', f'"{name}"').encode() for event in made]


class BackgroundApi(ServerThread):
    """Each POST generates once, at its own pace, read or not. A model's name is `<words>-<milliseconds>`."""

    def __init__(self) -> None:
        super().__init__()
        self.generations: dict[str, Generation] = {}
        self.retrieved: list[tuple[str, int, str]] = []
        """Which response was asked for again, after which event, with which credential."""
        self.held_at = 1 << 30
        """No response goes on after so many events until `go_on`."""
        self._going_on = asyncio.Event()
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def go_on(self) -> None:
        """From a test's own thread."""
        self.loop.call_soon_threadsafe(self._going_on.set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                head = await read_head(reader)
                method, target, _ = first_line(head)
                credential = headers_of(head).get("authorization", "")
                if method == "POST":
                    body = json.loads(await read_body(head, reader))
                    assert body["background"] is True
                    await self._send(writer, self._begin(body["model"], credential), 0)
                else:
                    parts = urlsplit(target)
                    name = parts.path.rpartition("/")[2]
                    after = int(parse_qs(parts.query)["starting_after"][0])
                    with self._lock:
                        self.retrieved.append((name, after, credential))
                    generation = self.generations[name]
                    if generation.credential != credential:
                        writer.write(_REFUSED)
                        await writer.drain()
                    else:
                        await self._send(writer, generation, after + 1)
            finally:
                writer.close()

    def _begin(self, model: str, credential: str) -> Generation:
        words, pause = model.split("-")
        name = f"resp_{len(self.generations) + 1:04}"
        generation = self.generations[name] = Generation(name, credential)
        task = asyncio.create_task(self._generate(generation, int(words), int(pause) / 1000))
        self._tasks.add(task)
        return generation

    async def _generate(self, generation: Generation, words: int, pause: float) -> None:
        for event in events_of(generation.name, words):
            if len(generation.events) == self.held_at:
                await self._going_on.wait()
            async with generation.changed:
                generation.events.append(event)
                generation.changed.notify_all()
            await asyncio.sleep(pause)
        async with generation.changed:
            generation.over = True
            generation.changed.notify_all()

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, generation: Generation, first: int) -> None:
        writer.write(_HEAD)
        while True:
            for event in generation.events[first:]:
                writer.write(chunk(event))
            first = max(first, len(generation.events))
            await writer.drain()
            if generation.over:
                break
            async with generation.changed:
                await generation.changed.wait_for(lambda at=first: len(generation.events) > at or generation.over)  # type: ignore[misc]
        writer.write(chunk(b""))
        await writer.drain()
