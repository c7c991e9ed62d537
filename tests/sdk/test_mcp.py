"""A client of the official MCP SDK against its own server, through a relay: its sessions work, what it calls runs once,
and it has every message of its answer whoever cuts which connection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.install import is_installed, python_generation
from tests.support.cutting_http import Asked, CuttingProxy, Fate
from tests.support.processes import RelayProcess, free_port, needs
from tests.support.waiting import wait_until

RUN = Path(__file__).with_name("mcp_run.py")
STEPS = [f"step {n} é" for n in range(1, 6)]
CUT_AT = 400  # in the middle of the answer's progress


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(python_generation("mcp"))}


@contextmanager
def server(*more: str) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, str(RUN), "serve", str(port), *more]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: answers(port), 60, "the server listens")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/mcp", timeout=5).close()
    except urllib.error.HTTPError as refused:
        refused.close()
        return True
    except OSError:
        return False
    return True


def cut_once(asked: Asked) -> Fate:
    """The answer to a call of a tool breaks off, once."""
    if b'"tools/call"' in asked.body and b'"progressToken"' in asked.body and not any(cut):
        cut.append(asked)
        return Fate(cut_at=CUT_AT, how="rst")
    return Fate()


cut: list[Asked] = []


@pytest.fixture(scope="module")
def sites() -> Iterator[dict[str, str]]:
    """Where a client finds each server: through a relay, with a line before and behind it that can be cut."""
    needs(is_installed("mcp"), "the MCP SDK: run tests/sdk/install.py")
    with ExitStack() as stack:
        found: dict[str, str] = {}
        for name, more in (("plain", ()), ("store", ("store",))):
            address = stack.enter_context(server(*more))
            behind = stack.enter_context(CuttingProxy(address, fate=lambda asked: FATES["behind"](asked)))
            upstream = {"name": "mcp", "base_url": behind.url, "apis": ["sse"], "paths": ["/mcp"]}
            relay = stack.enter_context(RelayProcess({"upstreams": [upstream], "drain": {"timeout": "0s"}}))
            front = stack.enter_context(CuttingProxy(relay.url, fate=lambda asked: FATES["before"](asked)))
            found[name] = front.url
        yield found


def uncut(asked: Asked) -> Fate:
    return Fate()


FATES = {"before": uncut, "behind": uncut}


@pytest.fixture(autouse=True)
def whole_lines() -> None:
    cut.clear()
    FATES.update(before=uncut, behind=uncut)


def call(url: str, tool: str, **arguments: Any) -> dict[str, Any]:
    command = [sys.executable, str(RUN), "call", f"{url}/mcp", tool, json.dumps(arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def run_of(told: dict[str, Any], key: str) -> int:
    return int(str(told[key]).rpartition(" ")[2])


@pytest.mark.parametrize(
    ("kind", "where"), [("plain", "before"), ("plain", "behind"), ("store", "nowhere"), ("store", "behind")]
)
def test_a_call_has_all_of_its_answer_and_runs_once(sites: dict[str, str], kind: str, where: str) -> None:
    if where != "nowhere":
        FATES[where] = cut_once
    told = call(sites[kind], "count", to=5)
    assert told["tools"] == ["count", "polled"]
    assert len(cut) == (where != "nowhere")
    if (kind, where) == ("plain", "behind"):  # the server keeps nothing that could be gone on with
        assert "closed the connection before the end" in told["error"]
        return
    assert told["progress"] == STEPS
    assert run_of(told, "again") == run_of(told, "result") + 1


def test_a_server_that_closes_a_stream_is_polled_for_its_client(sites: dict[str, str]) -> None:
    told = call(sites["store"], "polled")
    assert (told["result"], told["progress"]) == ("polled", ["before", "while away", "after"])
