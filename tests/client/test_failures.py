"""What a user of an unmodified SDK sees when a stream cannot go on, and what that costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.client.adversary import HARM, Adversary
from tests.client.played import STREAM
from tests.sdk.install import is_installed, python_generation
from tests.support.processes import needs

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture(params=["py-new", "py-httpx", "py-old"])
def sdk(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    needs(is_installed(name), f"the SDKs of {name}: run tests/sdk/install.py")
    return name


def run(sdk: str, server: Adversary, timeout: float, attempts: int) -> dict[str, Any]:
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "ANTHROPIC_"))}
    env = {**keep, "NO_PROXY": "*", "no_proxy": "*", "PYTHONPATH": f"{python_generation(sdk)}:{HERE.parents[1]}"}
    argument = json.dumps({"url": server.url, "timeout": timeout, "attempts": attempts})
    done = subprocess.run(
        [sys.executable, "-S", str(HERE / "run_failing.py"), argument],
        env=env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_time_out_of_one_second_is_one_and_its_retries_share_a_key(sdk: str) -> None:
    """The SDK's own two retries, and nothing between them."""
    with Adversary(HARM["nothing_at_all"], begins=False) as server:
        seen = run(sdk, server, timeout=1, attempts=10)
        assert seen["error"][0] == "APITimeoutError"
        assert len(server.keys) == 3
        assert len(set(server.keys)) == 1
        assert server.keys[0] is not None
    assert seen["took"] < 30


def test_the_sdk_s_retries_do_not_multiply_the_tries(sdk: str) -> None:
    with Adversary(HARM["breaks_off"], begins=False) as server:
        seen = run(sdk, server, timeout=20, attempts=3)
        assert "APIConnectionError" in seen["error"]
        assert len(server.keys) == 1 + 3 + 2
        assert len(set(server.keys)) == 1


def test_the_failure_is_found_in_the_sdk_s_error(sdk: str) -> None:
    with Adversary(HARM["only_a_heartbeat"]) as server:
        seen = run(sdk, server, timeout=20, attempts=2)
    assert seen["found"] is not None
    assert seen["found"][:2] == ["gave_up", f"{STREAM}.1"]
    if "APIConnectionError" in seen["error"]:
        assert seen["found"][2]
