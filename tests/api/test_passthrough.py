"""What the upstream is sent, and requests that are passed through, as their upstream sees them."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.api.scene import KEY, Scene, each_api, logged_or_not, sample_of
from tests.conftest import Relays
from tests.support.http import chunk
from tests.support.replicas import stream_id
from tests.support.samples import CHAT_USAGE_EVENT, SAMPLES, masked
from tests.support.scripted import Cut, End, Gate, Head, Reset, Send, json_response, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.streams import Api

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
    scene.main.on_path("GET /v1/files", *json_response(200, {"data": []}))
    with open_stream(f"{scene.relay.url}/v1/files", "GET", {**headers, "last-event-id": "evt_1"}) as answer:
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


ODD: dict[str, bytes] = {
    "large numbers": b'"seed": 12345678901234567890123, "temperature":1.0,"x":1E400 , "y":-0.0',
    "no numbers": b'"x":NaN,"y":[Infinity,-Infinity]',
    "half characters": rb'"x":"\ud800","\udfff":1',
    "escapes": rb'"x":"\/\u00e9\u0041","user":"a","us\u0065r":"b"',
    "what stands twice": b'"user":"a","user":"b","x":{"model":1,"model":2}',
    "120 levels": b'"x":' + b"[" * 119 + b"]" * 119,
    "white space": b'\n\t"x"\r\n:\t[ ]\n',
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize(("prefix", "usage"), [("", b""), ("always-", b',"stream_options":{"include_usage":true}')])
def test_what_is_not_set_goes_up_as_it_was_written(scene: Scene, kind: str, prefix: str, usage: bytes) -> None:
    model = scene.play(*stream(*SAMPLES["chat"].frames), prefix=prefix)
    raw = b' {%b, "model" : "%b","stream":true }\n' % (ODD[kind], model.encode())
    with open_stream(scene.relay.url + "/v1/chat/completions", headers=SAMPLES["chat"].headers(), body=raw) as answer:
        assert answer.status == 200
        answer.events()
    assert scene.main.calls[-1].body == raw.replace(b" }\n", usage + b" }\n" if not usage else b" " + usage + b"}\n")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_only_the_model_is_set_in_it(scene: Scene, kind: str, path: str) -> None:
    model = f"odd-{path[-4:]}-{kind}"
    scene.other.on(model, *json_response(200, {}))
    raw = b'{%b, "model" : "other/%b"\t}' % (ODD[kind], model.encode())
    with open_stream(scene.relay.url + path, headers=SAMPLES["chat"].headers(), body=raw) as answer:
        assert answer.status == 200, answer.read()
    assert scene.other.calls[-1].body == raw.replace(b"other/", b"")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
@pytest.mark.parametrize("stream_it", [b"true", b"false"])
def test_a_byte_order_mark_goes_up_too(scene: Scene, path: str, stream_it: bytes) -> None:
    model = f"bom-{path[-4:]}-{stream_it.decode()}"
    scene.other.on(model, *json_response(200, {}))
    raw = b'\xef\xbb\xbf{"model":"other/%b","stream":%b}' % (model.encode(), stream_it)
    with open_stream(scene.relay.url + path, headers=SAMPLES["chat"].headers(), body=raw) as answer:
        answer.read()
    assert scene.other.calls[-1].body == raw.replace(b"other/", b"")


@pytest.mark.parametrize("name", ["model", "stream", "stream_options", "n", "previous_response_id"])
def test_a_member_that_the_relay_reads_may_not_stand_there_twice(scene: Scene, name: str) -> None:
    raw = b'{"model":"m","stream":false,"stream_options":{},"n":1,"previous_response_id":"a","%b":null}' % name.encode()
    before = len(scene.main.calls)
    for body in (
        raw,
        raw.replace(b'"%b":null' % name.encode(), b'"\\u%04x%b":null' % (ord(name[0]), name[1:].encode())),
    ):
        with open_stream(scene.relay.url + "/v1/responses", headers=SAMPLES["chat"].headers(), body=body) as answer:
            assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_json")
    assert len(scene.main.calls) == before


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
    scene.main.on_path("GET /v1/files", *json_response(200, {"data": [{"id": "f_1"}]}))
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
    for path in ("/v1/files", "/v1/files/f_1/content", "/v1/fine_tuning/none", "/v1/zipped"):
        with get(path) as answer:
            answers[path] = answer.status, answer.read(), answer.headers
    assert json.loads(answers["/v1/files"][1]) == {"data": [{"id": "f_1"}]}
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


def test_an_answer_without_a_length_breaks_off_where_its_connection_broke(scene: Scene) -> None:
    gate = "pass-reset"
    model = scene.play(Head(200, {"content-type": "audio/mpeg"}, "close"), Send(b"some of it"), Gate(gate), Reset())
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
        frames = [chunk(half) if chunked else half for half in halves]
        connection.sendall(head.encode() + frames[0])
        assert sink.marked.wait(10)
        connection.sendall(frames[1] + (b"0\r\n\r\n" if chunked else b""))
        with RawStream(connection) as answer:
            assert (answer.status, answer.read()) == (201, b"done")
    assert b"multipart/form-data; boundary=b" in sink.got
    if not chunked:
        assert b"content-length: %d\r\n" % length in sink.got.lower()
