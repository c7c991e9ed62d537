"""The table of scripts that every client plays, Python and JavaScript alike: `cases.json` beside this file.

A case is what servers do in turn, and what must be seen action. Body parts and what is seen are words of a language:

    1 2 3!        events of the stream; `!` is one whose data is [DONE]
    e1            the relay's own end after event 1
    error plain   frames without an id: an error of the chat API, and any other
    hb beat       a heartbeat: a comment, or an event
    half2         the first bytes of event 2
    other2        event 2 of another stream
    retry9:1      event 1 with `retry: 9` (milliseconds)
    big9:1        event 1 with so many bytes of data
    fill9         so many bytes of an event that does not end
    lost slow     the connection breaks, or is silent until it is left
    +6            so many seconds pass
    stop1 …       messages: event 1, the last

A script is a list of steps: a list of body parts is a 200 with the stream's head; an object has `status`, and `code`,
`text`, `retry_after`, `type`, `stream`, `parts` or `headers`; `lost`, `slow` and `unreachable` are no answer at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.client.played import HEAD, STREAM, Answer, Script, frame

PATH = Path(__file__).with_name("cases.json")
OTHER = "st_" + "o" * 22
BREAKS = {"lost": "ReadError", "slow": "ReadTimeout", "unreachable": "ConnectError"}


@dataclass
class Case:
    name: str
    kind: int
    """Of the issue's kinds: 0 is what came before them, 1 bounds, 2 tries and time, 3 time-outs, 4 no silent end,
    5 what the user sees, 6 what the way does, 7 the SDK's retries, 8 more of the surface."""
    script: list[Any]
    seen: str = ""
    """What the body brought, in the language of the parts."""
    error: dict[str, Any] | None = None
    """`reason`, `status`, `code`, `last` (the event's number) of a failure; `{"own": "lost"}`: the library's error."""
    status: int = 200
    asked: list[str | None] = field(default_factory=list)
    """The `Last-Event-ID` of each request, without the stream."""
    waits: list[float] | None = None
    keys: str | None = None
    """The key of each request: `-` for none, else a letter for each that is different."""
    hosts: list[str] | None = None
    paths: list[str] | None = None
    told: list[str] | None = None
    counters: dict[str, int] | None = None
    policy: dict[str, Any] = field(default_factory=dict)
    known: bool = False
    api: str = "chat"
    get: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    base_urls: list[str] = field(default_factory=list)
    fresh: bool = False
    """Credentials are made anew: `Bearer 0`, `Bearer 1` …"""
    credentials: list[str] | None = None
    requests: int = 1
    """How often the SDK sends its request, each time after an error or an end."""


def load() -> list[Case]:
    return [Case(**case) for case in json.loads(PATH.read_text(encoding="utf-8"))]


def part(word: str, data: str = "{}") -> bytes:
    """The bytes of one word."""
    named, _, n = word.partition(":")
    if n and named.startswith("retry"):
        return f"id: {STREAM}.{n}\nretry: {named[5:]}\ndata: {data}\n\n".encode()
    if n and named.startswith("big"):
        return frame(int(n), "x" * int(named[3:]))
    fixed = {
        "hb": ": hb\n",
        "beat": "event: keepalive\ndata: {}\n\n",
        "plain": "data: {}\n\n",
        "error": 'data: {"error":{"code":"max_duration"}}\n\n',
    }
    if word in fixed:
        return fixed[word].encode()
    if word.startswith("fill"):
        return b"data: " + b"x" * int(word[4:])
    if word.startswith("half"):
        return frame(int(word[4:]))[:9]
    if word.startswith("other"):
        return frame(int(word[5:])).replace(STREAM.encode(), OTHER.encode())
    if word.startswith("stop"):
        return f"id: {STREAM}.{word[4:]}\nevent: message_stop\ndata: {{}}\n\n".encode()
    if word.startswith("e"):
        return f"id: {STREAM}.{word[1:]}e\ndata: [DONE]\n\n".encode()
    return frame(int(word.rstrip("!")), "[DONE]" if word.endswith("!") else data)


def body(words: str) -> bytes:
    return b"".join(part(word) for word in words.split())


def parts(words: list[str]) -> list[bytes | str]:
    return [BREAKS.get(word) or (word if word[0] == "+" else body(word)) for word in words]


def script(case: Case) -> Script:
    return [step if isinstance(step, Answer) else BREAKS[step] for step in map(_step, case.script)]


def _step(step: Any) -> Answer | str:
    if isinstance(step, str):
        return step
    if isinstance(step, list):
        return Answer(parts=parts(step))
    status = step["status"]
    headers = dict(HEAD) if "parts" in step else {}
    if "type" in step:
        headers["content-type"] = step["type"]
    if "stream" in step:
        headers["relay-stream-id"] = STREAM if step["stream"] == "same" else OTHER
    if "retry_after" in step:
        headers["retry-after"] = step["retry_after"]
    headers.update(step.get("headers", {}))
    text = json.dumps({"error": {"message": "sk-secret", "code": step["code"]}}) if "code" in step else step.get("text")
    if text is not None:
        return Answer(status, headers, [text.encode()])
    return Answer(status, headers, parts(step.get("parts", [])))
