"""A relayed stream's bytes, cut into whole events that stay as they are.

The relay's frames end lines at LF only, and a heartbeat is a comment line without a blank line (or, for messages, a
ping without an id). What is held is one unfinished event.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from relay.protocol.ids import EventId, parse_event_id

PATHS = {"/v1/chat/completions": "chat", "/v1/messages": "messages", "/v1/responses": "responses"}

# The events behind which their API has nothing more to say. A finish_reason alone is not one: it may have no [DONE].
_TERMINAL = {
    "messages": {"message_stop", "error"},
    "responses": {"response.completed", "response.failed", "response.incomplete", "error"},
}


class Block(NamedTuple):
    """One event, or a line between events (then `data` is None). `raw` is what goes to the SDK."""

    raw: bytes
    data: bytes | None = None
    type: bytes = b""
    id: EventId | None = None
    retry: int | None = None
    """Milliseconds."""


class Splitter:
    """Cuts the bytes of one connection into blocks; start a new one for each connection."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> Iterator[Block]:
        """The blocks that these bytes complete."""
        held = self._held
        held += data
        while held:
            between = held[0] in b":\n"
            mark = b"\n" if between else b"\n\n"
            at = held.find(mark, max(0, self._searched - 1))
            if at < 0:
                self._searched = len(held)
                return
            end = at + len(mark)
            raw = bytes(held[:end])
            del held[:end]
            self._searched = 0
            yield Block(raw) if between else _parse(raw)


def is_terminal(api: str, block: Block) -> bool:
    """Is this the last event of its API? False where in doubt: then the relay is asked, and knows."""
    if block.data is None:
        return False
    if api == "chat":
        return block.data == b"[DONE]" or block.type == b"error" or _object(block, b'"error"').get("error") is not None
    name = block.type.decode("latin-1") or _object(block, b'"type"').get("type")
    return name in _TERMINAL[api]


def error_code(body: bytes) -> str | None:
    """The code of a refusal's body, where it is one of the relay's form."""
    error = _load(body).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    # Only what looks like a code: whatever else a server writes may not get into an exception.
    return code if isinstance(code, str) and len(code) <= 64 and code.replace("_", "").isalnum() else None


def asks_for_stream(body: bytes) -> bool:
    return b'"stream"' in body and _load(body).get("stream") is True


def _parse(raw: bytes) -> Block:
    data: list[bytes] = []
    kind = b""
    position: EventId | None = None
    retry: int | None = None
    for line in raw[:-2].split(b"\n"):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value
        elif name == b"id":
            position = parse_event_id(value.decode("latin-1"))
        elif name == b"retry" and value.isdigit() and len(value) < 10:  # int() refuses thousands of digits
            retry = int(value)
    return Block(raw, b"\n".join(data) if data else None, kind, position, retry)


def _object(block: Block, needed: bytes) -> dict[str, object]:
    return _load(block.data) if block.data is not None and needed in block.data else {}


def _load(data: bytes) -> dict[str, object]:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
