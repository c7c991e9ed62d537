"""What a server sends without an end costs a bound of time and of requests (tests/client/adversary.py)."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.client.adversary import HARM, Adversary
from tests.client.played import BODY, PATH, STREAM
from tests.client_js.conftest import node

pytestmark = pytest.mark.slow

BOUND = 12
TIMES = {"maxElapsedMs": 10_000, "firstDelayMs": 50, "silenceMs": 1000}
OPTIONS = {"maxAttempts": 2, **TIMES, "maxEventBytes": 1_000_000, "real": True}


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_bounded(harm: str) -> None:
    with Adversary(HARM[harm]) as server:
        begun = time.monotonic()
        (seen,) = node("fetching.mjs", {"url": server.url, "jobs": [{"path": PATH, "body": BODY}], "options": OPTIONS})
        took = time.monotonic() - begun
        assert server.posts <= 3
    assert seen["error"]["isResumeError"]
    assert seen["error"]["lastEventId"].endswith(".1")
    assert took < BOUND
    assert server.sent < 50_000_000


def failing(server: Adversary, timeout: int, attempts: int) -> dict[str, Any]:
    found: dict[str, Any] = node("failing.mjs", {"url": server.url, "timeout": timeout, "attempts": attempts})
    return found


def test_a_time_out_of_one_second_is_one_and_its_retries_share_a_key() -> None:
    """The SDK's own two retries, and nothing between them."""
    with Adversary(HARM["nothing_at_all"], begins=False) as server:
        seen = failing(server, timeout=1000, attempts=10)
        assert seen["errors"][0] == "APIConnectionTimeoutError"
        assert len(server.keys) == 3
        assert len(set(server.keys)) == 1
        assert server.keys[0] is not None
    assert seen["took"] < 30


def test_the_sdk_s_retries_do_not_multiply_the_tries() -> None:
    with Adversary(HARM["breaks_off"], begins=False) as server:
        seen = failing(server, timeout=20_000, attempts=3)
        assert seen["errors"][0] == "APIConnectionError"
        assert len(server.keys) == 1 + 3 + 2
        assert len(set(server.keys)) == 1


def test_the_failure_is_found_in_the_sdk_s_error() -> None:
    with Adversary(HARM["only_a_heartbeat"]) as server:
        assert failing(server, timeout=20_000, attempts=2)["found"] == ["gave_up", f"{STREAM}.1"]
