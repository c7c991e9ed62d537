"""An upstream's answer that is no event stream: what it says, for the client that asked for a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from relay.protocol.headers import of_stream
from relay.protocol.outcomes import Cause, StreamFailure, refused_late
from relay.protocol.redirects import REDIRECTS, redirect
from relay.protocol.upstream_error import UpstreamError, read_body
from relay.streams.answer import Failed
from relay.streams.ingest import UpstreamIngest, no_events
from relay.upstream.client import Response, body_of
from relay.upstream.resuming_body import beginning_of


async def read_refusal(response: Response) -> UpstreamError:
    """What the body of an answer says, whatever it is; the response is closed."""
    try:
        body = await beginning_of(body_of(response))
    finally:
        await body_of(response).aclose()
    return read_body(body, status=response.status_code, retry_after=response.headers.get("retry-after", ""))


def no_event_stream(response: Response, error: UpstreamError) -> str:
    """The message about an answer that is neither a stream nor a refusal."""
    if response.status_code in REDIRECTS:
        return f"The upstream answered {redirect(response.status_code, response.headers.get('location', ''))}."
    kind = response.headers.get("content-type", "").split(";")[0].strip()[:100] or "something without a type"
    return (
        f"The upstream answered a streaming request with {kind}, which is no event stream: {error.message[:500]} "
        "Check the upstream's base_url, and that it supports streaming for this model."
    )


def failed_answer(response: Response, error: UpstreamError, more: Sequence[str]) -> Failed:
    """What the client gets for an answer that is an error and says 200. `more` are patterns of further headers."""
    headers = of_stream(response.headers.raw, more)
    after = error.retry_after or response.headers.get("retry-after", "")
    if after.isdigit() and not any(name == b"retry-after" for name, _ in headers):
        headers.append((b"retry-after", after.encode()))
    return Failed(error, error.status or 502, headers)


async def until_begun(
    ingest: UpstreamIngest, making: asyncio.Future[Any], created: asyncio.Future[bool], *, verbatim: bool
) -> None:
    """Returns when it is known what a stream begins with, or its client is given it before that; one that is passed on
    `verbatim` needs only to be made. Raises what its making has raised, as soon as that has."""

    def made(_: object) -> None:
        if verbatim or making.cancelled() or making.exception() is not None:
            ingest.first.set()

    making.add_done_callback(made)
    created.add_done_callback(lambda _: ingest.first.set())
    await ingest.first.wait()
    if making.done():
        await making


def begins_with_error(response: Response, ingest: UpstreamIngest, more: Sequence[str]) -> Failed | None:
    """The error that a stream begins with, where its status is known. Raises StreamFailure for a stream that holds no
    answer at all."""
    opening = ingest.opening
    if opening is None:
        return None
    if opening.refusal is not None and opening.refusal.status is not None:
        return failed_answer(response, opening.refusal, more)
    if opening.no_answer and opening.refusal is not None:
        raise no_events(opening.refusal)
    if opening.no_answer:
        raise StreamFailure(Cause.UPSTREAM_DISCONNECTED)
    return None


def late_refusal(response: Response, error: UpstreamError) -> StreamFailure:
    """How a stream fails that was begun before the upstream answered so."""
    if response.status_code in REDIRECTS:
        told = redirect(response.status_code, response.headers.get("location", ""))
        return StreamFailure(Cause.UPSTREAM_REFUSED, f"The upstream answered {told}.", error)
    if response.status_code != 200:
        told = refused_late(response.status_code, error.describe(), answered=True)
        return StreamFailure(Cause.UPSTREAM_REFUSED, told, error)
    if error.status is not None:
        told = refused_late(error.status, error.describe(), answered=False)
        return StreamFailure(Cause.UPSTREAM_REFUSED, told, error)
    return StreamFailure(Cause.UPSTREAM_MALFORMED, no_event_stream(response, error), error)
