"""What upstreams send, frame by frame, for each API, and what a user of an SDK has to see of it.

Frames are realistic and complete, because the SDKs' own helpers validate them. Every event stream has a pause
before its first token and one in the middle, both longer than several of the relay's heartbeats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.support.scripted import Head, Pause, Send, Step, json_response

# U+2028 and U+0085 raw: only a reader that splits on LF, CR and CRLF alone keeps these events whole.
WORDS = ("Hel", "lo ", "wörld\u2028\u0085", "🌍", "!")
TEXT = "".join(WORDS)
ARGUMENTS = ('{"ci', 'ty": "Par', 'is"}')

BAD_KEY = {
    "message": "Incorrect API key",
    "type": "invalid_request_error",
    "param": None,
    "code": "invalid_api_key",
}
LIMITED = {"message": "Rate limit reached", "type": "tokens", "param": None, "code": "rate_limit_exceeded"}

PAUSE = Pause(0.7)
RATE_LIMITED = {"retry-after": "7", "x-ratelimit-remaining-requests": "0", "x-request-id": "req_limited"}
UPSTREAM_ID = "upstream-event-id"


@dataclass(frozen=True)
class Scenario:
    """A script, and the part of the transcript that shows it did what its name says."""

    steps: tuple[Step, ...]
    expect: dict[str, Any] = field(default_factory=dict)
    """Values of a raw transcript: text, tools, reasoning, usage."""
    error: dict[str, Any] | None = None
    """Attributes of the error that the SDK raises."""
    committed_early: bool = False
    """The relay answers 200 before the upstream does, so the upstream's headers cannot be handed on."""


def paced(*frames: str, cut_at: bytes = b"", upstream_headers: dict[str, str] | None = None) -> tuple[Step, ...]:
    """A stream with its two pauses. ``cut_at`` splits a frame into two writes inside a character."""
    steps: list[Step] = [Head(200, {"content-type": "text/event-stream", **(upstream_headers or {})})]
    for number, frame in enumerate(frames):
        if number in (1, len(frames) // 2 + 1):
            steps.append(PAUSE)
        data = frame.encode()
        at = data.find(cut_at) + 1 if cut_at and cut_at in data else 0
        steps += [Send(part) for part in (data[:at], data[at:]) if part]
    return tuple(steps)


def with_keepalives(*frames: str) -> tuple[str, ...]:
    """Comments and blank keep-alive blocks between the events, as llama.cpp and some gateways send them."""
    noise = (": PROCESSING\n\n", ":\n\n", ": a comment before the event\n")
    return tuple(noise[number % len(noise)] + frame for number, frame in enumerate(frames))


def with_upstream_ids(*frames: str) -> tuple[str, ...]:
    """The upstream's own ids and reconnection times inside its events."""
    return tuple(f"id: {UPSTREAM_ID}-{number}\nretry: 10\n{frame}" for number, frame in enumerate(frames))


def with_crlf(*frames: str) -> tuple[str, ...]:
    return tuple(frame.replace("\n", "\r\n") for frame in frames)


def refused(status: int, body: object, headers: dict[str, str]) -> Scenario:
    return Scenario(json_response(status, body, headers), error={"status_code": status})


def late(script: tuple[Step, ...]) -> tuple[Step, ...]:
    """The upstream is silent for longer than the relay's patience (4 s here, as all jobs of an SDK come at once),
    before its status line."""
    return (Pause(5.5), *script)
