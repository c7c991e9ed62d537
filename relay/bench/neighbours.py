"""Small streams beside what is large, and what every stream is worth under load.

Jobs as in `relay.bench.jobs`.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from typing import TYPE_CHECKING

from relay.bench.begins import Running
from relay.bench.jobs import paced

if TYPE_CHECKING:
    from relay.bench.load import Run
    from relay.bench.wire import Order

PROMPT = 500_000
"""Bytes of a prompt of some 100,000 tokens."""
EVENT = 3 << 20
BODY = 31 << 20
_EVENTS_PER_S = 5.0
_RELAYS_OWN = re.compile(rb"^(?:id|retry): [^\n]*\n|^:[^\n]*\n\n?|^event: ping\ndata: [^\n]*\n\n", re.MULTILINE)
"""What a relay adds to a stream: the events' ids, when to come again, and its heartbeats."""


async def neighbours(run: Run) -> None:
    """`running` paced streams beside long prompts, events of 3 MB and requests of 31 MB, `repeats` of each, one kind
    after the other and each as soon as the one before is over. What the small streams' events are late by meanwhile."""
    job = run.job
    lasting = job.settle + job.repeats * (1 / _EVENTS_PER_S + 0.5)
    # Made before: it takes this process longer than anything it measures.
    prompts = [_asking(run, run.order(rate=0), PROMPT) for _ in range(4 * job.repeats)]
    bodies = [_asking(run, run.order(rate=0), BODY) for _ in range(job.repeats)]
    large = run.order(rate=_EVENTS_PER_S, length=job.repeats, payload=EVENT)
    running = await Running.begin(run, lasting)
    kinds = (("prompt", prompts), ("events", [(large, run.request(large))]), ("body", bodies))
    for name, requests in kinds:
        work = asyncio.ensure_future(_one_by_one(run, requests))
        await run.watched(work, 6 * job.repeats)
        running.note(name)
    await running.end()


def _asking(run: Run, order: Order, size: int) -> tuple[Order, bytes]:
    return order, run.request(order, prompt=size)


async def _one_by_one(run: Run, requests: list[tuple[Order, bytes]]) -> None:
    for order, request in requests:
        await run.stream(order, request=request)


async def fidelity(run: Run) -> None:
    """Paced streams, and how many of them have brought exactly the bytes that the upstream sent."""
    sums: dict[int, int] = {}
    run.bodies = lambda order, body: sums.__setitem__(order.stream, zlib.crc32(_RELAYS_OWN.sub(b"", body)))
    await run.upstream("POST", "/bench/sums")
    await paced(run)
    sent = await run.upstream("POST", "/bench/sums")
    equal = sum(sent.get(str(stream)) == found for stream, found in sums.items())
    run.result["faithful"] = {"equal": equal, "streams": run.job.streams}
