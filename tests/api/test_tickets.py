"""A ticket opens one stream, for a while, and no more than it says: one test for each way to misuse it."""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.conftest import Relays
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import Store, valkey_server
from tests.support.streams import FIRST_TOKENS, PATHS, chat, data
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

KEY = {"authorization": "Bearer sk-one"}
TOKEN = chat({"content": "a"})
END = (chat({}, "stop"), data("[DONE]"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path) as server:
        yield server


def config(upstream: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    return {"upstreams": [{"name": "up", "base_url": upstream.url}], **more}


def ask(relay: RelayProcess, path: str = PATHS["chat"], **headers: str) -> RawStream:
    body = {"model": "m", "stream": True, "messages": []}
    answer = open_stream(relay.url + path, headers={**KEY, **headers}, body=body)
    assert answer.status == 200, answer.read()
    return answer


def refusal(url: str, method: str = "GET") -> tuple[int, str]:
    with open_stream(url, method) as answer:
        return answer.status, answer.json["error"]["code"]


@pytest.mark.parametrize("case", ["chat-content", "messages-text", "responses-text"])
def test_who_holds_the_address_reads_and_comes_back_on_any_replica_without_a_credential(
    upstream: ScriptedUpstream, relays: Relays, store: Store, case: str
) -> None:
    streamed = FIRST_TOKENS[case]
    upstream.on("m", *stream(*streamed.before, streamed.token, Gate("end"), *streamed.rest))
    shared = config(upstream, store={"url": store.url})
    one, two = relays.start(shared), relays.start(shared)
    with ask(one, streamed.path) as answer:
        url = answer.headers["relay-stream-url"]
        whole = answer.events(2)
        with open_stream(one.url + url, "GET") as page:
            assert page.status == 200
            assert [event.raw for event in page.events(2)] == [event.raw for event in whole]
            last = {"last-event-id": whole[0].id or ""}
        with open_stream(two.url + url, "GET", last) as again:
            assert again.status == 200
            upstream.open("end")
            whole += answer.events()
            assert [event.raw for event in again.events()] == [event.raw for event in whole[1:]]
    last = {"last-event-id": whole[-1].id or ""}
    with open_stream(two.url + url, "GET", last) as at_end:
        assert at_end.status == 204
    with open_stream(two.url + url, "GET", {"accept": "application/json"}) as status:
        assert status.json["outcome"] == "completed"
    for relay in (one, two):
        ticket = parse_qs(urlsplit(url).query)["ticket"][0]
        assert ticket not in relay.log()
        assert ticket.rpartition(".")[2] not in relay.log()


def test_one_for_another_stream_is_refused(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    relay = relays.start(config(upstream))
    with ask(relay) as first, ask(relay) as second:
        first.read()
        second.read()
    (_, _, theirs), (path, _, _) = (a.headers["relay-stream-url"].partition("?") for a in (first, second))
    assert refusal(f"{relay.url}{path}?{theirs}") == (403, "invalid_ticket")


def test_one_that_has_expired_is_refused(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    relay = relays.start(config(upstream, tickets={"ttl": "1s"}, streams={"max_duration": "1s"}))
    with ask(relay) as answer:
        answer.read()
    url = relay.url + answer.headers["relay-stream-url"]
    with open_stream(url, "GET") as page:
        assert page.status == 200
        page.read()
    expiry = int(url.partition("ticket=")[2].partition(".")[0])
    wait_until(lambda: time.time() > expiry, 10, "the ticket's expiry")
    assert refusal(url) == (403, "ticket_expired")


def test_none_ends_before_its_stream_may(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    settings = config(upstream, tickets={"ttl": "30s"}, streams={"max_duration": "2h"})
    with ask(relays.start(settings)) as answer:
        answer.read()
    expiry = int(answer.headers["relay-stream-url"].partition("ticket=")[2].partition(".")[0])
    assert 7200 < expiry - time.time() <= 7231


@pytest.mark.parametrize("way", ["joined", "resumed", "read", "retrieved", "nothing-missing"])
def test_every_answer_with_the_stream_has_one_for_who_shows_a_credential(
    upstream: ScriptedUpstream, relays: Relays, store: Store, way: str
) -> None:
    streamed = FIRST_TOKENS["responses-text"]
    upstream.on("m", *stream(*streamed.events))
    shared = config(upstream, store={"url": store.url})
    one, two = relays.start(shared), relays.start(shared)
    with ask(one, streamed.path, **{"idempotency-key": "k"}) as answer:
        events = answer.events()
    stream_id = answer.headers["relay-stream-id"]
    body = {"model": "m", "stream": True, "messages": []}
    given = {"joined": {"idempotency-key": "k"}, "resumed": {"last-event-id": f"{stream_id}.0"}}.get(way, {})
    if way == "nothing-missing":
        given = {"last-event-id": str(events[-1].id)}
    headers = {**KEY, **given, "relay-ticket": "read+stop"}
    if way in ("read", "retrieved"):
        response = next(event.json["response"]["id"] for event in events if "response" in event.json)
        path = f"/streams/{stream_id}" if way == "read" else f"/v1/responses/{response}?stream=true"
        again = open_stream(two.url + path, "GET", headers)
    else:
        again = open_stream(two.url + streamed.path, headers=headers, body=body)
    with again:
        assert again.status == (204 if way == "nothing-missing" else 200)
        again.read()
    url = again.headers["relay-stream-url"]
    assert url.startswith(f"/streams/{stream_id}?ticket=")
    assert ".rs." in url
    with open_stream(one.url + url, "GET") as page:
        assert page.status == 200
        assert "relay-stream-url" not in page.headers  # its holder could prolong it without end
        assert len(page.events()) == len(events)
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("part", ["expiry", "scope", "mac", "cut", "empty", "other-key", "none-of-it"])
def test_one_that_was_tampered_with_is_refused(upstream: ScriptedUpstream, relays: Relays, part: str) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    relay = relays.start(config(upstream))
    with ask(relay) as answer:
        answer.read()
    path, _, ticket = answer.headers["relay-stream-url"].partition("?ticket=")
    expiry, scope, mac = ticket.split(".")
    assert scope == "r"
    guess = hmac.digest(b"", f"ticket\0{answer.headers['relay-stream-id']}\0{expiry}\0rs".encode(), "sha256").hex()
    forged = {
        "expiry": f"{int(expiry) + 1}.r.{mac}",
        "scope": f"{expiry}.rs.{mac}",
        "mac": f"{expiry}.r.{mac[:-1]}{'0' if mac[-1] != '0' else '1'}",
        "cut": f"{expiry}.r.{mac[:32]}",
        "empty": "",
        "other-key": f"{expiry}.rs.{guess}",
        "none-of-it": "\u00e9%00",
    }[part]
    assert refusal(f"{relay.url}{path}?ticket={forged}".replace("\u00e9", "%C3%A9")) == (403, "invalid_ticket")
    with open_stream(f"{relay.url}{path}?ticket={ticket}", "GET") as page:
        assert page.status == 200
        page.read()


def test_one_that_only_reads_does_not_stop(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, Gate("go"), *END))
    relay = relays.start(config(upstream))
    with ask(relay) as answer:
        answer.events(1)
        assert refusal(relay.url + answer.headers["relay-stream-url"], "DELETE") == (403, "ticket_read_only")
        upstream.open("go")
        assert answer.events()[-1].data == "[DONE]"
    assert not upstream.calls[0].cancelled


@pytest.mark.parametrize("by", ["setting", "header"])
def test_one_that_says_so_stops(upstream: ScriptedUpstream, relays: Relays, store: Store, by: str) -> None:
    upstream.on("m", *stream(TOKEN, Gate("never")))
    shared = config(upstream, store={"url": store.url})
    if by == "setting":
        shared["tickets"] = {"scope": "read+stop"}
    one, two = relays.start(shared), relays.start(shared)
    with ask(one, **({"relay-ticket": "read+stop"} if by == "header" else {})) as answer:
        answer.events(1)
        with open_stream(two.url + answer.headers["relay-stream-url"], "DELETE") as stopped:
            assert stopped.status == 204
        assert answer.events()[-1].data == "[DONE]"
    assert upstream.calls[0].header("relay-ticket") is None


@pytest.mark.parametrize("by", ["setting", "header"])
def test_none_is_given_where_there_shall_be_none(upstream: ScriptedUpstream, relays: Relays, by: str) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    relay = relays.start(config(upstream, tickets={"scope": "off" if by == "setting" else "read"}))
    with ask(relay, **({"relay-ticket": "off"} if by == "header" else {})) as answer:
        assert "relay-stream-url" not in answer.headers
        answer.read()


def test_a_stream_without_a_log_has_none(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    settings = config(upstream)
    settings["upstreams"][0]["buffer"] = False
    with ask(relays.start(settings)) as answer:
        assert "relay-stream-url" not in answer.headers
        answer.read()


def test_a_wrong_wish_is_told(upstream: ScriptedUpstream, relays: Relays) -> None:
    relay = relays.start(config(upstream))
    body = {"model": "m", "stream": True, "messages": []}
    with open_stream(relay.url + PATHS["chat"], headers={**KEY, "relay-ticket": "all"}, body=body) as answer:
        assert answer.status == 400
        assert "read+stop" in answer.json["error"]["message"]
    assert upstream.calls == []
