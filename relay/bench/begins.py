"""Beginnings: what a stream costs to begin and end, and what many that begin at once do to each other and to others.

Jobs as in `relay.bench.jobs`. What is taken from `/proc` counts to the tick (10 ms), so each of these lasts for
hundreds of streams.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Self

from relay.bench.stream import histogram

if TYPE_CHECKING:
    from relay.bench.load import Run
    from relay.bench.stream import Reader

_SETTLED = 0.5
_CALM = 1.0
"""Seconds in which the streams that run are watched before others begin beside them."""
_IN_A_TURN = 10
_TAIL = 0.3
"""What a gateway does about a stream after its client has had the end counts for so long."""


async def begin(run: Run) -> None:
    """Streams that begin and end, `starts` a second, over `streams` connections that are kept, one after the other."""
    job = run.job
    kept: deque[Reader] = deque()

    async def one(at: float) -> None:
        await asyncio.sleep(at - run.loop.time())
        reader = kept.popleft() if kept else await run.connect()
        while reader is not None and not reader.open:
            run.drop(reader)
            reader = kept.popleft() if kept else await run.connect()
        if reader is None:
            return
        await run.ask(reader, run.order(rate=0))
        kept.append(reader)

    async def many(count: int) -> None:
        began = run.loop.time()
        await run.watched(
            asyncio.gather(*(one(began + i / job.starts) for i in range(count))), (job.streams + job.total) * job.length
        )

    # One at a time opens them and is not counted; all at once would be a burst.
    for _ in range(job.streams):
        reader = await run.connect()
        if reader is not None:
            kept.append(reader)
    await many(job.streams)
    run.tally.first.clear()
    before = run.usage()
    await many(job.total)
    run.result["begun"] = run.spent(before) | {"streams": job.total}
    for reader in kept:
        run.drop(reader)


async def cold(run: Run) -> None:
    """`streams` at once, each on a connection of its own, with none open to the upstream; `repeats` times."""
    job = run.job
    begun: Counter[str] = Counter()
    for _ in range(job.repeats):
        await run.upstream("POST", "/bench/close")
        await asyncio.sleep(job.settle)
        before = run.usage()
        asked = time.monotonic_ns()
        work = asyncio.gather(*(run.stream(run.order(rate=0), asked=asked) for _ in range(job.streams)))
        await run.watched(work, job.repeats * job.streams * job.length)
        await asyncio.sleep(_TAIL)
        begun.update({name: value for name, value in run.spent(before).items() if value is not None})
    known = run.spent(before)
    run.result["begun"] = {name: None if known[name] is None else begun[name] for name in known}
    run.result["begun"]["streams"] = job.repeats * job.streams


async def beside(run: Run) -> None:
    """`running` paced streams, and `streams` more that begin beside them within `ramp` seconds, all at once if that is
    0; first events count from the moment at which each is due, connections among them."""
    job = run.job
    running = await Running.begin(run, job.ramp + job.settle)
    whole = run.usage()
    due = run.loop.time()
    asked = time.monotonic_ns()

    async def one(after: float) -> None:
        await asyncio.sleep(due + after - run.loop.time())
        await run.stream(run.order(), asked=asked + int(after * 1e9))

    beginning = []
    for i in range(job.streams):
        beginning.append(asyncio.ensure_future(one(job.ramp * i / job.streams)))
        if not i % _IN_A_TURN:
            await asyncio.sleep(0)  # so that not this process is what holds up the events of the others
    watching = asyncio.ensure_future(run.watched(asyncio.gather(*beginning), job.streams * job.length))
    await _unless(watching, run.all_begun)
    running.note("burst")
    await watching
    run.result["whole"] = run.spent(whole)
    await running.end()


class Running:
    """The `running` paced streams of a job that run beside what it measures, and what their events are late by."""

    def __init__(self, run: Run, streams: Run, watched: asyncio.Future[None]) -> None:
        self._run, self._streams, self.watched = run, streams, watched
        self._meanwhile: dict[str, dict[int, int]] = {}

    @classmethod
    async def begin(cls, run: Run, seconds: float) -> Self:
        """They have begun, and were watched for a while without anything beside them; they last for so long."""
        job = run.job
        lasting = job.running / job.starts + _SETTLED + _CALM + seconds
        streams = run.beside(job.running, max(2, int(job.rate * lasting)))
        began = run.loop.time()

        async def paced(at: float) -> None:
            await asyncio.sleep(at - run.loop.time())
            await streams.stream(streams.order())

        work = asyncio.gather(*(paced(began + i / job.starts) for i in range(job.running)))
        found = cls(run, streams, asyncio.ensure_future(streams.watched(work, job.running * streams.job.length)))
        await _unless(found.watched, streams.all_begun)
        await asyncio.sleep(_SETTLED)
        streams.tally.recording = True
        await asyncio.sleep(_CALM)
        found.note("calm")
        return found

    def note(self, what: str) -> None:
        """What happened since the last note."""
        delays = self._streams.tally.delays
        self._meanwhile[what] = histogram(delays)
        delays.clear()

    async def end(self) -> None:
        self._streams.tally.recording = False
        await self.watched
        self._run.add(self._streams)
        self._run.result["meanwhile"] = self._meanwhile


async def _unless(over: asyncio.Future[None], event: asyncio.Event) -> None:
    """Until the event, or until all is over without it."""
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait((over, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
