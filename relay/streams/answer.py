"""What the client of the POST that began a generation is owed: a stream, or the upstream's refusal, or an error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from relay.config import UpstreamSettings
from relay.protocol import application_headers
from relay.protocol.errors import ApiError
from relay.protocol.headers import Headers, of_answer
from relay.protocol.upstream_error import UpstreamError
from relay.upstream.client import Response, is_event_stream
from relay.upstream.routing import Route

Asking = Callable[[Route, bool], None]
"""Hears where a request goes, before it does, and whether the usage that it asks for there is hidden."""
Call = Callable[[Asking], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Opened:
    """The stream is there: `headers` are those of the upstream's answer that a stream keeps, None where its bound fired
    before the upstream had answered."""

    headers: Headers | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The upstream answered something that is no stream. The response is open; who takes it closes it."""

    response: Response


@dataclass(frozen=True, slots=True)
class Failed:
    """The upstream promised a stream and sent an error: with this status, and `headers` of its answer."""

    error: UpstreamError
    status: int
    headers: Headers


# As which event streams are sent by servers that do not know better. SDKs do not look at it.
_UNTOLD = ("text/plain", "application/octet-stream", "binary/octet-stream")


def is_stream(response: Response, api: str) -> bool:
    """An LLM API that was asked for a stream answers with one, whether it says so or not; an application says what it
    answers with."""
    told = is_event_stream(response)
    if api == "sse":
        return told and response.status_code == 200 and "content-type" in response.headers
    if response.status_code != 200:
        return told and response.is_success and "content-type" in response.headers
    kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
    return told or (kind in _UNTOLD and "content-encoding" not in response.headers)


def headers_of(response: Response, api: str, upstream: UpstreamSettings) -> tuple[Headers, Headers]:
    """What the stream's first answer has of its upstream's headers, and what every later one has."""
    if api == "sse":
        return application_headers.of_answer(response.headers.raw, cookies=upstream.cookies, more=upstream.headers)
    return of_answer(response.headers.raw, upstream.headers)


Answer = Opened | Refused | Failed | ApiError
