"""What the generator does to a target: one coroutine per mode. Each leaves its own figures in `run.result`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from relay.bench.wire import Order

if TYPE_CHECKING:
    from relay.bench.load import Run

_SETTLED = 0.5
_SHORTEST = 0.2
_OPEN_AT_ONCE = 100
_CHURN_STEPS = 10
_GENERATED_AT_ONCE = 20


async def paced(run: Run) -> None:
    """Streams that begin evenly over `ramp`; CPU and delays are taken while all of them are live."""
    job = run.job
    whole = run.usage()
    began = run.loop.time()
    ended = asyncio.Event()

    async def one(at: float) -> None:
        await asyncio.sleep(at - run.loop.time())
        await run.stream(run.order())
        ended.set()

    work = asyncio.gather(*(one(began + job.ramp * i / job.streams) for i in range(job.streams)))
    window = asyncio.ensure_future(_window(run, ended))
    await run.watched(work, job.streams * job.length)
    run.result["whole"] = run.spent(whole)
    run.all_begun.set()  # where some never did, the window is not waited for
    run.result["steady"] = await window


async def _window(run: Run, ended: asyncio.Event) -> dict[str, Any] | None:
    """From the last stream's first event to the first stream's end; None where these leave no time between."""
    await run.all_begun.wait()
    await asyncio.sleep(_SETTLED)
    if ended.is_set():
        return None
    before = run.usage()
    run.tally.recording = True
    await ended.wait()
    run.tally.recording = False
    found = run.spent(before)
    return found if found["seconds"] >= _SHORTEST else None


async def unpaced(run: Run) -> None:
    """Streams as fast as they come."""
    whole = run.usage()
    work = asyncio.gather(*(run.stream(run.order(rate=0)) for _ in range(run.job.streams)))
    await run.watched(work, run.job.streams * run.job.length)
    run.result["whole"] = run.spent(whole)


async def burst(run: Run) -> None:
    """Connections and requests all at once; first events count from the moment of the burst."""
    job = run.job
    whole = run.usage()
    asked = time.monotonic_ns()
    work = asyncio.gather(*(run.stream(run.order(), asked=asked) for _ in range(job.streams)))
    await run.watched(work, job.streams * job.length)
    run.result["whole"] = run.spent(whole)


async def first(run: Run) -> None:
    """Single requests, one after the other, on a connection that is kept where the target keeps it.

    The one that opens the connection is not counted: SDKs keep theirs.
    """
    reader = None
    for i in range(run.job.repeats + 1):
        if reader is None or not reader.open:
            reader = await run.connect()
        if reader is None:
            return
        work = asyncio.ensure_future(run.ask(reader, run.order(rate=0)))
        await run.watched(work, run.job.repeats * run.job.length)
        if i == 0:
            run.tally.first.clear()
    if reader is not None:
        run.drop(reader)


async def idle(run: Run) -> None:
    """Live streams in which nothing happens, and what each costs in memory."""
    job = run.job
    before = run.memory()
    limit = asyncio.Semaphore(_OPEN_AT_ONCE)

    async def begin() -> asyncio.Future[None] | None:
        async with limit:
            reader = await run.connect()
            if reader is None:
                return None
            stream = asyncio.ensure_future(run.ask(reader, run.order(rate=-1, length=2)))
            stream.add_done_callback(lambda _: run.drop(reader))
            await asyncio.sleep(0)  # the request is out
            await asyncio.wait((stream, reader.began), return_when=asyncio.FIRST_COMPLETED)
            return stream

    opening = asyncio.gather(*(begin() for _ in range(job.streams)))
    await run.watched(opening, 2 * job.streams)
    await asyncio.sleep(job.settle)
    run.result["streams_live"] = run.tally.events
    run.result["memory_before"], run.result["memory_live"] = before, run.memory()
    run.result["connections"] = run.group.connections(job.port)
    await run.upstream("POST", "/bench/release")
    await run.watched(asyncio.gather(*(s for s in opening.result() if s is not None)), 2 * job.streams)
    await asyncio.sleep(job.settle)
    run.result["memory_after"] = run.memory()


async def churn(run: Run) -> None:
    """Streams that begin and end, `streams` at a time; memory at each tenth."""
    job = run.job
    steps: list[dict[str, Any]] = []
    whole = run.usage()
    for step in range(_CHURN_STEPS):
        left = iter(range(job.total // _CHURN_STEPS))

        async def worker(left: Any = left) -> None:
            for _ in left:
                await run.stream(run.order(rate=0))

        await run.watched(asyncio.gather(*(worker() for _ in range(job.streams))), job.total * job.length)
        await asyncio.sleep(job.settle if step in (0, _CHURN_STEPS - 1) else 0)
        steps.append({"streams": run.over, "memory": run.memory()})
    run.result["whole"] = run.spent(whole)
    run.result["steps"] = steps


async def resume(run: Run) -> None:
    """Streams are generated once (`total` of them), then read again: one after the other, then all at once."""
    job, tally = run.job, run.tally
    made: list[tuple[Order, str, bytes]] = []
    limit = asyncio.Semaphore(_GENERATED_AT_ONCE)

    async def make() -> None:
        async with limit:
            order = run.order(rate=0)
            reader = await run.connect()
            if reader is None:
                return
            body = bytearray()
            await run.ask(reader, order, keep=body)
            run.drop(reader)
            name = reader.response.headers.get(b"relay-stream-id", b"").decode()
            made.append((order, name, bytes(body)))

    await run.watched(asyncio.gather(*(make() for _ in range(job.total))), job.total * job.length)
    if not made or not all(name for _, name, _ in made):
        tally.sample("no Relay-Stream-Id header: only a relay can be measured with --resume")
        tally.errors["refused"] += 1
        return

    def again(i: int, asked: int | None = None) -> Coroutine[Any, Any, Any]:
        order, name, body = made[i % len(made)]
        return run.stream(order, {"Last-Event-ID": f"{name}.0"}, asked, body)

    tally.first_byte.clear()
    tally.whole.clear()
    for i in range(job.repeats):
        await run.watched(asyncio.ensure_future(again(i)), job.repeats * job.length)
    alone = (tally.first_byte[:], tally.whole[:])
    tally.first_byte.clear()
    tally.whole.clear()
    before, failed = run.usage(), sum(tally.errors.values())
    asked = time.monotonic_ns()
    await run.watched(asyncio.gather(*(again(i, asked) for i in range(job.streams))), job.streams * job.length)
    run.result["together"] = run.spent(before) | {
        "readers": len(tally.whole),
        "errors": sum(tally.errors.values()) - failed,
        "first_byte_ms": _ends(tally.first_byte),
        "whole_ms": _ends(tally.whole),
    }
    tally.first_byte[:], tally.whole[:] = alone
    tally.first.clear()


def _ends(nanoseconds: list[int]) -> dict[str, float] | None:
    values = sorted(nanoseconds)
    return {"p50": values[len(values) // 2] / 1e6, "max": values[-1] / 1e6} if values else None
