"""Two real relays on one Valkey in front of the scripted upstream, and Node.js with the pinned packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.client_js.install import NODE, is_installed
from tests.support.processes import RelayProcess, needs
from tests.support.scripted import ScriptedUpstream
from tests.support.stores import Store, valkey_server


@dataclass(frozen=True)
class Bench:
    upstream: ScriptedUpstream
    store: Store
    replicas: tuple[RelayProcess, RelayProcess]

    @property
    def urls(self) -> tuple[str, str]:
        return self.replicas[0].url, self.replicas[1].url


@contextmanager
def replicas(directory: Path, origins: Sequence[str] = ()) -> Iterator[Bench]:
    """`origins` are those whose pages may call the relays."""
    with ScriptedUpstream() as upstream, valkey_server(directory) as store:
        config = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "store": {"url": store.url},
            "streams": {"heartbeat": "200ms", "lease": "2s"},
            "drain": {"timeout": "1s"},
            "cors": {"origins": list(origins)},
        }
        with RelayProcess(config) as first, RelayProcess(config) as second:
            yield Bench(upstream, store, (first, second))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with replicas(tmp_path_factory.mktemp("valkey")) as found:
        yield found


@pytest.fixture(scope="session", autouse=True)
def _node() -> None:
    needs(shutil.which("node"), "Node.js")
    needs(is_installed(), "the packages of tests/client_js: run tests/client_js/install.py")


def environment() -> dict[str, str]:
    """Without the keys, addresses and proxies of whoever runs the tests."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "ANTHROPIC_"))}
    return {**keep, "NO_PROXY": "*", "no_proxy": "*"}


def start(script: str, argument: object, cwd: Path = NODE) -> subprocess.Popen[str]:
    """A Node.js process with one JSON argument."""
    command = ["node", script, json.dumps(argument)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], timeout: float = 60.0, *, quiet: bool = True) -> Any:
    """What it printed, as JSON. A process that outlives the timeout is killed; a `quiet` one may not even warn."""
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, errors[-4000:]
    assert not quiet or errors == "", errors[-4000:]
    return json.loads(out)


def node(script: str, argument: object, *, quiet: bool = True) -> Any:
    return finish(start(script, argument), quiet=quiet)
