"""The load generator: a process that does one job after the other and tells what it saw.

    python -m relay.bench.load

Jobs come as JSON, one a line, on its standard input (see `Job`); each answer is a line of JSON on its standard
output, after lines of progress. Promises: nothing between the socket and the check of an event but an asyncio
protocol; CPU is read and events are counted at the same instants.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import uvloop

from relay.bench import begins, jobs, neighbours
from relay.bench.procs import Group, Used, machine
from relay.bench.stream import Again, Check, Reader, Tally, histogram
from relay.bench.wire import APIS, STREAMS, Api, Order


@dataclass(frozen=True)
class Job:
    """One measurement of one target. Times are seconds."""

    kind: str
    """The coroutine that does it, see `KINDS`."""
    host: str
    port: int
    tls: bool = False
    prefix: str = ""
    """Of the path, before `/v1/…`."""
    headers: dict[str, str] = field(default_factory=dict)
    model: str = "bench"
    pids: list[int] = field(default_factory=list)
    upstream: tuple[str, int] = ("127.0.0.1", 0)
    upstream_pid: int = 0
    api: str = "chat"
    streams: int = 1
    length: int = 100
    rate: float = 20.0
    payload: int = 0
    ramp: float = 0.0
    """The streams begin evenly over so long."""
    total: int = 0
    """Streams to run, never more than `streams` at once."""
    running: int = 0
    """Paced streams that run beside those that are measured."""
    starts: float = 100.0
    """Streams begun in a second."""
    repeats: int = 50
    """Single requests, one after the other."""
    settle: float = 1.0
    """Silence before memory is read."""
    stall: float = 30.0
    """Without an event for so long, what is open is given up and counted as lost."""


class Run:
    """What every job needs: connections to its target, the tally, the upstream's controls, the resources used."""

    def __init__(self, job: Job, first_stream: int) -> None:
        self.job = job
        self.tally = Tally()
        self.group = Group(job.pids)
        self.loop = asyncio.get_running_loop()
        self.result: dict[str, Any] = {}
        self.next_stream = first_stream
        self.over = 0
        """Streams that have ended, well or not."""
        self.all_begun = asyncio.Event()
        """As many streams as the job has at once have had their first event."""
        self._begun = 0
        self.requests = 0
        """Generations that were asked for."""
        self.bodies: Callable[[Order, bytes], None] | None = None
        """Is given each stream's whole body at its end."""
        self._api: Api = APIS[job.api]
        self._upstream = Group([job.upstream_pid] if job.upstream_pid else [])
        self._live: set[Reader] = set()

    def beside(self, streams: int, length: int) -> Self:
        """What runs beside: streams of its own numbers, whose delays are told apart. See `add`."""
        found = type(self)(
            replace(self.job, streams=streams, length=length), (self.next_stream + STREAMS // 2) % STREAMS
        )
        return found

    def add(self, beside: Run) -> None:
        """Count what ran beside, too; its delays and times stay its own."""
        mine, its = self.tally, beside.tally
        for name in ("events", "expected", "streams", "body_bytes"):
            setattr(mine, name, getattr(mine, name) + getattr(its, name))
        mine.errors.update(its.errors)
        for text in its.samples:
            mine.sample(text)
        self.requests += beside.requests

    def request(self, order: Order, headers: dict[str, str] | None = None, prompt: int = 0) -> bytes:
        """`prompt`: bytes of text in it beside the order."""
        body = self._api.body(self.job.model, order, prompt)
        # One key for 200 streams: a relay allows an owner 256 of them.
        key = f"Bearer bench-{order.stream // 200}"
        named = {
            "host": f"{self.job.host}:{self.job.port}",
            "content-type": "application/json",
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            "authorization": key,
            "content-length": str(len(body)),
            **{name.lower(): value for name, value in self.job.headers.items()},
            **(headers or {}),
        }
        if self._api.name == "messages":
            named.setdefault("anthropic-version", "2023-06-01")
        head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        return f"POST {self.job.prefix}{self._api.path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body

    def order(self, rate: float | None = None, length: int | None = None, payload: int | None = None) -> Order:
        self.next_stream = (self.next_stream + 1) % STREAMS
        job = self.job
        rate = job.rate if rate is None else rate
        length = job.length if length is None else length
        return Order(self.next_stream, length, rate, job.payload if payload is None else payload)

    async def connect(self) -> Reader | None:
        """A connection, None where it was refused."""
        try:
            _, reader = await self.loop.create_connection(
                lambda: Reader(self.tally), self.job.host, self.job.port, ssl=self.job.tls or None
            )
        except OSError as error:
            self.tally.errors["refused"] += 1
            self.tally.sample(f"refused: {error}")
            return None
        self._live.add(reader)
        return reader

    async def stream(
        self,
        order: Order,
        headers: dict[str, str] | None = None,
        asked: int | None = None,
        known: bytes = b"",
        request: bytes | None = None,
    ) -> Reader | None:
        """One stream on a connection of its own, to its end; `known` is its body, where it was read before, `request`
        the whole request, where it was made before."""
        reader = await self.connect()
        if reader is not None:
            keep = bytearray() if self.bodies is not None else None
            await self.ask(reader, order, headers, asked, known=known, keep=keep, request=request)
            self.drop(reader)
            if self.bodies is not None and keep is not None:
                self.bodies(order, bytes(keep))
        return reader

    async def ask(
        self,
        reader: Reader,
        order: Order,
        headers: dict[str, str] | None = None,
        asked: int | None = None,
        *,
        known: bytes = b"",
        keep: bytearray | None = None,
        request: bytes | None = None,
    ) -> None:
        """One stream on this connection, to its end."""
        if reader.open:
            self.requests += headers is None
            numbers = Check(self.tally, self._api, order.stream, order.length, keep)
            check = Again(numbers, known, order.length, self.tally) if known else numbers
            done = reader.ask(request or self.request(order, headers), check, order.length, asked)
            reader.began.add_done_callback(self._count_begun)
            await done
        else:
            self.tally.errors["refused"] += 1
            self.tally.sample("refused: the connection was closed before the request")
        self.over += 1

    def _count_begun(self, _: object) -> None:
        self._begun += 1
        if self._begun == self.job.streams:
            self.all_begun.set()

    def drop(self, reader: Reader) -> None:
        reader.close()
        self._live.discard(reader)

    async def watched(self, work: asyncio.Future[Any], total: int) -> None:
        """Until the work is done, with progress; streams that stall are given up."""
        last, since = -1, self.loop.time()
        while not (await asyncio.wait((work,), timeout=0.25))[0]:
            seen = self.tally.events + self.over
            if seen != last:
                last, since = seen, self.loop.time()
            elif self.loop.time() - since > self.job.stall:
                self.tally.sample(f"given up: no event for {self.job.stall:g} s")
                for reader in list(self._live):
                    reader.close()
                since = self.loop.time()
            _say({"progress": self.tally.events, "of": total})
        work.result()

    def usage(self) -> tuple[int, float, float, float, Used]:
        """Events so far, the time, CPU of the generator and of the upstream, CPU of the target."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        own_cpu = own.ru_utime + own.ru_stime
        return self.tally.events, time.monotonic(), own_cpu, self._upstream.cpu().cpu, self.group.cpu()

    def spent(self, before: tuple[int, float, float, float, Used]) -> dict[str, Any]:
        """What was used since then."""
        after = self.usage()
        used = after[4] - before[4]
        return {
            "events": after[0] - before[0],
            "seconds": after[1] - before[1],
            "generator_cpu": after[2] - before[2],
            "upstream_cpu": after[3] - before[3],
            "cpu": used.cpu if self.group else None,
            "store_cpu": used.store_cpu if self.group.has_store() else None,
        }

    def memory(self) -> dict[str, int] | None:
        used = self.group.memory()
        return {"rss": used.rss, "store_rss": used.store_rss} if self.group else None

    async def upstream(self, method: str, path: str) -> dict[str, int]:
        """One of the paced upstream's controls."""
        reader, writer = await asyncio.open_connection(*self.job.upstream)
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")
            )
            answer: dict[str, int] = json.loads(await reader.readexactly(length))
            return answer
        finally:
            writer.close()


class Others:
    """What else uses the machine while a job is done: CPU that is neither the load's nor the target's."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._began = self._now()

    def _now(self) -> tuple[float, float]:
        _, now, generator, upstream, target = self._run.usage()
        return now, machine() - generator - upstream - target.cpu - target.store_cpu

    def share(self) -> float:
        """In cores."""
        ended = self._now()
        return max(0.0, ended[1] - self._began[1]) / max(1.0, ended[0] - self._began[0])


KINDS: dict[str, Callable[[Run], Coroutine[Any, Any, None]]] = {
    kind.__name__: kind
    for kind in (
        *(jobs.paced, jobs.unpaced, jobs.burst, jobs.first, jobs.idle, jobs.churn, jobs.resume),
        *(begins.begin, begins.cold, begins.beside, neighbours.neighbours, neighbours.fidelity),
    )
}


def _answer(run: Run, generations: int) -> dict[str, Any]:
    tally = run.tally
    return {
        "events": tally.events,
        "expected": tally.expected,
        "streams": tally.streams,
        "body_bytes": tally.body_bytes,
        "errors": {**tally.errors, "repeated": max(0, generations - run.requests)},
        "samples": tally.samples,
        "delay_us": histogram(tally.delays),
        "first_us": histogram(tally.first),
        "first_byte_us": histogram(tally.first_byte),
        "whole_us": histogram(tally.whole),
        **run.result,
    }


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def _work() -> None:
    loop = asyncio.get_running_loop()
    first_stream = 0
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        given = json.loads(line)
        known = {f.name for f in fields(Job)}
        job = Job(**{name: value for name, value in given.items() if name in known})
        try:
            run = Run(job, first_stream)
            before = (await run.upstream("GET", "/bench/stats"))["generations"]
            others = Others(run)
            await KINDS[job.kind](run)
            shared = others.share()
            after = (await run.upstream("GET", "/bench/stats"))["generations"]
            first_stream = run.next_stream
            _say({"result": {**_answer(run, after - before), "others_share": shared}})
        except (OSError, asyncio.IncompleteReadError) as error:
            _say({"error": f"{type(error).__name__}: {error}"})


def main() -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_work())
    return 0


if __name__ == "__main__":
    sys.exit(main())
