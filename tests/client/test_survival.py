"""Unmodified SDKs with nothing but the transport swapped, two real replicas, and a load balancer that keeps cutting.

Every SDK runs as a process of its own, with its own packages and the relay's folder on its path, and none of the
relay's dependencies. What its user sees must be what an uncut run shows, from one upstream call; without the transport
the same script fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.client.scripts import FRAMES, TEXT, TOOLS, script
from tests.sdk.install import is_installed, python_generation
from tests.support.cutting_http import CuttingBalancer, at_random
from tests.support.processes import RelayProcess, needs
from tests.support.replicas import replicas, settings
from tests.support.scripted import ScriptedUpstream
from tests.support.stores import valkey_server

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SDKS = ("py-new", "py-httpx", "py-old", "langchain")
TIMEOUT = 90
MOST_BYTES = 3000

Job = tuple[str, str, str]
Transcript = dict[str, Any]


def jobs_of(sdk: str, run: str) -> list[Job]:
    """Every API in every way that the SDK has to stream it, each with a model of its own."""
    apis = ("chat", "responses") if sdk == "langchain" else tuple(FRAMES)
    modes = ("raw", "async") if sdk == "langchain" else ("raw", "helper", "async")
    return [(api, f"{run}-{sdk}-{api}-{mode}", mode) for api in apis for mode in modes]


def start(sdk: str, base_url: str, jobs: list[Job], transport: str) -> subprocess.Popen[str]:
    driver = HERE / ("run_langchain.py" if sdk == "langchain" else "run_sdk.py")
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "ANTHROPIC_"))}
    env = {**keep, "NO_PROXY": "*", "no_proxy": "*", "PYTHONPATH": f"{python_generation(sdk)}:{ROOT}"}
    # -S: none of the relay's own packages can stand in for one of the SDK's.
    command = [sys.executable, "-S", str(driver), base_url, json.dumps(jobs), transport]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> list[Transcript]:
    try:
        output, errors = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors[-4000:]
    found: list[Transcript] = json.loads(output)
    return found


@dataclass
class Bench:
    upstream: ScriptedUpstream
    relays: list[RelayProcess]
    _uncut: dict[str, list[Transcript]] = field(default_factory=dict)

    @property
    def ports(self) -> list[int]:
        return [int(relay.url.rpartition(":")[2]) for relay in self.relays]

    def script(self, jobs: list[Job], gate: str | None = None) -> None:
        for api, model, _ in jobs:
            self.upstream.on(model, *script(api, gate=gate))

    def uncut(self, sdk: str) -> list[Transcript]:
        """What the SDK shows without the transport and without a cut."""
        if sdk not in self._uncut:
            jobs = jobs_of(sdk, "uncut")
            self.script(jobs)
            self._uncut[sdk] = finish(start(sdk, self.relays[0].url, jobs, "plain"))
        return self._uncut[sdk]

    def calls(self, jobs: list[Job]) -> list[int]:
        return [len(self.upstream.calls_of(model)) for _, model, _ in jobs]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with (
        ScriptedUpstream() as upstream,
        valkey_server(tmp_path_factory.mktemp("valkey")) as store,
        replicas(2, settings(upstream, store)) as relays,
    ):
        found = Bench(upstream, relays)
        found.script([(api, f"warm-up-{api}", "raw") for api in ("chat", "messages")])
        yield found


@pytest.fixture(params=SDKS)
def sdk(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    needs(is_installed(name), f"the SDKs of {name}: run tests/sdk/install.py")
    return name


def shown(transcript: Transcript) -> Transcript:
    return {name: value for name, value in transcript.items() if name != "headers"}


def test_the_uncut_run_shows_everything(bench: Bench, sdk: str) -> None:
    for (api, _, mode), seen in zip(jobs_of(sdk, "uncut"), bench.uncut(sdk), strict=True):
        assert seen["error"] is None
        if mode != "helper":
            assert (seen["text"], len(seen["tools"])) == (TEXT, 1)
            assert seen["usage"]
        if mode != "helper" and sdk != "langchain":
            assert seen["tools"] == [TOOLS[api]]


def test_one_seamless_stream_out_of_many_cut_ones(bench: Bench, sdk: str) -> None:
    seed = SDKS.index(sdk)
    jobs = jobs_of(sdk, "cut")
    bench.script(jobs)
    # The first POSTs die without an answer: only their keys keep them from being paid for twice.
    with CuttingBalancer(*bench.ports, plan=at_random(seed, MOST_BYTES, heads=len(jobs))) as cutter:
        seen = finish(start(sdk, cutter.url, jobs, "resuming"))
    for job, got, wanted in zip(jobs, seen, bench.uncut(sdk), strict=True):
        assert shown(got) == shown(wanted), job
    assert bench.calls(jobs) == [1] * len(jobs)
    assert min(cutter.cuts[how] for how in ("head", "fin", "rst", "clean")) > 1
    assert cutter.cuts.total() > 3 * len(jobs)
    print(f"{sdk}, seed {seed}: {len(jobs)} streams, {dict(cutter.cuts)}")


def test_without_the_transport_the_same_script_fails(bench: Bench, sdk: str) -> None:
    jobs = jobs_of(sdk, "plain")
    bench.script(jobs)
    with CuttingBalancer(*bench.ports, plan=at_random(3, MOST_BYTES, heads=0)) as cutter:
        seen = finish(start(sdk, cutter.url, jobs, "plain"))
    for job, got, wanted in zip(jobs, seen, bench.uncut(sdk), strict=True):
        assert len(got["events"]) < len(wanted["events"]), job
    assert any(got["error"] for got in seen)


def test_the_death_of_the_reader_s_replica_is_not_seen(bench: Bench, sdk: str) -> None:
    """The producer goes on elsewhere; the replica that only serves the readers is killed under them."""
    every = list(zip(jobs_of(sdk, "killed"), bench.uncut(sdk), strict=True))
    if sdk == "langchain":
        every = [(job, wanted) for job, wanted in every if job[2] == "async"]  # the others run one after the other
    jobs = [job for job, _ in every]
    gate = f"killed-{sdk}"
    bench.script(jobs, gate)
    serving = bench.relays[1]
    producing_port, serving_port = bench.ports
    with CuttingBalancer(producing_port) as cutter:
        process = start(sdk, cutter.url, jobs, "resuming")
        try:
            bench.upstream.wait_reached(gate, 60, connections=len(jobs))
            cutter.targets = (serving_port,)
            cutter.cut_all()
            cutter.wait_connected(serving_port, len(jobs))
            before = cutter.connected[producing_port]
            cutter.targets = (serving_port, producing_port)
            serving.kill()
            cutter.wait_connected(producing_port, before + len(jobs))
            bench.upstream.open(gate)
            seen = finish(process)
        finally:
            process.kill()
            process.wait()
            serving.start()
    assert [shown(got) for got in seen] == [shown(wanted) for _, wanted in every]
    assert bench.calls(jobs) == [1] * len(jobs)
