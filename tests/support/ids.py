"""The ids that a stream's frames must have, spelled out without the relay's own code."""

from __future__ import annotations


def event_ids(stream: str, events: int) -> list[str]:
    """Those of its events: they count from 1 without gaps."""
    return [f"{stream}.{n}" for n in range(1, events + 1)]


def end_ids(stream: str, events: int, frames: int) -> list[str | None]:
    """Those of an end that the relay tells in so many frames: it takes no number, and only the last frame has an id."""
    return [*[None] * (frames - 1), f"{stream}.{events}e"]
