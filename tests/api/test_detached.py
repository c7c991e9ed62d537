"""`Prefer: respond-async`: the generation runs without a reader, bounded, and is read from its address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Relays
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, Pause, ScriptedUpstream, json_response, stream
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
    return open_stream(relay.url + path, headers={**KEY, "prefer": "respond-async", **headers}, body=body)


def status(relay: RelayProcess, location: str) -> dict[str, Any]:
    with open_stream(relay.url + location, "GET", {**KEY, "accept": "application/json"}) as answer:
        assert answer.status == 200, answer.read()
        found: dict[str, Any] = answer.json
        return found


@pytest.mark.parametrize("case", ["chat-content", "messages-text", "responses-text"])
def test_it_is_accepted_at_once_and_read_on_any_replica(
    upstream: ScriptedUpstream, relays: Relays, store: Store, case: str
) -> None:
    streamed = FIRST_TOKENS[case]
    upstream.on("m", Gate("head"), *stream(*streamed.before, streamed.token, Gate("end"), *streamed.rest))
    shared = config(upstream, store={"url": store.url}, streams={"abandon_after": "0s"})
    one, two = relays.start(shared), relays.start(shared)
    with ask(one, streamed.path) as answer:  # before the upstream has said anything
        assert answer.status == 202
        assert answer.headers["preference-applied"] == "respond-async"
        location = answer.headers["location"]
        assert answer.json == {
            "id": answer.headers["relay-stream-id"],
            "object": "relay.stream",
            "location": location,
        }
    upstream.open("head")
    wait_until(lambda: status(two, location)["events"] == len(streamed.before) + 1, 10, "events without a reader")
    assert upstream.calls[0].header("prefer") is None
    with (
        open_stream(one.url + location, "GET", KEY) as here,
        open_stream(two.url + answer.headers["relay-stream-url"], "GET") as there,
    ):
        upstream.open("end")
        everything = [event.raw for event in here.events()]
        assert [event.raw for event in there.events()] == everything
    assert len(everything) == len(streamed.events)
    assert len(upstream.calls) == 1


def test_it_ends_without_ever_being_read(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, Pause(0.3), *END))
    relay = relays.start(config(upstream, streams={"abandon_after": "0s"}))
    with ask(relay) as answer:
        location = answer.headers["location"]
    wait_until(lambda: status(relay, location)["outcome"] == "completed", 10, "the end")


def test_its_abandon_clock_starts_with_its_first_reader(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, Gate("never")))
    relay = relays.start(config(upstream, streams={"abandon_after": "0s", "detached": "never", "lease": "1s"}))
    with ask(relay) as answer:
        location = answer.headers["location"]
    wait_until(lambda: status(relay, location)["events"] == 1, 10, "the first event")
    assert status(relay, location)["state"] == "live"
    with open_stream(relay.url + location, "GET", KEY) as reader:
        reader.events(1)
    wait_until(lambda: status(relay, location)["outcome"] == "abandoned", 10, "the abandonment")
    assert upstream.calls[0].ended.wait(5)
    assert upstream.calls[0].cancelled


def test_nobody_ever_coming_is_bounded(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, Gate("never")))
    relay = relays.start(config(upstream, streams={"abandon_after": "never", "detached": "1s", "lease": "300ms"}))
    with ask(relay) as answer:
        location = answer.headers["location"]
    wait_until(lambda: status(relay, location)["outcome"] == "abandoned", 10, "the bound")
    assert upstream.calls[0].ended.wait(5)


def test_a_refusal_comes_as_the_stream_s_error(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *json_response(429, {"error": {"message": "slow down"}}))
    relay = relays.start(config(upstream))
    with ask(relay) as answer:
        assert answer.status == 202
    with open_stream(relay.url + answer.headers["location"], "GET", KEY) as reader:
        events = reader.events()
    assert events[0].json["error"]["code"] == "upstream_refused"
    assert "slow down" in events[0].json["error"]["message"]


def test_a_key_joins_the_same_generation_and_answers_alike(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, Gate("go"), *END))
    relay = relays.start(config(upstream))
    answers = []
    for _ in range(3):
        with ask(relay, **{"idempotency-key": "one"}) as answer:
            assert answer.status == 202
            answers.append(answer.headers["location"])
    assert len(set(answers)) == 1
    upstream.open("go")
    wait_until(lambda: status(relay, answers[0])["outcome"] == "completed", 10, "the end")
    assert len(upstream.calls) == 1


def test_without_a_log_the_preference_is_not_met(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    settings = config(upstream)
    settings["upstreams"][0]["buffer"] = False
    with ask(relays.start(settings)) as answer:
        assert answer.status == 200
        assert "preference-applied" not in answer.headers
        assert len(answer.events()) == 3


def test_a_lost_store_makes_it_an_ordinary_stream(upstream: ScriptedUpstream, relays: Relays, store: Store) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    relay = relays.start(config(upstream, store={"url": store.url}))
    store.servers[0].kill()
    with ask(relay) as answer:
        assert answer.status == 200
        assert answer.headers["relay-resumable"] == "false"
        assert len(answer.events()) == 3
