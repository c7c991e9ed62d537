"""The transports over real sockets, at a real relay and at servers that are none: what is not a mere cut."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relay.client.policy import Policy
from tests.client.played import BODY, KINDS, Kind, Seen
from tests.client.scripts import FRAMES, script
from tests.support.cutting import Blackhole, FaultProxy, Pass
from tests.support.cutting_http import Cut, CuttingBalancer
from tests.support.processes import RelayProcess
from tests.support.replicas import replicas, settings
from tests.support.scripted import Cut as Fin
from tests.support.scripted import Gate, Head, Reset, ScriptedUpstream, Send, Step
from tests.support.stores import Store, valkey_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

PATH = "/v1/chat/completions"
HEADERS = {"authorization": "Bearer sk-secret", "x-stainless-retry-count": "0"}


@dataclass
class Scene:
    upstream: ScriptedUpstream
    relays: list[RelayProcess]
    store: Store

    @property
    def ports(self) -> list[int]:
        return [int(relay.url.rpartition(":")[2]) for relay in self.relays]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with (
        ScriptedUpstream() as upstream,
        valkey_server(tmp_path_factory.mktemp("valkey")) as store,
        replicas(2, _with_unlogged(settings(upstream, store))) as relays,
    ):
        yield Scene(upstream, relays, store)


def _with_unlogged(config: dict[str, Any]) -> dict[str, Any]:
    logged = config["upstreams"][0]
    return {**config, "upstreams": [{**logged, "name": "unlogged", "models": ["unlogged"], "buffer": False}, logged]}


def post(
    kind: Kind,
    url: str,
    model: str,
    *,
    on_wait: Callable[[], Any] = lambda: None,
    policy: Policy | None = None,
    resuming: bool = True,
    timeout: float = 20,
) -> Seen:
    """One POST over sockets; what is to happen during a wait happens in place of it."""

    def sleep(seconds: float) -> None:
        kind.waits.append(seconds)
        on_wait()

    async def awaited(seconds: float) -> None:
        await asyncio.to_thread(sleep, seconds)

    if not resuming:
        transport = kind.http.AsyncHTTPTransport() if kind.is_async else kind.http.HTTPTransport()
    elif kind.is_async:
        transport = kind.client.AsyncResumingTransport(policy=policy, sleep=awaited)
    else:
        transport = kind.client.ResumingTransport(policy=policy, sleep=sleep)
    body = {**BODY, "model": model}
    return kind.ask("POST", [], transport, url + PATH, json=body, headers=HEADERS, timeout=timeout)


def first_cut(after: int) -> Callable[[], Cut]:
    """The first answer is cut, the others are whole."""
    cuts = iter([Cut(after, "fin")])
    return lambda: next(cuts, Cut(1 << 40, "fin"))


def ids(seen: Seen) -> list[int]:
    lines = [line for line in seen.body.split(b"\n") if line.startswith(b"id: ")]
    return [int(line.rpartition(b".")[2]) for line in lines]


# -- at a relay -------------------------------------------------------------------------------------------------------


def test_every_event_arrives_once_and_in_order(scene: Scene, kind: Kind) -> None:
    scene.upstream.on("cut", *script("chat"))
    with CuttingBalancer(*scene.ports, plan=first_cut(4000)) as cutter:
        seen = post(kind, cutter.url, "cut")
    assert ids(seen) == list(range(1, len(FRAMES["chat"]) + 1))
    assert seen.body.endswith(b"data: [DONE]\n\n")
    assert len(kind.waits) == 1
    assert 0.5 <= kind.waits[0] <= 2.5  # the relay's own `retry:`


@pytest.mark.parametrize(("lost", "code"), [("everything", "stream_not_found"), ("the log", "stream_expired")])
def test_a_stream_that_is_gone_is_an_error(scene: Scene, kind: Kind, lost: str, code: str) -> None:
    scene.upstream.on("gone", *script("chat"))
    producing, other = scene.ports

    def lose() -> None:
        call = scene.upstream.calls_of("gone")[-1]
        assert call.ended.wait(20)
        cutter.targets = (other,)
        client = scene.store.servers[0].client()
        for log in client.scan_iter("relay:{st_*}:log"):
            stream = log.removesuffix(":log")
            wait_until(lambda meta=f"{stream}:meta": client.hexists(meta, "end"), 20)
            client.delete(log)
            if lost == "everything":
                client.delete(f"{stream}:meta")

    with CuttingBalancer(producing, plan=first_cut(4000)) as cutter:
        seen = post(kind, cutter.url, "gone", on_wait=lose)
    assert isinstance(seen.error, kind.client.ResumeFailed)
    assert seen.error.code == code
    assert code in str(seen.error)
    assert ids(seen) == list(range(1, int(seen.error.last_event_id.rpartition(".")[2]) + 1)) != []
    assert "sk-secret" not in f"{seen.error!r} {seen.error.__cause__!r}"


def test_a_relay_that_stays_away_is_an_error_after_the_bound(scene: Scene, kind: Kind) -> None:
    scene.upstream.on("away", *script("chat"))

    def leave() -> None:
        cutter.targets = ()

    with CuttingBalancer(*scene.ports, plan=first_cut(4000)) as cutter:
        seen = post(kind, cutter.url, "away", on_wait=leave, policy=Policy(max_attempts=4))
    assert isinstance(seen.error, kind.http.RemoteProtocolError)
    assert "Gave up after 4 attempts" in str(seen.error)
    assert seen.error.__cause__ is not None
    assert len(kind.waits) == 4


def test_a_stream_without_a_log_breaks_as_it_does_without_the_transport(scene: Scene, kind: Kind) -> None:
    scene.upstream.on("unlogged", *script("chat"))
    found = []
    for resuming in (True, False):
        with CuttingBalancer(*scene.ports, plan=first_cut(4000)) as cutter:
            found.append(post(kind, cutter.url, "unlogged", resuming=resuming))
    with_it, without = found
    assert type(with_it.error) is type(without.error) is kind.http.RemoteProtocolError
    assert str(with_it.error) == str(without.error)
    assert kind.waits == []
    assert b"data: " in with_it.body


def test_a_connection_that_is_only_silent_is_left(scene: Scene, kind: Kind) -> None:
    """A laptop that changed its network: no FIN, no RST, and a read time-out of minutes."""
    gate = f"silent-{id(kind)}"
    scene.upstream.on("silent", *script("chat", gate=gate))
    with FaultProxy(scene.ports[0]) as proxy:

        def swallow() -> None:
            scene.upstream.wait_reached(gate)
            proxy.mode = Blackhole()

        def recover() -> None:
            proxy.mode = Pass()
            scene.upstream.open(gate)

        url = f"http://127.0.0.1:{proxy.port}"
        with ThreadPoolExecutor(1) as beside:
            swallowed = beside.submit(swallow)
            seen = post(kind, url, "silent", on_wait=recover, policy=Policy(silence=1), timeout=600)
            swallowed.result()
    assert seen.error is None
    assert ids(seen) == list(range(1, len(FRAMES["chat"]) + 1))
    assert len(kind.waits) == 1


@pytest.mark.parametrize("name", ["httpx", "httpx2-async"])
def test_a_relay_without_its_store_streams_as_it_does_without_the_transport(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]()
    with ScriptedUpstream() as upstream, valkey_server(tmp_path) as store:
        upstream.on("m", *script("chat"))
        with RelayProcess(settings(upstream, store)) as relay:
            store.servers[0].kill()
            seen = post(kind, relay.url, "m", policy=Policy(assume_relay=True))
    assert (seen.status, seen.error) == (200, None)
    assert ids(seen) == []
    assert seen.body.count(b"data: ") == len(FRAMES["chat"])
    (call,) = upstream.calls_of("m")
    assert call.header("idempotency-key") is None


@pytest.mark.parametrize("what", ["streams", "retrieve"])
def test_a_stream_that_is_read_again_is_resumed(scene: Scene, kind: Kind, what: str) -> None:
    """By its id from the start, and by its response's from the third event on, which is one of an owner's alone."""
    headers = {**HEADERS, "authorization": f"Bearer {secrets.token_hex(8)}"}
    scene.upstream.on("again", *script("responses"))
    body = {"model": "again", "input": "Say hello.", "stream": True}
    whole = kind.ask("POST", [], _plain(kind), f"{_url(scene)}/v1/responses", json=body, headers=headers, timeout=20)
    stream = re.search(rb"id: (st_[\w-]+)\.1\n", whole.body)
    response = re.search(rb'"id":\s*"(resp_\w+)"', whole.body)
    assert stream is not None
    assert response is not None
    path = f"/v1/responses/{response[1].decode()}?stream=true&starting_after=2"
    path = path if what == "retrieve" else f"/streams/{stream[1].decode()}"
    cuts = iter([Cut(3000, "rst"), Cut(2000, "fin"), Cut(4000, "rst")])
    with CuttingBalancer(*scene.ports, plan=lambda: next(cuts, Cut(1 << 40, "fin"))) as cutter:
        transport = kind.transport(inner=_plain(kind))
        seen = kind.ask("GET", [], transport, cutter.url + path, headers=headers, timeout=20)
    assert seen.error is None
    first = 4 if what == "retrieve" else 1  # sequence numbers begin at 0
    assert ids(seen) == list(range(first, len(FRAMES["responses"]) + 1))
    assert len(kind.waits) == 3


def _plain(kind: Kind) -> Any:
    return kind.http.AsyncHTTPTransport() if kind.is_async else kind.http.HTTPTransport()


def _url(scene: Scene) -> str:
    return scene.relays[0].url


# -- at a server that is no relay -------------------------------------------------------------------------------------

STREAM = Head(200, {"content-type": "text/event-stream"})
SERVERS: dict[str, tuple[Step, ...]] = {
    "whole": (STREAM, Send(b"data: {}\n\n"), Send(b"data: [DONE]\n\n")),
    "cut": (STREAM, Send(b"data: {}\n\nda"), Fin()),
    "reset before the head": (Reset(),),
    "refused": (Head(503, {"retry-after": "1"}, "length"), Send(b"{}")),
    "silent": (STREAM, Send(b"data: {}\n\n"), Gate("never")),
}


@pytest.mark.parametrize("name", SERVERS)
def test_it_changes_nothing(upstream: ScriptedUpstream, kind: Kind, name: str) -> None:
    upstream.on("m", *SERVERS[name])
    timeout = 0.5 if name == "silent" else 20
    with_it, without = (post(kind, upstream.url, "m", resuming=on, timeout=timeout) for on in (True, False))
    first, second = upstream.calls
    assert (first.method, first.path, first.headers, first.body) == (
        second.method,
        second.path,
        second.headers,
        second.body,
    )
    assert (with_it.status, with_it.body, repr(with_it.error)) == (without.status, without.body, repr(without.error))
    assert kind.waits == []
