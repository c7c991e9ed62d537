"""One wire: codings of bodies both ways, paths that are no ids, slashes at their ends, and WebSockets that are not."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence

import pytest
from backports import zstd
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RemoteSettingsChanged
from h2.settings import SettingCodes

from tests.support.asking import ask
from tests.support.processes import RelayProcess
from tests.support.samples import SAMPLES
from tests.support.scripted import Head, ScriptedUpstream, Send, json_response, stream
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


def test_extended_connect_is_not_offered(site: Site) -> None:
    """Over HTTP/2 that is how a WebSocket begins (RFC 8441)."""
    host, _, port = site.relay.url.removeprefix("http://").partition(":")
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(client.data_to_send())
        offered: dict[int, int] = {}
        while not offered:
            for event in client.receive_data(connection.recv(65536)):
                if isinstance(event, RemoteSettingsChanged):
                    offered = {code: changed.new_value for code, changed in event.changed_settings.items()}
    assert not offered.get(SettingCodes.ENABLE_CONNECT_PROTOCOL)
    assert offered[SettingCodes.MAX_CONCURRENT_STREAMS] == 1000


@pytest.mark.slow
@each_api
def test_headers_that_a_pattern_names_come_with_every_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another replica, too, once the stream has ended; there they come out of a log that is encrypted."""
    monkeypatch.setenv("ENTRY_KEYS", base64.b64encode(bytes(range(32))).decode())
    sample = SAMPLES[api]
    with ScriptedUpstream() as upstream:
        named = {"upstreams": [{"name": "u", "base_url": upstream.url, "headers": ["x-turn-*", "gate_run"]}]}
        sealed = {"encryption_env": "ENTRY_KEYS"}
        with RelayProcess({**named, "store": sealed}) as owner:
            url = f"unix://{owner.config['store']['data_dir']}/valkey.sock"
            upstream.on(
                "m", *stream(*sample.frames, headers={"x-turn-state": "a=b:c", "gate_run": "7", "gate_no": "1"})
            )
            first = ask(owner.url + sample.path, headers=sample.headers(), body=sample.body("m"))
            first.read()
            back = {**sample.headers(), "last-event-id": f"{first.headers['relay-stream-id']}.0"}
            with RelayProcess({**named, "store": {**sealed, "url": url}}) as other:
                for relay in (owner, other):
                    answer = ask(relay.url + sample.path, headers=back, body=b"{}")
                    answer.read()
                    for got in (first, answer):
                        assert (got.headers["x-turn-state"], got.headers["gate_run"]) == ("a=b:c", "7")
                        assert "gate_no" not in got.headers
