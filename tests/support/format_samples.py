"""Streams of applications (`apis: [sse]`) as `tests.support.samples` has those of the three APIs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.samples import SAMPLES, Event, Sample

_RECORDED = Path(__file__).parents[1] / "protocol" / "recorded"
PATH = "/api/"
"""Under which they are asked for."""


@dataclass(frozen=True)
class FormatSample(Sample):
    """`name` is the format's, and the last segment of its path."""

    name: str = ""

    @property
    def path(self) -> str:
        return PATH + self.name

    def body(self, model: str, *, stream: bool = True, **more: Any) -> dict[str, Any]:
        """Nothing in it says that it asks for a stream."""
        return {"model": model, **more}


def _recorded(name: str) -> tuple[Event, ...]:
    blocks = (_RECORDED / f"{name}.sse").read_text(encoding="utf-8").split("\n\n")
    return tuple(Event(block.removeprefix("data: ")) for block in blocks if block)


def _sample(name: str, events: tuple[Event, ...]) -> FormatSample:
    return FormatSample("chat", SAMPLES["chat"].heartbeat, events, name)


_PLAIN = (
    Event("", "open"),
    Event("one\n two\n"),
    Event('{"delta":"a"}', "message"),
    Event('{"delta":"b\u2028\u0085 東京 🎉"}', "message"),
    Event("", "progress"),
    Event("ping", "ping"),
    Event("[DONE]"),
    Event("", "close"),
)

FORMATS: dict[str, FormatSample] = {
    "ui": _sample("ui", _recorded("ui_messages_tool")),
    "ag-ui": _sample("ag-ui", _recorded("ag_ui_run")),
    "plain": _sample("plain", _PLAIN),
}
