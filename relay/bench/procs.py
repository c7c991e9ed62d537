"""CPU time and memory of processes and all their children, from /proc.

A process named `valkey-server` or `redis-server` in the tree is the gateway's store and is counted apart. Times
have the kernel's resolution of a clock tick (10 ms), so a measurement should use seconds of CPU, not tens of
milliseconds. Elsewhere than on Linux there is no /proc and everything reads None.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_STORES = ("valkey-server", "redis-server")
_PROC = Path("/proc")
AVAILABLE = (_PROC / "self/stat").exists()


@dataclass(frozen=True, slots=True)
class Used:
    """Seconds of CPU since the processes began; bytes of memory now."""

    cpu: float = 0.0
    store_cpu: float = 0.0
    rss: int = 0
    store_rss: int = 0

    def __sub__(self, other: Used) -> Used:
        return Used(
            self.cpu - other.cpu,
            self.store_cpu - other.store_cpu,
            self.rss - other.rss,
            self.store_rss - other.store_rss,
        )


class Group:
    """Some processes and the children that they have now."""

    def __init__(self, pids: Iterable[int]) -> None:
        """Raises ProcessLookupError for one that does not run."""
        self._members: dict[int, bool] = {}
        """Of each process: whether it is a store."""
        roots = list(pids) if AVAILABLE else []
        parents = _parents() if roots else {}
        for pid in roots:
            if pid not in parents:
                raise ProcessLookupError(f"no process has the id {pid}; look up the gateway's with `pgrep -af NAME`")
        wanted = set(roots)
        while wanted:
            self._members |= {pid: _name(pid) in _STORES for pid in wanted}
            wanted = {pid for pid, parent in parents.items() if parent in wanted} - self._members.keys()

    def __bool__(self) -> bool:
        return bool(self._members)

    @property
    def pids(self) -> list[int]:
        return list(self._members)

    def has_store(self) -> bool:
        return any(self._members.values())

    def cpu(self) -> Used:
        """Cheap enough to be called while delays are measured. A child that has ended since counts for nothing."""
        sums = {False: 0, True: 0}
        for pid, is_store in self._members.items():
            fields = _stat(pid)
            if fields:
                sums[is_store] += int(fields[11]) + int(fields[12])
        return Used(sums[False] / _TICK, sums[True] / _TICK)

    def memory(self) -> Used:
        """Walks the page tables: not to be called while delays are measured."""
        sums = {False: 0, True: 0}
        for pid, is_store in self._members.items():
            sums[is_store] += _rss(pid)
        return Used(rss=sums[False], store_rss=sums[True])

    def connections(self, port: int) -> list[int]:
        """How many established ones each process has on this port of its own, the most first. What only starts others
        and takes none itself is left out."""
        open_ = _established(port)
        counts = {pid: len(open_ & _sockets(pid)) for pid, is_store in self._members.items() if not is_store}
        parents = {int(fields[1]) for pid in counts if (fields := _stat(pid))}
        return sorted((n for pid, n in counts.items() if n or pid not in parents), reverse=True)

    def pin(self, core: int) -> None:
        """Bind every thread to one core. Raises PermissionError for another user's process."""
        for pid in self._members:
            for thread in (_PROC / str(pid) / "task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})


def machine() -> float:
    """Seconds of CPU that all processes of the machine have used, and that its host has taken from it; 0 without /proc.

    What the kernel does in interrupts is nobody's and left out.
    """
    try:
        words = (_PROC / "stat").read_text().split("\n", 1)[0].split()
    except FileNotFoundError:
        return 0.0
    user, nice, system, _idle, _waiting, _hard, _soft, stolen = (int(word) for word in words[1:9])
    return (user + nice + system + stolen) / _TICK


def _stat(pid: int) -> list[str]:
    """The fields behind the process's name, the state first; nothing for a process that is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _established(port: int) -> set[str]:
    """The inodes of this host's connections on the port."""
    found = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "self/net" / table).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for fields in (line.split() for line in lines):
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "01":
                found.add(fields[9])
    return found


def _sockets(pid: int) -> set[str]:
    found = set()
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for entry in (_PROC / str(pid) / "fd").iterdir():
            with suppress(FileNotFoundError):
                name = os.readlink(entry)
                if name.startswith("socket:["):
                    found.add(name[8:-1])
    return found


def _parents() -> dict[int, int]:
    found = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            found[int(entry.name)] = int(fields[1])
    return found


def _name(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _rss(pid: int) -> int:
    # smaps_rollup counts pages; the figures in `status` may lag by some hundred KiB per thread.
    for name, field in (("smaps_rollup", "Rss:"), ("status", "VmRSS:")):
        try:
            for line in (_PROC / str(pid) / name).read_text().splitlines():
                if line.startswith(field):
                    return int(line.split()[1]) * 1024
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return 0
