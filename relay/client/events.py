"""A relayed stream's bytes, cut into whole events that stay as they are.

The relay's frames end lines at LF only, and a heartbeat is a comment line without a blank line, or an event without an
id whose type says so. What is held is one unfinished event.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from relay.protocol.ids import EventId, parse_event_id

ANY = "any"
"""The API of a stream that is read by its id."""
PATHS = {"/v1/chat/completions": "chat", "/v1/messages": "messages", "/v1/responses": "responses"}
MAX_REFUSAL_BYTES = 65_536
"""What is read of a refusal, to find its code in it."""
MAX_REFUSAL_TIME = 2.0
"""Seconds; as above."""

HEARTBEATS = (b"ping", b"keepalive")
"""Types of events, without an id, that are none of the stream's."""

# Each line of an event is gone through by itself. A relay sends none with half as many.
_MOST_LINES = 200_000
_LONG = 64 * 1024

# The code of a 409 whose request may join its generation a moment later.
KEY_IN_FLIGHT = "idempotency_key_in_flight"

# The events after which their API sends nothing more. A finish_reason alone is not one: it may have no [DONE].
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


class EventTooLarge(Exception):
    """An event outgrew the bound."""


class Splitter:
    """Cuts the bytes of one connection into blocks; each connection has a splitter of its own.

    Lines end at LF, as the relay writes them (WHATWG HTML, section 9.2.5). Held is one unfinished event of at most
    `max_event_bytes`.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._held = bytearray()
        self._searched = 0
        self._max = max_event_bytes

    @property
    def unfinished(self) -> bytes:
        """What has come of an event that is not whole."""
        return bytes(self._held)

    def feed(self, data: bytes) -> Iterator[Block]:
        """The blocks that these bytes complete.

        Raises EventTooLarge, after the blocks before it.
        """
        held = self._held
        held += data
        while held:
            between = held[0] in b":\n"
            mark = b"\n" if between else b"\n\n"
            at = held.find(mark, max(0, self._searched - 1))
            end = at + len(mark) if at >= 0 else len(held)
            if end > self._max or (at >= _LONG and held.count(b"\n", 0, end) > _MOST_LINES):
                raise EventTooLarge
            if at < 0:
                self._searched = len(held)
                return
            raw = bytes(held[:end])
            del held[:end]
            self._searched = 0
            yield Block(raw) if between else _parse(raw)


def is_terminal(api: str, block: Block) -> bool:
    """Is this the last event of its API? False where in doubt: then the relay is asked, and knows.

    An error of the chat or the responses API without an id is one of the relay's own, whose last frame is yet to come.
    """
    if block.data is None or (block.id is None and block.type == b"error" and api in (ANY, "responses")):
        return False
    if api == ANY:
        return any(is_terminal(one, block) for one in PATHS.values())
    if api == "chat":
        if block.id is None or block.data == b"[DONE]":
            return block.data == b"[DONE]"
        return block.type == b"error" or _object(block, b'"error"').get("error") is not None
    name = block.type.decode("latin-1") or _object(block, b'"type"').get("type")
    return name in _TERMINAL.get(api, ())  # of an application's stream the relay knows


def error_code(body: bytes) -> str | None:
    """The `error.code` of a refusal's body, None where it is not of the relay's form."""
    error = _load(body).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    # Only what looks like a code: whatever else a server writes may not get into an exception.
    return code if isinstance(code, str) and len(code) <= 64 and code.replace("_", "").isalnum() else None


def asks_for_stream(body: bytes) -> bool:
    """Has this request body `"stream": true`?"""
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
