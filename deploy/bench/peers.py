"""The gateways that the relay is compared with, and the store that it uses: installed in `.bench/`, started here.

Each is a context manager that yields a `Target` (the store: its URL and process id), pinned to the core it is given.
What had to be set so that a peer works at all, or works at its best, is in DISCLOSED and goes into the results.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import proxies
import redis

from relay.bench import gateways
from relay.bench.gateways import nginx_binary, started
from relay.bench.measure import BenchError, Target, pinned
from relay.processes import environment, free_port, stop
from relay.protocol.keys import hash_of, new_key
from relay.store.embedded import server_binary

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".bench"
LITELLM = "1.106.0"
PORTKEY = "1.15.2"
# Portkey 1.15.2 fails on every stream ("TypeError: immutable") with a newer @hono/node-server.
PORTKEY_SERVER = "1.13.8"
ASGI_SERVERS = ("uvicorn==0.54.0", "granian==2.8.7")

DISCLOSED = {
    "relay": "One worker, default settings but for `limits` (raised: the load is one owner with many streams) and, "
    "so that the machine's memory lasts, `streams.retention` of 2 minutes. The store is a process of its own, the "
    "machine's own Valkey or Redis if it has one, over TCP on loopback, with an append-only file synced every second; "
    "its CPU is shown apart.",
    "nginx": "One worker, `proxy_pass` with `proxy_buffering off`, kept-alive upstream connections, no access log.",
    "portkey": "`x-portkey-provider: openai` and `x-portkey-custom-host` name the upstream in every request. "
    f"`@hono/node-server` is held at {PORTKEY_SERVER}: with a newer one every stream fails (TypeError: immutable).",
    "litellm": "One worker, one model (`openai/bench` with `api_base`), `num_retries: 0`, no telemetry, no key "
    "(LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY), its local price list, log level ERROR. "
    "Some 40 streams of 20 events/s fill a core, so it is given fewer: its CPU per event compares, "
    "its number of streams does not.",
}


def install(names: list[str]) -> None:
    """What is missing, into `.bench/`."""
    HOME.mkdir(exist_ok=True)
    (HOME / ".gitignore").write_text("*\n")
    if "litellm" in names and not (HOME / "litellm/bin/litellm").exists():
        _run(sys.executable, "-m", "venv", str(HOME / "litellm"))
        _run(str(HOME / "litellm/bin/pip"), "install", "--quiet", f"litellm[proxy]=={LITELLM}")
    if "portkey" in names and not (HOME / "portkey/node_modules").exists():
        if not (shutil.which("npm") and shutil.which("node")):
            raise BenchError("Portkey needs Node.js: install it, or leave it out with --without portkey")
        manifest = {
            "private": True,
            "dependencies": {"@portkey-ai/gateway": PORTKEY},
            "overrides": {"@hono/node-server": PORTKEY_SERVER},
        }
        (HOME / "portkey").mkdir(exist_ok=True)
        (HOME / "portkey/package.json").write_text(json.dumps(manifest))
        _run("npm", "install", "--prefix", str(HOME / "portkey"), "--no-fund", "--no-audit", "--ignore-scripts")
    if "go" in names:
        proxies.install_go(HOME)
    if "envoy" in names:
        proxies.envoy_binary()
    if "asgi" in names and not (HOME / "asgi/granian").exists():
        _run(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(HOME / "asgi"), *ASGI_SERVERS)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")


def versions(names: list[str]) -> dict[str, str]:
    found = {}
    if "nginx" in names:
        said = subprocess.run([nginx_binary(), "-v"], capture_output=True, text=True, check=True).stderr
        found["nginx"] = said.strip().partition("/")[2]
    if "go" in names:
        found["go"] = proxies.go_version()
    if "envoy" in names:
        found["envoy"] = proxies.envoy_version()
    if "portkey" in names:
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
        found["portkey"] = f"{PORTKEY} on Node.js {node}"
    if "litellm" in names:
        found["litellm"] = LITELLM
    said = subprocess.run([_store_program(), "--version"], capture_output=True, text=True, check=True).stdout
    allocator = said.partition("malloc=")[2].partition(" ")[0]
    name = "Valkey" if "valkey" in said.lower() else "Redis"
    found[name] = f"{said.partition('v=')[2].partition(' ')[0]} ({allocator})"
    found["hypercorn"] = version("hypercorn")
    return found


def _store_program() -> str:
    """The machine's own server, built as deployments have it, or else the relay's embedded one."""
    return shutil.which("valkey-server") or shutil.which("redis-server") or str(server_binary())


@contextmanager
def valkey(core: int | None) -> Iterator[tuple[str, int]]:
    """A store as a deployment has it: over TCP, persistent. Its URL and process id."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        settings = ("--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", "")
        persistence = ("--appendonly", "yes", "--appendfsync", "everysec")
        with (Path(folder) / "output.log").open("wb") as output:
            process = subprocess.Popen(
                [*pinned(core), _store_program(), *settings, *persistence],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            url = f"redis://127.0.0.1:{port}"
            client = redis.Redis.from_url(url, retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 100))
            client.ping()
            client.close()
            yield url, process.pid
        finally:
            stop(process)


@contextmanager
def portkey(upstream: str, core: int | None) -> Iterator[Target]:
    port = free_port()
    program = HOME / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        variables = {**environment(), "NODE_ENV": "production"}
        command = ["node", str(program), f"--port={port}", "--headless"]
        with started(command, port, core, Path(folder), variables, ready="/") as pid:
            headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{upstream}/v1"}
            yield Target("portkey", f"http://127.0.0.1:{port}", headers, pids=(pid,))


@contextmanager
def litellm(upstream: str, core: int | None) -> Iterator[Target]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        parameters = {"model": "openai/bench", "api_base": f"{upstream}/v1", "api_key": "none"}
        config = {
            "model_list": [{"model_name": "bench", "litellm_params": parameters}],
            "litellm_settings": {"num_retries": 0, "telemetry": False},
        }
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        variables = {
            **environment(),
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
        }
        flags = ("--config", str(path), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
        command = [str(HOME / "litellm/bin/litellm"), *flags]
        with started(command, port, core, Path(folder), variables, ready="/health/liveliness") as pid:
            yield Target("litellm", f"http://127.0.0.1:{port}", pids=(pid,))


@contextmanager
def relay(
    upstream: str,
    core: int | None,
    store_core: int | None,
    settings: dict[str, str] | None = None,
    server: str | None = None,
    name: str = "relay",
) -> Iterator[tuple[Target, str]]:
    """The relay with a store of its own; the target and the store's URL. `server`: another ASGI server than its own."""
    settings = {"RELAY_STREAMS__RETENTION": "2m", "RELAY_STREAMS__TOMBSTONE": "2m", **(settings or {})}
    program = ("-m", "relay", "serve")
    if server is not None:
        settings["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(HOME / "asgi")))
        program = (str(Path(__file__).with_name("asgi.py")), server, "serve")
    with (
        valkey(store_core) as (url, store_pid),
        gateways.relay(upstream, url, core, settings, name=server or name, program=program) as target,
    ):
        yield replace(target, pids=(*target.pids, store_pid)), url


def sealed() -> dict[str, str]:
    """Settings with which every event is sealed."""
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    return {"RELAY_STORE__ENCRYPTION_ENV": "BENCH_EVENT_KEYS", "BENCH_EVENT_KEYS": key}


def keyed(upstream: str) -> tuple[dict[str, str], dict[str, str]]:
    """Settings with which clients need a key, each of its limits in use; a client's header with it."""
    key = new_key()
    limits = {"models": ["bench*"], "rate": "1000000/s", "concurrency": 1_000_000}
    listed = [{"hash": hash_of(key), "owner": "bench", **limits}]
    upstreams = [{"name": "upstream", "base_url": upstream, "api_key_env": "BENCH_UPSTREAM_KEY"}]
    settings = {"RELAY_AUTH__MODE": "keys", "RELAY_AUTH__KEYS": json.dumps(listed)}
    settings |= {"RELAY_UPSTREAMS": json.dumps(upstreams), "BENCH_UPSTREAM_KEY": "none"}
    return settings, {"authorization": f"Bearer {key}"}
