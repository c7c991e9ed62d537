"""The official SDKs, unmodified, see through the relay exactly what they see straight from the upstream.

Each SDK runs twice, once against the scripted upstream and once against the relay in front of it; one run
plays every scenario of every API at once. The transcripts hold every event, the assembled text, tool calls,
reasoning and usage, and the error raised.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.sdk import scenarios_chat, scenarios_messages, scenarios_responses
from tests.sdk.install import NODE, PYTHON_GENERATIONS, is_installed, python_generation
from tests.sdk.scenarios import UPSTREAM_ID, Scenario
from tests.support.processes import RelayProcess, needs
from tests.support.scripted import ScriptedUpstream
from tests.support.sseclient import open_stream
from tests.support.streams import PATHS

Transcript = dict[str, Any]

SDKS = (*(name for name in PYTHON_GENERATIONS if name.startswith("py-")), "node")
APIS = {
    "chat": (PATHS["chat"], scenarios_chat.SCENARIOS),
    "messages": (PATHS["messages"], scenarios_messages.SCENARIOS),
    "responses": (PATHS["responses"], scenarios_responses.SCENARIOS),
}
CASES = [(api, name) for api, (_, scenarios) in APIS.items() for name in scenarios]
MODES = ("raw", "helper")
DRIVER = Path(__file__).with_name("driver.py")
DRIVER_TIMEOUT = 60


def model_of(api: str, scenario: str) -> str:
    return f"{api}-{scenario}"


def scenario_of(api: str, name: str) -> Scenario:
    return APIS[api][1][name]


@dataclass
class Bench:
    """The upstream, the relay in front of it, and what each SDK has seen of both."""

    upstream: ScriptedUpstream
    config: dict[str, Any]
    relay: RelayProcess | None = None

    def __post_init__(self) -> None:
        self.direct = cache(lambda sdk: drive(sdk, self.upstream.url))
        self.relayed = cache(lambda sdk: drive(sdk, self.relay_url))

    @property
    def relay_url(self) -> str:
        if self.relay is None:
            self.relay = RelayProcess(self.config).start()
        return self.relay.url


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with ScriptedUpstream() as upstream:
        for api, name in CASES:
            upstream.on(model_of(api, name), *scenario_of(api, name).steps)
        config = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "streams": {"heartbeat": "200ms", "patience": "4s", "patience_limit": "4s"},
        }
        found = Bench(upstream, config)
        yield found
        if found.relay is not None:
            found.relay.stop()


@pytest.fixture(params=SDKS)
def sdk(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "node":
        needs(shutil.which("node"), "Node.js")
    needs(is_installed(name), f"the SDKs of {name}: run tests/sdk/install.py")
    return name


def drive(sdk: str, base_url: str) -> dict[tuple[str, str, str], Transcript]:
    """Run every job in one process of this SDK; transcripts by (api, scenario, mode)."""
    keys = [(api, name, mode) for api, name in CASES for mode in MODES]
    jobs = json.dumps([(api, model_of(api, name), mode) for api, name, mode in keys])
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "ANTHROPIC_"))}
    env = {**keep, "NO_PROXY": "*", "no_proxy": "*"}
    if sdk == "node":
        command, folder = ["node", "driver.mjs", base_url, jobs], NODE
    else:
        # -S: none of the relay's own packages can stand in for one of the SDK's.
        command, folder = [sys.executable, "-S", str(DRIVER), base_url, jobs], DRIVER.parent
        env["PYTHONPATH"] = str(python_generation(sdk))
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=DRIVER_TIMEOUT)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(keys, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("api", "scenario"), CASES)
def test_the_scripts_do_what_their_names_say(bench: Bench, sdk: str, api: str, scenario: str) -> None:
    seen = bench.direct(sdk)[api, scenario, "raw"]
    wanted = scenario_of(api, scenario)
    assert {name: seen[name] for name in wanted.expect} == wanted.expect
    if wanted.error is not None:
        assert seen["error"] is not None
        assert {name: seen["error"][name] for name in wanted.error} == wanted.error


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("api", "scenario"), CASES)
def test_same_transcript_through_the_relay(bench: Bench, sdk: str, api: str, scenario: str, mode: str) -> None:
    direct = bench.direct(sdk)[api, scenario, mode]
    relayed = bench.relayed(sdk)[api, scenario, mode]
    if scenario_of(api, scenario).committed_early:
        direct, relayed = ({**transcript, "headers": {}} for transcript in (direct, relayed))
    assert relayed == direct


@pytest.mark.parametrize("scenario", ["keepalives", "upstream_ids"])
@pytest.mark.parametrize("api", APIS)
def test_upstream_noise_is_not_forwarded(bench: Bench, api: str, scenario: str) -> None:
    body = {"model": model_of(api, scenario), "stream": True, "messages": [], "input": ""}
    with open_stream(bench.relay_url + APIS[api][0], body=body) as stream:
        events = stream.events()
        assert stream.ended == "zero-chunk"
    stream_id = stream.headers["relay-stream-id"]
    assert [event.id for event in events] == [f"{stream_id}.{n + 1}" for n in range(len(events))]
    assert UPSTREAM_ID.encode() not in stream.raw_body
    assert stream.raw_body.count(b"retry:") == 1  # the relay's own, inside its first event
    assert f"id: {stream_id}.1\nretry: ".encode() in stream.raw_body
    assert b"PROCESSING" not in stream.raw_body
    assert b"\n:\n" not in stream.raw_body
    assert b"a comment" not in stream.raw_body
    assert (b"\n: hb\n" in stream.raw_body) != (b'\nevent: ping\ndata: {"type":"ping"}\n' in stream.raw_body)


@pytest.mark.parametrize("api", APIS)
def test_heartbeats_come_before_a_late_upstream_answers(bench: Bench, api: str) -> None:
    body = {"model": model_of(api, "late_head"), "stream": True, "messages": [], "input": ""}
    with open_stream(bench.relay_url + APIS[api][0], body=body) as stream:
        assert next(iter(stream)).is_heartbeat
        assert stream.events()[0].id == f"{stream.headers['relay-stream-id']}.1"
