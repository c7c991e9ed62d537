"""Server-sent events of an application that are in no format that the relay knows.

A clean end of the body is the stream's end, unless the settings name an event that has to come (`upstreams[].end`). An
event of the type `error` is the application's own: it goes on as it is, and the stream has failed unless it is ended by
what the settings name.
"""

from __future__ import annotations

import orjson

from relay.protocol.dialect import STOPPED, JsonObject, openai_error
from relay.protocol.ends import END, FAILURE
from relay.protocol.event_format import EVENT, EventFormat, FormatWatch, own_error
from relay.protocol.sse import Event


class PlainWatch(FormatWatch):
    """`end` is the type or the data of the event that has to come, empty where a clean end is the end."""

    def __init__(self, end: bytes) -> None:
        super().__init__()
        self._end = end
        self.grammar = "ended events" if end else "events"
        self.stateless_deltas = b'"' not in end
        self.format = PlainEvents(end)

    def see(self, event: Event) -> int:
        """The bits of an event (`relay.protocol.ends`)."""
        if self._end and self._end in (event.type, event.data):
            return EVENT | END
        if event.type == b"error":
            self.fail(own_error(event.data))
            return EVENT | FAILURE
        return EVENT

    def stop_events(self, request_id: str) -> list[Event]:
        """An event of the type `stopped`, and the one that its readers wait for."""
        told = Event(b"stopped", orjson.dumps({"relay": STOPPED}))
        end = self._end
        if not end:
            return [told]
        # Where it is a word it may be the event's type as well as its data; readers look for either.
        is_type = end.replace(b"-", b"").replace(b"_", b"").replace(b".", b"").isalnum()
        return [told, Event(end, end) if is_type else Event(b"", end)]


class PlainEvents(EventFormat):
    """Spells an error as an event of the type `error`, whose data is the JSON of OpenAI's errors."""

    def __init__(self, end: bytes = b"") -> None:
        self._end = end

    def watch(self, *, hide_usage: bool = False, choices: int = 1) -> PlainWatch:
        """A watch for one stream."""
        return PlainWatch(self._end)

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
        error = openai_error(message, kind or "server_error", code)
        return [Event(b"error", orjson.dumps({"error": error}))]
