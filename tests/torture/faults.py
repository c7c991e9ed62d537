"""The schedule, played: each fault at its second, made and lifted, and on record from before until after."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

from tests.torture.bounds import COMMAND, DRAIN
from tests.torture.evidence import Found
from tests.torture.lines import PASS, Mode
from tests.torture.plan import Fault
from tests.torture.replicas import Member, Replica
from tests.torture.stores import cut_connections, forget_scripts
from tests.torture.timeline import STORE, Record
from tests.torture.world import World

# The drain may take its time-out, and the process what it has left to do.
_EXIT = DRAIN + 8.0
_LOSING = ("store_tail", "store_empty", "failover", "failover_lossy")
_LOSING_WITH_REPLICAS = ("store_kill", "store_freeze")


class Player:
    """Plays faults on a world. `played` is what was done, in order."""

    def __init__(self, world: World, faults: list[Fault]) -> None:
        self._world = world
        self._faults = faults
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Returns when all have been begun; `finish` waits for what lasts."""
        for fault in self._faults:
            await asyncio.sleep(max(0.0, fault.at - self._world.now()))
            self._tasks.append(asyncio.create_task(self._play(fault)))

    async def finish(self) -> None:
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _play(self, fault: Fault) -> None:
        dice = random.Random(f"fault {self._world.seed} {fault.number}")
        on, _, number = fault.target.partition(" ")
        try:
            if on == STORE:
                await self._store(fault, dice)
            elif on == "line":
                await self._line(fault, int(number), dice)
            elif on == "front":
                await self._front(fault, int(number), dice)
            else:
                replica = self._world.replicas[int(number)]
                async with replica.busy:
                    await self._replica(fault, replica, dice)
        except (OSError, RuntimeError, TimeoutError, ValueError) as error:
            # The store did not do what the fault needs: nothing of the relay's, but the run is worth nothing.
            self._world.found.append(
                Found("harness", f"{fault}: {type(error).__name__}: {error}", at=self._world.now())
            )

    def _begin(self, fault: Fault, *, loses: bool = False) -> Record:
        self._world.count(f"fault {fault.kind}")
        return self._world.timeline.begin(fault.kind, fault.target, loses=loses)

    async def _store(self, fault: Fault, dice: random.Random) -> None:
        world = self._world
        backend = world.backend
        async with world.store_busy:
            streams = world.running()
            record = self._begin(fault, loses=self._loses(fault.kind))
            try:
                if fault.kind == "scripts":
                    record.detail = await asyncio.to_thread(forget_scripts, backend)
                elif fault.kind == "connections":
                    record.detail = await asyncio.to_thread(cut_connections, backend, dice)
                else:
                    record.detail = await asyncio.to_thread(backend.play, fault.kind, fault.lasts, dice, streams)
            finally:
                world.timeline.end(record)

    def _loses(self, kind: str) -> bool:
        return kind in _LOSING or (kind in _LOSING_WITH_REPLICAS and self._world.topology != "standalone")

    async def _line(self, fault: Fault, number: int, dice: random.Random) -> None:
        line = self._world.lines[number]
        servers = sorted(line.proxies)
        # In a third of the cases only a part of the servers cannot be reached from there.
        some = dice.sample(servers, max(1, len(servers) // 3)) if len(servers) > 1 and dice.random() < 0.33 else None
        record = self._begin(fault)
        record.detail = "" if some is None else f"of {some}"
        seconds = 0.0
        lasts = fault.lasts
        if fault.kind == "delay":
            seconds, lasts = fault.lasts, dice.uniform(1.0, 5.0)
            record.detail += f" {seconds:.2f} s each way"
            record.harmless = seconds < COMMAND / 5
        try:
            await line.switch(Mode(fault.kind, seconds), some)
            await asyncio.sleep(lasts)
        finally:
            await line.switch(PASS)
            self._world.timeline.end(record)

    async def _front(self, fault: Fault, number: int, dice: random.Random) -> None:
        record = self._begin(fault)
        how = dice.choice(("fin", "rst"))
        record.detail = f"{self._world.fronts[number].cut_all(how)} connections by {how}"
        self._world.timeline.end(record)

    async def _replica(self, fault: Fault, replica: Replica, dice: random.Random) -> None:
        record = self._begin(fault)
        workers = replica.workers() if self._world.workers > 1 else []
        try:
            if fault.kind == "pause":
                await self._paused(replica, replica.members(), fault.lasts)
            elif fault.kind == "pause_worker" and workers:
                await self._paused(replica, [dice.choice(workers)], fault.lasts)
            elif fault.kind == "kill_worker" and workers:
                replica.signal(signal.SIGKILL, [dice.choice(workers)])
                await asyncio.sleep(0.5)  # the parent has another begun
            elif fault.kind == "kill":
                await self._again(replica, fault, replica.kill)
            elif fault.kind == "drain":
                await self._again(replica, fault, lambda: self._drained(replica))
        finally:
            self._world.timeline.end(record)

    async def _paused(self, replica: Replica, members: list[Member], lasts: float) -> None:
        replica.signal(signal.SIGSTOP, members)
        try:
            await asyncio.sleep(lasts)
        finally:
            replica.signal(signal.SIGCONT, members)

    async def _drained(self, replica: Replica) -> list[Member]:
        if not await replica.drain(_EXIT):
            detail = f"replica {replica.number} has not ended {_EXIT} s after SIGTERM\n{replica.log()[-1500:]}"
            self._world.found.append(Found("drain", detail, at=self._world.now()))
        return []

    async def _again(self, replica: Replica, fault: Fault, end: Callable[[], Awaitable[list[Member]]]) -> None:
        world = self._world
        if left := await end():
            detail = f"workers {left} of replica {replica.number} outlived it by 2 s"
            world.found.append(Found("orphans", detail, at=world.now()))
        await asyncio.sleep(fault.lasts)
        if not await replica.serve():
            detail = f"replica {replica.number} is not ready again\n{replica.log()[-1500:]}"
            world.found.append(Found("restart", detail, at=world.now()))
        replica.warm = None
