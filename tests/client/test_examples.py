"""The README's example, run: without the transport a cut ends it, with the transport the reader sees nothing of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.scripts import FRAMES, TEXT
from tests.conftest import Relays
from tests.sdk.install import is_installed, python_generation
from tests.support.cutting_http import Cut, CuttingBalancer
from tests.support.processes import needs
from tests.support.scripted import ScriptedUpstream, stream

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent / "examples"
ROOT = EXAMPLES.parents[2]


def run(name: str, base_url: str) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{python_generation('py-new')}:{ROOT}",
        "PYTHONIOENCODING": "utf-8",
        "OPENAI_BASE_URL": f"{base_url}/v1",
        "OPENAI_API_KEY": "sk-test",
    }
    command = [sys.executable, "-S", str(EXAMPLES / name)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_before_and_after(upstream: ScriptedUpstream, relays: Relays) -> None:
    needs(is_installed("py-new"), "the SDKs of py-new: run tests/sdk/install.py")
    upstream.on("gpt-4o", *stream(*(frame for frame in FRAMES["chat"] if '"choices": []' not in frame)))
    relay = relays.start({"upstreams": [{"name": "scripted", "base_url": upstream.url}]})
    port = int(relay.url.rpartition(":")[2])

    def seen(name: str) -> subprocess.CompletedProcess[str]:
        cuts = iter([Cut(5000, "rst")])
        with CuttingBalancer(port, plan=lambda: next(cuts, Cut(1 << 40, "fin"))) as cutter:
            return run(name, cutter.url)

    before, after = seen("before.py"), seen("after.py")
    assert before.returncode == 1
    assert "ReadError" in before.stderr or "RemoteProtocolError" in before.stderr
    assert 0 < len(before.stdout) < len(TEXT)
    assert TEXT.startswith(before.stdout)
    assert (after.returncode, after.stdout, after.stderr) == (0, TEXT, "")
    assert len(upstream.calls_of("gpt-4o")) == 2
