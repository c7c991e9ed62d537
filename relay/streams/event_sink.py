"""What an upstream's events are handed to as they arrive."""

from __future__ import annotations

from typing import Protocol


class EventSink(Protocol):
    """Makes frames of events. What it raises ends the stream."""

    def append(self, block: bytes, has_token: bool = False) -> None:
        """The next event: its lines and its blank line."""

    def publish(self) -> None:
        """That is all for now."""


class Replayed:
    """In the place of a sink that has the events."""

    def append(self, block: bytes, has_token: bool = False) -> None: ...

    def publish(self) -> None: ...
