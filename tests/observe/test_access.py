"""Who, what, when: what a user says of an answer is answered by grep alone, and no line is there without a cause."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relay.api.delivery import Delivery
from relay.config import LimitSettings, Settings
from tests.auth.keyed import ENV, bearer, issued
from tests.auth.keyed import config as keyed
from tests.conftest import Relays
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, ScriptedUpstream, json_response, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import Store, valkey_server
from tests.support.streams import PATHS, chat, data
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

TOKEN = chat({"content": "a"})
END = (chat({}, "stop"), data("[DONE]"))
KINDS = (
    *("stream begun", "stream resumed", "reader gone", "stop asked for", "stream ended"),
    *("upstream refused", "refused"),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path) as server:
        yield server


def plain(upstream: ScriptedUpstream, access: str = "streams", **more: Any) -> dict[str, Any]:
    log = {"format": "json", "access": access}
    return {"upstreams": [{"name": "up", "base_url": upstream.url}], "log": log, "drain": {"timeout": "5s"}, **more}


def ask(relay: RelayProcess, headers: dict[str, str] | None = None, model: str = "m") -> RawStream:
    body = {"model": model, "stream": True, "messages": []}
    return open_stream(relay.url + PATHS["chat"], headers=headers, body=body)


def lines(*relays: RelayProcess, word: str = "") -> list[dict[str, Any]]:
    """In the order of their times."""
    found = [json.loads(line) for relay in relays for line in relay.log().splitlines() if word in line]
    return sorted((line for line in found if line["message"] in KINDS), key=lambda line: line["time"])


def until(count: int, message: str, *relays: RelayProcess) -> None:
    def there() -> bool:
        return len([line for line in lines(*relays) if line["message"] == message]) >= count

    wait_until(there, 15, f"{count} lines: {message}")


def test_the_story_of_an_answer_that_was_cut_resumed_and_stopped(
    upstream: ScriptedUpstream, relays: Relays, store: Store
) -> None:
    upstream.on("m", *stream(TOKEN, TOKEN, Gate("never")))
    key, entry = issued("team-a", name="ci")
    other, unnamed = issued("team-a")
    settings = keyed(upstream, entry, unnamed, store={"url": store.url}, log={"format": "json"})
    one, two = relays.start(settings, ENV), relays.start(settings, ENV)
    with ask(one, {**bearer(key), "x-request-id": "asked"}) as answer:
        stream_id = answer.headers["relay-stream-id"]
        last = answer.events(2)[-1].id or ""
    until(1, "reader gone", one)
    with open_stream(f"{two.url}/streams/{stream_id}", "GET", {**bearer(key), "last-event-id": last}) as again:
        assert again.status == 200
        until(1, "stream resumed", two)
        with open_stream(f"{two.url}/streams/{stream_id}", "DELETE", bearer(other)) as stopped:
            assert stopped.status == 204
        again.read()
    until(1, "stream ended", one)
    until(1, "stop asked for", two)
    story = lines(one, two, word=stream_id)
    assert [line["message"] for line in story[:3]] == ["stream begun", "reader gone", "stream resumed"]
    assert {line["message"] for line in story[3:]} == {"stop asked for", "stream ended"}
    assert len(story) == 5
    by = {line["message"]: line for line in story}
    assert {line["owner"] for line in story} == {"team-a"}
    begun = by["stream begun"]
    assert (begun["key"], begun["api"], begun["upstream"], begun["model"]) == ("ci", "chat", "up", "m")
    assert begun["request_id"] == by["stream ended"]["request_id"] == by["reader gone"]["request_id"] == "asked"
    assert (by["reader gone"]["position"], by["reader gone"]["why"]) == (2, "left")
    assert (by["stream resumed"]["after"], by["stream resumed"]["result"]) == (2, "live")
    assert by["stop asked for"]["by"] == "credential"
    assert by["stop asked for"]["key"] == "unnamed"
    assert (by["stream ended"]["outcome"], by["stream ended"]["key"]) == ("stopped", "ci")
    for secret in (key, other):
        assert secret not in one.log() + two.log()


def test_a_lost_stream_s_owner_is_named_by_who_ends_it(
    upstream: ScriptedUpstream, relays: Relays, store: Store
) -> None:
    upstream.on("m", *stream(TOKEN, Gate("never")))
    key, entry = issued("team-a")
    settings = keyed(upstream, entry, store={"url": store.url}, log={"format": "json"}, streams={"lease": "1s"})
    one, two = relays.start(settings, ENV), relays.start(settings, ENV)
    with ask(one, bearer(key)) as answer:
        answer.events(1)
        one.kill()
    until(1, "stream ended", two)
    (line,) = lines(two)
    assert (line["owner"], line["cause"], line["upstream"]) == ("team-a", "producer_lost", "up")


def test_a_stop_by_a_ticket_says_so(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, Gate("never")))
    relay = relays.start(plain(upstream))
    with ask(relay, {"relay-ticket": "read+stop"}) as answer:
        with open_stream(relay.url + answer.headers["relay-stream-url"], "DELETE") as stopped:
            assert stopped.status == 204
        answer.read()
    until(1, "stop asked for", relay)
    (line,) = [line for line in lines(relay) if line["message"] == "stop asked for"]
    assert (line["by"], "owner" in line) == ("ticket", False)


@pytest.mark.parametrize("access", ["off", "streams", "all"])
def test_levels(upstream: ScriptedUpstream, relays: Relays, access: str) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    upstream.on("cut", *stream(TOKEN))
    upstream.on("refused", *json_response(429, {"error": {"message": "canary"}}))
    relay = relays.start(plain(upstream, access))
    for model in ("m", "cut", "refused"):
        with ask(relay, model=model) as answer:
            answer.read()
    with open_stream(relay.url + PATHS["chat"], body=b"{") as answer:
        assert answer.status == 400
    with open_stream(f"{relay.url}/streams/st_{'a' * 22}?canary=1", "GET") as answer:
        assert answer.status == 404
    until(1, "stream ended", relay)
    relay.stop()
    told = [(line["message"], line["level"]) for line in lines(relay)]
    failed = ("stream ended", "warning")
    assert told.count(failed) == 1
    counted = {message: [m for m, _ in told].count(message) for message in KINDS}
    expected = {
        "off": {"stream ended": 1},
        "streams": {"stream begun": 2, "stream ended": 2, "upstream refused": 1, "refused": 1},
        "all": {"stream begun": 2, "stream ended": 2, "upstream refused": 1, "refused": 2, "reader gone": 2},
    }[access]
    assert counted == {message: expected.get(message, 0) for message in KINDS}
    assert "canary" not in relay.log()
    if access != "off":
        (refused,) = [line for line in lines(relay) if line["message"] == "upstream refused"]
        assert (refused["upstream"], refused["path"], refused["status"]) == ("up", PATHS["chat"], 429)
        missed = [line for line in lines(relay) if line["message"] == "refused"][-1]
        assert (missed["code"], missed["status"], missed["stream"]) == ("stream_not_found", 404, f"st_{'a' * 22}")


def test_a_fault_of_the_store_is_told_at_every_level(upstream: ScriptedUpstream, relays: Relays, store: Store) -> None:
    settings = plain(upstream, "off", store={"url": store.url, "outage": "refuse"})
    relay = relays.start(settings)
    store.servers[0].kill()
    with ask(relay) as answer:
        assert answer.status == 503
    (line,) = lines(relay)
    assert (line["message"], line["level"], line["code"]) == ("refused", "warning", "store_unavailable")


def test_a_reader_that_a_drain_sends_away_is_told_so(upstream: ScriptedUpstream, relays: Relays, store: Store) -> None:
    upstream.on("m", *stream(TOKEN, Gate("never")))
    settings = plain(upstream, store={"url": store.url})
    one, two = relays.start(settings), relays.start(settings)
    with ask(one) as answer:
        with open_stream(f"{two.url}/streams/{answer.headers['relay-stream-id']}", "GET") as there:
            there.events(1)
            two.signal(signal.SIGTERM)
            there.read()
        until(1, "reader gone", two)
    (drained,) = [line for line in lines(two) if line["message"] == "reader gone"]
    assert (drained["why"], drained["position"]) == ("drain", 1)


@pytest.mark.parametrize(
    ("given_up", "gone", "writing_for", "draining", "why"),
    [
        (True, True, 0.0, False, "too_slow"),
        (False, True, 0.6, False, "too_slow"),
        (False, True, 0.1, False, "left"),
        (False, True, 0.0, True, "left"),
        (False, False, 0.0, True, "drain"),
        (False, False, 0.0, False, "lost"),
    ],
)
def test_why_a_reader_is_gone(given_up: bool, gone: bool, writing_for: float, draining: bool, why: str) -> None:
    async def asked() -> str:
        exchange: Any = SimpleNamespace(given_up=given_up, gone=gone)
        source: Any = None
        delivery = Delivery(exchange, source, Settings(limits=LimitSettings(write_timeout=1.0)))
        if writing_for:
            delivery._writing = asyncio.get_running_loop().time() - writing_for
        return delivery.why(draining=draining)

    assert asyncio.run(asked()) == why


def test_relay_owner_tells_whose_lines_these_are(upstream: ScriptedUpstream, relays: Relays, store: Store) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    relay = relays.start(plain(upstream, store={"url": store.url}))
    with ask(relay, {"authorization": "Bearer sk-of-somebody"}) as answer:
        answer.read()
    until(1, "stream begun", relay)
    command = [sys.executable, "-m", "relay", "owner", "--upstream", "http://u", "--store", store.url]
    for given in ("sk-of-somebody", "Bearer sk-of-somebody"):
        told = subprocess.run(command, input=f"{given}\n", capture_output=True, text=True, timeout=60)
        assert (told.stdout, told.stderr) == (f"{lines(relay)[0]['owner']}\n", "")
    nothing = subprocess.run(command, input="", capture_output=True, text=True, timeout=60)
    assert (nothing.returncode, "standard input" in nothing.stderr) == (1, True)
