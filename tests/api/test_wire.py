"""One wire: codings of bodies both ways, paths that are no ids, slashes at their ends, and WebSockets that are not."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence

import pytest
from backports import zstd

from tests.support.asking import ask
from tests.support.samples import SAMPLES
from tests.support.scripted import Head, Send, json_response, stream
from tests.support.site import Site, one_relay
from tests.support.streams import APIS, Api

each_api = pytest.mark.parametrize("api", APIS)
PACKED: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress}
each_coding = pytest.mark.parametrize("coding", PACKED)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with one_relay() as site:
        yield site


def packed_events(coding: str, frames: Sequence[bytes]) -> list[bytes]:
    """Each event as bytes of one coded text, which can be read as they come."""
    if coding == "zstd":
        zpacker = zstd.ZstdCompressor()
        return [zpacker.compress(frame, zstd.ZstdCompressor.FLUSH_BLOCK) for frame in frames] + [zpacker.flush()]
    packer = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
    return [packer.compress(f) + packer.flush(zlib.Z_SYNC_FLUSH) for f in frames] + [packer.flush()]


@each_api
@each_coding
def test_a_request_s_coding_is_taken_off(site: Site, api: Api, coding: str) -> None:
    sample = SAMPLES[api]
    site.upstream.on(f"{api}-{coding}", *stream(*sample.frames))
    body = json.dumps(sample.body(f"{api}-{coding}")).encode()
    headers = {**sample.headers(), "content-encoding": coding, "idempotency-key": f"{api}-{coding}"}
    first = ask(site.relay.url + sample.path, headers=headers, body=PACKED[coding](body))
    first.read()
    del headers["content-encoding"]
    plain = ask(site.relay.url + sample.path, headers=headers, body=body)
    assert (first.status, plain.status) == (200, 200)
    assert first.headers["relay-stream-id"] == plain.headers["relay-stream-id"], "it is the same request"
    (call,) = site.upstream.calls_of(f"{api}-{coding}")
    assert (call.body, call.header("content-encoding")) == (body, None)
    assert call.header("incremental") == "?1"


@each_coding
def test_so_is_that_of_a_request_which_is_passed_through(site: Site, coding: str) -> None:
    site.upstream.on_path("POST /v1/embeddings", *json_response(200, {"data": []}))
    body = b'{"model":"passed-%b","input":"x"}' % coding.encode()
    headers = {"content-type": "application/json", "content-encoding": coding, "authorization": "Bearer k"}
    assert ask(site.relay.url + "/v1/embeddings", headers=headers, body=PACKED[coding](body)).status == 200
    (call,) = site.upstream.calls_of(f"passed-{coding}")
    assert (call.body, call.header("content-encoding")) == (body, None)


@each_api
@pytest.mark.parametrize(
    ("coding", "named"), [("gzip", True), ("deflate", True), ("zstd", True), ("gzip", False), ("zstd", False)]
)
def test_a_coded_stream_is_read_as_it_arrives(site: Site, api: Api, coding: str, named: bool) -> None:
    sample = SAMPLES[api]
    model = f"{api}-{coding}-{named}"
    head = Head(200, {"content-type": "text/event-stream", **({"content-encoding": coding} if named else {})})
    site.upstream.on(model, head, *map(Send, packed_events(coding, sample.frames)))
    answer = ask(site.relay.url + sample.path, headers=sample.headers(), body=sample.body(model))
    assert "content-encoding" not in answer.headers
    assert [event.data for event in answer.events()] == [event.data for event in sample.events]


@pytest.mark.parametrize("word", ["compact", "input_tokens", "batch", "some-thing"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_word_under_responses_is_no_id(site: Site, word: str, slash: str) -> None:
    site.upstream.on_path(f"POST /v1/responses/{word}", *json_response(200, {"object": word}))
    answer = ask(
        site.relay.url + f"/v1/responses/{word}{slash}",
        headers={"content-type": "application/json", "authorization": "Bearer k"},
        body=b'{"model":"m"}',
    )
    assert (answer.status, json.loads(answer.read())) == (200, {"object": word})


@each_api
def test_a_slash_at_the_end_makes_no_other_path(site: Site, api: Api) -> None:
    sample = SAMPLES[api]
    site.upstream.on(f"{api}-slash", *stream(*sample.frames))
    answer = ask(site.relay.url + sample.path + "/", headers=sample.headers(), body=sample.body(f"{api}-slash"))
    stream_id = answer.headers["relay-stream-id"]
    answer.read()
    again = ask(f"{site.relay.url}/streams/{stream_id}/", "GET", headers=sample.headers())
    assert (again.status, again.headers["relay-stream-id"]) == (200, stream_id)
    assert site.upstream.calls_of(f"{api}-slash")[0].path == sample.path


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/realtime?model=m", "/streams/x", "/elsewhere"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_websocket_is_told_at_once_that_there_is_none(site: Site, path: str, method: str) -> None:
    before = len(site.upstream.calls)
    headers = {"connection": "keep-alive, Upgrade", "upgrade": "WebSocket", "sec-websocket-version": "13"}
    answer = ask(site.relay.url + path, method, headers=headers)
    assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")
    assert "upgrade_required" in answer.read().decode()
    assert len(site.upstream.calls) == before
