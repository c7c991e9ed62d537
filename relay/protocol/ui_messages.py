"""The AI SDK's stream of UI messages, known by its header (`x-vercel-ai-ui-message-stream: v1`): unnamed events of JSON
parts, ended by `[DONE]`.

Its clients check each part strictly: a member that they do not know is an error to them, so the relay adds none.
"""

from __future__ import annotations

import orjson

from relay.protocol.dialect import DONE, JsonObject
from relay.protocol.ends import DONE_LINE, FAILURE, FINISH
from relay.protocol.event_format import EVENT, EventFormat, FormatWatch, loose_object
from relay.protocol.sse import Event
from relay.protocol.upstream_error import UpstreamError

HEADER = b"x-vercel-ai-ui-message-stream"
# What the last parts are: to see them their JSON has to be read, that of others need not be.
_LAST = (b'"finish"', b'"error"', b'"abort"')


class UiMessageWatch(FormatWatch):
    """After `abort`, which the application has told, nothing is missing: its clients take it for the end."""

    grammar = "ui messages"

    def __init__(self) -> None:
        super().__init__()
        self.format = UiMessages()

    def see(self, event: Event) -> int:
        """The bits of an event (`relay.protocol.ends`)."""
        data = event.data
        if data == DONE:
            return DONE_LINE
        if not any(word in data for word in _LAST):
            return EVENT
        part = loose_object(data)
        kind = part.get("type")
        if kind in ("finish", "abort"):
            return EVENT | FINISH
        if kind == "error":
            words = str(part.get("errorText") or "The application has told an error.")
            self.fail(UpstreamError(words[:2000]))
            return EVENT | FAILURE
        return EVENT

    def stop_events(self, request_id: str) -> list[Event]:
        """The part `abort`, which is how the SDK itself says that an answer was stopped."""
        return [Event(b"", orjson.dumps({"type": "abort"})), Event(b"", DONE)]


class UiMessages(EventFormat):
    """Spells an error as the part `error`."""

    def watch(self, *, hide_usage: bool = False, choices: int = 1) -> UiMessageWatch:
        """A watch for one stream."""
        return UiMessageWatch()

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
        return [Event(b"", orjson.dumps({"type": "error", "errorText": f"{message} ({code})"})), Event(b"", DONE)]
