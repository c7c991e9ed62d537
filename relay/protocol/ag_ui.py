"""AG-UI: unnamed events of JSON from `RUN_STARTED` to `RUN_FINISHED` or `RUN_ERROR`; one run may follow another."""

from __future__ import annotations

import orjson

from relay.protocol.dialect import STOPPED, JsonObject
from relay.protocol.ends import END, FAILURE
from relay.protocol.event_format import EVENT, EventFormat, FormatWatch, loose_object
from relay.protocol.sse import Event
from relay.protocol.upstream_error import UpstreamError

# What is open has to be closed before a run may finish: its clients check that. By the event that opens it: the one
# that closes it, and the members that it names.
_CLOSED_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "TEXT_MESSAGE_START": ("TEXT_MESSAGE_END", ("messageId",)),
    "TOOL_CALL_START": ("TOOL_CALL_END", ("toolCallId",)),
    "STEP_STARTED": ("STEP_FINISHED", ("stepName",)),
    "THINKING_TEXT_MESSAGE_START": ("THINKING_TEXT_MESSAGE_END", ()),
    "THINKING_START": ("THINKING_END", ()),
    "REASONING_MESSAGE_START": ("REASONING_MESSAGE_END", ("messageId",)),
    "REASONING_START": ("REASONING_END", ("messageId",)),
}
_CLOSES = dict(_CLOSED_BY.values())
# What is in an event that counts: the rest need not be read.
_COUNTS = (b"_START", b"_END", b"_FINISHED", b"RUN_ERROR")
EVENTS = ("RUN_STARTED", "RUN_FINISHED", "RUN_ERROR")
"""Those by which a stream is known."""


class AgUiWatch(FormatWatch):
    """Follows the runs of a stream, and what is open in the last of them."""

    grammar = "ended events"

    def __init__(self) -> None:
        super().__init__()
        self.format = AgUi()
        self._run: JsonObject = {}
        self._open: dict[tuple[str, ...], JsonObject] = {}  # what closes it, by its type and names

    def see(self, event: Event) -> int:
        """The bits of an event (`relay.protocol.ends`)."""
        if not any(word in event.data for word in _COUNTS):
            return EVENT
        given = loose_object(event.data)
        kind = given.get("type")
        if not isinstance(kind, str):
            return EVENT
        if kind == "RUN_STARTED":
            self._run = {name: given[name] for name in ("threadId", "runId") if name in given}
            self._open.clear()
            return 0  # no part of the run before it: the stream has begun again
        if kind == "RUN_FINISHED":
            return EVENT | END
        if kind == "RUN_ERROR":
            words, code = str(given.get("message") or kind), str(given.get("code") or "")
            self.fail(UpstreamError(words[:2000], code=code[:100]))
            return EVENT | FAILURE
        if kind in _CLOSED_BY:
            end, names = _CLOSED_BY[kind]
            closing = {"type": end, **{name: given.get(name) for name in names}}
            self._open[end, *(str(given.get(name)) for name in names)] = closing
        elif kind in _CLOSES:
            self._open.pop((kind, *(str(given.get(name)) for name in _CLOSES[kind])), None)
        return EVENT

    def stop_events(self, request_id: str) -> list[Event]:
        """What is open is closed, the last one first, and the run finishes."""
        finished = {"type": "RUN_FINISHED", **self._run, "result": {"relay": STOPPED}}
        return [Event(b"", orjson.dumps(body)) for body in (*reversed(self._open.values()), finished)]


class AgUi(EventFormat):
    """Spells an error as `RUN_ERROR`."""

    def watch(self, *, hide_usage: bool = False, choices: int = 1) -> AgUiWatch:
        """A watch for one stream."""
        return AgUiWatch()

    def error_events(
        self,
        code: str,
        message: str,
        sequence: int | None,
        request_id: str,
        *,
        kind: str = "",
        response: JsonObject | None = None,
    ) -> list[Event]:
        """As of `Dialect`."""
        return [Event(b"", orjson.dumps({"type": "RUN_ERROR", "message": message, "code": code}))]
