"""`GET /streams/{id}?content=true`: the answer that was streamed, as its API gives it where nothing is streamed."""

from __future__ import annotations

import base64
import json
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from relay.protocol import sse
from relay.protocol.finished import assembly_of
from relay.protocol.finished.parts import pieces
from tests.conftest import Relays
from tests.support.processes import RelayProcess, rss
from tests.support.scripted import Cut, Gate, ScriptedUpstream, Step, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import Store, valkey_server
from tests.support.streams import (
    APIS,
    DONE,
    PATHS,
    Answer,
    Api,
    answer,
    chat,
    credential,
    event,
    response_end,
    text_item,
    typed,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

TOKEN = "sk-one"
WORDS = ("Hel", "lo ", "wörld\u2028", "🌍")
each_api = pytest.mark.parametrize("api", APIS)


@dataclass
class Site:
    relay: RelayProcess
    other: RelayProcess
    upstream: ScriptedUpstream
    store: Store

    def ask(self, api: Api, *steps: Step, prefer: str = "", model: str = "m") -> RawStream:
        self.upstream.on(model, *steps)
        body = {"model": model, "stream": True, "messages": [], "input": "x", "max_tokens": 9}
        more = {"prefer": prefer} if prefer else {}
        return open_stream(self.relay.url + PATHS[api], headers={**credential(api, TOKEN), **more}, body=body)

    def ended(self, api: Api, *steps: Step, model: str = "m") -> str:
        """The id of a stream that has been read to its end."""
        with self.ask(api, *steps, model=model) as reader:
            reader.read()
            return reader.headers["relay-stream-id"]

    def get(self, target: str, token: str = TOKEN, accept: str = "application/json") -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {token}", "accept": accept}
        with open_stream(self.other.url + target, "GET", headers) as reader:
            body = reader.read()
            self.headers = reader.headers
        return reader.status, json.loads(body) if body and accept == "application/json" else body

    def content(self, name: str, **more: str) -> tuple[int, Any]:
        return self.get(f"/streams/{name}?content=true", **more)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ScriptedUpstream() as upstream, valkey_server(tmp_path_factory.mktemp("store")) as store:
        config = {
            "upstreams": [
                {"name": "unlogged", "base_url": upstream.url, "models": ["unlogged"], "buffer": False},
                {"name": "up", "base_url": upstream.url},
            ],
            "store": {"url": store.url, "encryption_env": "EVENT_KEYS"},
            "streams": {"lease": "1s"},
            "drain": {"timeout": "0s"},
        }
        env = {"EVENT_KEYS": base64.b64encode(secrets.token_bytes(32)).decode()}
        with RelayProcess(config, env) as one, RelayProcess(config, env) as two:
            yield Site(one, two, upstream, store)


def assembled(api: str, events: Any) -> Any:
    assembly = assembly_of(api)
    for frame in events:
        for found in sse.Parser(1 << 20).feed(frame.encode()):
            assembly.add(found, "")
    return json.loads(b"".join(pieces(assembly.content())))


def text_of(api: Api, content: Any) -> str:
    """The words, where each API's users look for them."""
    match api:
        case "chat":
            return str(content["choices"][0]["message"]["content"])
        case "messages":
            return str(content["content"][0]["text"])
        case "responses":
            return str(content["output"][0]["content"][0]["text"])


@each_api
def test_a_whole_answer_is_had_from_any_replica(site: Site, api: Api) -> None:
    streamed = answer(api, WORDS)
    name = site.ended(api, *stream(*streamed.events))
    status, content = site.content(name)
    assert status == 200
    assert text_of(api, content) == "".join(WORDS)
    assert content == assembled(api, streamed.events)
    assert content["usage"]
    assert (site.headers["content-type"], site.headers["cache-control"]) == ("application/json", "no-store")
    assert len(site.upstream.calls_of("m")) >= 1


@each_api
def test_one_that_goes_on_is_as_far_as_it_has_come(site: Site, api: Api) -> None:
    streamed: Answer = answer(api, WORDS)
    model, gate = f"live-{api}", f"gate-{api}"
    steps = stream(*streamed.before, streamed.token, Gate(gate), *streamed.rest)
    with site.ask(api, *steps, model=model) as reader:
        reader.events(len(streamed.before) + 1)
        name = reader.headers["relay-stream-id"]
        status, found = site.content(name)
        assert status == 202
        assert site.headers["retry-after"] == "1"
        assert (found["object"], found["state"], found["outcome"]) == ("relay.stream", "live", None)
        assert found["events"] == len(streamed.before) + 1
        assert text_of(api, found["content"]) == WORDS[0]
        site.upstream.open(gate)
        reader.read()
    wait_until(lambda: site.content(name)[0] == 200, 10, "the end")
    assert text_of(api, site.content(name)[1]) == "".join(WORDS)


def test_before_the_first_event_there_is_no_content(site: Site) -> None:
    with site.ask("chat", *(Gate("silent"), *stream(DONE)), prefer="respond-async", model="silent") as accepted:
        name = accepted.headers["relay-stream-id"]
    status, found = site.content(name)
    assert (status, found["events"], found["content"]) == (202, 0, None)
    site.upstream.open("silent")


@each_api
def test_one_that_was_stopped_says_so(site: Site, api: Api) -> None:
    streamed = answer(api, WORDS)
    steps = stream(*streamed.before, streamed.token, Gate(f"never-{api}"))
    with site.ask(api, *steps, model=f"stopped-{api}") as reader:
        reader.events(len(streamed.before) + 1)
        name = reader.headers["relay-stream-id"]
        headers = {"authorization": f"Bearer {TOKEN}"}
        with open_stream(f"{site.other.url}/streams/{name}", "DELETE", headers) as stopped:
            assert stopped.status == 204
    status, content = site.content(name)
    assert status == 200
    assert text_of(api, content) == WORDS[0]
    assert content["relay"] == "stopped"
    told = {
        "chat": lambda: content["choices"][0]["finish_reason"] == "length",
        "messages": lambda: content["stop_reason"] == "max_tokens",
        "responses": lambda: content["status"] == "cancelled",
    }
    assert told[api]()


FAILED: dict[str, tuple[Api, tuple[Step, ...], str, str]] = {
    **{
        f"{api}, cut": (api, (*stream(*answer(api, WORDS).events[:-1])[:-1], Cut()), "upstream_disconnected", "closed")
        for api in APIS
    },
    "chat, an error": (
        "chat",
        stream(*answer("chat", WORDS).events[:3], 'data: {"error":{"message":"too hot","code":"x"}}\n\n', DONE),
        "upstream_error",
        "too hot",
    ),
    "messages, an error": (
        "messages",
        stream(*answer("messages", WORDS).events[:4], event(typed("error", error={"type": "e", "message": "too hot"}))),
        "upstream_error",
        "too hot",
    ),
    "responses, an error": (
        "responses",
        stream(
            *answer("responses", WORDS).events[:5],
            event(response_end("failed", [], {}, error={"code": "x", "message": "too hot"})),
        ),
        "upstream_error",
        "too hot",
    ),
}


@pytest.mark.parametrize("name", FAILED)
def test_one_that_failed_is_never_taken_for_a_whole(site: Site, name: str) -> None:
    api, steps, code, words = FAILED[name]
    stream_id = site.ended(api, *steps, model=name)
    status, found = site.content(stream_id)
    assert status == 424
    assert found["error"]["code"] == code
    assert words in found["error"]["message"]
    assert (found["stream"]["state"], found["stream"]["outcome"]) == ("ended", code)
    assert text_of(api, found["stream"]["content"]).startswith(WORDS[0])


def test_a_lost_producer_s_is_said_to_be(site: Site, relays: Relays) -> None:
    config = {
        "upstreams": [{"name": "up", "base_url": site.upstream.url}],
        "store": {"url": site.store.url, "prefix": "lost:"},
        "streams": {"lease": "1s"},
    }
    one, two = relays.start(config), relays.start(config)
    here = Site(one, two, site.upstream, site.store)
    with here.ask("chat", *stream(chat({"content": "a"}), Gate("never")), model="lost") as reader:
        reader.events(1)
        name = reader.headers["relay-stream-id"]
        one.kill()
    wait_until(lambda: here.content(name)[0] != 202, 20, "the end of a lost producer")
    status, found = here.content(name)
    assert status == 424
    assert found["error"]["code"] == "producer_lost"
    assert found["stream"]["content"]["choices"][0]["message"]["content"] == "a"


def test_what_the_store_has_lost_is_410(site: Site, relays: Relays) -> None:
    config = {
        "upstreams": [{"name": "up", "base_url": site.upstream.url}],
        "store": {"url": site.store.url, "prefix": "cut:"},
        "streams": {"retention": "2s"},
    }
    relay = relays.start(config)
    here = Site(relay, relay, site.upstream, site.store)
    streamed = answer("chat", WORDS)
    name = here.ended("chat", *stream(*streamed.events), model="trimmed")
    client = site.store.servers[0].client()
    client.xdel(f"cut:{{{name}}}:log", "3-0")
    assert (here.content(name)[0], here.content(name)[1]["error"]["code"]) == (410, "position_unknown")
    wait_until(lambda: here.content(name)[1]["error"]["code"] == "stream_expired", 10, "the stream's expiry")
    assert here.content(name)[0] == 410


def test_who_may_have_it(site: Site) -> None:
    with site.ask("chat", *stream(*answer("chat", WORDS).events), model="owned") as reader:
        reader.read()
        name, address = reader.headers["relay-stream-id"], reader.headers["relay-stream-url"]
    status, found = site.content(name, token="sk-another")
    assert (status, found["error"]["code"]) == (404, "stream_not_found")
    with open_stream(f"{site.other.url}{address}&content=true", "GET", {"accept": "application/json"}) as by_ticket:
        assert by_ticket.status == 200
        assert json.loads(by_ticket.read())["object"] == "chat.completion"


def test_without_a_log_there_is_none(site: Site) -> None:
    name = site.ended("chat", *stream(*answer("chat", WORDS).events), model="unlogged")
    assert site.content(name)[1]["error"]["code"] == "resume_not_supported"


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("", "application/json", "status"),
        ("?content=false", "application/json", "status"),
        ("?content=true", "application/json", "content"),
        ("?content=true", "*/*", "content"),
        ("?content=true", "text/event-stream", "events"),
        ("", "*/*", "events"),
    ],
)
def test_which_of_its_forms_is_answered(site: Site, query: str, accept: str, kind: str) -> None:
    name = site.ended("chat", *stream(*answer("chat", WORDS).events))
    status, body = site.get(f"/streams/{name}{query}", accept=accept)
    assert status == 200
    if kind == "events":
        assert body.startswith(b"id: ")
    else:
        found = body if isinstance(body, dict) else json.loads(body)
        assert found["object"] == {"status": "relay.stream", "content": "chat.completion"}[kind]


@pytest.mark.parametrize("word", ["yes", "1", ""])
def test_a_word_that_is_none_is_refused(site: Site, word: str) -> None:
    name = site.ended("chat", *stream(*answer("chat", WORDS).events))
    status, body = site.get(f"/streams/{name}?content={word}")
    assert (status, body["error"]["code"]) == (400, "invalid_request")


def test_items_that_the_upstream_leaves_out_of_its_end_are_there(site: Site) -> None:
    item = text_item(0, WORDS)
    events = [event(body) for body in (*item, typed("response.completed", response={"id": "r", "output": []}))]
    name = site.ended("responses", *stream(*events), model="bare")
    assert text_of("responses", site.content(name)[1]) == "".join(WORDS)


def test_its_events_count_for_the_replay_rate(site: Site, relays: Relays) -> None:
    config = {
        "upstreams": [{"name": "up", "base_url": site.upstream.url}],
        "store": {"url": site.store.url, "prefix": "rates:"},
        "limits": {"replay_rate": "3/h"},
    }
    relay = relays.start(config)
    here = Site(relay, relay, site.upstream, site.store)
    name = here.ended("chat", *stream(*answer("chat", WORDS).events), model="rated")
    assert here.content(name)[0] == 200
    assert here.content(name)[1]["error"]["code"] == "rate_limit_exceeded"


def test_large_answers_let_others_take_turns(site: Site, relays: Relays) -> None:
    """8 MB of small events, twice at once, while the relay goes on answering."""
    config = {
        "upstreams": [{"name": "up", "base_url": site.upstream.url}],
        "store": {"url": site.store.url, "prefix": "large:"},
        "log": {"level": "warning"},
    }
    relay = relays.start(config)
    here = Site(relay, relay, site.upstream, site.store)
    block = "".join(chat({"content": f"word{n} "}) for n in range(1000))
    steps = stream(*[block] * 30, chat({}, "stop"), DONE)
    with here.ask("chat", *steps, prefer="respond-async", model="large") as accepted:
        name = accepted.headers["relay-stream-id"]
    wait_until(lambda: here.get(f"/streams/{name}")[1]["state"] == "ended", 30, "the end")
    before = rss(relay.pid)
    found: list[tuple[int, Any]] = []
    fetching = [threading.Thread(target=lambda: found.append(here.content(name))) for _ in range(2)]
    for thread in fetching:
        thread.start()
    asked = 0
    while any(thread.is_alive() for thread in fetching):
        with open_stream(f"{relay.url}/livez", "GET") as probe:
            assert probe.status == 200
        asked += 1
    for status, content in found:
        assert status == 200
        assert content["choices"][0]["message"]["content"].startswith("word0 word1 ")
        assert len(content["choices"][0]["message"]["content"]) == 30 * len("".join(f"word{n} " for n in range(1000)))
    assert asked >= 10
    assert rss(relay.pid) - before < 300 << 20
