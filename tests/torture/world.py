"""What a run consists of, started and stopped together: store, lines, replicas, fronts, upstream, clients."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.torture.bounds import settings
from tests.torture.evidence import Evidence, Found, StreamSeen
from tests.torture.generation import Spec
from tests.torture.lines import PASS, Line, Proxy, cuts
from tests.torture.oracle import Violation
from tests.torture.replicas import Replica
from tests.torture.stores import Backend, open_backend
from tests.torture.timeline import MACHINE, Timeline
from tests.torture.upstream import Upstream

if TYPE_CHECKING:
    from tests.torture.clients import Client

REPLICAS = 3
_CUT_SHARE = 0.12
_CUT_WITHIN = 20_000
# A timer that comes so much too late says that this machine is too busy for anybody's times.
_BUSY = 0.35
_TICK = 0.1
_WARM = 6.0


class World:
    def __init__(self, seed: int, topology: str, workers: int) -> None:
        self.seed = seed
        self.topology = topology
        self.workers = workers
        self._loop = asyncio.get_running_loop()
        # What happens before the run has begun has a time below zero.
        self._zero = self._loop.time() + 10_000
        self.timeline = Timeline(self.now)
        self.evidence = Evidence(self.timeline, REPLICAS, workers)
        self.upstream = Upstream(REPLICAS, self.timeline)
        self.evidence.calls = self.upstream.calls  # type: ignore[assignment]
        self.clients: list[Client] = []
        self.found: list[Found] = []
        """Violations that were seen on the spot."""
        self.counts: Counter[str] = Counter()
        self.events = 0
        self.store_busy = asyncio.Lock()
        self.backend: Backend
        self.lines: list[Line] = []
        self.fronts: list[Proxy] = []
        self.replicas: list[Replica] = []
        self._dead: set[int] = set()

    def now(self) -> float:
        return self._loop.time() - self._zero

    def at(self, time: float) -> float:
        """A time of the loop's own clock."""
        return time - self._zero

    def start(self) -> None:
        self._zero = self._loop.time()

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def violated(self, client: Client, violation: Violation) -> None:
        self.found.append(Found(violation.kind, violation.detail, client.name, self.now()))

    def seen(self, stream: str, spec: Spec, *, logged: bool) -> StreamSeen:
        found = self.evidence.streams.get(stream)
        if found is None:
            found = self.evidence.streams[stream] = StreamSeen(stream, spec, self.now(), logged)
        return found

    def running(self) -> list[str]:
        """Streams whose upstream is sending."""
        going = {call.number for call in self.upstream.open_calls}
        return [stream for stream, call in self.evidence.call_of.items() if call in going]

    async def watch(self) -> None:
        """Until cancelled: who waits for what, and whether this machine keeps time."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TICK
            await asyncio.sleep(_TICK)
            late = loop.time() - due
            if late > _BUSY:
                record = self.timeline.begin("busy", MACHINE, detail=f"{late:.2f} s")
                record.began -= late
                self.timeline.end(record)
            for replica in self.replicas:
                if replica.warm is None and time.monotonic() - replica.started > _WARM and not replica.busy.locked():
                    replica.warm = replica.measure()
            for client in self.clients:
                if client.done is None:
                    client.check_waiting()
            for replica in self.replicas:
                if not replica.running and not replica.busy.locked() and replica.number not in self._dead:
                    self._dead.add(replica.number)
                    detail = f"replica {replica.number} has ended by itself\n{replica.log()[-2000:]}"
                    self.found.append(Found("died", detail, at=self.now()))

    async def quiet(self) -> None:
        """Lift whatever may still be broken."""
        for line in self.lines:
            await line.switch(PASS)
        async with self.store_busy:
            await asyncio.to_thread(self.backend.settle)
        for replica in self.replicas:
            async with replica.busy:
                if not replica.running:
                    await replica.start()


@contextlib.asynccontextmanager
async def open_world(seed: int, topology: str, workers: int) -> AsyncIterator[World]:
    world = World(seed, topology, workers)
    dice = random.Random(f"world {seed}")
    outage = dice.choice(("degrade", "degrade", "refuse"))
    ahead = dice.choice((None, "64KiB"))  # so little that upstreams have to wait in every outage
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-torture-")))
        opened = open_backend(topology, directory)
        world.backend = await asyncio.to_thread(opened.__enter__)
        stack.callback(opened.__exit__, None, None, None)
        await stack.enter_async_context(world.upstream)
        for number in range(REPLICAS):
            line = Line(server.port for server in world.backend.servers)
            world.lines.append(line)
            stack.push_async_callback(line.stop)
            await line.start()
            config = settings(
                world.upstream.url(number), line.url(world.backend.url), workers=workers, outage=outage, ahead=ahead
            )
            replica = Replica(number, config)
            world.replicas.append(replica)
            stack.push_async_callback(asyncio.to_thread, replica.stop)
            if not await replica.serve():
                raise RuntimeError(f"replica {replica.number} is not ready:\n{replica.log()[-3000:]}")
            front = Proxy(replica.port, cut=cuts(random.Random(f"cuts {seed} {number}"), _CUT_SHARE, _CUT_WITHIN))
            world.fronts.append(front)
            stack.push_async_callback(front.stop)
            await front.start()
        yield world
