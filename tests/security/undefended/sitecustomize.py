"""Put on PYTHONPATH of a relay under test, which then lacks the defences that `$UNDEFENDED` names: an attack that a
test tries succeeds without the one that it is about."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def _no_write_limit(connection: Any) -> None:
    connection.Connection._look = lambda connection, now: now + 3600


def _no_bounds(unsent: Any) -> None:
    unsent.Account.is_full = False


def _no_rates(frames: Any) -> None:
    frames._BURST = 1 << 60


def _no_bound_on_heads(frames: Any) -> None:
    frames._MAX_HEAD = 1 << 30
    frames.Frames.__next__ = frames.FrameBuffer.__next__


def _no_bound_on_statuses(client: Any) -> None:
    client._LAST_STATUS = 999
    client._FIRST_STATUS = 0


_WITHOUT: dict[str, tuple[str, Callable[[Any], None]]] = {
    "write limit": ("relay.http.connection", _no_write_limit),
    "bounds": ("relay.http.unsent", _no_bounds),
    "rates": ("relay.http.frames", _no_rates),
    "heads": ("relay.http.frames", _no_bound_on_heads),
    "statuses": ("relay.upstream.client", _no_bound_on_statuses),
}


class _Loader(Loader):
    def __init__(self, loader: Loader, changes: Sequence[Callable[[Any], None]]) -> None:
        self._loader, self._changes = loader, changes

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for change in self._changes:
            change(module)


class _Finder(MetaPathFinder):
    def __init__(self, lacking: Sequence[str]) -> None:
        self._lacking = [_WITHOUT[name] for name in lacking]

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        changes = [change for module, change in self._lacking if module == name]
        spec = PathFinder.find_spec(name, path, target) if changes else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, changes)
        return spec


if "UNDEFENDED" in os.environ:
    sys.meta_path.insert(0, _Finder(os.environ["UNDEFENDED"].split(",")))
