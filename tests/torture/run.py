"""One run: warm up, play, lift everything, wait for every end, and judge."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from tests.torture.bounds import ABANDON, LEASE, SETTLE
from tests.torture.evidence import Evidence, Found
from tests.torture.faults import Player
from tests.torture.generation import PATHS, Spec
from tests.torture.judging import judge, longest_wait
from tests.torture.plan import Fault, Request, request, schedule
from tests.torture.residue import logs, residue
from tests.torture.sessions import session
from tests.torture.waiting import until
from tests.torture.world import REPLICAS, World, open_world

_STAGGER = 0.05
# The last streams begin so long before the last fault's time.
_LAST = 2.0
_CALLS_OVER = 3 * ABANDON + 2 * LEASE


@dataclass(frozen=True)
class Options:
    seed: int = 1
    seconds: float = 120.0
    topology: str = "standalone"
    workers: int = 1
    sessions: int = 24
    """So many at once."""


@dataclass
class Outcome:
    options: Options
    faults: list[Fault]
    evidence: Evidence
    found: list[Found]
    counts: dict[str, int]
    events: int
    histories: dict[str, list[str]]
    ends: dict[str, int]
    longest: tuple[float, str]
    relay_logs: list[str] = field(default_factory=list)


async def run(options: Options) -> Outcome:
    faults = schedule(options.seed, options.seconds, options.topology, REPLICAS, options.workers)
    async with open_world(options.seed, options.topology, options.workers) as world:
        await _warm_up(world)
        world.start()
        watching = asyncio.create_task(world.watch())
        player = Player(world, faults)
        load = _Load(world, options)
        try:
            await asyncio.gather(player.run(), load.run())
            await player.finish()
            await world.quiet()
            await load.finish()
            await _calls_over(world)
        finally:
            await load.close()
            await player.close()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        world.evidence.finished = world.now()
        world.found += await residue(world)
    world.found += logs(world)
    found = sorted([*world.found, *judge(world.evidence)], key=lambda one: one.at)
    ends: dict[str, int] = {}
    for client in world.clients:
        ends[client.done or "none"] = ends.get(client.done or "none", 0) + 1
    return Outcome(
        options,
        faults,
        world.evidence,
        found,
        dict(world.counts),
        world.events,
        {client.name: list(client.history) for client in world.clients},
        ends,
        longest_wait(world.evidence),
        [replica.log() for replica in world.replicas],
    )


async def _warm_up(world: World) -> None:
    """A few streams that nothing happens to; they have to be whole."""
    for number, api in enumerate(PATHS):
        spec = Spec(api, events=20, pace=0.01)
        await session(world, Request(-1 - number, "poster", spec, "owner-0", watchers=(0, 0), seed=number))
    for client in world.clients:
        if client.done != "ended: complete" and client.done != "nothing to watch":
            history = "\n".join(client.history)
            raise RuntimeError(f"a stream before any fault: {client.done}\n{history}")
    world.clients.clear()


class _Load:
    """Sessions, so many at once, one after the other until the time is over."""

    def __init__(self, world: World, options: Options) -> None:
        self._world = world
        self._options = options
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        number = 0
        options = self._options
        while self._world.now() < options.seconds - _LAST:
            if len(self._running) < options.sessions:
                number += 1
                asked = request(options.seed, number, options.topology)
                task = asyncio.create_task(session(self._world, asked))
                self._running.add(task)
                task.add_done_callback(self._ended)
            await asyncio.sleep(_STAGGER)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._world.found.append(Found("harness", f"{type(error).__name__}: {error}", at=self._world.now()))

    async def finish(self) -> None:
        """Every client has its end within the time that its upstream takes, and a bound."""
        deadline = self._world.now() + SETTLE
        while self._running and self._world.now() < deadline:
            if any(not call.over for call in self._world.upstream.calls):
                deadline = max(deadline, self._upstreams_over() + SETTLE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.25):
                    await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        for client in self._world.clients:
            if client.done is None:
                detail = f"no end {SETTLE:.0f} s after the last fault and the end of its upstream"
                self._world.found.append(Found("hang", detail, client.name, self._world.now()))

    def _upstreams_over(self) -> float:
        return max((c.began + c.spec.seconds for c in self._world.upstream.open_calls), default=0.0)

    async def close(self) -> None:
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


async def _calls_over(world: World) -> None:
    """Nobody reads any more, so no upstream call may go on for much longer."""
    await until(lambda: not world.upstream.open_calls, _CALLS_OVER)
    for call in world.upstream.open_calls:
        world.found.append(Found("call_open", str(call), call.attempt.partition("/")[0], world.now()))
