"""The webhook is told of each detached generation's end, at least once and under one id, whatever dies meanwhile."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import Relays
from tests.support.processes import RelayProcess
from tests.support.scripted import Cut, Gate, ScriptedUpstream, Step, stream
from tests.support.sseclient import open_stream
from tests.support.stores import Store, valkey_server
from tests.support.streams import DONE, PATHS, chat, chat_usage, event
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

KEY = {"authorization": "Bearer sk-one"}
SECRET = secrets.token_bytes(32)
ENV = {"HOOK": "whsec_" + base64.b64encode(SECRET).decode()}
WHOLE = (chat({"content": "a canary"}), chat({}, "stop"), event(chat_usage(11, 5)), DONE)


@dataclass
class Told:
    """One attempt, as the receiver saw it."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)["data"]

    @property
    def is_signed(self) -> bool:
        content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        mac = base64.b64encode(hmac.digest(SECRET, content, hashlib.sha256)).decode()
        return f"v1,{mac}" in self.headers["webhook-signature"].split(" ")


@dataclass
class Receiver:
    """Answers in turn as it is told to, then 204."""

    server: ThreadingHTTPServer
    told: list[Told] = field(default_factory=list)
    answers: list[int | dict[str, str] | threading.Event] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook?token=t"

    def wait(self, count: int = 1, timeout: float = 20) -> list[Told]:
        wait_until(lambda: len(self.told) >= count, timeout, f"{count} attempts")
        return self.told


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            head = {name.lower(): value for name, value in self.headers.items()}
            with found.lock:
                found.told.append(Told(self.path, head, body))
                answer = found.answers.pop(0) if found.answers else 204
            if isinstance(answer, threading.Event):
                answer.wait(30)
                answer = 204
            more = answer if isinstance(answer, dict) else {}
            self.send_response(int(more.get("status", 0)) or answer)  # type: ignore[arg-type]
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path) as server:
        yield server


@dataclass
class Site:
    upstream: ScriptedUpstream
    relays: Relays
    receiver: Receiver
    store: Store

    def relay(self, *, env: dict[str, str] | None = None, hook: Any = None, **more: Any) -> RelayProcess:
        config = {
            "upstreams": [{"name": "up", "base_url": self.upstream.url}],
            "store": {"url": self.store.url},
            "streams": {"lease": "1s", **more.pop("streams", {})},
            "webhook": {
                "url": self.receiver.url,
                "secret_env": "HOOK",
                "timeout": "1s",
                "proxy": "off",
                **(hook or {}),
            },
            "drain": {"timeout": "0s"},
            **more,
        }
        return self.relays.start(config, {**ENV, **(env or {})})

    def ask(self, relay: RelayProcess, *steps: Step, model: str = "m", **headers: str) -> str:
        """The id of a detached generation."""
        self.upstream.on(model, *steps)
        sent = {**KEY, "prefer": "respond-async", **{name.replace("_", "-"): value for name, value in headers.items()}}
        body = {"model": model, "stream": True, "messages": []}
        with open_stream(relay.url + PATHS["chat"], headers=sent, body=body) as answer:
            assert answer.status == 202, answer.read()
            return answer.headers["relay-stream-id"]


@pytest.fixture
def site(upstream: ScriptedUpstream, relays: Relays, receiver: Receiver, store: Store) -> Site:
    return Site(upstream, relays, receiver, store)


def counted(relay: RelayProcess) -> dict[str, float]:
    with open_stream(f"{relay.metrics_url}/metrics", "GET") as answer:
        text = answer.read().decode()
    return {name: float(n) for name, n in re.findall(r'^relay_webhooks_total\{result="(\w+)"\} (\S+)', text, re.M)}


def waiting(site: Site) -> list[str]:
    return [str(name) for name in site.store.servers[0].client().zrange("relay:webhooks", 0, -1)]


def test_it_is_told_of_the_end(site: Site) -> None:
    relay = site.relay()
    name = site.ask(relay, *stream(*WHOLE), relay_stream_name="chat-123")
    (told,) = site.receiver.wait()
    assert told.path == "/hook?token=t"
    assert told.is_signed
    assert abs(int(told.headers["webhook-timestamp"]) - time.time()) < 60
    assert told.headers["webhook-id"] == f"msg_{name[3:]}"
    assert told.headers["content-type"] == "application/json"
    assert json.loads(told.body)["type"] == "stream.ended"
    assert told.data == {
        "id": name,
        "name": "chat-123",
        "api": "chat",
        "model": "m",
        "outcome": "completed",
        "code": None,
        "events": 4,
        "usage": {"input_tokens": 11, "output_tokens": 5},
    }
    assert b"canary" not in told.body
    wait_until(lambda: waiting(site) == [], 10, "the outbox to be empty")
    assert counted(relay) == {"delivered": 1, "failed": 0, "given_up": 0}
    wait_until(lambda: "webhook delivered" in relay.log(), 10, "its line")
    assert "token=t" not in relay.log()


def test_every_end_is_told_of_detached_generations_alone(site: Site) -> None:
    relay = site.relay(streams={"detached": "3s"})
    site.upstream.on("read", *stream(*WHOLE))
    body = {"model": "read", "stream": True, "messages": []}
    with open_stream(relay.url + PATHS["chat"], headers=KEY, body=body) as reader:
        reader.read()
    cut, stopped, abandoned = (
        site.ask(relay, *(*stream(WHOLE[0], Gate(end))[:-1], Cut()), model=end) for end in ("cut", "never", "nobody")
    )
    site.upstream.open("cut")
    with open_stream(f"{relay.url}/streams/{stopped}", "DELETE", KEY) as answer:
        assert answer.status == 204
    told = {attempt.data["id"]: attempt.data for attempt in site.receiver.wait(3)}
    assert {name: (data["outcome"], data["code"]) for name, data in told.items()} == {
        cut: ("failed", "upstream_disconnected"),
        stopped: ("stopped", None),
        abandoned: ("abandoned", None),
    }
    assert all(data["usage"] is None for data in told.values())


def test_it_is_tried_again_under_the_same_id(site: Site) -> None:
    site.receiver.answers = [500, {"status": "302", "location": site.receiver.url + "2"}, threading.Event()]
    relay = site.relay()
    name = site.ask(relay, *stream(*WHOLE))
    attempts = site.receiver.wait(4, 40)
    assert {told.headers["webhook-id"] for told in attempts} == {f"msg_{name[3:]}"}
    assert {told.path for told in attempts} == {"/hook?token=t"}  # no redirect is followed
    assert len({told.body for told in attempts}) == 1
    assert all(told.is_signed for told in attempts)
    wait_until(lambda: counted(relay)["delivered"] == 1, 10, "the delivery")
    assert counted(relay)["failed"] == 3
    wait_until(lambda: waiting(site) == [], 10, "the outbox to be empty")


@pytest.mark.parametrize("how", ["gone", "too late"])
def test_it_is_given_up(site: Site, how: str) -> None:
    site.receiver.answers = [410] if how == "gone" else [503] * 50
    relay = site.relay(hook={"retry_for": "3s"})
    site.ask(relay, *stream(*WHOLE))
    wait_until(lambda: counted(relay)["given_up"] == 1, 30, "the end of its tries")
    assert waiting(site) == []
    wait_until(lambda: "webhook given up" in relay.log(), 10, "the line")
    assert len(site.receiver.told) == 1 or how == "too late"


def test_a_lost_producer_s_stream_is_told_by_another_replica(site: Site) -> None:
    one, two = site.relay(), site.relay()
    name = site.ask(one, *stream(WHOLE[0], Gate("never")))
    one.kill()
    (told,) = site.receiver.wait(1, 30)
    assert (told.data["id"], told.data["code"]) == (name, "producer_lost")
    assert counted(two)["delivered"] == 1


def test_a_replica_that_dies_as_it_tells_leaves_it_to_another(site: Site) -> None:
    held = threading.Event()
    site.receiver.answers = [held]
    one = site.relay(hook={"timeout": "2s"})
    name = site.ask(one, *stream(*WHOLE))
    site.receiver.wait(1)
    one.kill()
    held.set()
    site.relay(hook={"timeout": "2s"})
    first, second = site.receiver.wait(2, 30)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == f"msg_{name[3:]}"
    assert first.body == second.body


def test_what_is_left_is_told_after_a_restart(site: Site) -> None:
    """With the embedded store there is no other replica."""
    site.receiver.answers = [500]
    relay = site.relay(store={})
    site.ask(relay, *stream(*WHOLE))
    site.receiver.wait(1)
    relay.kill()
    relay.start()
    first, second = site.receiver.wait(2, 30)
    assert first.body == second.body


@pytest.mark.parametrize("ends", ["by itself", "by the drain"])
def test_a_drain_tells_what_ends_in_it(site: Site, ends: str) -> None:
    relay = site.relay(drain={"timeout": "20s" if ends == "by itself" else "0s"})
    site.ask(relay, *stream(WHOLE[0], Gate("on"), *WHOLE[1:]))
    wait_until(lambda: site.upstream.calls_of("m") != [], 10, "the call")
    relay.signal(signal.SIGTERM)
    if ends == "by itself":
        wait_until(lambda: "draining" in relay.log(), 10, "the drain")
        site.upstream.open("on")
    relay.wait(20)
    (told,) = site.receiver.told
    assert (told.data["outcome"], told.data["code"]) == (
        ("completed", None) if ends == "by itself" else ("failed", "shutdown")
    )
    assert waiting(site) == []


def test_a_drain_leaves_what_it_cannot_tell(site: Site) -> None:
    held = threading.Event()
    site.receiver.answers = [held, held]
    relay = site.relay(hook={"timeout": "60s"})
    name = site.ask(relay, *stream(*WHOLE))
    site.receiver.wait(1)
    relay.signal(signal.SIGTERM)
    assert relay.wait(20) == 0
    assert waiting(site) == [name]
    held.set()
    other = site.relay()
    wait_until(lambda: counted(other)["delivered"] == 1, 10, "another replica")


def test_a_store_that_comes_back_empty_is_told_again(site: Site) -> None:
    relay = site.relay(store={"url": site.store.url, "hold": "500ms"})
    name = site.ask(relay, *stream(WHOLE[0], Gate("on"), *WHOLE[1:]))
    site.store.servers[0].restart()
    wait_until(lambda: waiting(site) == [name], 20, "the promise to be there again")
    site.upstream.open("on")
    (told,) = site.receiver.wait(1, 30)
    assert (told.data["id"], told.data["outcome"]) == (name, "completed")


def test_an_outbox_that_was_away_from_begin_to_end_is_told_later(site: Site) -> None:
    """Its key may be on a server of its own, which is away while that of the stream is not."""
    relay = site.relay(log={"level": "debug"})
    server = site.store.servers[0]
    server.command("ACL", "SETUSER", "default", "resetkeys", "~relay:{*", "~relay:re*", "~relay:s*")
    name = site.ask(relay, *stream(*WHOLE))
    wait_until(
        lambda: re.search(r"left undone .*Webhooks._due", relay.log()), 10, "the end, of which nobody can be told"
    )
    assert site.receiver.told == []
    server.command("ACL", "SETUSER", "default", "allkeys")
    (told,) = site.receiver.wait(1)
    assert told.data["id"] == name


def test_a_retry_that_joins_is_told_too(site: Site) -> None:
    relay = site.relay()
    name = site.ask(relay, *stream(*WHOLE), idempotency_key="one")
    site.receiver.wait(1)
    assert site.ask(relay, *stream(*WHOLE), idempotency_key="one") == name
    first, second = site.receiver.wait(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body


def test_with_encryption_only_a_relay_can_have_a_stream_told_of(site: Site) -> None:
    env = {"EVENT_KEYS": base64.b64encode(secrets.token_bytes(32)).decode()}
    relay = site.relay(env=env, store={"url": site.store.url, "encryption_env": "EVENT_KEYS"})
    name = site.ask(relay, *stream(*WHOLE), relay_stream_name="secret-name")
    site.receiver.wait(1)
    client = redis.Redis.from_url(site.store.url)
    noted = client.hget(f"relay:{{{name}}}:meta", "webhook")
    assert isinstance(noted, bytes)
    assert b"secret-name" not in noted
    site.upstream.on("other", *stream(*WHOLE))
    body = {"model": "other", "stream": True, "messages": []}
    with open_stream(relay.url + PATHS["chat"], headers=KEY, body=body) as reader:
        other = reader.headers["relay-stream-id"]
        reader.read()
    for forged in (noted, b'["",""]'):
        client.hset(f"relay:{{{other}}}:meta", "webhook", forged)
        client.zadd("relay:webhooks", {other: 1})
        wait_until(lambda: waiting(site) == [], 10, "the outbox to be empty")
    assert counted(relay) == {"delivered": 1, "failed": 0, "given_up": 2}
    assert len(site.receiver.told) == 1
    client.close()


def test_many_ends_at_once_are_all_told(site: Site) -> None:
    relay = site.relay()
    steps = stream(WHOLE[0], Gate("all"), *WHOLE[1:])
    names = {site.ask(relay, *steps, model="many") for _ in range(40)}
    site.upstream.open("all")
    attempts = site.receiver.wait(40, 40)
    assert {told.data["id"] for told in attempts} == names
    wait_until(lambda: waiting(site) == [], 10, "the outbox to be empty")
    assert len(site.receiver.told) == 40
