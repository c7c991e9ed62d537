"""SSE injection: nothing that an upstream, a model or a header sends ends a frame early, or forges an id, an event or a
retry.

What comes out is read by a parser of its own that follows the WHATWG text to the letter, CR included; the relay's codec
is not asked about itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from relay.protocol import end_mark
from relay.protocol.apis import DIALECTS
from relay.protocol.outcomes import Cause
from relay.protocol.sse import Event, Parser, encode
from tests.security.wire import AUTH
from tests.support.ids import end_ids, event_ids
from tests.support.processes import RelayProcess
from tests.support.scripted import End, Gate, Head, Pause, ScriptedUpstream, Send, json_response
from tests.support.site import Site
from tests.support.sseclient import RawStream, open_stream
from tests.support.streams import PATHS

each_api = pytest.mark.parametrize("api", PATHS)
quietly = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors], deadline=None)


@dataclass(frozen=True)
class Seen:
    """One event as a browser dispatches it."""

    id: bytes
    type: bytes
    data: bytes


@dataclass
class Browser:
    """A whole body, by the standard: lines end at CRLF, LF and CR; an id lasts until the next one."""

    events: list[Seen]
    retries: list[int]

    @classmethod
    def of(cls, body: bytes) -> Browser:
        found = cls([], [])
        last_id, kind, data = b"", b"", b""
        *lines, _ = re.split(rb"\r\n|\n|\r", body.removeprefix(b"\xef\xbb\xbf"))
        for line in lines:
            name, colon, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if not line:
                if data:
                    found.events.append(Seen(last_id, kind, data.removesuffix(b"\n")))
                kind, data = b"", b""
            elif colon and not name:
                continue
            elif name == b"data":
                data += value + b"\n"
            elif name == b"event":
                kind = value
            elif name == b"id" and b"\0" not in value:
                last_id = value
            elif name == b"retry" and re.fullmatch(rb"[0-9]+", value):
                found.retries.append(int(value[:9]))
        return found


HOSTILE = [
    *(b"\r", b"\n", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\0", b":", b" ", b"{}", b"x"),
    *(text.encode() for text in ("\ufeff", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "é", "😀")),
    *(b"data: ", b"data:", b"data", b"event: ", b"event: error", b"id: ", b"id: st_AAAAAAAAAAAAAAAAAAAAAA.9", b"id\n"),
    *(
        b"retry: 1",
        b"retry:",
        b": comment",
        b"Data: ",
        b" id: 1",
        b"data: [DONE]\n\n",
        b"id: \0\n",
        b"event: \0",
        b"\xff",
    ),
]
bodies = st.lists(st.sampled_from(HOSTILE), max_size=30).map(lambda parts: b"".join(parts) + b"\n\n")
hostile_text = st.lists(
    st.one_of(st.sampled_from([piece.decode("latin-1") for piece in HOSTILE]), st.text(max_size=3)), max_size=12
).map("".join)


def leaves(value: object) -> list[str]:
    """Every string in a JSON value."""
    if isinstance(value, dict | list):
        return [leaf for part in (value.values() if isinstance(value, dict) else value) for leaf in leaves(part)]
    return [value] if isinstance(value, str) else []


def without_odd_types(body: bytes) -> bytes:
    """Lines of a type with a control character are none."""
    return re.sub(rb"(^|[\r\n])event:[^\r\n]*[\x00-\x09\x0b\x0c\x0e-\x1f\x7f][^\r\n]*", rb"\1:", body)


@quietly
@given(bodies, st.booleans(), st.integers(1, 7))
@example(b"id: 7\nretry: 5\nevent: a\ndata: 1\n\n", True, 3)
@example(b"data: a\rid: st_x.9\rretry: 1\r\rdata: b\n\n", True, 1)
@example(b"event: a\rdata: b\r\n\r\n", False, 2)
def test_what_an_upstream_sends_stays_in_its_frame(body: bytes, logged: bool, cut: int) -> None:
    """Each event of the upstream's comes out as one, with the relay's id or none, and nothing comes out besides."""
    parser = Parser(1 << 20)
    taken = [event for i in range(0, len(body), cut) for event in parser.feed(body[i : i + cut])]
    frames = [encode(event, b"st_x.%d" % n if logged else None) for n, event in enumerate(taken, 1)]
    for frame in frames:
        assert b"\r" not in frame
        assert (frame.count(b"\n\n"), frame[-2:]) == (1, b"\n\n")
    out, theirs = Browser.of(b"".join(frames)), Browser.of(without_odd_types(body))
    bare = {event.data for event in taken if event.data.startswith((b"{", b"[", b"<"))}
    assume(bare <= {event.data for event in theirs.events})  # a body that is no event stream is read as an error's
    meant = [(event.type, event.data) for event in theirs.events if event.data]
    assert [(event.type, event.data) for event in out.events] == meant
    assert [event.id for event in out.events] == [b"st_x.%d" % n if logged else b"" for n in range(1, len(meant) + 1)]
    assert out.retries == []


@quietly
@pytest.mark.parametrize("api", PATHS)
@given(message=hostile_text, request_id=hostile_text, cause=st.sampled_from(list(Cause)))
def test_a_message_that_an_error_event_quotes_stays_in_it(
    api: str, message: str, request_id: str, cause: Cause
) -> None:
    dialect = DIALECTS[api]
    events = dialect.error_events(cause, message, 3, request_id)
    out = Browser.of(end_mark.encode_frames(events, "st_x", 3))
    assert [event.id for event in out.events] == [b""] * (len(events) - 1) + [b"st_x.3e"]
    assert [(event.type, event.data) for event in out.events] == [(event.type, event.data) for event in events]
    assert all(event.data == b"[DONE]" or isinstance(json.loads(event.data), dict) for event in out.events)
    assert any(message in leaf for leaf in leaves(json.loads(events[0].data)))
    assert out.retries == []


@pytest.mark.parametrize("api", PATHS)
def test_what_makes_a_stopped_stream_whole_stays_in_its_frames(api: str) -> None:
    """A stop writes the generation's text again (responses) out of what the upstream has said."""
    hostile = 'a\n\nid: st_x.99\ndata: {"forged": 1}\n\n\r\rretry: 1\r\n\u2028\0'
    watch = DIALECTS[api].watch()
    said: dict[str, list[dict[str, Any]]] = {
        "chat": [{"id": hostile, "choices": [{"index": 0, "delta": {"content": hostile}}]}],
        "messages": [
            {"type": "message_start", "message": {"id": hostile, "model": hostile, "usage": {"input_tokens": 1}}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": hostile}},
        ],
        "responses": [
            {"type": "response.created", "sequence_number": 0, "response": {"id": hostile, "model": hostile}},
            {"type": "response.output_text.delta", "sequence_number": 1, "output_index": 0, "delta": hostile},
        ],
    }
    for message in said[api]:
        watch.see(Event(str(message.get("type", "")).encode(), json.dumps(message).encode()))
    events = watch.stop_events(hostile)
    assert events
    out = Browser.of(end_mark.encode_frames(events, "st_x", 2))
    assert [event.id for event in out.events] == [b""] * (len(events) - 1) + [b"st_x.2e"]
    assert [(event.type, event.data) for event in out.events] == [(event.type, event.data) for event in events]
    assert out.retries == []


# -- through a relay ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ScriptedUpstream() as upstream:
        config = {
            "upstreams": [
                {"name": "unlogged", "base_url": upstream.url, "models": ["unlogged-*"], "buffer": False},
                {"name": "scripted", "base_url": upstream.url},
            ],
            "streams": {"patience": "300ms"},
            "log": {"level": "debug"},
        }
        with RelayProcess(config) as relay:
            yield Site(upstream, relay)


def ask(site: Site, model: str, api: str = "chat") -> RawStream:
    body = {"model": model, "stream": True, "messages": [], "input": "x", "max_tokens": 9}
    return open_stream(site.relay.url + PATHS[api], headers=AUTH, body=body)


def own(browser: Browser, stream: str, *, logged: bool = True, sent: int | None = None) -> None:
    """The ids are the relay's, without a gap, behind `sent` events (None: all of them) those of an end that it tells;
    the only retry is its own, on the first event."""
    ids = [event.id.decode() for event in browser.events]
    sent = len(ids) if sent is None else sent
    numbers = event_ids(stream, sent)
    if sent < len(ids):  # an event that has no id has the one before it, to a browser
        before = numbers[-1] if numbers else ""
        numbers += [name or before for name in end_ids(stream, sent, len(ids) - sent)]
    assert ids == (numbers if logged else [""] * len(ids))
    assert len(browser.retries) == (1 if logged and sent else 0)
    assert all(retry >= 500 for retry in browser.retries)


TEXT = 'a"\u2028\u2029\x85 id: st_x.1 \\r\\n\\n data: {} \ufeff'
CHUNK = json.dumps({"choices": [{"index": 0, "delta": {"content": TEXT}}]}, ensure_ascii=False).replace("\\\\", "\\")
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'  # [DONE] alone is no answer
FRAMES: dict[str, tuple[bytes, int]] = {
    # name: what the upstream sends, how many events it means
    "ids, events and retries of its own": (b"id: evil\nretry: 1\nevent: odd\ndata: {}\n\n" * 3, 3),
    "the form of the relay's own ids": (b"id: st_AAAAAAAAAAAAAAAAAAAAAA.99\ndata: {}\n\n", 1),
    "fields in CR": (b"id: a\rretry: 2\rdata: {}\r\rdata: {}\r\r", 2),
    "fields in CRLF": (b"id: a\r\nretry: 2\r\ndata: {}\r\n\r\ndata: {}\r\n\r\n", 2),
    "data over lines": (b'data: {"a":\ndata:  "id: x"}\n\n', 1),
    "separators of Unicode": (f"data: {CHUNK}\n\n".encode(), 1),
    "byte order marks": ("\ufeffdata: {}\n\n\ufeffdata: {}\n\n".encode(), 1),
    "NUL": (b"id: a\0b\nevent: a\0b\ndata: {}\n\n", 1),
    "a block without data": (b"event: error\nid: 7\nretry: 1\n\ndata: {}\n\n", 1),
    "a retry of 5000 digits": (b"retry: " + b"9" * 5000 + b"\ndata: {}\n\n", 1),
    "comments like fields": (b": id: 1\n: retry: 1\n:\ndata: {}\n\n", 1),
}


@pytest.mark.parametrize("case", FRAMES)
@pytest.mark.parametrize("logged", [True, False])
def test_an_upstream_forges_nothing(site: Site, case: str, logged: bool) -> None:
    frames, meant = FRAMES[case]
    model = ("" if logged else "unlogged-") + case
    head = Head(200, {"content-type": "text/event-stream"})
    site.upstream.on(model, head, Send(frames), Send(LAST + b"data: [DONE]\n\n"), End())
    with ask(site, model) as answer:
        stream = answer.headers["relay-stream-id"]
        browser = Browser.of(answer.read())
    own(browser, stream, logged=logged)
    assert [event.data for event in browser.events][meant:] == [LAST[6:-2], b"[DONE]"]
    theirs = [event for event in Browser.of(without_odd_types(frames)).events if event.data]
    assert [(event.type, event.data) for event in browser.events[:meant]] == [(e.type, e.data) for e in theirs]
    if logged:
        with open_stream(f"{site.relay.url}/streams/{stream}", "GET", AUTH) as again:
            assert Browser.of(again.read()).events == browser.events


BREAKING = 'no\n\nid: st_x.99\nevent: forged\nretry: 1\ndata: {"forged": true}\n\n\r\r\u2028\0'


@each_api
def test_a_refusal_that_is_quoted_forges_nothing(site: Site, api: str) -> None:
    """After `streams.patience` the upstream's own words stand in the stream's error event."""
    site.upstream.on(f"late-{api}", Pause(0.6), *json_response(429, {"error": {"message": BREAKING, "code": BREAKING}}))
    with ask(site, f"late-{api}", api) as answer:
        stream = answer.headers["relay-stream-id"]
        body = answer.read()
    events = re.sub(rb'event: ping\ndata: \{"type": "ping"\}\n\n', b"", body)
    browser = Browser.of(events)
    assert browser.events
    own(browser, stream, sent=0)
    for event in browser.events:
        assert event.type != b"forged"
        assert event.data == b"[DONE]" or "forged" not in json.loads(event.data)
    assert (
        BREAKING in str(json.loads(browser.events[0].data))
        or json.dumps(BREAKING)[1:20] in browser.events[0].data.decode()
    )


@each_api
def test_a_stop_forges_nothing(site: Site, api: str) -> None:
    kinds = {"chat": "", "messages": "event: message_start\n", "responses": "event: response.created\n"}
    first = {
        "chat": {"id": BREAKING, "choices": [{"index": 0, "delta": {"content": BREAKING}}]},
        "messages": {"type": "message_start", "message": {"id": BREAKING, "model": BREAKING}},
        "responses": {
            "type": "response.created",
            "sequence_number": 0,
            "response": {"id": BREAKING, "model": BREAKING},
        },
    }[api]
    frame = f"{kinds[api]}data: {json.dumps(first)}\n\n".encode()
    site.upstream.on(f"stop-{api}", Head(200, {"content-type": "text/event-stream"}), Send(frame), Gate("never"))
    with ask(site, f"stop-{api}", api) as answer:
        stream = answer.headers["relay-stream-id"]
        answer.events(1)
        with open_stream(f"{site.relay.url}/streams/{stream}", "DELETE", AUTH) as stopped:
            assert stopped.status == 204
        browser = Browser.of(answer.read())
    assert len(browser.events) > 1
    own(browser, stream, sent=1)
    assert not [event for event in browser.events if event.type == b"forged"]


@pytest.mark.parametrize(
    "model", ["m\r\nrelay-stream-id: st_forged", "m\n\nid: 1\n\n", "m\r\r", "m\0\u2028", "unlogged-\r\n"]
)
def test_a_models_name_forges_neither_header_nor_event_nor_log_line(site: Site, model: str) -> None:
    site.upstream.on(model, Head(200, {"content-type": "text/event-stream"}), Send(LAST + b"data: [DONE]\n\n"), End())
    with ask(site, model) as answer:
        names = [name.lower() for name, _ in answer.header_list]
        assert len(names) == len(set(names))
        assert re.fullmatch(r"st_[A-Za-z0-9_-]{22}(_u)?", answer.headers["relay-stream-id"])
        assert [event.data for event in Browser.of(answer.read()).events] == [LAST[6:-2], b"[DONE]"]
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in site.relay.log().splitlines())


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [
        ("/v1/chat/completions", "POST", {"last-event-id": "a\\n\\nid: 1"}),
        ("/v1/chat/completions", "POST", {"last-event-id": "st_" + "A" * 22 + ".1\tid: 2"}),
        ("/streams/st_%0d%0aid:%201", "GET", {}),
        ("/streams/st_" + "A" * 22 + "?last_event_id=st_" + "A" * 22 + ".1%0aid:%202", "GET", {}),
        ("/v1/nowhere%0d%0aset-cookie:%20a=b", "GET", {}),
        ("/v1/models", "GET", {"x-request-id": "a\tb"}),
        ("/v1/models", "GET", {"origin": "http://a\tset-cookie: a=b"}),
    ],
)
def test_a_clients_own_words_forge_no_header(site: Site, path: str, method: str, headers: dict[str, str]) -> None:
    with open_stream(site.relay.url + path, method, {**AUTH, **headers}, {} if method == "POST" else None) as answer:
        names = {name.lower() for name, _ in answer.header_list}
        assert "set-cookie" not in names
        assert re.fullmatch(r"req_[0-9a-f]{24}", answer.headers.get("x-request-id", "req_" + "0" * 24))
        assert answer.status in (400, 404)
        assert isinstance(json.loads(answer.read()), dict)
