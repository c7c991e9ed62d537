"""What makes an answer of a stream's events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress

from relay.protocol.dialect import JsonObject, parse_object
from relay.protocol.finished.parts import Value
from relay.protocol.outcomes import StreamFailure
from relay.protocol.sse import Event


class Assembly(ABC):
    """Of one stream: `add` every event in its order, `content` is the answer so far, None before anything has come."""

    def add(self, event: Event, event_id: str) -> None:
        """Take the next event. One that is no JSON object, such as `[DONE]`, adds nothing."""
        with suppress(StreamFailure):
            self.take(parse_object(event.data), event.type.decode("utf-8", "replace"))

    @abstractmethod
    def take(self, message: JsonObject, kind: str) -> None:
        """The next event's object, and its `event:` field."""

    @abstractmethod
    def content(self) -> Value:
        """For `relay.protocol.finished.parts.pieces`."""
