"""`relay connect` as a user runs it, with a cache folder of its own."""

from __future__ import annotations

from pathlib import Path

from tests.support.processes import RelayProcess


class NearRelay(RelayProcess):
    """In front of `far`. Use it as a context manager."""

    def __init__(self, far: str, *flags: str, **env: str) -> None:
        super().__init__({}, {"XDG_CACHE_HOME": "", **env})
        if not env.get("XDG_CACHE_HOME"):
            self._env["XDG_CACHE_HOME"] = str(self.cache)
        self._far = far
        self._flags = flags

    @property
    def cache(self) -> Path:
        return self._folder / "cache"

    def arguments(self) -> list[str]:
        addresses = ("--bind", self.config["bind"], "--metrics-bind", self.config["metrics_bind"])
        return ["connect", self._far, *addresses, *self._flags]
