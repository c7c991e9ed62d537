"""The relay as a user runs it: a process of its own, with a configuration file, ended by its pid.

Promises: no setting leaks in from the environment, only loopback and free ports are used, and a relay that
does not become ready fails the test with the end of its log. It ends without a drain, unless a test asks for one:
streams that a test has left would keep it, by default for ten minutes.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import yaml

START_TIMEOUT = 20.0
_ROOT = Path(__file__).resolve().parents[2]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


_RANGE = range(10_000, 32_000)
_SHARES = 32


def _share() -> list[int]:
    """A part of the range that no other process on this machine has, for as long as this one lives."""
    for number in range(_SHARES):
        try:
            lock = os.open(Path(tempfile.gettempdir()) / f"relay-test-ports-{number}", os.O_CREAT | os.O_RDWR)
        except PermissionError:  # another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return list(_RANGE[number::_SHARES])  # the lock goes with the process
    raise RuntimeError(f"{_SHARES} processes that test share the ports of this machine already")


@functools.cache
def _ports() -> Iterator[int]:
    mine = _share()
    first = random.randrange(len(mine))
    return itertools.cycle(mine[first:] + mine[:first])


def free_port() -> int:
    """A TCP port on loopback that nobody else is given: each process that tests has its own, and each goes out once
    before any goes out again. So a server that is restarted finds its port as it left it.

    They lie below the ephemeral range. A port inside it can be taken by any outgoing connection until its server
    binds it, or while that server is down, even by a client's own attempt to reach it, which then meets itself.
    """
    while True:
        port = next(_ports())
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def needs(condition: object, reason: str) -> None:
    """Skip the test without what it needs; under RELAY_TEST_STRICT=1, as in CI, fail it instead."""
    if condition:
        return
    if os.environ.get("RELAY_TEST_STRICT") == "1":
        pytest.fail(f"needed here: {reason}")
    pytest.skip(reason)


class RelayProcess:
    """`relay serve` with a settings file written from a dict. Use it as a context manager."""

    within: tuple[str, ...] = ()
    """A command that becomes the one that it is given."""

    def __init__(self, config: dict[str, Any], env: dict[str, str] | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="relay-test-"))
        self.config = _complete(config, self._folder)
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        self._env |= env or {}
        self._log_path = self._folder / "relay.log"
        self._last_log = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.config['bind']}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.config['metrics_bind']}"

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def returncode(self) -> int | None:
        return self._running().poll()

    def log(self) -> str:
        if self._log_path.exists():
            self._last_log = self._log_path.read_text(errors="replace")
        return self._last_log

    def start(self) -> Self:
        """Start and wait until ready. After `kill` or `wait` it starts again, on the same ports and data."""
        self._folder.mkdir(exist_ok=True)
        command = [*self.within, sys.executable, "-m", "relay", *self.arguments()]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_ready()
        except BaseException:
            self.stop(5)
            raise
        return self

    def arguments(self) -> list[str]:
        """The command's, behind `relay`."""
        config_path = self._folder / "relay.yaml"
        config_path.write_text(yaml.safe_dump(self.config))
        return ["serve", "--config", str(config_path)]

    def stop(self, timeout: float = 10.0) -> int | None:
        """SIGTERM, then SIGKILL after the timeout; the exit status. Its own folder is removed."""
        code = None
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
            code = self.wait(timeout)
        self.log()
        shutil.rmtree(self._folder, ignore_errors=True)
        return code

    def stop_for_restart(self, timeout: float = 10.0) -> int:
        """SIGTERM; the exit status. `start` starts it again."""
        self._running().terminate()
        return self.wait(timeout)

    def kill(self) -> None:
        """SIGKILL: the crash of a replica."""
        self._running().kill()
        self._running().wait(10)

    def signal(self, number: signal.Signals) -> None:
        self._running().send_signal(number)

    def wait(self, timeout: float = 10.0) -> int:
        """Wait for the exit; a process that outlives the timeout is killed."""
        try:
            return self._running().wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._running().wait()

    def __enter__(self) -> Self:
        return self.start() if self._process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the relay was not started")
        return self._process

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not _answers_200(f"{self.url}/readyz"):
            try:
                code = self._running().wait(0.05)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                raise AssertionError(f"relay not ready after {START_TIMEOUT} s\n{self.log()[-4000:]}") from None
            raise AssertionError(f"relay exited with {code}\n{self.log()[-4000:]}")


def _complete(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    config = deepcopy(config)
    config.setdefault("bind", f"127.0.0.1:{free_port()}")
    config.setdefault("metrics_bind", f"127.0.0.1:{free_port()}")
    config.setdefault("drain", {"timeout": "0s"})
    store = config.setdefault("store", {})
    if "url" not in store:
        store.setdefault("data_dir", str(folder / "data"))
    return config


def _answers_200(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def rss(pid: int) -> int:
    """Resident memory in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        found += [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return found
