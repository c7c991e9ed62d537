"""A relay without some of its defences: an attack that a test tries must succeed on it, or the test shows nothing."""

from __future__ import annotations

import os
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def without(*defences: str) -> dict[str, str]:
    """The environment of a relay that lacks these (see `undefended/sitecustomize.py`); none: one that has all."""
    if not defences:
        return {}
    path = os.pathsep.join(map(str, (_HERE / "undefended", _HERE.parents[1])))
    return {"PYTHONPATH": path, "UNDEFENDED": ",".join(defences)}
