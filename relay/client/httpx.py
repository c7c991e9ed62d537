"""The transports for `httpx`: openai before 3, anthropic before 2, litellm and others."""

from __future__ import annotations

from typing import Any, ClassVar

try:
    import httpx
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "relay.client.httpx needs httpx, which comes with an SDK that uses it; or run: pip install httpx",
        name=error.name,
    ) from error

from relay.client.async_transport import AsyncRefusalBody, AsyncStreamBody, AsyncTransport
from relay.client.policy import Counters, Moment, Policy
from relay.client.resumable_stream import Reason, Unresumable
from relay.client.sync_transport import SyncRefusalBody, SyncStreamBody, SyncTransport
from relay.protocol.ids import parse_event_id

__all__ = [
    "AsyncResumingTransport",
    "Counters",
    "Moment",
    "Policy",
    "Reason",
    "ResumeFailed",
    "ResumeTimedOut",
    "ResumingTransport",
    "failure_of",
    "resume",
]


class ResumeFailed(httpx.RemoteProtocolError):
    """A cut stream could not go on. The message says why and what to do; the SDK's text so far is incomplete.

    `last_event_id` is where it stopped, `reason` the kind of failure, `status` and `code` the relay's last answer,
    where there was one.
    """

    def __init__(self, failure: Unresumable) -> None:
        super().__init__(str(failure))
        self.reason = failure.reason
        self.last_event_id = failure.last_event_id
        self.status = failure.status
        self.code = failure.code


class ResumeTimedOut(ResumeFailed, httpx.ReadTimeout):
    """It could not go on in time: `max_elapsed` or `deadline` of the policy."""


def failure_of(error: BaseException | None) -> ResumeFailed | None:
    """The ResumeFailed that an SDK's error wraps, None where it was something else."""
    for _ in range(32):
        if error is None or isinstance(error, ResumeFailed):
            return error
        error = error.__cause__ or error.__context__
    return None


def resume(last_event_id: str) -> dict[str, str]:
    """The headers with which the same request goes on after this event, in another process too:
    `create(..., extra_headers=resume(error.last_event_id))`. Raises ValueError."""
    if parse_event_id(last_event_id) is None:
        raise ValueError(f"{last_event_id!r} is no event id of a relay (<stream id>.<n>).")
    return {"Last-Event-ID": last_event_id}


class _Body(SyncStreamBody, httpx.SyncByteStream):
    """What a synchronous response reads."""


class _AsyncBody(AsyncStreamBody, httpx.AsyncByteStream):
    """What an asynchronous response reads."""


class _Rest(SyncRefusalBody, httpx.SyncByteStream):
    """What is read of a refusal."""


class _AsyncRest(AsyncRefusalBody, httpx.AsyncByteStream):
    """What is read of a refusal."""


class ResumingTransport(SyncTransport, httpx.BaseTransport):
    """`httpx.Client(transport=ResumingTransport())`; what `httpx.HTTPTransport` takes goes here, like `verify`
    and `proxy`. `policy` says how long to try, `counters` what it has seen."""

    http: ClassVar[Any] = httpx
    failure: ClassVar[Any] = ResumeFailed
    timed_out: ClassVar[Any] = ResumeTimedOut
    body: ClassVar[Any] = _Body
    refusal_body: ClassVar[Any] = _Rest


class AsyncResumingTransport(AsyncTransport, httpx.AsyncBaseTransport):
    """`httpx.AsyncClient(transport=AsyncResumingTransport())`, otherwise as `ResumingTransport`."""

    http: ClassVar[Any] = httpx
    failure: ClassVar[Any] = ResumeFailed
    timed_out: ClassVar[Any] = ResumeTimedOut
    body: ClassVar[Any] = _AsyncBody
    refusal_body: ClassVar[Any] = _AsyncRest
