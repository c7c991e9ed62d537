"""How much memory the embedded store may take: a part of what the relay's processes may use together."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from relay import machine

# The rest is for the relay, for the system, and for what a rewrite of the append-only file copies meanwhile.
_PART = 4


def of_store(setting: int | Literal["auto"] | None, root: Path = Path("/")) -> int:
    """In bytes, as `store.max_memory` says; 0 for no limit. `root` is where `proc` and `sys` are."""
    if setting is None:
        return 0
    return machine.memory(root) // _PART if setting == "auto" else setting
