"""The span of a stream that goes on here: another replica's has gone with it."""

from __future__ import annotations

from dataclasses import replace

from relay.store.stories import Stories
from relay.streams.producer import Producer
from relay.tracing.spans import Tracing


async def go_on(tracing: Tracing, stories: Stories, producer: Producer) -> None:
    """Give it one in the stream's own trace. Raises StoreUnavailable."""
    before = await stories.traceparent(producer.stream)
    account = producer.account
    if before and producer.outcome is None:
        headers = [(b"traceparent", before.encode())]
        span = tracing.stream(headers, producer.dialect.name, account.request.model, 0.0)
        span.event("takeover", events=producer.writer.last)
        account.request = replace(account.request, span=span, trace=span.trace_id)
