"""What a server sends without an end costs a bound of time, of requests and of memory, over real sockets."""

from __future__ import annotations

import resource
import time

import pytest

from relay.client.policy import Policy
from tests.client.adversary import HARM, Adversary
from tests.client.played import BODY, KINDS, PATH, frame

pytestmark = pytest.mark.slow

# A silence of 1 s for each of two tries, at most 2 s for each refusal, and what a busy machine adds.
BOUND = 12
POLICY = Policy(max_attempts=2, max_elapsed=10, first_delay=0.05, silence=1, max_event_bytes=1_000_000)


@pytest.mark.parametrize("name", ["httpx", "httpx2-async"])
@pytest.mark.parametrize("harm", HARM)
def test_harm_is_bounded(harm: str, name: str) -> None:
    kind = KINDS[name]()
    made = kind.client.AsyncResumingTransport if kind.is_async else kind.client.ResumingTransport
    with Adversary(HARM[harm]) as server:
        begun = time.monotonic()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seen = kind.ask("POST", [], made(policy=POLICY), server.url + PATH, json=BODY, timeout=600)
        took = time.monotonic() - begun
        assert server.posts <= 3
    assert isinstance(seen.error, kind.client.ResumeFailed)
    assert seen.error.last_event_id.endswith(".1")
    assert seen.body.replace(b": hb\n", b"") == frame(1)
    assert took < BOUND
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000  # KiB
    assert server.sent < 50_000_000


@pytest.mark.parametrize("name", KINDS)
def test_the_caller_s_time_out_ends_a_request_before_its_head(name: str) -> None:
    kind = KINDS[name]()
    made = kind.client.AsyncResumingTransport if kind.is_async else kind.client.ResumingTransport
    policy = Policy(assume_relay=True)
    headers = {"last-event-id": "st_" + "s" * 22 + ".1"}  # the adversary has no answer for a resume
    with Adversary(HARM["nothing_at_all"]) as server:
        begun = time.monotonic()
        seen = kind.ask("POST", [], made(policy=policy), server.url + PATH, json=BODY, headers=headers, timeout=0.5)
        assert type(seen.error) is kind.http.ReadTimeout
        assert time.monotonic() - begun < 5
        assert server.posts == 1
