"""A SIGTERM that comes while the relay starts ends it, whatever it is doing then, and also where it is PID 1: there the
kernel drops a signal that nobody has asked for. So does the end of the terminal that it was started in."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import children, free_port, needs
from tests.support.sseclient import open_stream
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
# What ends a relay that has nothing to finish, on a busy machine.
AT_ONCE = 8.0

pytestmark = pytest.mark.parametrize("as_init", [False, True], ids=["process", "pid-1"])


class Starting:
    """`relay serve` that nobody waits for; as PID 1 of a namespace of its own, if asked."""

    def __init__(
        self, folder: Path, as_init: bool, env: dict[str, str] | None = None, nohup: bool = False, **config: Any
    ) -> None:
        config = {
            "bind": f"127.0.0.1:{free_port()}",
            "metrics_bind": f"127.0.0.1:{free_port()}",
            "upstreams": [{"name": "nobody", "base_url": "http://127.0.0.1:9"}],
            **config,
        }
        self.url = f"http://{config['bind']}"
        settings = folder / "relay.yaml"
        settings.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "relay", "serve", "--config", str(settings)]
        if nohup:
            command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command]
        if as_init:
            command = [*_unshare(), *command]
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if as_init:
            wait_until(lambda: bool(children(self._process.pid)), 10, "the process in its namespace")
            (self.pid,) = children(self._process.pid)
        else:
            self.pid = self._process.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        def checked() -> bool:
            assert self._process.poll() is None, self.log()
            return bool(condition())

        wait_until(checked, 20, what)

    def ready(self) -> bool:
        try:
            with open_stream(f"{self.url}/readyz", "GET", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        os.kill(self.pid, number)

    def status(self) -> int:
        """The exit status. TimeoutError where it does not end."""
        try:
            return self._process.wait(AT_ONCE)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"still there {AT_ONCE} s after its SIGTERM\n{self.log()}") from None

    def kill(self) -> None:
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self._process.wait()


def _unshare() -> list[str]:
    command = ["unshare", "--pid", "--fork", "--kill-child"]
    if os.geteuid() != 0:
        command += ["--user", "--map-root-user"]
    usable = shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    needs(usable, "unshare, and the right to make a PID namespace")
    return command


@contextmanager
def starting(folder: Path, as_init: bool, env: dict[str, str] | None = None, **config: Any) -> Iterator[Starting]:
    relay = Starting(folder, as_init, env, **config)
    try:
        yield relay
    finally:
        relay.kill()


@pytest.mark.parametrize("workers", [1, 2])
def test_during_its_imports(tmp_path: Path, as_init: bool, workers: int) -> None:
    gate = tmp_path / "gate"
    env = {"PYTHONPATH": str(Path(__file__).parent / "import_gate"), "IMPORT_GATE": str(gate)}
    data = tmp_path / "data"
    with starting(tmp_path, as_init, env, workers=workers, store={"data_dir": str(data)}) as relay:
        relay.wait_for(Path(f"{gate}.reached").exists, "the imports")
        relay.terminate()
        Path(f"{gate}.open").touch()
        assert relay.status() == 0, relay.log()
        assert not (data / "valkey.log").exists(), "it has started its store all the same"


@pytest.mark.parametrize("workers", [1, 2])
def test_while_its_own_store_starts(tmp_path: Path, as_init: bool, workers: int) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with (data / "valkey.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as by a Valkey that still writes its file
        with starting(tmp_path, as_init, workers=workers, store={"data_dir": str(data)}) as relay:
            relay.wait_for(lambda: (data / "lock").exists() and (data / "lock").read_text(), "the folder's owner")
            relay.terminate()
            assert relay.status() == 0, relay.log()


@pytest.mark.parametrize("workers", [1, 2])
def test_while_it_asks_a_store_that_is_silent(tmp_path: Path, as_init: bool, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with starting(tmp_path, as_init, workers=workers, store={"url": url}) as relay:
            silent.settimeout(20)
            asking, _ = silent.accept()
            with asking:
                relay.terminate()
                assert relay.status() == 0, relay.log()
                assert "serving on" not in relay.log()


@pytest.mark.parametrize("workers", [1, 2])
def test_and_when_it_serves(tmp_path: Path, as_init: bool, workers: int) -> None:
    with starting(tmp_path, as_init, workers=workers, store={"data_dir": str(tmp_path / "data")}) as relay:
        relay.wait_for(relay.ready, "readiness")
        began = time.monotonic()
        relay.terminate()
        assert relay.status() == 0, relay.log()
        assert time.monotonic() - began < AT_ONCE


@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_of_its_terminal_is_one(tmp_path: Path, as_init: bool, workers: int) -> None:
    with starting(tmp_path, as_init, workers=workers, store={"data_dir": str(tmp_path / "data")}) as relay:
        relay.wait_for(relay.ready, "readiness")
        relay.terminate(signal.SIGHUP)
        assert relay.status() == 0, relay.log()


def test_but_not_where_it_was_started_to_outlive_that(tmp_path: Path, as_init: bool) -> None:
    with starting(tmp_path, as_init, nohup=True, store={"data_dir": str(tmp_path / "data")}) as relay:
        relay.wait_for(relay.ready, "readiness")
        relay.terminate(signal.SIGHUP)
        assert relay.ready()
        ignored = re.search(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{relay.pid}/status").read_text(), re.MULTILINE)
        assert ignored is not None
        assert int(ignored[1], 16) & 1 << (signal.SIGHUP - 1)
        relay.terminate()
        assert relay.status() == 0, relay.log()
