"""A relayed stream as its client sees it, and a passed-through request as its upstream sees it."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from tests.conftest import Relays
from tests.support.ids import end_ids, event_ids
from tests.support.processes import RelayProcess
from tests.support.replicas import stream_id
from tests.support.samples import (
    CHAT_USAGE_EVENT,
    SAMPLES,
    Event,
    Sample,
    error_of,
    masked,
    refusal_of,
    rest,
    resume,
    start,
)
from tests.support.scripted import (
    Call,
    Cut,
    End,
    Gate,
    Head,
    Reset,
    ScriptedUpstream,
    Send,
    Step,
    json_response,
    stream,
)
from tests.support.sseclient import RawEvent, RawStream, open_stream
from tests.support.stores import valkey_server
from tests.support.streams import APIS, Api

each_api = pytest.mark.parametrize("api", APIS)
logged_or_not = pytest.mark.parametrize("prefix", ["", "unlogged-"])

SSE_HEAD = Head(200, {"content-type": "text/event-stream"})
GZIPPED = Head(200, {"content-type": "text/event-stream", "content-encoding": "gzip"})
KEY = "sk-of-the-relay"
_numbers = itertools.count()


@dataclass(frozen=True)
class Scene:
    """A relay in front of two upstreams, with heartbeats every 50 ms and a patience of 700 ms."""

    relay: RelayProcess
    main: ScriptedUpstream
    other: ScriptedUpstream
    store: redis.Redis

    def play(self, *steps: Step, prefix: str = "") -> str:
        """The name of a model that answers so."""
        model = f"{prefix}model-{next(_numbers)}"
        self.main.on(model, *steps)
        return model

    def call(self, model: str) -> Call:
        """The only call for a model."""
        (call,) = self.main.calls_of(model)
        return call


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with (
        ScriptedUpstream() as main,
        ScriptedUpstream() as other,
        valkey_server(tmp_path_factory.mktemp("store"), unix=True) as store,
    ):
        config = {
            "upstreams": [
                {"name": "main", "base_url": main.url, "models": ["model-*"], "malformed": "end"},
                {
                    "name": "other",
                    "base_url": f"{other.url}/base",
                    "models": ["other/*"],
                    "strip_prefix": "other/",
                    "api_key_env": "OTHER_UPSTREAM_KEY",
                },
                {"name": "unlogged", "base_url": main.url, "models": ["unlogged-*"], "buffer": False},
                {"name": "observed", "base_url": main.url, "models": ["observe-*"], "usage": "observe"},
                {"name": "always", "base_url": main.url, "models": ["always-*"], "usage": "always"},
            ],
            "store": {"url": store.url},
            "streams": {"heartbeat": "50ms", "patience": "700ms"},
            "drain": {"timeout": "0s"},
        }
        with RelayProcess(config, {"OTHER_UPSTREAM_KEY": KEY}) as relay:
            yield Scene(relay, main, other, store.servers[0].client())


def plain(event: RawEvent) -> bytes:
    """An event's bytes without its id, and without the retry hint that the first one carries."""
    if event.id is None:
        return event.raw
    assert (b"\nretry: " in event.raw) == event.id.endswith(".1")
    return masked(event.raw).partition(b"\n")[2].removeprefix(b"retry: NNNN\n")


def sample_of(api: Api, prefix: str) -> Sample:
    """Without ids an upstream's own ping cannot be told from a heartbeat: such samples have none."""
    sample = SAMPLES[api]
    if prefix == "":
        return sample
    return replace(sample, events=tuple(event for event in sample.events if event.kind != "ping"))


def bodies(sample: Sample, upto: int | None = None) -> list[bytes]:
    return [event.to_client(None) for event in sample.events[:upto]]


# -- headers ------------------------------------------------------------------------------------------------


@each_api
@logged_or_not
def test_headers_of_a_stream(scene: Scene, api: Api, prefix: str) -> None:
    sample = sample_of(api, prefix)
    theirs = {
        "x-request-id": "req-theirs",
        "request-id": "req-theirs-2",
        "x-ratelimit-remaining-tokens": "17",
        "anthropic-ratelimit-requests-limit": "4",
        "set-cookie": "a=b",
        "cache-control": "public, max-age=600",
        "x-internal": "secret",
        "connection": "keep-alive",
    }
    model = scene.play(*stream(*sample.frames, headers=theirs), prefix=prefix)
    asking = {**sample.headers(), "accept-encoding": "gzip, br, zstd"}
    with open_stream(scene.relay.url + sample.path, headers=asking, body=sample.body(model)) as answer:
        headers = answer.headers
        assert answer.status == 200
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-cache, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert headers["relay-resumable"] == ("true" if prefix == "" else "false")
        assert re.fullmatch(r"st_[A-Za-z0-9_-]{22,}", headers["relay-stream-id"])
        assert headers["transfer-encoding"] == "chunked"
        for name in ("x-request-id", "request-id", "x-ratelimit-remaining-tokens"):
            assert headers[name] == theirs[name]
        assert headers["anthropic-ratelimit-requests-limit"] == "4"
        for name in ("content-length", "content-encoding", "set-cookie", "x-internal", "server"):
            assert name not in headers
        names = [name.lower() for name, _ in answer.header_list]
        assert len(names) == len(set(names))
        assert [plain(event) for event in answer.events()] == bodies(sample)
        assert answer.ended == "zero-chunk"


# -- heartbeats and patience --------------------------------------------------------------------------------


def beats(answer: RawStream, count: int) -> list[bytes]:
    """The next parts of the body, which must all be heartbeats."""
    found = list(itertools.islice(answer, count))
    assert [part.id for part in found] == [None] * count
    return [part.raw for part in found]


@each_api
@logged_or_not
def test_heartbeats_before_the_first_event_and_in_the_middle(scene: Scene, api: Api, prefix: str) -> None:
    sample = sample_of(api, prefix)
    gate = f"beats-{api}-{prefix}"
    frames = sample.frames
    # The second silence falls inside an event of the upstream's: at the client it is between two.
    script = stream(Gate(f"{gate}-1"), *frames[:3], frames[3][:9], Gate(f"{gate}-2"), frames[3][9:], *frames[4:])
    with start(scene.relay, sample, scene.play(*script, prefix=prefix)) as answer:
        assert beats(answer, 3) == [sample.heartbeat] * 3
        assert answer.raw_body == sample.heartbeat * 3
        scene.main.open(f"{gate}-1")
        events = answer.events(3)
        assert beats(answer, 3) == [sample.heartbeat] * 3
        scene.main.open(f"{gate}-2")
        parts = list(answer)
        assert answer.ended == "zero-chunk"
        assert {part.raw for part in parts if part.is_heartbeat} <= {sample.heartbeat}
        events += [part for part in parts if not part.is_heartbeat]
        assert [plain(event) for event in events] == bodies(sample)


@each_api
def test_heartbeats_on_a_resume(scene: Scene, api: Api) -> None:
    sample = SAMPLES[api]
    gate = f"resume-beats-{api}"
    with start(scene.relay, sample, scene.play(*stream(sample.frames[0], Gate(gate), *sample.frames[1:]))) as answer:
        answer.events(1)
        again = resume(scene.relay, sample, f"{stream_id(answer)}.1")
        assert beats(again, 2) == [sample.heartbeat] * 2
        scene.main.open(gate)
        assert sample.expected(stream_id(answer), 1) + rest(again) == sample.expected(stream_id(answer))


@each_api
@logged_or_not
def test_late_stream(scene: Scene, api: Api, prefix: str) -> None:
    sample = sample_of(api, prefix)
    gate = f"late-{api}-{prefix}"
    model = scene.play(Gate(gate), *stream(*sample.frames), prefix=prefix)
    answer = start(scene.relay, sample, model)
    assert beats(answer, 2) == [sample.heartbeat] * 2
    scene.main.open(gate)
    events = answer.events()
    assert [plain(event) for event in events] == bodies(sample)
    assert answer.ended == "zero-chunk"
    assert scene.call(model).method == "POST"


def ends_in_error(scene: Scene, sample: Sample, answer: RawStream, before: int, logged: bool = True) -> tuple[str, str]:
    """The code and message with which a stream ends after so many of the sample's events.

    Its end takes no number, its state names the same outcome, a resume gives the same bytes, and who has all events
    but not the end is told it again.
    """
    name = stream_id(answer)
    with answer:
        events = answer.events()
        assert answer.ended == "zero-chunk"
    assert [plain(event) for event in events[:before]] == bodies(sample, before)
    last = before - 1 if sample.api == "responses" and before else None
    told = error_of(sample.api, events[before:], last)
    if not logged:
        assert {event.id for event in events} == {None}
        return told
    assert [event.id for event in events] == [*event_ids(name, before), *end_ids(name, before, len(events) - before)]
    headers = {**sample.headers(), "accept": "application/json"}
    with open_stream(f"{scene.relay.url}/streams/{name}", "GET", headers) as state:
        assert state.json["outcome"] == told[0]
    assert rest(resume(scene.relay, sample, f"{name}.0")) == masked(b"".join(event.raw for event in events))
    assert rest(resume(scene.relay, sample, f"{name}.{before}")) == b"".join(event.raw for event in events[before:])
    with resume(scene.relay, sample, f"{name}.{before}e") as end:
        assert (end.status, end.read()) == (204, b"")
    return told


LATE: dict[str, tuple[tuple[Step, ...], str, str]] = {
    "429": (json_response(429, {"error": {"message": "Slow down, please"}}), "upstream_refused", "Slow down, please"),
    "401 of no JSON": ((Head(401, {}, "length"), Send(b"<html>no</html>")), "upstream_refused", "401"),
    "500 without a body": ((Head(500, {}, "length"),), "upstream_refused", "500"),
    "200 of JSON": (json_response(200, {"choices": []}), "upstream_malformed", ""),
    "redirect": ((Head(307, {"location": "/v1/elsewhere"}, "length"),), "upstream_refused", "307"),
    "200 of HTML": ((Head(200, {"content-type": "text/html"}), Send(b"<html>")), "upstream_malformed", ""),
    "compressed": ((GZIPPED, Send(b"\x1f\x8b")), "upstream_malformed", ""),
    "reset": ((Reset(),), "upstream_disconnected", ""),
    "close": ((Cut(),), "upstream_disconnected", ""),
}


@each_api
@pytest.mark.parametrize("kind", LATE)
def test_late_refusal_is_told_in_band(scene: Scene, api: Api, kind: str) -> None:
    sample = SAMPLES[api]
    steps, code, words = LATE[kind]
    gate = f"late-{api}-{kind}"
    model = scene.play(Gate(gate), *steps)
    answer = start(scene.relay, sample, model)
    assert beats(answer, 1) == [sample.heartbeat]
    scene.main.open(gate)
    told, message = ends_in_error(scene, sample, answer, 0)
    assert told == code
    assert words in message
    assert scene.call(model).path == sample.path


@each_api
@logged_or_not
@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
def test_refusal_in_time_is_verbatim(scene: Scene, api: Api, prefix: str, status: int) -> None:
    sample = sample_of(api, prefix)
    body = ' {"error" : {"message":"Nö\\u00e4, \u2028", "x": 1.50}}\r\n'.encode()
    head = {"content-type": "application/problem+json; x=y", "retry-after": "17", "x-should-retry": "false"}
    model = scene.play(Head(status, {**head, "x-request-id": "req-7"}, "length"), Send(body), prefix=prefix)
    keys = sorted(scene.store.keys("*{*}*"))
    with open_stream(scene.relay.url + sample.path, headers=sample.headers(), body=sample.body(model)) as answer:
        assert (answer.status, answer.read()) == (status, body)
        assert {name: answer.headers[name] for name in head} == head
        assert answer.headers["x-request-id"] == "req-7"
        assert "relay-stream-id" not in answer.headers
    assert sorted(scene.store.keys("*{*}*")) == keys
    assert scene.call(model).json == sample.body(model)


@each_api
@pytest.mark.parametrize("kind", ["json", "no type", "html", "compressed", "redirect", "not modified", "no content"])
def test_success_that_is_no_stream(scene: Scene, api: Api, kind: str) -> None:
    sample = SAMPLES[api]
    scripts: dict[str, tuple[Step, ...]] = {
        "json": json_response(200, {"choices": [{"message": {"content": "whole"}}]}),
        "no type": (Head(200, {"content-type": ""}, "length"), Send(b"{}")),
        "html": (Head(200, {"content-type": "text/html"}), Send(b"<html>"), End()),
        "compressed": (GZIPPED, Send(b"\x1f\x8b")),
        "redirect": (Head(307, {"location": f"{scene.main.url}/v1/elsewhere"}, "length"),),
        "not modified": (Head(304, {}, "length"),),
        "no content": (Head(204, {}, "length"),),
    }
    model = scene.play(*scripts[kind])
    keys = sorted(scene.store.keys("*{*}*"))
    with open_stream(scene.relay.url + sample.path, headers=sample.headers(), body=sample.body(model)) as answer:
        told = answer.status, refusal_of(api, answer.read())[0]
        assert "relay-stream-id" not in answer.headers
    assert told == (502, "upstream_malformed")
    assert scene.call(model).path == sample.path
    assert sorted(scene.store.keys("*{*}*")) == keys


# -- nothing is buffered ------------------------------------------------------------------------------------


@each_api
@logged_or_not
def test_every_event_arrives_before_the_next_is_sent(scene: Scene, api: Api, prefix: str) -> None:
    sample = sample_of(api, prefix)
    gate = f"step-{api}-{prefix}"
    steps: list[bytes | Step] = []
    for n, frame in enumerate(sample.frames):
        steps += [Gate(f"{gate}-{n}"), frame]
    with start(scene.relay, sample, scene.play(*stream(*steps), prefix=prefix)) as answer:
        for n, wanted in enumerate(bodies(sample)):
            scene.main.open(f"{gate}-{n}")
            (event,) = answer.events(1)
            assert plain(event) == wanted
        assert answer.events() == []
        assert answer.ended == "zero-chunk"


# -- abnormal ends ------------------------------------------------------------------------------------------


@each_api
@logged_or_not
@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("how", ["reset", "fin", "end", "end of a body without framing"])
@pytest.mark.parametrize("inside", [False, True])
def test_upstream_breaks_off(scene: Scene, api: Api, prefix: str, k: int, how: str, inside: bool) -> None:
    """Between two events or inside one: the text so far, then the error; half an event is never passed on."""
    sample = sample_of(api, prefix)
    gate = f"broken-{api}-{prefix}-{k}-{how}-{inside}"
    half = [Send(sample.frames[k][:-5])] if inside else []
    lasts: dict[str, Step] = {"reset": Reset(), "end": End()}
    last = lasts.get(how, Cut())
    head = Head(200, SSE_HEAD.headers, "close") if "without" in how else SSE_HEAD
    script = (head, *map(Send, sample.frames[:k]), *half, Gate(gate), last)
    answer = start(scene.relay, sample, scene.play(*script, prefix=prefix))
    scene.main.wait_reached(gate)
    beats(answer, 1) if k == 0 else None
    scene.main.open(gate)
    code, _ = ends_in_error(scene, sample, answer, k, logged=prefix == "")
    assert code == "upstream_disconnected"


@each_api
@pytest.mark.parametrize(
    "data", ['{"id": "x", "cho', "not json", "[1, 2]", '"text"', "17", "null", "[DONE", '{"a":1}{"a":2}']
)
def test_malformed_event(scene: Scene, api: Api, data: str) -> None:
    sample = SAMPLES[api]
    kind = "" if api == "chat" else "unknown"
    model = scene.play(*stream(*sample.frames[:3], Event(data, kind).from_upstream(0), *sample.frames[3:]))
    code, message = ends_in_error(scene, sample, start(scene.relay, sample, model), 3)
    assert code == "upstream_malformed"
    assert data not in message


@each_api
def test_events_and_malformed_event_in_one_packet(scene: Scene, api: Api) -> None:
    """What came whole before the bad event is passed on, also when TCP brought both at once."""
    sample = SAMPLES[api]
    model = scene.play(SSE_HEAD, Send(b"".join([*sample.frames[:4], b"data: {oops\n\n"])), End())
    code, _ = ends_in_error(scene, sample, start(scene.relay, sample, model), 4)
    assert code == "upstream_malformed"


# -- what goes upstream -------------------------------------------------------------------------------------


@each_api
@logged_or_not
def test_body_and_path_go_up_as_they_are(scene: Scene, api: Api, prefix: str) -> None:
    sample = sample_of(api, prefix)
    model = scene.play(*stream(*sample.frames), prefix=prefix)
    raw = json.dumps(sample.body(model, seed=1.50, x="\u2028é"), indent=3).encode() + b"\n"
    url = f"{scene.relay.url}{sample.path}?beta=true&x=%C3%A9+%2F"
    with open_stream(url, headers=sample.headers(), body=raw) as answer:
        answer.events()
    call = scene.call(model)
    assert (call.body, call.path) == (raw, f"{sample.path}?beta=true&x=%C3%A9+%2F")


@each_api
def test_headers_that_go_up_and_that_do_not(scene: Scene, api: Api) -> None:
    sample = SAMPLES[api]
    passed = {"openai-beta": "x=1", "anthropic-beta": "y", "x-stainless-retry-count": "2", "user-agent": "u/1"}
    held = {
        "cookie": "session=1",
        "connection": "keep-alive, x-hop",
        "keep-alive": "timeout=5",
        "te": "trailers",
        "trailer": "x-sum",
        "proxy-authorization": "Basic eA==",
        "proxy-connection": "keep-alive",
        "x-hop": "1",
    }
    model = scene.play(*stream(*sample.frames))
    headers = {**sample.headers("sk-client"), **passed, **held}
    with open_stream(scene.relay.url + sample.path, headers=headers, body=sample.body(model)) as answer:
        answer.events()
    scene.main.on_path("GET /v1/models", *json_response(200, {"data": []}))
    with open_stream(f"{scene.relay.url}/v1/models", "GET", {**headers, "last-event-id": "evt_1"}) as answer:
        assert answer.json == {"data": []}
    for call in (scene.call(model), scene.main.calls[-1]):
        for name, value in {**passed, **sample.headers("sk-client")}.items():
            assert call.header(name) == value
        for name in (*held, "last-event-id"):
            assert (name, call.header(name)) in [(name, None), ("connection", "keep-alive")]
        assert call.header("host") == urlsplit(scene.main.url).netloc
        assert len([name for name, _ in call.headers if name.lower() == "content-length"]) <= 1


@each_api
@pytest.mark.parametrize("stream_it", [True, False])
@pytest.mark.parametrize("credential", ["own", "x-api-key", "bearer", "none"])
def test_routing_prefix_and_the_relays_own_key(scene: Scene, api: Api, stream_it: bool, credential: str) -> None:
    sample = SAMPLES[api]
    model = f"{api}-{stream_it}-{credential}"
    script = stream(*sample.frames) if stream_it else json_response(200, {"whole": True})
    scene.other.on(model, *script)
    headers = {k: v for k, v in sample.headers("sk-client").items() if credential == "own" or k == "anthropic-version"}
    headers |= {"x-api-key": {"x-api-key": "sk-client"}, "bearer": {"authorization": "Bearer sk-client"}}.get(
        credential, {}
    )
    before = len(scene.main.calls)
    body = sample.body(f"other/{model}", stream=stream_it)
    with open_stream(scene.relay.url + sample.path, headers=headers, body=body) as answer:
        assert answer.status == 200
        answer.read()
    (call,) = scene.other.calls_of(model)
    assert call.path == f"/base{sample.path}"
    assert call.json == {**body, "model": model}
    assert "sk-client" not in repr(call.headers)
    credentials = {name.lower(): value for name, value in call.headers if KEY in value}
    by_key = api == "messages" or credential == "x-api-key"
    assert credentials == ({"x-api-key": KEY} if by_key else {"authorization": f"Bearer {KEY}"})
    assert len(scene.main.calls) == before


@pytest.mark.parametrize(
    ("prefix", "asks", "goes_up", "shown"),
    [
        ("", False, False, True),
        ("observe-", False, True, False),
        ("observe-", True, True, True),
        ("always-", False, True, True),
        ("always-", True, True, True),
    ],
)
def test_usage(scene: Scene, prefix: str, asks: bool, goes_up: bool, shown: bool) -> None:
    """`shown`: the chunk that an upstream sends reaches the client. Hidden, it costs no id."""
    sample = SAMPLES["chat"]
    model = scene.play(*stream(*sample.frames), prefix=prefix)
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asks else {}
    body = sample.body(model, **options, user="u")
    answer = open_stream(scene.relay.url + sample.path, headers=sample.headers(), body=body)
    events = answer.events()
    wanted = [event for event in sample.events if shown or event is not CHAT_USAGE_EVENT]
    name = stream_id(answer)
    assert [masked(e.raw) for e in events] == [e.to_client(f"{name}.{n}") for n, e in enumerate(wanted, start=1)]
    sent = scene.call(model).json
    assert ("stream_options" in sent) == goes_up
    assert sent == {**body, **({"stream_options": {"include_usage": True}} if goes_up else {})}


# -- passed through -----------------------------------------------------------------------------------------


@each_api
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_answer_without_stream(scene: Scene, api: Api, framing: Any) -> None:
    sample = SAMPLES[api]
    whole = ' {"id":"x", "text":"Zü\u2028rich" }\n'.encode()
    head = {"content-type": "application/json", "x-request-id": "req-3", "x-theirs": "1"}
    model = scene.play(Head(200, head, framing), Send(whole[:12]), Send(whole[12:]))
    body = sample.body(model, stream=False)
    with open_stream(scene.relay.url + sample.path, headers=sample.headers(), body=body) as answer:
        assert (answer.status, answer.read()) == (200, whole)
        assert answer.ended == ("length" if framing == "length" else "zero-chunk")
        assert {name: answer.headers[name] for name in head} == head
        assert "relay-stream-id" not in answer.headers
    assert scene.call(model).json == body


@each_api
@pytest.mark.parametrize("status", [307, 401, 429, 500])
def test_any_status_without_stream(scene: Scene, api: Api, status: int) -> None:
    sample = SAMPLES[api]
    head = {"retry-after": "3", "content-type": "text/x", "location": f"{scene.main.url}/v1/elsewhere"}
    model = scene.play(Head(status, head, "length"), Send(b"as it is"))
    body = sample.body(model, stream=False)
    with open_stream(scene.relay.url + sample.path, headers=sample.headers(), body=body) as answer:
        assert (answer.status, answer.read()) == (status, b"as it is")
        assert {name: answer.headers[name] for name in head} == head
    assert scene.call(model).path == sample.path


def test_other_paths(scene: Scene) -> None:
    scene.main.on_path("GET /v1/models", *json_response(200, {"data": [{"id": "m"}]}))
    binary = bytes(range(256)) * 300
    audio = Head(200, {"content-type": "audio/mpeg", "etag": '"7"'}, "length")
    scene.main.on_path("GET /v1/files/f_1/content", audio, Send(binary))
    scene.main.on_path("DELETE /v1/files/f_1", *json_response(200, {"deleted": True}))
    scene.main.on_path("GET /v1/fine_tuning/none", *json_response(404, {"error": {"code": "theirs"}}))
    packed = gzip.compress(b"x" * 5000)
    zipped = Head(200, {"content-type": "application/json", "content-encoding": "gzip"}, "length")
    scene.main.on_path("GET /v1/zipped", zipped, Send(packed))

    def get(path: str, method: str = "GET") -> RawStream:
        return open_stream(scene.relay.url + path, method, {"authorization": "Bearer sk", "accept-encoding": "gzip"})

    with get("/v1/files/f_1", "DELETE") as answer:
        assert answer.json == {"deleted": True}
    answers = {}
    for path in ("/v1/models", "/v1/files/f_1/content", "/v1/fine_tuning/none", "/v1/zipped"):
        with get(path) as answer:
            answers[path] = answer.status, answer.read(), answer.headers
    assert json.loads(answers["/v1/models"][1]) == {"data": [{"id": "m"}]}
    assert answers["/v1/files/f_1/content"][:2] == (200, binary)
    assert answers["/v1/files/f_1/content"][2]["etag"] == '"7"'
    assert answers["/v1/files/f_1/content"][2]["content-type"] == "audio/mpeg"
    assert answers["/v1/fine_tuning/none"][0] == 404
    assert json.loads(answers["/v1/fine_tuning/none"][1]) == {"error": {"code": "theirs"}}
    assert answers["/v1/zipped"][:2] == (200, packed)
    assert answers["/v1/zipped"][2]["content-encoding"] == "gzip"


def test_embeddings_are_routed_by_model(scene: Scene) -> None:
    model = scene.play(*json_response(200, {"data": [1.5]}))
    scene.other.on("embed", *json_response(200, {"data": [2.5]}))
    for name, wanted in ((model, 1.5), ("other/embed", 2.5)):
        with open_stream(f"{scene.relay.url}/v1/embeddings", body={"model": name, "input": "é"}) as answer:
            assert answer.json == {"data": [wanted]}
    assert scene.call(model).json == {"model": model, "input": "é"}
    (call,) = scene.other.calls_of("embed")
    assert (call.path, call.header("authorization")) == ("/base/v1/embeddings", f"Bearer {KEY}")


def test_answer_is_passed_on_as_it_comes(scene: Scene) -> None:
    parts = b"data: one\n\n", b"data: two\n\n"
    model = scene.play(Head(200, {"content-type": "text/x"}), Send(parts[0]), Gate("pass"), Send(parts[1]), End())
    with open_stream(f"{scene.relay.url}/v1/audio/speech", body={"model": model}) as answer:
        assert [event.raw for event in answer.events(1)] == [parts[0]]
        scene.main.open("pass")
        assert answer.read() == parts[0] + parts[1]
        assert answer.ended == "zero-chunk"


@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_answer_that_breaks_off_breaks_off_here_too(scene: Scene, framing: Any) -> None:
    gate = f"pass-broken-{framing}"
    head = Head(200, {"content-type": "audio/mpeg"}, framing)
    model = scene.play(head, Send(b"some of it"), Gate(gate), Cut(), Send(b"never sent"))
    with open_stream(f"{scene.relay.url}/v1/audio/speech", body={"model": model}) as answer:
        scene.main.wait_reached(gate)
        scene.main.open(gate)
        assert answer.read() == b"some of it"
        assert answer.ended in ("fin", "reset")


class Sink:
    """An upstream that tells when a mark has arrived in a request, before the request is whole."""

    def __init__(self, mark: bytes, end: bytes) -> None:
        self._mark = mark
        self._end = end
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(20)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.marked = threading.Event()
        self.got = b""
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Sink:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(20)
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(20)
            while self._end not in self.got:
                self.got += connection.recv(1 << 16)
                if self._mark in self.got:
                    self.marked.set()
            connection.sendall(b"HTTP/1.1 201 Made\r\ncontent-length: 4\r\n\r\ndone")


@pytest.mark.parametrize("chunked", [True, False])
def test_upload_is_streamed_through(relays: Relays, chunked: bool) -> None:
    """The upstream has the first half of a multipart body while the client still holds the second."""
    halves = [b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\nFIRST', b"\xff\x00SECOND\r\n--b--\r\n"]
    length = sum(map(len, halves))
    with Sink(b"FIRST", b"--b--\r\n") as sink:
        relay = relays.start({"upstreams": [{"name": "sink", "base_url": sink.url}], "limits": {"body": 64}})
        parts = urlsplit(relay.url)
        connection = socket.create_connection((parts.hostname or "", parts.port or 0), 20)
        framing = "transfer-encoding: chunked" if chunked else f"content-length: {length}"
        head = (
            f"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n{framing}\r\n\r\n"
        )
        frames = [b"%x\r\n%s\r\n" % (len(half), half) if chunked else half for half in halves]
        connection.sendall(head.encode() + frames[0])
        assert sink.marked.wait(10)
        connection.sendall(frames[1] + (b"0\r\n\r\n" if chunked else b""))
        with RawStream(connection) as answer:
            assert (answer.status, answer.read()) == (201, b"done")
    assert b"multipart/form-data; boundary=b" in sink.got
    if not chunked:
        assert b"content-length: %d\r\n" % length in sink.got.lower()
