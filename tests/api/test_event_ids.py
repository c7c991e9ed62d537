"""Frames without their ids: for whom, in which form, and how such a stream is come back to."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from relay.api.event_ids import without_ids
from tests.support.asking import ask
from tests.support.samples import SAMPLES
from tests.support.scripted import Gate, Pause, stream
from tests.support.site import Site, one_relay
from tests.support.streams import APIS, Api

each_api = pytest.mark.parametrize("api", APIS)
OMIT = {"relay-event-ids": "omit"}
INCLUDE = {"relay-event-ids": "include"}


@pytest.fixture(scope="module")
def always() -> Iterator[Site]:
    with one_relay(streams={"heartbeat": "200ms"}) as site:
        yield site


@pytest.fixture(scope="module")
def on_request() -> Iterator[Site]:
    with one_relay(streams={"heartbeat": "200ms", "event_ids": "ask"}) as site:
        yield site


def by_hand(body: bytes) -> list[bytes]:
    """The data that a parser sees which splits at blank lines, and knows `data: ` and perhaps `event: ` before it."""
    found = []
    for block in body.split(b"\n\n"):
        block = re.sub(rb"^event: [^\n]*\n", b"", block)
        if block.startswith(b"data: "):
            found.append(block[6:].replace(b"\ndata: ", b"\n"))
    return [data for data in found if b'"ping"' not in data]


def played(site: Site, api: Api, name: str, *, heartbeat: bool = True) -> tuple[str, dict[str, str], object]:
    sample = SAMPLES[api]
    first, *others = sample.frames
    site.upstream.on(name, *stream(first, *([Pause(0.5)] if heartbeat else []), *others))
    return site.relay.url + sample.path, sample.headers(), sample.body(name)


@each_api
def test_who_omits_them_sees_every_event_with_the_simplest_parser(always: Site, api: Api) -> None:
    url, headers, body = played(always, api, f"omit-{api}")
    answer = ask(url, headers={**headers, **OMIT}, body=body)
    answer.read()
    data = [event.data.encode() for event in SAMPLES[api].events if '"ping"' not in event.data]
    assert by_hand(answer.raw_body) == data
    assert answer.raw_body.count(b": hb\n\n") + answer.raw_body.count(b"event: ping") >= 1, "no heartbeat was in it"
    assert b"\nid:" not in b"\n" + answer.raw_body
    assert answer.headers["relay-resumable"] == "true"
    assert always.upstream.calls_of(f"omit-{api}")[0].header("relay-event-ids") is None


@each_api
@pytest.mark.parametrize("n", [0, 1, 2])
def test_and_comes_back_with_a_count(always: Site, api: Api, n: int) -> None:
    url, headers, body = played(always, api, f"count-{api}-{n}")
    answer = ask(url, headers={**headers, **OMIT}, body=body)
    answer.read()
    back = {**headers, **OMIT, "last-event-id": f"{answer.headers['relay-stream-id']}.{n}"}
    again = ask(url, headers=back, body=body)
    again.read()
    assert by_hand(again.raw_body) == [
        event.data.encode() for event in SAMPLES[api].events[n:] if '"ping"' not in event.data
    ]
    assert len(always.upstream.calls_of(f"count-{api}-{n}")) == 1


@each_api
def test_an_end_that_the_relay_tells_has_none_either(always: Site, api: Api) -> None:
    sample = SAMPLES[api]
    always.upstream.on(f"stop-{api}", *stream(sample.frames[0], Gate(f"stop-{api}")))
    url = always.relay.url
    answer = ask(url + sample.path, headers={**sample.headers(), **OMIT}, body=sample.body(f"stop-{api}"))
    always.upstream.wait_reached(f"stop-{api}")
    ask(f"{url}/streams/{answer.headers['relay-stream-id']}", "DELETE", headers=sample.headers()).read()
    answer.read()
    assert answer.ended == "zero-chunk"
    assert b"\nid:" not in b"\n" + answer.raw_body
    assert b"stopped" in answer.raw_body


@each_api
def test_with_ask_they_are_for_who_asks_and_who_comes_back(on_request: Site, api: Api) -> None:
    url, headers, body = played(on_request, api, f"ask-{api}", heartbeat=False)
    bare = ask(url, headers=headers, body=body)
    bare.read()
    assert b"\nid:" not in b"\n" + bare.raw_body
    asked = ask(url, headers={**headers, **INCLUDE}, body=body)
    asked.read()
    count = len(SAMPLES[api].events)
    assert (b"\n" + asked.raw_body).count(b"\nid: ") == count
    stream_id = bare.headers["relay-stream-id"]
    for target, more in (
        (url, {"last-event-id": f"{stream_id}.0"}),
        (f"{on_request.relay.url}/streams/{stream_id}", {}),
    ):
        method = "POST" if "last-event-id" in more else "GET"
        again = ask(target, method, headers={**headers, **more}, **({"body": body} if more else {}))
        again.read()
        assert (b"\n" + again.raw_body).count(b"\nid: ") == count


@each_api
def test_another_word_is_refused_before_anything_is_paid_for(always: Site, api: Api) -> None:
    url, headers, body = played(always, api, f"word-{api}")
    answer = ask(url, headers={**headers, "relay-event-ids": "none"}, body=body)
    assert answer.status == 400
    assert b"omit or include" in answer.read()
    assert not always.upstream.calls_of(f"word-{api}")


def test_only_the_ids_are_taken() -> None:
    frames = (
        b'id: st_x.1\nretry: 9\ndata: {"a":"\\nid: 1"}\n\nid: st_x.2\nevent: id: 3\ndata: id: 4\ndata: id: 5\n\n: hb\n'
    )
    assert without_ids(frames) == b'data: {"a":"\\nid: 1"}\n\nevent: id: 3\ndata: id: 4\ndata: id: 5\n\n: hb\n'
