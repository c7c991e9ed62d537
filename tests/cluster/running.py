"""The cluster's processes: each with a log of its own, told to end in the opposite order of their starts."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path


class Running:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, *command: str | Path, more: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                env={**os.environ, **(more or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the one who ends them
            )
        self._processes.append((name, process))
        return process

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def check(self) -> None:
        """Raises ChildProcessError for one that has ended by itself."""
        for name, process in self._processes:
            if process.poll() is not None:
                said = self.log(name).read_text(errors="replace")[-3000:]
                raise ChildProcessError(f"{name} has ended with {process.returncode}:\n{said}")

    def end(self, name: str) -> None:
        """One of them, where it has been started."""
        for item in [item for item in self._processes if item[0] == name]:
            self._processes.remove(item)
            _end(item[1])

    def stop(self) -> None:
        while self._processes:
            _end(self._processes.pop()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
