"""What this process may use of its machine: less than there is where a control group around it says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def memory(root: Path = _ROOT) -> int:
    """In bytes. `root` is where `proc` and `sys` are."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_memory_limits(root)])


def cores(root: Path = _ROOT) -> int:
    """Whole ones, at least 1: those that it is bound to, and of a quota no more than it pays for all the time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *_quotas(root)]))


def _memory_limits(root: Path) -> Iterator[int]:
    for group, version in _groups(root, "memory"):
        limit = _read(group / ("memory.limit_in_bytes" if version == 1 else "memory.max"))
        if limit.isdecimal() and int(limit) > 0:
            yield int(limit)


def _quotas(root: Path) -> Iterator[int]:
    for group, version in _groups(root, "cpu"):
        if version == 1:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        else:
            quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            yield int(quota) // int(period)


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The control groups that this process is in, and all around them, each with its version."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 1 has a hierarchy for each controller or for some together, under a name with all of them.
        top = root / "sys/fs/cgroup" / controllers
        if controllers and not top.is_dir():
            top = root / "sys/fs/cgroup" / controller
        # In a container the path may be that on its host, where only the top is to be seen: it is the container's own.
        inside = (top / path.lstrip("/")).parts
        for length in range(len(inside), len(top.parts) - 1, -1):
            yield Path(*inside[:length]), 1 if controllers else 2


def _read(path: Path) -> str:
    """Nothing where it is not to be read: elsewhere than on Linux, or of a group that is not to be seen."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
