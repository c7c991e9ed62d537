"""How much memory the embedded store may take: a part of what the relay's processes may use together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

# The rest is for the relay, for the system, and for what a rewrite of the append-only file copies meanwhile.
_PART = 4


def of_store(setting: int | Literal["auto"] | None, root: Path = Path("/")) -> int:
    """In bytes, as `store.max_memory` says; 0 for no limit. `root` is where `proc` and `sys` are."""
    if setting is None:
        return 0
    return usable(root) // _PART if setting == "auto" else setting


def usable(root: Path = Path("/")) -> int:
    """What this process's machine, and the control groups around it, let it use, in bytes."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Those of the control groups that this process is in, of each and of all around it; version 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        mount, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        top = root / "sys/fs/cgroup" / mount
        # In a container the path may be that on its host, where only the top is to be seen: it is the container's own.
        inside = (top / path.lstrip("/")).parts
        for length in range(len(inside), len(top.parts) - 1, -1):
            try:
                limit = Path(*inside[:length], name).read_text().strip()
            except OSError:
                continue
            if limit.isdecimal() and int(limit) > 0:
                yield int(limit)
