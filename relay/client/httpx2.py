"""The transports for `httpx2`: openai from 3, anthropic from 2, and what is built on them."""

from __future__ import annotations

from typing import Any, ClassVar

import httpx2

from relay.client.awaiting import AwaitingBody, AwaitingTransport
from relay.client.blocking import BlockingBody, BlockingTransport
from relay.client.policy import Policy
from relay.client.resumption import Unresumable

__all__ = ["AsyncResumingTransport", "Policy", "ResumeFailed", "ResumingTransport"]


class ResumeFailed(httpx2.RemoteProtocolError):
    """A cut stream could not go on. The message says why and what to do; the SDK's text so far is incomplete.

    `last_event_id` is where it stopped, `status` and `code` the relay's last answer, where there was one.
    """

    def __init__(self, failure: Unresumable) -> None:
        super().__init__(str(failure))
        self.last_event_id = failure.last_event_id
        self.status = failure.status
        self.code = failure.code


class _Body(BlockingBody, httpx2.SyncByteStream):
    """What a synchronous response reads."""


class _AsyncBody(AwaitingBody, httpx2.AsyncByteStream):
    """What an asynchronous response reads."""


class ResumingTransport(BlockingTransport, httpx2.BaseTransport):
    """`httpx2.Client(transport=ResumingTransport())`; what `httpx2.HTTPTransport` takes goes here, like `verify`
    and `proxy`. `policy` says how long to try."""

    http: ClassVar[Any] = httpx2
    failure: ClassVar[Any] = ResumeFailed
    body: ClassVar[Any] = _Body


class AsyncResumingTransport(AwaitingTransport, httpx2.AsyncBaseTransport):
    """`httpx2.AsyncClient(transport=AsyncResumingTransport())`, otherwise as `ResumingTransport`."""

    http: ClassVar[Any] = httpx2
    failure: ClassVar[Any] = ResumeFailed
    body: ClassVar[Any] = _AsyncBody
