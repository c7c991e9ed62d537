"""The events themselves, for streams of which nothing more is known."""

from __future__ import annotations

from relay.protocol.dialect import JsonObject
from relay.protocol.finished.assembly import Assembly
from relay.protocol.finished.parts import Entries
from relay.protocol.sse import Event


class EventList(Assembly):
    """A list of `{event, data, id}`, as a client of server-sent events is given them: `event` is `message` where the
    stream names none (WHATWG HTML, section 9.2.6)."""

    def __init__(self) -> None:
        self._events = Entries()

    def add(self, event: Event, event_id: str) -> None:
        kind = event.type.decode("utf-8", "replace") or "message"
        self._events.rows.append({"event": kind, "data": event.data.decode("utf-8", "replace"), "id": event_id})

    def take(self, message: JsonObject, kind: str) -> None:
        """Not called: what the data says is nobody's business here."""

    def content(self) -> Entries | None:
        return self._events
