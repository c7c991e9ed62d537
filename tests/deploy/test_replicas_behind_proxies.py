"""Two replicas behind every proxy: one leaves, and its readers come back; one dies, and nothing is sent twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.deploy.proxies import NAMES, SHIPPED, Nginx, Proxy, proxy
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.pooled import Pooled
from tests.support.replicas import Replicas, settings, two_replicas
from tests.support.replicas import replicas as on_one_store
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.sseclient import ConnectionEnded, RawEvent, RawStream, open_stream
from tests.support.stores import valkey_server
from tests.support.waiting import wait_until

AUTH = {"authorization": "Bearer sk-one"}
READERS = 8
BACK_WITHIN = 20.0
# A proxy that was refused goes on without a relay for so long (deploy/README.md).
KNOWN_AGAIN = 3.0


@pytest.fixture
def replicas(upstream: ScriptedUpstream) -> Iterator[Replicas]:
    served = [{"name": "scripted", "base_url": upstream.url}]
    with two_replicas({"upstreams": served, "log": {"format": "json"}, "drain": {"timeout": "60s"}}) as both:
        yield both


def start(url: str, model: str) -> RawStream:
    answer = open_stream(url + PATH, headers=AUTH, body={"model": model, "stream": True, "messages": []})
    assert answer.status == 200, answer.read()
    return answer


def read(url: str, stream_id: str, after: int = 0) -> RawStream:
    return open_stream(f"{url}/streams/{stream_id}", "GET", {**AUTH, "last-event-id": f"{stream_id}.{after}"})


def to_the_end(url: str, stream_id: str, events: list[RawEvent], answer: RawStream) -> tuple[int, list[RawEvent]]:
    """Read on, and come back for as long as the end is not there; how often, and every event."""
    cuts = 0
    deadline = time.monotonic() + BACK_WITHIN
    while True:
        events += answer.events()
        if answer.ended == "zero-chunk" and answer.status == 200:
            return cuts, events
        cuts += 1
        assert time.monotonic() < deadline, f"not back within {BACK_WITHIN} s: {answer.status} {answer.raw_body!r}"
        try:
            answer = read(url, stream_id, len(events))
        except ConnectionEnded:
            continue
        if answer.status != 200:
            assert answer.status in (502, 503), answer.read()
            answer.close()
            time.sleep(0.2)  # as a client that obeys Retry-After, only sooner


@pytest.mark.parametrize("name", SHIPPED)
def test_readers_of_a_leaving_replica_are_cut_and_come_back(
    upstream: ScriptedUpstream, replicas: Replicas, name: str
) -> None:
    upstream.on("m", *stream(frame(1), Gate("m"), frame(2), frame(3), DONE))
    with proxy(name, [replicas.second.url, replicas.first.url]) as front, start(replicas.first.url, "m") as producer:
        stream_id = producer.headers["relay-stream-id"]
        answers = [read(front.url, stream_id) for _ in range(READERS)]
        firsts = [answer.events(1) for answer in answers]
        with ThreadPoolExecutor(READERS) as pool:
            jobs = [
                pool.submit(to_the_end, front.url, stream_id, events, answer)
                for events, answer in zip(firsts, answers, strict=True)
            ]
            replicas.second.signal(signal.SIGTERM)
            assert replicas.second.wait(20) == 0
            upstream.open("m")
            results = [job.result() for job in jobs]
        assert [check(events) for _, events in results] == [(3, "done")] * READERS
        assert sum(cuts for cuts, _ in results) > 0, "no reader was on the replica that left"
        assert check(producer.events()) == (3, "done")


@pytest.mark.parametrize("name", SHIPPED)
def test_clients_do_not_notice_that_replicas_come_and_go(upstream: ScriptedUpstream, tmp_path: Path, name: str) -> None:
    """Not one refusal, no dropped connection, no upstream call too many."""
    upstream.on("m", *stream(frame(1), frame(2), DONE))
    with (
        valkey_server(tmp_path / "store", unix=True) as store,
        on_one_store(2, settings(upstream, store, drain={"timeout": "60s"})) as both,
        proxy(name, [relay.url for relay in both]) as front,
    ):
        with Pooled([front.url], 8) as pooled:
            for relay in both:
                before = pooled.seen["whole"]
                wait_until(lambda at=before: pooled.seen["whole"] > at + 50, 30, "answers")  # type: ignore[misc]
                relay.signal(signal.SIGTERM)
                assert relay.wait(20) == 0
                relay.start()
                time.sleep(KNOWN_AGAIN)
        assert pooled.seen == {"whole": len(upstream.calls)}


@pytest.mark.parametrize("name", NAMES)
def test_a_post_whose_replica_dies_is_not_sent_again(upstream: ScriptedUpstream, replicas: Replicas, name: str) -> None:
    upstream.on("m", Gate("never"), *stream(frame(1), DONE))
    upstream.on("after", *stream(frame(1), DONE))
    with proxy(name, [replicas.first.url, replicas.second.url]) as front, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(status_of, front, "m")
        upstream.wait_reached("never")
        replicas.first.kill()
        if not upstream.calls_of("m")[0].ended.wait(0.5):
            replicas.second.kill()  # it was this one's
            assert upstream.calls_of("m")[0].ended.wait(5)
        assert asked.result(20) in (502, 503, 504, None)
        assert len(upstream.calls_of("m")) == 1


def status_of(front: Proxy, model: str) -> int | None:
    """None where the connection ended before any answer."""
    try:
        with open_stream(
            front.url + PATH, headers=AUTH, body={"model": model, "stream": True, "messages": []}
        ) as answer:
            return answer.status
    except ConnectionEnded:
        return None


@pytest.mark.parametrize("name", SHIPPED)
def test_a_replica_that_is_not_there_is_passed_over(upstream: ScriptedUpstream, replicas: Replicas, name: str) -> None:
    upstream.on("m", *stream(frame(1), DONE))
    with proxy(name, [replicas.second.url, replicas.first.url]) as front:
        replicas.second.kill()
        for _ in range(6):
            with start(front.url, "m") as answer:
                assert check(answer.events()) == (1, "done")
        assert len(upstream.calls_of("m")) == 6


def test_without_http_1_1_a_cut_looks_complete_to_nginx(upstream: ScriptedUpstream, replicas: Replicas) -> None:
    """Why deploy/nginx has `proxy_http_version 1.1`: it was not the default before nginx 1.29.7."""
    upstream.on("m", *stream(frame(1), Gate("m"), frame(2), DONE))
    with (
        Nginx([replicas.second.url], plain="proxy_http_version 1.0;") as front,
        start(replicas.first.url, "m") as producer,
        read(front.url, producer.headers["relay-stream-id"]) as reader,
    ):
        events = reader.events(1)
        replicas.second.signal(signal.SIGTERM)
        assert check(events + reader.events()) == (1, None)
        assert reader.ended == "zero-chunk"
        upstream.open("m")
        assert check(producer.events()) == (2, "done")
