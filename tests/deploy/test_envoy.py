"""Controls: without the lines of deploy/envoy, or with Envoy's own defaults, streams are cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deploy.proxies import Envoy
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.scripted import Gate, stream
from tests.support.site import BeatingSite, beating_relays
from tests.support.sseclient import RawStream, open_stream
from tests.support.waiting import wait_until

AUTH = {"authorization": "Bearer sk-one"}
CLUSTERS = ("relay_http1", "relay_h2c")


@pytest.fixture(scope="module")
def site() -> Iterator[BeatingSite]:
    with beating_relays() as found:
        yield found


def post(front: Envoy, model: str) -> RawStream:
    return open_stream(front.url + PATH, headers=AUTH, body={"model": model, "stream": True, "messages": []})


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_route_timeout_cuts_a_stream_however_lively(site: BeatingSite, cluster: str) -> None:
    """The default is 15 s (tests/deploy/test_silence.py runs a stream of 90 s through the shipped file)."""
    model = f"route-{cluster}"
    site.upstream.on(model, *stream(frame(1), Gate(model)))
    with Envoy([site.often.url], cluster, [("timeout: 0s\n", "timeout: 1s\n")]) as front, post(front, model) as answer:
        assert check(answer.events()) == (1, None)
        assert answer.ended in ("fin", "reset")
        assert answer.raw_body.count(b": hb\n") >= 1


@pytest.mark.parametrize("often", [True, False])
def test_heartbeats_carry_a_silent_stream_over_the_idle_timeout(site: BeatingSite, often: bool) -> None:
    model = f"idle-{often}"
    site.upstream.on(model, *stream(frame(1), Gate(model), frame(2), DONE))
    relay = site.often if often else site.seldom
    shorter = [("stream_idle_timeout: 610s", "stream_idle_timeout: 2s")]
    with Envoy([relay.url], more=shorter) as front, post(front, model) as answer:
        events = answer.events(1)
        if often:
            beats = [next(iter(answer)) for _ in range(8)]
            assert all(beat.is_heartbeat for beat in beats)
            site.upstream.open(model)
        events += answer.events()
    assert check(events) == ((2, "done") if often else (1, None))
    assert (answer.ended == "zero-chunk") == often


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_more_streams_at_once_than_the_circuit_breakers_allow_are_refused(site: BeatingSite, cluster: str) -> None:
    """Each stream is a request for as long as it lasts; Envoy's own limit is 1024."""
    model = f"many-{cluster}"
    site.upstream.on(model, *stream(frame(1), Gate(model), frame(2), DONE))
    fewer = [("max_requests: 200000", "max_requests: 3")]
    with Envoy([site.often.url], cluster, fewer) as front:
        answers = [post(front, model) for _ in range(3)]
        assert [check(a.events(1)) for a in answers] == [(1, None)] * 3
        with post(front, model) as refused:
            assert refused.status == 503
            assert b"overflow" in refused.read()
        site.upstream.open(model)
        for answer in answers:
            assert answer.events()[-1].data == "[DONE]"
            answer.close()


def test_a_drain_takes_no_stream_from_envoy(site: BeatingSite) -> None:
    """The end of an Envoy as deploy/README.md has it: the listener drains, what runs goes on."""
    site.upstream.on("drained", *stream(frame(1), Gate("drained"), frame(2), DONE))
    with Envoy([site.often.url]) as front, post(front, "drained") as answer:
        events = answer.events(1)
        with open_stream(f"{front.admin}/drain_listeners?graceful", "POST") as told:
            assert told.status == 200
        site.upstream.open("drained")
        assert check(events + answer.events()) == (2, "done")
        assert answer.ended == "zero-chunk"


def test_a_ticket_is_in_no_log(site: BeatingSite) -> None:
    with Envoy([site.often.url]) as front:
        with open_stream(front.url + "/streams/st_none?ticket=SECRET", "GET", AUTH) as answer:
            answer.read()
        wait_until(lambda: '"GET /streams/st_none"' in front.log(), 20, "the line")
        assert "SECRET" not in front.log()
