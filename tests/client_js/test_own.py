"""An application's streams through real relays that are cut everywhere: the chat of the AI SDK, and an EventSource."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.client_js.conftest import Bench, finish, start
from tests.client_js.install import NODE
from tests.client_js.test_ai import CLIENT
from tests.support.cutting_http import BEFORE_HEAD, Asked, CuttingProxy, Fate, Way
from tests.support.format_samples import FORMATS
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, Pause, ScriptedUpstream, Step, stream
from tests.support.stores import valkey_server

pytestmark = pytest.mark.slow

JOBS = (("chat", "ui"), ("events", "ui"), ("events", "ag-ui"), ("events", "plain"))
HEADS = {"ui": {"x-vercel-ai-ui-message-stream": "v1"}}
WAYS: tuple[Way, ...] = ("fin", "rst", "clean", "close")
ROUNDS = 6


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ScriptedUpstream() as upstream, valkey_server(tmp_path_factory.mktemp("valkey")) as store:
        application = {"name": "application", "base_url": upstream.url, "apis": ["sse"], "paths": ["/api/**"]}
        config: dict[str, Any] = {
            "upstreams": [application],
            "store": {"url": store.url},
            "streams": {"heartbeat": "200ms", "lease": "2s"},
            "drain": {"timeout": "1s"},
        }
        with RelayProcess(config) as first, RelayProcess(config) as second:
            yield Bench(upstream, store, (first, second))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    modules = folder / "node_modules"
    modules.mkdir()
    shutil.copytree(CLIENT, modules / "relay-streams")
    (modules / "ai").symlink_to(NODE / "node_modules" / "ai")
    for name in ("chat.mjs", "own.mjs"):
        shutil.copy(NODE / name, folder)
    return folder


def script(name: str) -> tuple[Step, ...]:
    steps: list[str | bytes | Step] = []
    for number, event in enumerate(FORMATS[name].events):
        steps += [event.from_upstream(number), Pause(0.01)]
    return stream(*steps, headers=HEADS.get(name))


def read(bench: Bench, project: Path, url: str, *rounds: str) -> list[dict[str, Any]]:
    jobs = [(how, FORMATS[name].path, f"{how}-{name}-{round_}") for round_ in rounds for how, name in JOBS]
    for _, path, model in jobs:
        bench.upstream.on(model, *script(path.rpartition("/")[2]))
    seen: list[dict[str, Any]] = finish(start("own.mjs", {"url": url, "jobs": jobs}, cwd=project))
    return seen


def test_what_is_cut_everywhere_reads_as_what_is_not(bench: Bench, project: Path) -> None:
    dice = cache(random.Random)

    def fate(asked: Asked) -> Fate:
        rng = dice(asked.model)
        if rng.random() < 0.2:
            return Fate(BEFORE_HEAD, rng.choice(("fin", "rst")), to=rng.randrange(2))
        return Fate(rng.randrange(0, 900), rng.choice(WAYS), to=rng.randrange(2))

    uncut = read(bench, project, bench.urls[0], "uncut")
    for (how, name), seen in zip(JOBS, uncut, strict=True):
        assert seen["error"] is None, name
        if how == "events":
            assert seen["read"] == [[event.kind or "message", event.data] for event in FORMATS[name].events]
        else:
            assert [part["type"] for part in seen["read"][1]["parts"]][-1] == "text"
    rounds = [f"round-{number}" for number in range(ROUNDS)]
    with CuttingProxy(*bench.urls, fate=fate) as proxy:
        cut = read(bench, project, proxy.url, *rounds)
        for number, seen in enumerate(cut):
            how, name = JOBS[number % len(JOBS)]
            model = f"{how}-{name}-{rounds[number // len(JOBS)]}"
            assert seen == uncut[number % len(JOBS)], model
            assert len(bench.upstream.calls_of(model)) == 1
            assert len(proxy.asked(model)) > 1


def test_a_stop_before_the_answer_begins_ends_it(bench: Bench, project: Path) -> None:
    """Its stream's id is not known before: so the request goes on until it is."""
    bench.upstream.on("stopped", Pause(1.0), *stream(FORMATS["ui"].events[0].from_upstream(0), Gate("never")))
    job = ["stopped", FORMATS["ui"].path, "stopped"]
    (seen,) = finish(start("own.mjs", {"url": bench.urls[0], "jobs": [job]}, cwd=project))
    assert seen["error"] is None
    assert len(seen["read"]) == 1
    (call,) = bench.upstream.calls_of("stopped")
    assert call.ended.wait(20)
    assert call.cancelled
