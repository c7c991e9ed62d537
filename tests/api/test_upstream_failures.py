"""What a client is told of an upstream that refuses, breaks off or sends what is none of the API's events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.api.scene import KEY, SSE_HEAD, UNREADABLE, Scene, beats, bodies, each_api, logged_or_not, plain, sample_of
from tests.support.ids import end_ids, event_ids
from tests.support.processes import RelayProcess
from tests.support.replicas import stream_id
from tests.support.samples import SAMPLES, Event, Sample, error_of, masked, refusal_of, rest, resume, start
from tests.support.scripted import Cut, End, Gate, Head, Reset, Send, Step, json_response, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.streams import Api

pytestmark = pytest.mark.slow


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
    "redirect": (
        (Head(307, {"location": "/v1/elsewhere"}, "length"),),
        "upstream_refused",
        "307, a redirect to /v1/else",
    ),
    "200 of HTML": ((Head(200, {"content-type": "text/html"}), Send(b"<html>")), "upstream_malformed", ""),
    "compressed": ((UNREADABLE, Send(b"\x1f\x8b")), "upstream_malformed", ""),
    "a status that is none": ((Head(600, {}, "length"),), "upstream_malformed", "600"),
    "reset": ((Reset(),), "upstream_disconnected", ""),
    "close": ((Cut(),), "upstream_disconnected", ""),
}


@pytest.fixture(scope="module")
def hurried(scene: Scene) -> Iterator[Scene]:
    """The same with hardly any patience."""
    config = {name: value for name, value in scene.relay.config.items() if name not in ("bind", "metrics_bind")}
    config["streams"] = {**config["streams"], "patience": "50ms"}
    with RelayProcess(config, {"OTHER_UPSTREAM_KEY": KEY}) as relay:
        yield replace(scene, relay=relay)


@each_api
@pytest.mark.parametrize("kind", LATE)
def test_late_refusal_is_told_in_band(hurried: Scene, api: Api, kind: str) -> None:
    sample = SAMPLES[api]
    steps, code, words = LATE[kind]
    gate = f"late-{api}-{kind}"
    model = hurried.play(Gate(gate), *steps)
    answer = start(hurried.relay, sample, model)
    assert beats(answer, 1) == [sample.heartbeat]
    hurried.main.open(gate)
    told, message = ends_in_error(hurried, sample, answer, 0)
    assert told == code
    assert words in message
    assert hurried.call(model).path == sample.path


@each_api
def test_who_is_asked_next_long_after_the_answer_has_begun_gets_the_same_head(scene: Scene, api: Api) -> None:
    sample = SAMPLES[api]
    gate = f"next-{api}"
    model = scene.play(Gate(gate), Head(503, {}, "length"), prefix="first-")
    scene.other.on(model, *stream(*sample.frames))
    answer = start(scene.relay, sample, model)
    assert beats(answer, 1) == [sample.heartbeat]
    scene.main.open(gate)
    with answer:
        answer.read()
        assert answer.ended == "zero-chunk"
    (call,) = scene.other.calls_of(model)
    first, then = ({name.lower(): value for name, value in each.headers} for each in (scene.call(model), call))
    assert {**first, "host": ""} == {**then, "host": ""}
    assert set(sample.headers()) <= set(then)


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
        "compressed": (UNREADABLE, Send(b"\x1f\x8b")),
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


@each_api
@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, "text/plain; charset=utf-8"), (200, "application/octet-stream"), (201, "text/event-stream"),
     (206, "text/event-stream"), (200, "text/event-stream, text/plain"), (200, "Text/Event-Stream ;charset=x")],
)  # fmt: skip
def test_an_event_stream_by_another_name(scene: Scene, api: Api, status: int, kind: str) -> None:
    """SDKs read one whatever its status of success and its type are, so a relay in between must not refuse it."""
    sample = SAMPLES[api]
    model = scene.play(Head(status, {"content-type": kind}), *map(Send, sample.frames), End())
    with start(scene.relay, sample, model) as answer:
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert [plain(event) for event in answer.events()] == bodies(sample, len(sample.frames))


@each_api
@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("https://api.example/v1/x?key=secret", "a redirect to https://api.example, which"),
        ("https://me:secret@api.example/", "a redirect to https://api.example, which"),
        ("//api.example/x", "a redirect to //api.example, which"),
        ("/elsewhere?key=secret", "a redirect to /elsewhere, which"),
        ("https://[secret", "a redirect, which"),
        ("", "a redirect, which"),
    ],
)
def test_a_redirect_is_told_with_where_it_leads(scene: Scene, api: Api, status: int, location: str, words: str) -> None:
    sample = SAMPLES[api]
    model = scene.play(Head(status, {"location": location}, "length"), Send(b"<html>Moved"))
    with open_stream(scene.relay.url + sample.path, headers=sample.headers(), body=sample.body(model)) as answer:
        code, message = refusal_of(api, answer.read())
        assert (answer.status, code) == (502, "upstream_malformed")
        assert answer.headers["x-should-retry"] == "false"
    assert f"answered {status}, {words} is not followed: set its base_url" in message
    assert "secret" not in message


@each_api
@pytest.mark.parametrize("coding", ["none", "UTF-8", "identity", "binary", "utf-8, identity"])
def test_a_content_encoding_that_is_none(scene: Scene, api: Api, coding: str) -> None:
    sample = SAMPLES[api]
    head = Head(200, {"content-type": "text/event-stream", "content-encoding": coding})
    with start(scene.relay, sample, scene.play(head, *map(Send, sample.frames), End())) as answer:
        assert "content-encoding" not in answer.headers
        assert [plain(event) for event in answer.events()] == bodies(sample, len(sample.frames))


@each_api
@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream"])
def test_a_text_that_is_no_event_stream_is_told(scene: Scene, api: Api, kind: str) -> None:
    sample = SAMPLES[api]
    model = scene.play(Head(200, {"content-type": kind}, "length"), Send(b"no healthy upstream\n"))
    with open_stream(scene.relay.url + sample.path, headers=sample.headers(), body=sample.body(model)) as answer:
        code, message = refusal_of(api, answer.read())
        assert (answer.status, code) == (502, "upstream_malformed")
    assert "no healthy upstream" in message


@each_api
@pytest.mark.parametrize("kind", ["nothing", "[DONE]", "reset", "a whole answer"])
def test_what_may_have_been_paid_for_is_not_asked_for_again(scene: Scene, api: Api, kind: str) -> None:
    sample = SAMPLES[api]
    scripts: dict[str, tuple[Step, ...]] = {
        "nothing": (SSE_HEAD, End()),
        "[DONE]": (SSE_HEAD, Send(b"data: [DONE]\n\n"), End()),
        "reset": (SSE_HEAD, Send(b": x\n\n"), Reset()),
        "a whole answer": json_response(200, {"choices": [{"message": {"content": "whole"}}]}),
    }
    model = scene.play(*scripts[kind])
    with open_stream(scene.relay.url + sample.path, headers=sample.headers(), body=sample.body(model)) as answer:
        code, message = refusal_of(api, answer.read())
        assert answer.status == 502
        assert answer.headers["x-should-retry"] == "false"
    if code == "upstream_disconnected":
        assert "paid for twice" in message
        assert "send the request again" not in message
    else:
        assert (code, kind) == ("upstream_malformed", "a whole answer")


# -- abnormal ends ------------------------------------------------------------------------------------------


@each_api
@logged_or_not
@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("how", ["reset", "fin", "end", "end of a body without framing"])
@pytest.mark.parametrize("inside", [False, True])
def test_upstream_breaks_off(hurried: Scene, api: Api, prefix: str, k: int, how: str, inside: bool) -> None:
    """Between two events or inside one: the text so far, then the error; half an event is never passed on."""
    sample = sample_of(api, prefix)
    gate = f"broken-{api}-{prefix}-{k}-{how}-{inside}"
    half = [Send(sample.frames[k].partition(b"}")[0])] if inside else []
    lasts: dict[str, Step] = {"reset": Reset(), "end": End()}
    last = lasts.get(how, Cut())
    head = Head(200, SSE_HEAD.headers, "close") if "without" in how else SSE_HEAD
    script = (head, *map(Send, sample.frames[:k]), *half, Gate(gate), last)
    answer = start(hurried.relay, sample, hurried.play(*script, prefix=prefix))
    hurried.main.wait_reached(gate)
    beats(answer, 1) if k == 0 else None
    hurried.main.open(gate)
    code, _ = ends_in_error(hurried, sample, answer, k, logged=prefix == "")
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
