"""Put on PYTHONPATH of a relay under test: its first import of pydantic touches `$IMPORT_GATE.reached` and waits until
`$IMPORT_GATE.open` is there. So a test has as long as it wants for what comes while the relay's imports run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class _Gate(MetaPathFinder):
    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "pydantic":
            sys.meta_path.remove(self)
            Path(self._path + ".reached").touch()
            while not Path(self._path + ".open").exists():
                time.sleep(0.01)
        return None


if "IMPORT_GATE" in os.environ:
    sys.meta_path.insert(0, _Gate(os.environ["IMPORT_GATE"]))
