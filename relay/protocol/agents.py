"""What is known of a client by the headers that it sends, where its own rules would cost it an answer.

Agents ask again by themselves, and each has rules of its own for what resets its clock and for the ends after which it
asks again. They are recognised by what they say of themselves; whoever says nothing is served as every client of the
API is. A wrong guess changes how something is told, never what.
"""

from __future__ import annotations

import re
from typing import Literal

from relay.protocol.dialect import Dialect
from relay.protocol.headers import Headers, value

BrokenEnd = Literal["auto", "error", "cut"]
HeartbeatForm = Literal["auto", "comment", "event"]

# `originator` and the user agent begin alike: codex_cli_rs, codex_exec, codex-tui, "Codex Desktop".
_CODEX = re.compile(rb"codex[ _/-].*", re.IGNORECASE | re.DOTALL)
TIMEOUT = b"x-stainless-timeout"
"""The header in which the SDKs of OpenAI and Anthropic tell their own time-out."""
# What a client's own time-out leaves for the upstream's status: most of it is the answer's.
_SHARE = 0.1
_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")


def is_codex(headers: Headers) -> bool:
    """Codex gives a silent stream up after 300 s, and only events reset that clock, not comments."""
    return any(_CODEX.fullmatch(value(headers, name) or b"") for name in (b"originator", b"user-agent"))


def is_claude_code(headers: Headers) -> bool:
    """Claude Code asks for a cut stream again, but after an error event it asks for the whole answer in one piece."""
    agent = value(headers, b"user-agent") or b""
    return agent.startswith(b"claude-cli/") or value(headers, b"x-claude-code-session-id") is not None


def heartbeat(form: HeartbeatForm, dialect: Dialect, headers: Headers, comment: bytes) -> bytes:
    """What keeps this client's stream alive; `comment` is the form that goes with the stream's frames."""
    if form == "event" or (form == "auto" and dialect.name == "responses" and is_codex(headers)):
        return dialect.event_heartbeat
    return comment if form == "comment" or dialect.name != "messages" else dialect.event_heartbeat


def hears_losses_as_cuts(form: BrokenEnd, dialect: Dialect, headers: Headers) -> bool:
    """Is this client's connection to be cut where its stream has been lost?"""
    return form == "cut" or (form == "auto" and dialect.name == "messages" and is_claude_code(headers))


def patience(least: float, most: float, told: bytes | None) -> float:
    """How long this client waits for an upstream's own status, in seconds: a tenth of its own time-out where it has
    `told` that (`TIMEOUT`), from `least` to `most`."""
    return max(least, min(most, float(told) * _SHARE)) if told and _SECONDS.fullmatch(told) else least
