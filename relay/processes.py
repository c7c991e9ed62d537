"""Child processes: what they are given of the relay's environment, starting them apart from the terminal, waiting for
those that answer HTTP, and ending them.

The demo and the benchmark start such processes, and the embedded store its server. What is started in here is ended by
its id, and in the order in which its parent ends it: Ctrl-C at a terminal reaches the parent alone.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

_POLL = 0.05
_ANSWER_TIMEOUT = 2.0
_STOP_TIMEOUT = 5.0
# Where programs, libraries, a user's Python packages and temporary files are, and how text and times are written.
_NEEDED = (
    *("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "HOME", "TMPDIR"),
    *("LANG", "LC_ALL", "LC_CTYPE", "TZ"),
)


class ProcessEnded(RuntimeError):
    """It ended before it was ready; `code` is its exit status."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the process ended with exit status {code} before it was ready")
        self.code = code


def free_port() -> int:
    """A port of the loopback address that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(*further: str) -> dict[str, str]:
    """What a child needs of this process's environment, and of that the names in `further`, where they are set.

    `/proc` shows a process's environment for as long as it lives, and a crash report may: no child is given the keys of
    upstreams, clients, events and tickets.
    """
    return {name: os.environ[name] for name in (*_NEEDED, *further) if name in os.environ}


def start(command: list[str], env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[Any]:
    """Start a process in a session of its own, without `env` with what `environment()` gives; `options` are those of
    subprocess.Popen. Raises OSError."""
    return subprocess.Popen(command, start_new_session=True, env=environment() if env is None else env, **options)


def wait_ready(
    process: subprocess.Popen[Any],
    address: str,
    path: str,
    timeout: float,
    ready: Callable[[int], bool] = lambda status: status == 200,
) -> None:
    """Return when `GET path` at `address` (host:port) is answered with a status that is `ready`.

    Raises ProcessEnded where the process ends, and TimeoutError after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        status = _status(address, path)
        if status is not None and ready(status):
            return
        try:
            code = process.wait(_POLL)
        except subprocess.TimeoutExpired:
            continue
        raise ProcessEnded(code)
    raise TimeoutError(f"{address} was not ready within {timeout:g} s")


def _status(address: str, path: str) -> int | None:
    connection = http.client.HTTPConnection(address, timeout=_ANSWER_TIMEOUT)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def stop(process: subprocess.Popen[Any]) -> None:
    """SIGTERM, and SIGKILL for one that has not ended after 5 s. Its pipes are closed."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
