"""Streams of applications (`apis: [sse]`) as `tests.support.samples` has those of the three APIs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.samples import SAMPLES, Event, Sample

_RECORDED = Path(__file__).parents[1] / "protocol" / "recorded"
PATH = "/api/"
"""Under which they are asked for."""


@dataclass(frozen=True)
class FormatSample(Sample):
    """`name` is the format's, and the last segment of its path; `asked` is what its requests say, `told` are headers of
    its answers."""

    name: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return PATH + self.name

    def body(self, model: str, *, stream: bool = True, **more: Any) -> dict[str, Any]:
        """Nothing in it says that it asks for a stream."""
        return {"model": model, **self.asked, **more}


@dataclass(frozen=True)
class _AsRecorded(Event):
    """One that the upstream sends as its library wrote it, with the ids and hints of its own."""

    raw: str = ""

    def from_upstream(self, style: int) -> bytes:
        return self.raw.encode()


def _recorded(name: str, *, with_ids: bool = False) -> tuple[Event, ...]:
    blocks = (_RECORDED / f"{name}.sse").read_text(encoding="utf-8").split("\n\n")
    return tuple(_event(block, with_ids) for block in blocks if block)


def _event(block: str, with_ids: bool) -> Event:
    fields = dict(line.split(": ", 1) for line in block.split("\n"))
    data, kind = fields["data"], fields.get("event", "")
    return _AsRecorded(data, kind, f"{block}\n\n") if with_ids else Event(data, kind)


def _sample(name: str, events: tuple[Event, ...], asked: Mapping[str, Any] | None = None) -> FormatSample:
    told = {"x-vercel-ai-ui-message-stream": "v1"} if name == "ui" else {}
    return FormatSample("chat", SAMPLES["chat"].heartbeat, events, name, asked or {}, told)


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

_CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "count", "arguments": {"to": 3}}}
_SPEECH = tuple(
    Event(json.dumps(body))
    for body in (
        {"type": "speech.audio.delta", "audio": "SUQzBAAAAAAA" * 30},
        {"type": "speech.audio.delta", "audio": "AAAA"},
        {"type": "speech.audio.done", "usage": {"input_tokens": 4, "output_tokens": 5, "total_tokens": 9}},
    )
)

FORMATS: dict[str, FormatSample] = {
    "ui": _sample("ui", _recorded("ui_messages_tool")),
    "ag-ui": _sample("ag-ui", _recorded("ag_ui_run")),
    "plain": _sample("plain", _PLAIN),
    "mcp": _sample("mcp", _recorded("mcp_call"), _CALL),
    "mcp-ids": _sample("mcp-ids", _recorded("mcp_call_with_ids", with_ids=True), _CALL),
    "images": _sample("images", _recorded("openai_images")),
    "edits": _sample("edits", _recorded("openai_edits")),
    "transcript": _sample("transcript", _recorded("openai_transcript")),
    "speech": _sample("speech", _SPEECH),
    "completions": _sample("completions", _recorded("openai_completions")),
}
