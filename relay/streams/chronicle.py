"""What this replica tells of its streams' readers, stops and losses, for `relay streams show`.

Promises: nothing is told for an event, nor of a stream whose one reader has it to its end; what is told goes to the
store together, a moment later, with how many readers the streams have here by then; and where the store is away it is
kept within bounds and told when it is back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from relay.protocol.ids import is_logged
from relay.store.stories import Line, Stories, Told

# Soon enough for who looks; what a replica has not told when it is killed is in its log alone.
_AFTER = 0.25
_AGAIN_AFTER = 2.0
_MOST_STREAMS = 10_000
_MOST_LINES = 64


SPAN_EVENTS = {"reader gone": "cut", "reader came": "resume", "taken over": "takeover", "stop asked for": "stop"}
"""What the events of a stream's span are called, where that is another name."""


def _nobody(stream: str, what: str, fields: Mapping[str, Any]) -> None:
    return None


class Chronicle:
    """One per replica. `readers_of` says how many readers a stream has here; `on_noted` hears of all that is told."""

    def __init__(
        self,
        replica: str,
        stories: Stories,
        readers_of: Callable[[str], int],
        on_noted: Callable[[str, str, Mapping[str, Any]], None] = _nobody,
    ) -> None:
        self._on_noted = on_noted
        self._replica = replica
        self._stories = stories
        self._readers_of = readers_of
        self._pending: dict[str, list[Line]] = {}
        self._told = 0
        self._telling: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def note(self, stream: str, what: str, **fields: Any) -> None:
        """Something has happened to a stream. The fields hold nothing of a prompt, an answer or a credential."""
        self._on_noted(stream, what, fields)
        if not is_logged(stream) or (stream not in self._pending and len(self._pending) >= _MOST_STREAMS):
            return
        lines = self._pending.setdefault(stream, [])
        if len(lines) < _MOST_LINES:
            self._told += 1
            lines.append(Line(time.monotonic(), {"what": what, "on": self._replica, "n": self._told, **fields}))
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell_soon())

    async def _tell_soon(self) -> None:
        pause = _AFTER
        while self._pending:
            try:
                async with asyncio.timeout(pause):
                    await self._closing.wait()
            except TimeoutError:
                pass
            pending, self._pending = self._pending, {}
            news = [Told(stream, self._readers_of(stream), lines) for stream, lines in pending.items()]
            left = await self._stories.tell(self._replica, news)
            for told in left:
                self._pending[told.stream] = [*told.lines, *self._pending.get(told.stream, ())][:_MOST_LINES]
            if left and self._closing.is_set():
                break
            pause = _AGAIN_AFTER if left else _AFTER
        self._telling = None

    async def note_ended(self, ended: Sequence[tuple[str, float]]) -> None:
        """Streams whose ends are old enough to stand, with the times of these in Unix seconds. Raises
        StoreUnavailable."""
        await self._stories.note_ended(ended)

    async def close(self) -> None:
        """Tell what there is, if the store takes it at once."""
        self._closing.set()
        if self._telling is not None:
            await asyncio.wait([self._telling], timeout=1.0)
            if self._telling is not None:
                self._telling.cancel()
