"""The oracle of every fault: what event n of a stream must carry, and what a client may have seen of it.

Payload = f(seq), so each client's events, across all its reconnects, can be told to be contiguous from 1,
unrepeated and right, with at most one terminal, which is last.
"""

from __future__ import annotations

import json

from tests.support.sseclient import RawEvent

PATH = "/v1/chat/completions"


def word(n: int) -> str:
    """The text that event n carries."""
    return f"w{n}-{(n * 7919) % 104729} "


def frame(n: int) -> bytes:
    """Event n as an upstream sends it."""
    chunk = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word(n)}}]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def error_code(event: RawEvent) -> str | None:
    """The code of an error event of the chat API, None for any other event."""
    if event.data == "[DONE]":
        return None
    error = json.loads(event.data).get("error")
    return None if error is None else str(error["code"])


def check(events: list[RawEvent], *, first: int = 1) -> tuple[int, str | None]:
    """Assert that a client's events are a contiguous, unrepeated, right prefix that begins at event `first`.

    Returns how many payload events it has seen and how its stream ended: "done", an error's code, or None where
    no end was seen.
    """
    n = first
    end: str | None = None
    for event in events:
        assert end is None or (event.data == "[DONE]" and end != "done"), f"an event after the end: {event}"
        if event.id:
            assert event.id.rpartition(".")[2] == str(n), f"expected event {n}, got id {event.id}"
        if event.data == "[DONE]":
            end = end or "done"
        elif (code := error_code(event)) is not None:
            end = code
        else:
            text = json.loads(event.data)["choices"][0]["delta"]["content"]
            assert text == word(n), f"event {n} carries {text!r} instead of {word(n)!r}"
        n += 1
    payload = [e for e in events if e.data != "[DONE]" and error_code(e) is None]
    return len(payload), end
