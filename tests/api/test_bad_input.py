"""Bad input gets the API's own error with a code and advice, and leaves nothing behind.

Nothing goes upstream, nothing is written to the store, and no connection or descriptor stays open.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
import redis

from tests.support.http import chunk
from tests.support.processes import RelayProcess, needs
from tests.support.samples import SAMPLES, Sample, refusal_of, rest, start
from tests.support.scripted import ScriptedUpstream, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import valkey_server
from tests.support.streams import APIS, Api
from tests.support.waiting import wait_until

each_api = pytest.mark.parametrize("api", APIS)

MODEL = "known-model"
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Scene:
    """A relay in front of an upstream that serves `known-*` only, and its store."""

    relay: RelayProcess
    upstream: ScriptedUpstream
    store: redis.Redis

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.relay.pid}/fd"))

    def keys(self) -> dict[str, int]:
        """Every key and, for a log, its length; not what the replica signs for itself, nor what it notes of the streams
        of the fixture a while after their end, whatever is asked of it."""
        return {
            key: self.store.xlen(key) if self.store.type(key) == "stream" else 0
            for key in map(str, self.store.keys("*"))
            if not key.startswith(("relay:replica:", "relay:recent"))
        }


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with ScriptedUpstream() as upstream, valkey_server(tmp_path_factory.mktemp("store"), unix=True) as store:
        upstreams = [{"name": "scripted", "base_url": upstream.url, "models": ["known-*"]}]
        with RelayProcess({"upstreams": upstreams, "store": {"url": store.url}}) as relay:
            scene = Scene(relay, upstream, store.servers[0].client())
            for sample in SAMPLES.values():  # opens what a relay keeps open
                upstream.on(MODEL, *stream(*sample.frames))
                rest(start(relay, sample, MODEL))
            yield scene


@pytest.fixture(autouse=True)
def nothing_happens(scene: Scene) -> Iterator[None]:
    """No test here may write to the store or reach the upstream."""
    keys = scene.keys()
    calls = len(scene.upstream.calls)
    yield
    assert scene.keys() == keys
    assert len(scene.upstream.calls) == calls


def refused(answer: RawStream, api: Api) -> tuple[int, str]:
    """Status and code, after a check of the shape, of the request id and of the advice."""
    with answer:
        body = answer.read()
        assert answer.ended == "length"
        assert answer.headers["content-type"] == "application/json"
        code, message = refusal_of(api, body)
        assert re.search(r"\b(Send|Name|Use|Ask|Give|give|Check|Try)\b", message), message
        assert answer.headers["request-id" if api == "messages" else "x-request-id"].startswith("req_")
        if api == "messages":
            assert json.loads(body)["request_id"] == answer.headers["request-id"]
        assert "relay-stream-id" not in answer.headers
        return answer.status, code


def post(scene: Scene, sample: Sample, body: object, **headers: str) -> RawStream:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return open_stream(scene.relay.url + sample.path, headers={**sample.headers(), **named}, body=body)


BODIES: dict[str, tuple[bytes, int, str]] = {
    "no JSON": (b"model=gpt", 400, "invalid_json"),
    "half of it": (b'{"model":"known-model","stream":true', 400, "invalid_json"),
    "two of them": (b'{"model":"known-model"}{"model":"known-model"}', 400, "invalid_json"),
    "empty": (b"", 400, "invalid_json"),
    "white space": (b" \r\n ", 400, "invalid_json"),
    "array": (b'[{"model":"known-model"}]', 400, "invalid_json"),
    "string": (b'"known-model"', 400, "invalid_json"),
    "null": (b"null", 400, "invalid_json"),
    "no UTF-8": (b'{"model":"known-\xff"}', 400, "invalid_json"),
    "UTF-16": ('{"model":"known-model"}'.encode("utf-16"), 400, "invalid_json"),
    "NUL bytes": (b"\0" * 1000, 400, "invalid_json"),
    "gzip without saying so": (gzip.compress(b'{"model":"known-model"}'), 400, "invalid_json"),
    "depth of 100,000": (b'{"model":"known-model","a":' + b"[" * 100_000, 400, "invalid_json"),
    "no model": (b'{"stream":true}', 400, "missing_model"),
    "model null": (b'{"model":null,"stream":true}', 400, "missing_model"),
    "model empty": (b'{"model":"","stream":true}', 400, "missing_model"),
    "model a number": (b'{"model":4,"stream":true}', 400, "missing_model"),
    "model a list": (b'{"model":["known-model"],"stream":true}', 400, "missing_model"),
    "model an object": (b'{"model":{"id":"known-model"}}', 400, "missing_model"),
    "model unknown": (b'{"model":"other-model","stream":true}', 404, "model_not_found"),
    "model unknown, no stream": (b'{"model":"other-model"}', 404, "model_not_found"),
    "model of 1 MB": (b'{"model":"%s","stream":true}' % (b"x" * MEBIBYTE), 404, "model_not_found"),
    "model with line ends": (b'{"model":"a\\r\\nb\\u0000\\u2028","stream":true}', 404, "model_not_found"),
}


@each_api
@pytest.mark.parametrize("kind", BODIES)
def test_body(scene: Scene, api: Api, kind: str) -> None:
    body, status, code = BODIES[kind]
    assert refused(post(scene, SAMPLES[api], body), api) == (status, code)


@each_api
@pytest.mark.parametrize("coding", ["br", "compress", "gzip, br", "gzip, gzip, gzip, gzip", "dcz"])
def test_body_in_a_coding_that_nobody_knows(scene: Scene, api: Api, coding: str) -> None:
    sample = SAMPLES[api]
    body = gzip.compress(json.dumps(sample.body(MODEL)).encode())
    answer = post(scene, sample, body, content_encoding=coding)
    assert answer.headers["accept-encoding"] == "zstd, gzip, identity"
    assert refused(answer, api) == (415, "unsupported_encoding")


@each_api
@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate", "identity, GZIP", "x-gzip"])
@pytest.mark.parametrize(
    "body",
    [b"", b'{"model":"known-model","stream":true}', gzip.compress(b"{}")[:-5]],
    ids=["empty", "as it is", "cut short"],
)
def test_body_that_is_not_of_its_coding(scene: Scene, api: Api, coding: str, body: bytes) -> None:
    assert refused(post(scene, SAMPLES[api], body, content_encoding=coding), api) == (400, "invalid_request")


@each_api
def test_body_that_is_too_large_only_without_its_coding(scene: Scene, api: Api) -> None:
    bomb = gzip.compress(bytes(48 * MEBIBYTE), 1)
    assert refused(post(scene, SAMPLES[api], bomb, content_encoding="gzip"), api) == (413, "request_too_large")


@each_api
def test_header_of_64_kb(scene: Scene, api: Api) -> None:
    sample = SAMPLES[api]
    told = refused(post(scene, sample, sample.body(MODEL), x_long="x" * 65536), api)
    assert told == (431, "headers_too_large")


@each_api
def test_many_headers_of_64_kb_together(scene: Scene, api: Api) -> None:
    sample = SAMPLES[api]
    many = {f"x-{n}": "y" * 60 for n in range(1000)}
    answer = open_stream(scene.relay.url + sample.path, headers=sample.headers() | many, body=sample.body(MODEL))
    assert refused(answer, api) == (431, "headers_too_large")


def test_header_of_64_kb_on_get(scene: Scene) -> None:
    for path in ("/v1/models", "/streams/x", "/nowhere", "/livez"):
        answer = open_stream(scene.relay.url + path, "GET", {"x-long": "x" * 65536})
        assert refused(answer, "chat") == (431, "headers_too_large")


@pytest.mark.parametrize(
    "path", ["/", "/nowhere", "/v2/chat/completions", "/chat/completions", "/metrics", "/stream/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_path(scene: Scene, path: str, method: str) -> None:
    answer = open_stream(scene.relay.url + path, method, body=None if method == "GET" else {})
    assert refused(answer, "chat") == (404, "not_found")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_wrong_method(scene: Scene, method: str) -> None:
    body = SAMPLES["chat"].body(MODEL)
    answer = open_stream(f"{scene.relay.url}/streams/st_{'A' * 22}", method, body=body)
    assert "GET" in answer.headers["allow"]
    assert refused(answer, "chat") == (405, "method_not_allowed")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin",
        "/v1/./models",
        "/v1/models/..",
        "/v1/%2e%2e/admin",
        "/v1/%2E%2e%2fadmin",
        "/v1/..%2fadmin",
        "/v1/..%5cadmin",
        "/v1/models/%2e",
        "/v1//models",
        "//v1/models",
        "/v1/chat/../embeddings",
        "/v1/messages/../../admin",
    ],
)
def test_dot_segments(scene: Scene, path: str) -> None:
    api: Api = "messages" if path.startswith("/v1/messages") else "chat"
    for method in ("GET", "POST"):
        answer = open_stream(scene.relay.url + path, method, body=None if method == "GET" else {"model": MODEL})
        assert refused(answer, api) == (400, "invalid_request")


# -- 100 MB -------------------------------------------------------------------------------------------------


class Upload:
    """A request whose body is sent by a thread while the answer can be read."""

    def __init__(self, scene: Scene, sample: Sample, *, chunked: bool, megabytes: int = 100) -> None:
        parts = urlsplit(scene.relay.url)
        self.socket = socket.create_connection((parts.hostname or "", parts.port or 0), 20)
        framing = "transfer-encoding: chunked" if chunked else f"content-length: {megabytes * MEBIBYTE}"
        lines = [f"POST {sample.path} HTTP/1.1", f"host: {parts.netloc}", "content-type: application/json", framing]
        lines += [f"{name}: {value}" for name, value in sample.headers().items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._piece = chunk(b" " * MEBIBYTE) if chunked else b" " * MEBIBYTE
        self._end = b"0\r\n\r\n" if chunked else b""
        self.sent = 0
        self.refused_by_peer = False

    def send(self, pieces: int, end: bool = False) -> None:
        try:
            for _ in range(pieces):
                self.socket.sendall(self._piece)
                self.sent += 1
            if end:
                self.socket.sendall(self._end)
        except OSError:
            self.refused_by_peer = True

    def answer(self) -> RawStream:
        return RawStream(self.socket)


@each_api
def test_100_mb_by_length_is_refused_before_it_is_sent(scene: Scene, api: Api) -> None:
    upload = Upload(scene, SAMPLES[api], chunked=False)
    assert refused(upload.answer(), api) == (413, "request_too_large")
    assert upload.sent == 0


@pytest.mark.slow
@each_api
def test_100_mb_in_chunks_is_refused_at_the_limit(scene: Scene, api: Api) -> None:
    upload = Upload(scene, SAMPLES[api], chunked=True)
    upload.send(33)
    assert refused(upload.answer(), api) == (413, "request_too_large")
    assert upload.sent == 33


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True])
def test_100_mb_sent_to_the_end_before_the_answer_is_read(scene: Scene, chunked: bool) -> None:
    """A client that does not listen while it sends must not meet a reset in place of the answer."""
    upload = Upload(scene, SAMPLES["chat"], chunked=chunked)
    upload.send(100, end=True)
    assert (upload.sent, upload.refused_by_peer) == (100, False)
    assert refused(upload.answer(), "chat") == (413, "request_too_large")


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True])
def test_100_mb_answer_read_while_sending(scene: Scene, chunked: bool) -> None:
    upload = Upload(scene, SAMPLES["messages"], chunked=chunked)
    sender = threading.Thread(target=upload.send, args=(100, True))
    sender.start()
    answer = upload.answer()
    try:
        assert answer.status == 413
        body = answer.read()
        assert refusal_of("messages", body)[0] == "request_too_large"
    finally:
        sender.join(20)
        answer.close()
    assert not sender.is_alive()


# -- nothing is left behind ---------------------------------------------------------------------------------


def half_a_request(scene: Scene, head: bytes) -> None:
    """Send the beginning of a request and hang up."""
    parts = urlsplit(scene.relay.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), 20) as connection:
        connection.sendall(head)


def test_50_bad_requests_leave_nothing_behind(scene: Scene) -> None:
    needs(os.path.isdir(f"/proc/{scene.relay.pid}/fd"), "/proc, to count the relay's descriptors")
    before = scene.descriptors()
    bodies = list(BODIES.values())
    for n in range(50):
        sample = SAMPLES[APIS[n % 3]]
        match n % 10:
            case 0:
                half_a_request(scene, b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-le" % sample.path.encode())
            case 1:
                half_a_request(
                    scene,
                    b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{" % sample.path.encode(),
                )
            case 2:
                half_a_request(
                    scene,
                    b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{" % sample.path.encode(),
                )
            case 3:
                half_a_request(scene, b"\x16\x03\x01\x00\xf1\x01 no HTTP at all \r\n\r\n")
            case 4:
                upload = Upload(scene, sample, chunked=False)
                assert upload.answer().status == 413
                upload.socket.close()
            case 5:
                refused(post(scene, sample, sample.body(MODEL), last_event_id="evt_123"), sample.api)
            case 6:
                refused(post(scene, sample, {}, x_long="x" * 65536), sample.api)
            case _:
                refused(post(scene, sample, bodies[n % len(bodies)][0]), sample.api)
    wait_until(lambda: scene.descriptors() <= before, 10, f"{before} descriptors")


def test_the_connection_serves_on_after_a_refusal(scene: Scene) -> None:
    """A refusal of a request that was read whole does not cost a keep-alive connection."""
    parts = urlsplit(scene.relay.url)
    sample = SAMPLES["chat"]
    with socket.create_connection((parts.hostname or "", parts.port or 0), 20) as connection:
        for body, status, code in list(BODIES.values())[:3] * 2:
            head = f"POST {sample.path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            answer = RawStream(connection.dup())
            told = refusal_of("chat", answer.read())[0]
            assert (answer.status, told) == (status, code)
