"""An Idempotency-Key while its generation may run and cannot be joined: nobody pays for it a second time.

In every case the upstream counts its calls.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.asking import ask as ask_url
from tests.support.cutting import FaultProxy, Pass, Refuse
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.processes import RelayProcess
from tests.support.replicas import stream_id
from tests.support.scripted import Cut, Gate, Head, ScriptedUpstream, Send, stream
from tests.support.sseclient import RawStream
from tests.support.stores import Server, valkey_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

AUTH = {"authorization": "Bearer sk-keys"}
KEY = {"idempotency-key": "order-4711"}
STREAMS = {"heartbeat": "200ms", "lease": "1s", "patience": "1s", "abandon_after": "60s"}


@dataclass(frozen=True)
class Site:
    """Replica A reaches the store through a proxy, B does not."""

    upstream: ScriptedUpstream
    server: Server
    proxy: FaultProxy
    a: RelayProcess
    b: RelayProcess


@contextmanager
def replicas(folder: Path, upstream: ScriptedUpstream, **streams: Any) -> Iterator[Site]:
    with valkey_server(folder / "store") as store, FaultProxy(store.servers[0].port) as proxy:
        config: dict[str, Any] = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "streams": {**STREAMS, **streams},
        }
        with (
            RelayProcess({**config, "store": {"url": proxy.url}}) as a,
            RelayProcess({**config, "store": {"url": store.url}}) as b,
        ):
            yield Site(upstream, store.servers[0], proxy, a, b)


@pytest.fixture
def site(tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[Site]:
    with replicas(tmp_path, upstream) as found:
        yield found


def post(relay: RelayProcess, model: str = "m", timeout: float = 20.0, **headers: str) -> RawStream:
    body = {"model": model, "stream": True, "messages": []}
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask_url(relay.url + PATH, headers={**AUTH, **KEY, **said}, body=body, timeout=timeout)


def code(answer: RawStream) -> tuple[int, str]:
    with answer:
        answer.read()
        return answer.status, answer.json["error"]["code"]


def in_flight(answer: RawStream) -> bool:
    """Told to come back: the key's generation runs, or the store has only just come back."""
    assert int(answer.headers["retry-after"]) >= 1
    return code(answer) == (409, "idempotency_key_in_flight")


def test_what_goes_on_without_a_log_cannot_be_joined_and_is_not_paid_for_twice(site: Site) -> None:
    """The store was away just when the upstream answered."""
    site.upstream.on("m", Gate("answer"), *stream(frame(1), Gate("end"), frame(2), DONE))
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(post, site.a)
        site.upstream.wait_reached("answer")
        site.proxy.mode = Refuse()
        site.upstream.open("answer")
        first = asking.result(10)
        assert first.headers["relay-resumable"] == "false"
        site.proxy.mode = Pass()
        for relay in (site.a, site.b):
            wait_until(lambda relay=relay: in_flight(post(relay)), 10, "the key is known to be in flight")  # type: ignore[misc]
        began = time.monotonic()
        assert in_flight(post(site.b))
        assert time.monotonic() - began < 1, "there was nothing to wait for"
    assert len(site.upstream.calls) == 1
    site.upstream.open("end")
    assert check(first.events()) == (2, "done")
    # It is over, and nobody could have read it: the key may be used again.
    wait_until(lambda: post(site.b).status == 200, 10, "the key is free again")
    assert len(site.upstream.calls) == 2


def test_a_winner_that_is_paused_keeps_its_key(site: Site) -> None:
    """A process that is stopped, or a machine that sleeps, goes on with its call when it wakes."""
    site.upstream.on("m", Gate("answer"), *stream(frame(1), Gate("end"), DONE))
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(post, site.a, timeout=60)
        site.upstream.wait_reached("answer")
        site.a.signal(signal.SIGSTOP)
        try:
            assert in_flight(post(site.b))  # after patience and a lease
            assert in_flight(post(site.b))
        finally:
            site.a.signal(signal.SIGCONT)
        site.upstream.open("answer")
        first = asking.result(20)
        second = post(site.b)
        assert stream_id(first) == stream_id(second)
        site.upstream.open("end")
        assert check(first.events()) == check(second.events()) == (1, "done")
    assert len(site.upstream.calls) == 1


def test_a_winner_that_was_paused_in_mid_stream_keeps_its_key(site: Site) -> None:
    """Its stream is ended for it, but its call runs until it wakes: only then may there be another."""
    site.upstream.on("m", *stream(frame(1), Gate("end"), DONE))
    first = post(site.a)
    first.events(1)
    site.a.signal(signal.SIGSTOP)
    try:
        reading = ask_url(f"{site.b.url}/streams/{stream_id(first)}", "GET", AUTH)
        assert check(reading.events()) == (1, "producer_lost")
        assert in_flight(post(site.b))
    finally:
        site.a.signal(signal.SIGCONT)
    wait_until(lambda: post(site.b).status == 200, 10, "the key is free again")
    (lost, again) = site.upstream.calls
    assert lost.ended.wait(5)
    assert not again.ended.is_set()
    site.upstream.open("end")


@pytest.mark.parametrize("where", ["a", "b"])
@pytest.mark.parametrize("how", ["failed", "stopped"])
def test_what_has_no_answer_gives_its_key_back(site: Site, how: str, where: str) -> None:
    site.upstream.on("m", *stream(frame(1), Gate("on"), Cut()))
    first = post(site.a)
    events = first.events(1)
    if how == "stopped":
        assert ask_url(f"{site.b.url}/streams/{stream_id(first)}", "DELETE", AUTH).status == 204
    else:
        site.upstream.open("on")
        assert check(events + first.events()) == (1, "upstream_disconnected")
    site.upstream.on("m", *stream(frame(1), frame(2), DONE))
    again = post(getattr(site, where))
    assert stream_id(again) != stream_id(first)
    assert check(again.events()) == (2, "done")
    third = post(site.a)
    assert (stream_id(third), check(third.events())) == (stream_id(again), (2, "done"))
    assert len(site.upstream.calls) == 2


def test_a_key_whose_answer_has_expired_may_be_used_again(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.on("m", *stream(frame(1), DONE))
    with replicas(tmp_path, upstream, retention="500ms") as site:
        first = post(site.a)
        assert check(first.events()) == (1, "done")

        def another() -> bool:
            with post(site.b) as answer:
                return answer.status == 200 and stream_id(answer) != stream_id(first)

        wait_until(another, 15, "a new answer")
    assert len(upstream.calls) == 2


def test_a_store_that_comes_back_empty_forgets_no_key_of_what_runs(site: Site) -> None:
    site.upstream.on("m", Gate("answer"), *stream(frame(1), Gate("end"), DONE))
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(post, site.a, timeout=60)
        site.upstream.wait_reached("answer")
        site.server.kill()
        assert code(post(site.b)) == (503, "store_unavailable")
        site.server.start()
        statuses = set()
        for _ in range(3):
            with post(site.b) as answer:
                statuses.add(answer.status)
        assert statuses <= {409, 503}
        site.upstream.open("answer")
        first = asking.result(20)
        assert first.headers["relay-resumable"] == "true"

        def joined() -> bool:
            with post(site.b) as answer:
                return answer.status == 200 and stream_id(answer) == stream_id(first)

        wait_until(joined, 10, "a second reader of the first generation")
        site.upstream.open("end")
    assert len(site.upstream.calls) == 1


def test_a_winner_that_dies_in_mid_stream_leaves_its_key(site: Site) -> None:
    site.upstream.on("m", *stream(frame(1), Gate("end"), DONE))
    first = post(site.a)
    first.events(1)
    site.a.kill()
    site.upstream.on("m", *stream(frame(1), frame(2), DONE))

    def another() -> bool:
        with post(site.b) as answer:
            if answer.status != 200:
                return False
            assert stream_id(answer) != stream_id(first), "nobody is given the dead one's log"
            return check(answer.events()) == (2, "done")

    wait_until(another, 15, "a whole answer")
    assert len(site.upstream.calls) == 2


# -- streams that begin while the deployment's secret is not known ----------------------------------------------------


def test_a_stream_whose_owner_nobody_would_be_has_no_log(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A relay that starts while its store is away does not know yet what stands for a credential."""
    upstream.on("m", Gate("answer"), Head(200, {"content-type": "text/event-stream"}), Send(frame(1)), Send(DONE))
    upstream.on("later", *stream(frame(1), DONE))
    with replicas(tmp_path, upstream) as site, ThreadPoolExecutor(1) as pool:
        site.proxy.mode = Refuse()
        config = {name: site.b.config[name] for name in ("upstreams", "streams")}
        with RelayProcess({**config, "store": {"url": site.proxy.url}}) as late:
            body = {"model": "m", "stream": True, "messages": []}
            asking = pool.submit(ask_url, late.url + PATH, headers=AUTH, body=body)
            upstream.wait_reached("answer")
            assert code(post(late)) == (503, "store_unavailable")  # a key cannot be honoured
            site.proxy.mode = Pass()
            upstream.open("answer")
            answer = asking.result(10)
            name = stream_id(answer)
            assert answer.headers["relay-resumable"] == "false"
            assert check(answer.events()) == (1, "done")
            assert code(ask_url(f"{late.url}/streams/{name}", "GET", AUTH)) == (400, "resume_not_supported")

            def logged() -> bool:
                with ask_url(late.url + PATH, headers=AUTH, body={**body, "model": "later"}) as again:
                    seen = again.events()
                    if again.headers["relay-resumable"] == "false":
                        return False
                    with ask_url(f"{site.b.url}/streams/{stream_id(again)}", "GET", AUTH) as elsewhere:
                        return [e.raw for e in elsewhere.events()] == [e.raw for e in seen]

            wait_until(logged, 10, "a stream with a log")


def test_a_newcomer_at_a_store_that_came_back_empty_takes_no_stream_from_its_owner(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """It has not heard of the deployment's secret, and is there before those who have."""
    upstream.on("m", Head(200, {"content-type": "text/event-stream"}), Send(frame(1)), Gate("rest"), Send(DONE))
    with replicas(tmp_path, upstream) as site:
        newcomers = {name: site.b.config[name] for name in ("upstreams", "streams")}
        site.b.stop()
        with ask_url(site.a.url + PATH, headers=AUTH, body={"model": "m", "stream": True, "messages": []}) as asking:
            name = stream_id(asking)
            site.proxy.mode = Refuse()
            site.server.kill()
            with RelayProcess({**newcomers, "store": {"url": f"redis://127.0.0.1:{site.server.port}"}}) as late:
                site.server.start()
                wait_until(lambda: bool(site.server.command("ZCARD", "relay:replicas")), 10, "the newcomer's sign")
                site.proxy.mode = Pass()
                wait_until(lambda: bool(site.server.command("EXISTS", f"relay:{{{name}}}:log")), 10, "the log again")
                upstream.open("rest")
                assert check(asking.events()) == (1, "done")
                for replica in (site.a, late):
                    with ask_url(f"{replica.url}/streams/{name}", "GET", AUTH) as again:
                        assert (again.status, check(again.events())) == (200, (1, "done"))
