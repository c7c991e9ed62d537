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
    error = event.json.get("error")
    return None if error is None else str(error["code"])


def check(events: list[RawEvent], *, first: int = 1) -> tuple[int, str | None]:
    """Assert that a client's events are a contiguous, unrepeated, right prefix that begins at event `first`.

    The events of a logged stream have ids, every one of them; an end that the relay tells takes no number: only its
    last event has an id, the last number and an `e`. A stream without a log has no ids at all.

    Returns how many payload events it has seen and how its stream ended: "done", an error's code, or None where
    no end was seen.
    """
    logged = any(event.id for event in events)
    n = first - 1
    payload = 0
    end: str | None = None
    told = False
    for event in events:
        assert end is None or (event.data == "[DONE]" and end != "done"), f"an event after the end: {event}"
        code = error_code(event)
        told = told or (code is not None and logged and event.id is None)
        if not told:
            n += 1
        wanted = None if not logged or (told and code is not None) else f"{n}e" if told else str(n)
        number = None if event.id is None else event.id.rpartition(".")[2]
        assert number == wanted, f"expected the id {wanted}, got {event}"
        if code is not None:
            end = code
        elif event.data == "[DONE]":
            end = end or "done"
        else:
            payload += 1
            text = event.json["choices"][0]["delta"]["content"]
            assert text == word(n), f"event {n} carries {text!r} instead of {word(n)!r}"
    return payload, end
