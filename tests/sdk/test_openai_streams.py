"""OpenAI's own package reads its other event streams through a relay: whole, or to the error of what breaks off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.install import is_installed, python_generation
from tests.support.format_samples import FORMATS
from tests.support.processes import RelayProcess, needs
from tests.support.scripted import Cut, Head, ScriptedUpstream, Send, stream

pytestmark = pytest.mark.slow

RUN = Path(__file__).with_name("openai_streams_run.py")
PATHS = {
    "images": "/v1/images/generations",
    "edits": "/v1/images/edits",
    "transcript": "/v1/audio/transcriptions",
    "completions": "/v1/completions",
}
HEAD = Head(200, {"content-type": "text/event-stream"})


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def relay(upstream: ScriptedUpstream) -> Iterator[RelayProcess]:
    application = {"name": "openai", "base_url": upstream.url, "apis": ["sse"], "paths": list(PATHS.values())}
    with RelayProcess({"upstreams": [application], "drain": {"timeout": "0s"}}) as process:
        yield process


def kinds(name: str) -> list[str]:
    bodies = [json.loads(event.data) for event in FORMATS[name].events if event.data != "[DONE]"]
    return [body.get("type") or body["object"] for body in bodies]


@pytest.mark.parametrize("generation", ["py-new", "py-old"])
@pytest.mark.parametrize("breaks_off", [False, True])
def test_each_is_read_as_from_its_api(
    relay: RelayProcess, upstream: ScriptedUpstream, generation: str, breaks_off: bool
) -> None:
    needs(is_installed(generation), "the SDKs: run tests/sdk/install.py")
    for name, path in PATHS.items():
        frames = FORMATS[name].frames
        upstream.on_path(f"POST {path}", *((HEAD, Send(frames[0]), Cut()) if breaks_off else stream(*frames)))
    environment = {**os.environ, "PYTHONPATH": str(python_generation(generation))}
    command = [sys.executable, str(RUN), relay.url]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout)
    for name in PATHS:
        seen = kinds(name)[:1] if breaks_off else kinds(name)
        assert told[name] == {"seen": seen, "error": "upstream_disconnected" if breaks_off else None}, name
