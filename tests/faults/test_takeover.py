"""The producing replica dies, and another one goes on with its streams: readers see a pause, and the upstream one call.

Behind the replicas stands another relay, or an OpenAI whose responses run in the background. What a client has must be
what the log has, event by event, and the upstream counts what it was asked for.
"""

from __future__ import annotations

import base64
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.observe.scraped import scrape, until
from tests.support.background import BackgroundApi, events_of
from tests.support.clients import TOKEN, Client, Fleet, ends
from tests.support.oracle import DONE, PATH, frame
from tests.support.processes import RelayProcess
from tests.support.replicas import HEARTBEAT, SLACK, StoreView, paced, post, replicas
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.site import served_by
from tests.support.sseclient import RawEvent, open_stream
from tests.support.stores import Store, valkey_server
from tests.support.streams import chat, chat_usage, event
from tests.support.waiting import wait_until

LEASE = 1.0
STREAMS = 20
OWN_KEY = "sk-own"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path / "store", unix=True) as server:
        yield server


@pytest.fixture
def view(store: Store) -> Iterator[StoreView]:
    with StoreView(store) as opened:
        yield opened


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as running:
        yield running


@pytest.fixture
def far(upstream: ScriptedUpstream) -> Iterator[RelayProcess]:
    config = {**served_by(upstream), "streams": {"heartbeat": HEARTBEAT}, "drain": {"timeout": "1s"}}
    with RelayProcess(config) as process:
        yield process


@contextmanager
def near(
    count: int,
    url: str,
    store: Store,
    *,
    key: bool,
    resume: str = "auto",
    usage: str = "passthrough",
    encrypted: bool = False,
    **streams: Any,
) -> Iterator[list[RelayProcess]]:
    """Replicas in front of it, with a key of their own or with their clients' credentials."""
    upstream = {"name": "far", "base_url": url, "resume": resume} | ({"api_key_env": "FAR_KEY"} if key else {})
    config: dict[str, Any] = {
        "upstreams": [upstream],
        "streams": {"lease": LEASE, "heartbeat": HEARTBEAT, "abandon_after": "20s", **streams},
        "store": {"url": store.url},
        "drain": {"timeout": "1s"},
    }
    config["store"] |= {"encryption_env": "STORE_KEY"} if encrypted else {}
    upstream |= {"usage": usage}
    with replicas(count, config, {"FAR_KEY": OWN_KEY, "STORE_KEY": base64.b64encode(bytes(32)).decode()}) as started:
        yield started


class ResponsesClient(Client):
    path = "/v1/responses"
    more: ClassVar = {"input": "hello", "background": True}

    def is_last(self, event: RawEvent) -> bool:
        return event.event in ("response.completed", "response.failed")


def counted(relays: list[RelayProcess], result: str) -> float:
    return sum(scrape(relay).value("relay_upstream_resumes_total", result=result) for relay in relays)


def lapse(view: StoreView, stream: str) -> None:
    """Wait until its producer counts as lost."""
    wait_until(lambda: view.lease_left(stream) < 0, 10, "the lease to lapse")


@pytest.mark.parametrize("key", [True, False], ids=["own key", "clients' credentials"])
def test_streams_of_a_relay_upstream_go_on(
    upstream: ScriptedUpstream, far: RelayProcess, store: Store, view: StoreView, fleet: Fleet, key: bool
) -> None:
    upstream.on("m", *paced(30, 0.1, gate_after=10))
    with near(3, far.url, store, key=key) as (doomed, *others):
        clients = [fleet.start(Client([doomed.url, others[i % 2].url], "m")) for i in range(STREAMS)]
        for client in clients:
            client.wait_events(3)
        doomed.kill()
        upstream.open("gate")
        fleet.wait(60)
        assert ends(clients) == {"done"}
        assert len(upstream.calls) == STREAMS
        for client in clients:
            assert client.stream is not None
            log = view.log(client.stream)
            assert log.ends == ["completed"]
            assert client.raw == log.raw
            assert client.longest_silence < LEASE + SLACK
        assert counted(others, "taken_over") == STREAMS
        for relay in others:
            until(relay, lambda seen: not seen.value("relay_streams_active"), "no stream to be active")
        assert not view.holds(TOKEN), "a credential is in the store"


@pytest.mark.parametrize("key", [True, False], ids=["own key", "clients' credentials"])
def test_responses_in_the_background_go_on(store: Store, view: StoreView, fleet: Fleet, key: bool) -> None:
    with BackgroundApi() as api, near(3, api.url, store, key=key, resume="responses") as (doomed, *others):
        api.held_at = 12
        clients = [fleet.start(ResponsesClient([doomed.url, others[i % 2].url], "30-100")) for i in range(STREAMS)]
        for client in clients:
            client.wait_events(6)
        doomed.kill()
        api.go_on()
        fleet.wait(60)
        assert len(api.generations) == STREAMS
        assert {name for name, *_ in api.retrieved} == api.generations.keys()
        assert {credential for *_, credential in api.retrieved} == {f"Bearer {OWN_KEY if key else TOKEN}"}
        for client in clients:
            assert client.stream is not None
            name = client.events[0].json["response"]["id"]
            told = [f"event: {event.event}\ndata: {event.data}\n\n".encode() for event in client.events]
            assert told == events_of(name, 30)
            assert client.raw == view.log(client.stream).raw
        assert counted(others, "taken_over") == STREAMS


def test_who_has_taken_over_is_lost_too(
    upstream: ScriptedUpstream, far: RelayProcess, store: Store, view: StoreView, fleet: Fleet
) -> None:
    upstream.on("m", *paced(20, 0.1, gate_after=10))
    with near(3, far.url, store, key=True) as (first, second, third):
        clients = [fleet.start(Client([first.url, second.url, third.url], "m")) for _ in range(3)]
        for client in clients:
            client.wait_events(3)
        first.kill()
        wait_until(lambda: counted([second, third], "taken_over") == 3, 20, "the streams to be taken over")
        second.kill()
        upstream.open("gate")
        fleet.wait(40)
        assert ends(clients) == {"done"}
        assert len(upstream.calls) == 3
        assert counted([third], "taken_over") == 3
        assert all(client.raw == view.log(client.stream or "").raw for client in clients)


def test_without_its_owner_a_stream_waits_and_is_lost(
    upstream: ScriptedUpstream, far: RelayProcess, store: Store, view: StoreView
) -> None:
    """A ticket lets its holder read. Nothing can be asked upstream with it."""
    upstream.on("m", *paced(200, 0.1))
    with near(2, far.url, store, key=False, abandon_after="3s") as (doomed, other):
        with open_stream(
            doomed.url + PATH,
            headers={"authorization": f"Bearer {TOKEN}", "relay-ticket": "read"},
            body={"model": "m", "messages": [], "stream": True},
        ) as begun:
            begun.events(3)
            url = begun.headers["relay-stream-url"]
            stream = begun.headers["relay-stream-id"]
        with open_stream(other.url + url, "GET", timeout=30) as reader:
            reader.events(3)
            doomed.kill()
            lapse(view, stream)
            events = list(reader)
        assert sum(event.is_heartbeat for event in events) > 4, "readers see a pause"
        assert events[-2].json["error"]["code"] == "producer_lost"
        assert view.log(stream).ends == ["producer_lost"]
        assert counted([other], "unclaimed") == 1


def test_the_owner_comes_later(
    upstream: ScriptedUpstream, far: RelayProcess, store: Store, view: StoreView, fleet: Fleet
) -> None:
    upstream.on("m", *paced(30, 0.1))
    with near(2, far.url, store, key=False) as (doomed, other):
        name = stream_of(doomed)
        doomed.kill()
        lapse(view, name)
        late = fleet.start(Client([other.url], "m", stream=name))
        fleet.wait(30)
        assert late.end == "done"
        assert len(upstream.calls) == 1


def test_a_frozen_producer_that_wakes_harms_nothing(
    upstream: ScriptedUpstream, far: RelayProcess, store: Store, view: StoreView, fleet: Fleet
) -> None:
    upstream.on("m", *paced(30, 0.1, gate_after=20))
    with near(2, far.url, store, key=True) as (frozen, other):
        clients = [fleet.start(Client([other.url], "m", stream=stream_of(frozen))) for _ in range(5)]
        for client in clients:
            client.wait_events(3)
        frozen.signal(signal.SIGSTOP)
        wait_until(lambda: counted([other], "taken_over") == 5, 20, "the streams to be taken over")
        frozen.signal(signal.SIGCONT)
        wait_until(
            lambda: frozen.log().count("fenced off") == 5, 20, "the one that was frozen to find itself fenced off"
        )
        upstream.open("gate")
        fleet.wait(30)
        assert ends(clients) == {"done"}
        assert len(upstream.calls) == 5
        assert "stop asked for" not in far.log()
        assert {ended.cancelled for ended in upstream.calls} == {False}
        for client in clients:
            assert client.raw == view.log(client.stream or "").raw


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_what_clients_are_not_shown_has_a_number_upstream(
    upstream: ScriptedUpstream, far: RelayProcess, store: Store, view: StoreView, fleet: Fleet, encrypted: bool
) -> None:
    """The usage that the relay itself asks for is hidden, and the event after it is not the next one there."""
    finish, usage = chat({}, "stop"), event(chat_usage(7, 3))
    upstream.on("m", *stream(frame(1), frame(2), finish, usage, Gate("usage"), frame(3), Gate("end"), DONE))
    with near(2, far.url, store, key=True, usage="observe", encrypted=encrypted) as (doomed, other):
        with post(doomed, "m") as begun:
            begun.events(3)
            name = begun.headers["relay-stream-id"]
            upstream.open("usage")
            begun.events(1)
            doomed.kill()
        wait_until(lambda: counted([other], "taken_over") == 1, 20, "the stream to be taken over")
        upstream.open("end")
        with post(other, "m", f"{name}.0") as read:
            events = read.events()
        assert [each.id for each in events] == [f"{name}.{n}" for n in range(1, 6)]
        assert events[3].data == frame(3).decode().removeprefix("data: ").strip()
        assert events[4].data == "[DONE]"
        assert len(upstream.calls) == 1


def test_a_drain_leaves_to_others_what_it_has_no_time_for(
    upstream: ScriptedUpstream, far: RelayProcess, store: Store, view: StoreView, fleet: Fleet
) -> None:
    upstream.on("m", *paced(20, 0.1, gate_after=10))
    with near(2, far.url, store, key=False, lease=10.0) as (leaving, other):
        clients = [fleet.start(Client([leaving.url, other.url], "m")) for _ in range(5)]
        for client in clients:
            client.wait_events(3)
        assert leaving.stop() == 0
        upstream.open("gate")
        fleet.wait(30)
        assert ends(clients) == {"done"}
        assert len(upstream.calls) == 5
        assert counted([other], "taken_over") == 5
        assert {view.log(client.stream or "").ends[0] for client in clients} == {"completed"}


def stream_of(relay: RelayProcess) -> str:
    """A stream that was begun there, and is read no more."""
    with post(relay, "m") as begun:
        begun.events(1)
        return begun.headers["relay-stream-id"]


def test_a_stop_in_the_gap(upstream: ScriptedUpstream, far: RelayProcess, store: Store, view: StoreView) -> None:
    upstream.on("m", *paced(300, 0.1))
    with near(2, far.url, store, key=False) as (doomed, other):
        stream = stream_of(doomed)
        doomed.kill()
        lapse(view, stream)
        with open_stream(f"{other.url}/streams/{stream}", "DELETE", {"authorization": f"Bearer {TOKEN}"}) as stopped:
            assert stopped.status == 204
        assert view.log(stream).ends == ["stopped"]
        (call,) = upstream.calls
        assert call.ended.wait(10)
        assert call.cancelled, "the far relay was told"
        with post(other, "m", f"{stream}.0") as read:
            assert read.events()[-1].data == "[DONE]"


def test_a_retry_by_key_in_the_gap_generates_nothing(
    upstream: ScriptedUpstream, far: RelayProcess, store: Store, view: StoreView
) -> None:
    upstream.on("m", *paced(20, 0.1))
    asked = {"authorization": f"Bearer {TOKEN}", "idempotency-key": "k"}
    body = {"model": "m", "messages": [], "stream": True}
    with near(2, far.url, store, key=False) as (doomed, other):
        with open_stream(doomed.url + PATH, headers=asked, body=body) as begun:
            begun.events(3)
            stream = begun.headers["relay-stream-id"]
            doomed.kill()
        lapse(view, stream)
        with open_stream(other.url + PATH, headers=asked, body=body, timeout=30) as again:
            assert again.headers["relay-stream-id"] == stream
            assert len(again.events()) == 21
        assert len(upstream.calls) == 1


@pytest.mark.parametrize("key", [True, False], ids=["own key", "clients' credentials"])
def test_an_agents_retry_before_the_lease_is_over_joins(
    upstream: ScriptedUpstream, far: RelayProcess, store: Store, key: bool
) -> None:
    """Which says nothing but its session. A further one finds that the stream is read, and stays apart."""
    upstream.on("m", *paced(12, 0.05, gate_after=6))
    asked = {"authorization": f"Bearer {TOKEN}", "x-session-id": "s"}
    body = {"model": "m", "messages": [], "stream": True}
    with near(2, far.url, store, key=key, lease=2.0) as (doomed, other):
        with open_stream(doomed.url + PATH, headers=asked, body=body) as begun:
            begun.events(3)
            stream = begun.headers["relay-stream-id"]
            doomed.kill()
        with open_stream(other.url + PATH, headers=asked, body=body, timeout=30) as again:
            assert again.headers["relay-stream-id"] == stream
            with open_stream(other.url + PATH, headers=asked, body=body, timeout=30) as further:
                assert further.headers["relay-stream-id"] != stream
            upstream.open("gate")
            assert len(again.events()) == 13


def test_a_relay_that_is_started_again_goes_on_by_itself(
    upstream: ScriptedUpstream, far: RelayProcess, store: Store, view: StoreView
) -> None:
    """Nobody reads: whoever comes back has the whole answer."""
    upstream.on("m", *paced(20, 0.1))
    with near(1, far.url, store, key=True) as (relay,):
        name = stream_of(relay)
        relay.kill()
        relay.start()
        wait_until(lambda: view.log(name).ends == ["completed"], 30, "the stream to end")
        assert len(view.log(name).frames) == 21
        assert len(upstream.calls) == 1
