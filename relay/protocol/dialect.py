"""The seam between the relay and the three APIs: what it must know of a stream, and how it speaks.

A `Watch` follows one stream and names each event (a token, a finish, an error …); what that makes of the stream is
decided in `relay.protocol.ends`. It never changes an event. A `Dialect` spells errors, ends and heartbeats so that the
API's own clients understand them.
"""

from __future__ import annotations

import gc
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from relay.protocol.ends import DONE_LINE, ERROR, KEEP_ALIVE
from relay.protocol.errors import ApiError
from relay.protocol.outcomes import Cause, StreamFailure
from relay.protocol.sse import Event
from relay.protocol.upstream_error import UpstreamError, is_keep_alive, read_object, read_text

DONE = b"[DONE]"
# In the last object of a stopped stream, at its top, under `relay`: its other readers can tell it from a natural end.
STOPPED = "stopped"

# Names of events that only keep a connection alive.
BEATS = frozenset((b"ping", b"pong", b"keepalive", b"keep-alive", b"keep_alive", b"heartbeat"))
_BEAT_NAMES = frozenset(beat.decode() for beat in BEATS)

# An event's data that takes more than some milliseconds to parse.
_LARGE = 256 * 1024
# In strings, too. A whole answer of 30,000 tokens with 5 alternatives each has 400,000.
_MOST_CONTAINERS = 1_000_000

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the upstream counted them; None where it did not say."""

    input: int | None = None
    output: int | None = None


class Watch(ABC):
    """Follows one stream of one upstream.

    `usage` is the last usage seen, `response_id` the upstream's own id of the answer, `response` its last object of the
    whole answer (responses only), `last_sequence` the highest `sequence_number` (responses only). `error` is the
    upstream's own error, and `readable` whether clients of the API can tell the last one for one as it is.
    `malformed` counts the events that were forwarded and are not of the format, `continued` the calls that have gone on
    with an answer that broke off, `end_missing` says that an answer was
    whole but for its last line or its last event.
    `stateless_deltas`: an event that differs from an earlier one only in its text has the same bits and changes
    nothing here.
    """

    stateless_deltas = True
    grammar = ""
    """The table of its ends (`relay.protocol.ends`)."""
    verbatim = False
    """Does the upstream mean every event as the standard has it, with or without data? Then half of one, at the end of
    a body that was cut, is not to be told from a whole one."""
    choices = 1
    hides_usage = False

    def __init__(self) -> None:
        self.format: Dialect | None = None
        """What spells the relay's own ends of this stream, where that is not known before its answer."""
        self.usage: Usage | None = None
        self.response_id: str | None = None
        self.response: JsonObject | None = None
        self.last_sequence: int | None = None
        self.error: UpstreamError | None = None
        self.readable = True
        self.malformed = 0
        self.continued = 0
        self.end_missing = False

    def begin(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """The head of the upstream's answer is there; it says nothing but where an application tells its format so."""
        return

    @abstractmethod
    def see(self, event: Event) -> int:
        """The bits of an event (`relay.protocol.ends`).

        Raises StreamFailure (upstream_malformed) for one that is not of the format.
        """

    def see_other(self, event: Event) -> int:
        """The bits of an event that is no JSON object.

        Raises StreamFailure (upstream_malformed) for one that is neither a keep-alive nor an error, or is several.
        """
        data = event.data
        if data.strip() == DONE:
            return DONE_LINE
        if event.type.lower() in BEATS or is_keep_alive(data):
            return KEEP_ALIVE
        if len(data) > _LARGE:  # as JSON it was looked at
            error = read_text(data)
        elif split_block(event):
            raise StreamFailure(Cause.UPSTREAM_MALFORMED)
        else:
            try:
                parsed = orjson.loads(data)
            except orjson.JSONDecodeError:
                error = read_text(data)
            else:
                error = read_object(parsed, named=event.type == b"error")
        if error is None and event.type == b"error":
            error = UpstreamError(data.decode("utf-8", "replace")[:2000])
        if error is None:
            raise StreamFailure(Cause.UPSTREAM_MALFORMED)
        self.error = error
        self.readable = False
        return ERROR

    def left_out(self, request_id: str) -> list[Event]:
        """What the upstream has left out of the end that it told, and clients need to read it."""
        return []

    @abstractmethod
    def stop_events(self, request_id: str) -> list[Event]:
        """What makes the stream, as far as it has come, a well-formed answer that was cut short, and no failure: its
        owner has stopped it. The last object of it says so to who looks (`"relay": "stopped"`)."""


class Dialect(Protocol):
    """One of the three APIs. `path` is where clients POST; `event_heartbeat` is an event that keeps a silent stream
    alive: it adds nothing to the answer and has no id."""

    name: str
    path: str
    event_heartbeat: bytes

    def watch(self, *, hide_usage: bool = False, choices: int = 1) -> Watch:
        """A watch for one stream. `hide_usage`: usage that only the relay has asked for is not shown to the client.
        `choices`: how many answers the request asks for (chat only)."""

    def error_events(
        self,
        code: str,
        message: str,
        sequence: int | None,
        request_id: str,
        *,
        kind: str = "",
        response: JsonObject | None = None,
    ) -> list[Event]:
        """The events that end a stream abnormally, so that every client of the API raises.

        Args:
            code: the outcome's name, or an upstream's own.
            message: what happened, and what to do.
            sequence: the last `sequence_number`, None where there was none (responses only).
            request_id: the relay's id of the request that is answered.
            kind: the upstream's own type of the error, where it has told one.
            response: the upstream's last object of the whole answer (responses only).
        """

    def upstream_error_body(self, error: UpstreamError, status: int, request_id: str) -> bytes:
        """The JSON body of an upstream's refusal that came as something else."""

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

    Raises StreamFailure (upstream_malformed) for anything but an object, and for one of more arrays and objects than
    any answer has: it would hold up everybody for as long as it is parsed.
    """
    if len(data) > _LARGE:
        return _parse_large(data)
    return _parse(data)


def _parse_large(data: bytes) -> JsonObject:
    if data.count(b"[") + data.count(b"{") > _MOST_CONTAINERS:
        raise StreamFailure(Cause.UPSTREAM_MALFORMED)
    collects = gc.isenabled()
    gc.disable()  # it went through all that is there again and again: two thirds of the time
    try:
        return _parse(data)
    finally:
        if collects:
            gc.enable()


def _parse(data: bytes) -> JsonObject:
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            parsed = json.loads(data)
        except (ValueError, RecursionError):
            raise StreamFailure(Cause.UPSTREAM_MALFORMED) from None
    if type(parsed) is not dict:
        raise StreamFailure(Cause.UPSTREAM_MALFORMED)
    return parsed


def is_beat(event: Event, message: JsonObject) -> bool:
    """Is this event, which is none of its API's, only there to keep the connection alive? Some are named by their line,
    some in their JSON."""
    if event.type.lower() in BEATS:
        return True
    named = (message.get(member) for member in ("type", "event", "object"))
    return any(isinstance(name, str) and name.lower() in _BEAT_NAMES for name in named)


def split_block(event: Event, *, cut: bool = False) -> list[Event]:
    """The events that share one block, where each of its lines is one; empty where that is not so. `cut`: the last line
    may be half of one, and is none then."""
    if b"\n" not in event.data:
        return []
    parts: list[Event] = []
    lines = [line for line in event.data.split(b"\n") if not is_keep_alive(line)]
    for line in lines:
        kind = event.type
        if line != DONE:
            try:
                told = parse_object(line).get("type")
            except StreamFailure:
                return parts if cut and len(parts) == len(lines) - 1 else []
            # A control character in it would be one in the line of the type.
            if kind and isinstance(told, str) and told.isascii() and told.isprintable():
                kind = told.encode()
        parts.append(Event(kind, line))
    return parts


def dump_json(value: JsonObject) -> bytes:
    """JSON of what may hold an upstream's own values: those that orjson refuses are spelled by the standard library."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def parse_count(value: object) -> int | None:
    """A count or an index as JSON should have it; None for anything else."""
    return value if type(value) is int and 0 <= value < 2**53 else None


def openai_error_type(status: int) -> str:
    """The `type` of an OpenAI error body by its status (OpenAI API reference, "Error codes")."""
    return {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )


def openai_error(message: str, kind: str, code: str) -> JsonObject:
    """The object of an OpenAI error (OpenAI API reference, "Error codes")."""
    return {"message": message, "type": kind, "param": None, "code": code}


class OpenAIErrors:
    """Refusals as OpenAI's API has them (OpenAI API reference, "Error codes")."""

    def error_body(self, error: ApiError, request_id: str) -> bytes:
        """The JSON body of the relay's own refusal."""
        return orjson.dumps({"error": openai_error(error.message, openai_error_type(error.status), error.code)})

    def upstream_error_body(self, error: UpstreamError, status: int, request_id: str) -> bytes:
        """The JSON body of an upstream's refusal, with whatever else it has said of it."""
        return dump_json(
            {
                "error": {
                    **{k: v for k, v in error.given.items() if k not in ("error", "choices", "object")},
                    "message": error.message,
                    "type": error.type or openai_error_type(status),
                    "param": error.given.get("param"),
                    "code": error.code or None,
                }
            }
        )
