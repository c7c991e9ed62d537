"""Relay processes as the torture needs them: killed, paused, drained and started again on the same address.

Only processes that were started here are ever signalled, by their pids, workers of a replica included.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.processes import RelayProcess
from tests.torture.waiting import until

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
READY_TIMEOUT = 30.0
_TAKEN = "Address already in use"
# Lines that no fault may lead to. What asyncio says of a task that nobody has asked for its exception is one.
_UNEXPECTED = re.compile(r"^Traceback|never retrieved|was never awaited|Exception in callback|Task was destroyed")


class Member(NamedTuple):
    """A process, by its number and the moment of its start: a number alone is given to others again."""

    pid: int
    started: int


class _Process(RelayProcess):
    """A relay that is not waited for while it starts: its store may be away."""

    def _wait_ready(self) -> None:
        return None


class Replica:
    """One replica, by its number; its members are its process and its workers'."""

    def __init__(self, number: int, config: dict[str, Any]) -> None:
        self.number = number
        self.busy = asyncio.Lock()
        """Held by the fault that is being played on it."""
        self.process = _Process(config)
        self.port = int(self.process.config["bind"].rpartition(":")[2])
        self.started: float = 0.0
        self.warm: dict[int, tuple[int, int]] | None = None
        """Of its processes, some time after their start: resident bytes and open descriptors."""

    async def start(self) -> None:
        await asyncio.to_thread(self.process.start)
        self.started = time.monotonic()

    async def serve(self) -> bool:
        """Start, and wait until it serves. Somebody else's process may hold its port for a moment."""
        deadline = time.monotonic() + READY_TIMEOUT
        await self.start()
        while time.monotonic() < deadline:
            if await asyncio.to_thread(_answers, f"{self.process.url}/readyz"):
                return True
            if not self.running:
                if _TAKEN not in self.log()[-500:]:
                    return False
                await asyncio.sleep(1.0)
                await self.start()
            await asyncio.sleep(0.05)
        return False

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    def workers(self) -> list[Member]:
        return _children(self.process.pid) if self.running else []

    def members(self) -> list[Member]:
        """Its process, and its workers'; none where it has ended."""
        return [_member(self.process.pid), *self.workers()] if self.running else []

    @staticmethod
    def signal(number: signal.Signals, members: list[Member]) -> None:
        """To those that are still the processes that they were: a number of one that has ended may be another's."""
        for member in members:
            if _alive(member):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, number)

    async def kill(self) -> list[Member]:
        """SIGKILL of the process alone, as the system would; workers that outlive it are returned, and ended."""
        workers = self.workers()
        await asyncio.to_thread(self.process.kill)
        return await self._end_orphans(workers)

    async def drain(self, timeout: float) -> bool:
        """SIGTERM; False where it had to be killed after so many seconds."""
        workers = self.workers()
        self.process.signal(signal.SIGTERM)
        ended = await until(lambda: not self.running, timeout)
        if not ended:
            await asyncio.to_thread(self.process.kill)
        await self._end_orphans(workers)
        return ended

    async def _end_orphans(self, workers: list[Member]) -> list[Member]:
        """Workers whose parent is gone are to end by themselves, soon."""
        await until(lambda: not any(_alive(member) for member in workers), 2.0)
        left = [member for member in workers if _alive(member)]
        self.signal(signal.SIGKILL, left)
        return left

    def stop(self) -> None:
        """End everything, whatever state it is in. Its log stays in `process.log()`."""
        with contextlib.suppress(RuntimeError):
            members = self.members()
            self.signal(signal.SIGCONT, members)
            self.process.stop(10)
            self.signal(signal.SIGKILL, members[1:])

    def log(self) -> str:
        return self.process.log()

    def unexpected(self) -> list[str]:
        """What the log says that no fault may lead to, each with some lines before and after it."""
        lines = self.log().splitlines()
        found = [n for n, text in enumerate(lines) if _UNEXPECTED.search(text)]
        return ["\n".join(lines[max(0, n - 3) : n + 25]) for n in found]

    def measure(self) -> dict[int, tuple[int, int]]:
        result = {}
        for pid, _ in self.members():
            with contextlib.suppress(OSError, IndexError):
                resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                result[pid] = (resident, len(os.listdir(f"/proc/{pid}/fd")))
        return result


def _children(pid: int) -> list[Member]:
    found: list[Member] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            found += [_member(int(child)) for child in children]
    return found


def _member(pid: int) -> Member:
    return Member(pid, _stat(pid)[1])


def _stat(pid: int) -> tuple[str, int]:
    """A process's state and the moment of its start, in the kernel's ticks; ("", 0) where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[19])


def _alive(member: Member) -> bool:
    state, started = _stat(member.pid)
    return started == member.started and state not in ("", "Z")


def _answers(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
