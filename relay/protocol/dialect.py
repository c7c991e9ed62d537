"""The seam between the relay and the three APIs: what it must know of a stream, and how it speaks.

A `Watch` follows one stream and says of each event what the relay must know: is it a token, does it end
the stream, is it the upstream's own error. It never changes an event. A `Dialect` spells errors, ends
and heartbeats so that the API's own clients understand them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from relay.protocol.errors import ApiError
from relay.protocol.outcomes import Cause, StreamFailure
from relay.protocol.sse import Event

# What an event is, as bits of Watch.see's answer.
TOKEN = 1  # carries generated text, reasoning, a refusal or a tool call
TERMINAL = 2  # the stream is over with this event
DONE_MAY_FOLLOW = 4  # with TERMINAL: one more event ([DONE]) may follow before the body ends
FAILED = 8  # the upstream's own error
HIDDEN = 16  # asked for by the relay, not by the client: not forwarded
KEEP_ALIVE = 32  # says that the upstream lives, and nothing of the answer

DONE = b"[DONE]"
# In the last object of a stopped stream, at its top, under `relay`: its other readers can tell it from a natural end.
STOPPED = "stopped"

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the upstream counted them; None where it did not say."""

    input: int | None = None
    output: int | None = None


class Watch(Protocol):
    """Follows one stream of one upstream.

    `usage` is the last usage seen, `response_id` the upstream's own id of the answer,
    `last_sequence` the last `sequence_number` (responses only), `error` the upstream's own error message.
    `stateless_deltas`: an event that differs from an earlier one only in its text has the same bits and changes
    nothing here.
    """

    stateless_deltas: bool

    usage: Usage | None
    response_id: str | None
    last_sequence: int | None
    error: str | None

    def see(self, event: Event) -> int:
        """The bits of an event.

        Raises StreamFailure (upstream_malformed) for one that is not of the format.
        """

    def ended_at_eof(self) -> bool:
        """True where a clean end of the body now is the end of a complete answer."""

    def stop_events(self, request_id: str) -> list[Event]:
        """What makes the stream, as far as it has come, a well-formed whole that no SDK raises on: its owner
        has stopped it. The last object of it says so to who looks (`"relay": "stopped"`)."""


class Dialect(Protocol):
    """One of the three APIs. `path` is where clients POST; `heartbeat` is what keeps a silent stream alive."""

    name: str
    path: str
    heartbeat: bytes

    def watch(self, *, hide_usage: bool = False) -> Watch:
        """A watch for one stream. `hide_usage`: usage that only the relay has asked for is not shown to the client."""

    def error_events(self, code: str, message: str, sequence: int | None, request_id: str) -> list[Event]:
        """The events that end a stream abnormally, so that every client of the API raises.

        Args:
            code: the outcome's name.
            message: what happened, and what to do.
            sequence: the last `sequence_number`, None where there was none (responses only).
            request_id: the relay's id of the request that is answered.
        """

    def error_body(self, error: ApiError, request_id: str) -> bytes:
        """The JSON body of a refusal."""

    def ask_for_usage(self, body: JsonObject) -> JsonObject | None:
        """The request body that makes an upstream report usage; None where it does so already."""

    def asked_for_usage(self, body: JsonObject) -> bool:
        """Does this request body make an upstream report usage?"""


def parse_object(data: bytes) -> JsonObject:
    """The JSON object that an event's data holds (RFC 8259).

    orjson refuses lone surrogates, NaN and the like, which upstreams written in Python do send and clients
    accept: the standard parser has the last word.

    Raises StreamFailure (upstream_malformed) for anything but an object.
    """
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            parsed = json.loads(data)
        except (ValueError, RecursionError):
            raise StreamFailure(Cause.UPSTREAM_MALFORMED) from None
    if not isinstance(parsed, dict):
        raise StreamFailure(Cause.UPSTREAM_MALFORMED)
    return parsed


def dump_json(value: JsonObject) -> bytes:
    """JSON of what may hold an upstream's own values: those that orjson refuses are spelled by the standard library."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def parse_count(value: object) -> int | None:
    """A count or an index as JSON should have it; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def error_text(error: object) -> str:
    """The human part of an upstream's error, whatever its shape."""
    if isinstance(error, dict):
        return str(error.get("message") or error.get("code") or error.get("type") or "unknown error")
    return str(error)


def openai_error_type(status: int) -> str:
    """The `type` of an OpenAI error body by its status (OpenAI API reference, "Error codes")."""
    return {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )


def openai_error_body(error: ApiError) -> bytes:
    """The JSON body of a refusal (OpenAI API reference, "Error codes")."""
    return orjson.dumps(
        {
            "error": {
                "message": error.message,
                "type": openai_error_type(error.status),
                "param": None,
                "code": error.code,
            }
        }
    )
