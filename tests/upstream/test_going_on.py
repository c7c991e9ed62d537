"""What an upstream is asked after its answer broke off, what is taken of its answer, and how it ends if it cannot."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress

import pytest

from relay.protocol.ids import new_stream_id
from tests.support.cutting_http import Asked, CuttingProxy, Fate
from tests.support.processes import RelayProcess
from tests.support.samples import error_of
from tests.support.scripted import Call, Cut, Gate, ScriptedUpstream, Step, json_response, stream
from tests.support.site import served_by
from tests.support.sseclient import RawEvent, RawStream, open_stream
from tests.support.streams import APIS, PATHS, Api, answer, chat, credential
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

WORDS = ["one ", "two ", "three ", "four"]
LARGEST_EVENT = 256 * 1024


STREAMS = {"upstream_resume": "8s", "max_event_bytes": LARGEST_EVENT}


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def relay(upstream: ScriptedUpstream) -> Iterator[RelayProcess]:
    """Its upstreams are one server, which the model's name says how to come back to."""
    modes = {"ids-*": "last-event-id", "background-*": "responses", "off-*": "off", "*": "auto"}
    upstreams = [
        {"name": mode, "base_url": upstream.url, "models": [pattern], "resume": mode} for pattern, mode in modes.items()
    ]
    with RelayProcess({"upstreams": upstreams, "streams": STREAMS}) as process:
        yield process


def begin(relay: RelayProcess, api: Api, model: str, **more: object) -> RawStream:
    body = {"model": model, "stream": True, "messages": [], **more}
    return open_stream(relay.url + PATHS[api], headers=credential(api, "sk-1"), body=body)


def with_ids(frames: tuple[str, ...] | list[str], prefix: str = "ev-", first: int = 1) -> list[str]:
    return [f"id: {prefix}{n}\n{frame}" for n, frame in enumerate(frames, first)]


def data_of(read: RawStream) -> list[str | None]:
    return [event.data for event in read.events()]


def given(frames: list[str]) -> list[str]:
    return [frame.rpartition("data: ")[2].strip() for frame in frames]


def broken_off(
    relay: RelayProcess, upstream: ScriptedUpstream, api: Api, model: str, first: list[str], *then: Step, **more: object
) -> tuple[list[RawEvent], list[Call]]:
    """What a client reads whose upstream's answer breaks off behind the frames `first`, and is then answered `then`."""
    upstream.on(model, *stream(*first, Gate(model), Cut()))
    with begin(relay, api, model, **more) as read:
        upstream.wait_reached(model)
        upstream.on(model, *then)
        upstream.open(model)
        events = read.events()
    return events, upstream.calls_of(model)


@pytest.mark.parametrize("prefix", ["ev-", "", "a/b:"])
def test_ids_of_its_own(relay: RelayProcess, upstream: ScriptedUpstream, prefix: str) -> None:
    frames = with_ids(answer("messages", WORDS).events, prefix)
    model = f"ids-{len(prefix)}"
    events, calls = broken_off(relay, upstream, "messages", model, frames[:4], *stream(*frames[4:]))
    assert [event.data for event in events] == given(frames)
    assert [call.header("last-event-id") for call in calls] == [None, f"{prefix}4"]
    assert calls[0].body == calls[1].body
    assert [event.id.rpartition(".")[2] for event in events if event.id] == [str(n + 1) for n in range(len(frames))]


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_lines_that_end_otherwise(relay: RelayProcess, upstream: ScriptedUpstream, line_end: str) -> None:
    frames = [frame.replace("\n", line_end) for frame in with_ids(answer("messages", WORDS).events)]
    model = f"ids-{line_end.encode().hex()}"
    events, calls = broken_off(relay, upstream, "messages", model, frames[:5], *stream(*frames[5:]))
    assert len(events) == len(frames)
    assert len(calls) == 2


REFUSALS = {
    "that it cannot": json_response(400, {"error": {"message": "no", "code": "resume_not_supported"}}),
    "the answer from its start": stream(*with_ids(answer("messages", WORDS).events)),
    "another answer without ids": stream(*answer("messages", WORDS).events),
    "after a hole": stream(*with_ids(answer("messages", WORDS).events, first=3)[4:]),
    "the same event again": stream(*with_ids(answer("messages", WORDS).events)[3:]),
    "another answer with its ids": stream(*with_ids(answer("messages", WORDS).events, "another-")),
    "another answer from there on": stream(*with_ids(answer("messages", WORDS).events, first=5)),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_does_not_follow_is_not_taken(relay: RelayProcess, upstream: ScriptedUpstream, what: str) -> None:
    frames = with_ids(answer("messages", WORDS).events)
    model = f"ids-{what}"
    events, calls = broken_off(relay, upstream, "messages", model, frames[:4], *REFUSALS[what])
    assert [event.data for event in events[:-1]] == given(frames[:4])
    assert error_of("messages", events[-1:])[0] == "upstream_disconnected"
    assert len(calls) == 2


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_another_answer_is_not_taken_whatever_its_ids(
    relay: RelayProcess, upstream: ScriptedUpstream, api: Api
) -> None:
    """Ids without an order, as of a store of messages."""
    frames = [f"id: {uuid.uuid4()}\n{frame}" for frame in answer(api, WORDS).events]
    other = [f"id: {uuid.uuid4()}\n{frame}" for frame in answer(api, WORDS).events]
    other = [frame.replace("chatcmpl-1", "chatcmpl-2") for frame in other]
    events, calls = broken_off(relay, upstream, api, f"ids-other-{api}", frames[:4], *stream(*other))
    assert [event.data for event in events[:4]] == given(frames[:4])
    assert error_of(api, events[4:], 3)[0] == "upstream_disconnected"
    assert len(calls) == 2


@pytest.mark.parametrize("api", APIS)
def test_ids_without_an_order(relay: RelayProcess, upstream: ScriptedUpstream, api: Api) -> None:
    frames = [f"id: {uuid.uuid4()}\n{frame}" for frame in answer(api, WORDS).events]
    events, _ = broken_off(relay, upstream, api, f"ids-random-{api}", frames[:4], *stream(*frames[4:]))
    assert [event.data for event in events] == given(frames)


def test_an_upstream_that_names_each_chunk(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    chunks = answer("chat", WORDS).events
    frames = with_ids([frame.replace("chatcmpl-1", f"chatcmpl-{n}") for n, frame in enumerate(chunks)])
    events, _ = broken_off(relay, upstream, "chat", "ids-chunks", frames[:4], *stream(*frames[4:]))
    assert [event.data for event in events] == given(frames)


@pytest.mark.parametrize("at", [3, 4])
@pytest.mark.parametrize("own", [True, False], ids=["with a number", "with the last event's"])
def test_a_ping_with_an_id(relay: RelayProcess, upstream: ScriptedUpstream, at: int, own: bool) -> None:
    """Cut before or behind it: it is one of the events that the upstream counts, or it says where the answer stands."""
    frames = list(answer("messages", WORDS).events)
    ping = 'event: ping\ndata: {"type":"ping"}\n\n'
    numbered = with_ids([*frames[:3], ping, *frames[3:]]) if own else with_ids(frames)
    if not own:
        numbered.insert(3, f"id: ev-3\n{ping}")
    model = f"ids-ping-{at}-{own}"
    events, calls = broken_off(relay, upstream, "messages", model, numbered[:at], *stream(*numbered[at:]))
    assert [event.data for event in events if event.event != "ping"] == given(frames)
    assert calls[1].header("last-event-id") == (f"ev-{at}" if own else "ev-3")


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("how", ["ids-large", "relay-large"])
def test_an_event_that_is_too_large(relay: RelayProcess, upstream: ScriptedUpstream, how: str, whole: bool) -> None:
    """The bound is the same as of an upstream that nobody comes back to, and so is what is said of it."""
    model = f"{how}-{whole}"
    name = new_stream_id(logged=True)
    frames = with_ids(answer("messages", WORDS).events, f"{name}." if how == "relay-large" else "ev-")
    of_relay = {"relay-stream-id": name, "relay-resumable": "true"} if how == "relay-large" else {}
    large = f"event: ping\ndata: {'a' * 2 * LARGEST_EVENT}" + "\n\n" * whole
    script: list[str | Step] = [*frames[:2], large, Gate(model), *frames[2:]]
    upstream.on(model, *stream(*script, headers=of_relay))
    with begin(relay, "messages", model) as read:
        events = read.events()
    upstream.open(model)
    assert [event.data for event in events[:-1]] == given(frames[:2])
    assert error_of("messages", events[-1:])[0] == "event_too_large"
    assert len(upstream.calls_of(model)) == 1


def test_an_upstream_that_ends_after_every_event_is_asked_a_few_times_a_second() -> None:
    """Each brings something new, so none of these requests uses up the time for coming back."""
    name = new_stream_id(logged=True)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nrelay-stream-id: {name}\r\nrelay-resumable: true\r\n"
    asked = 0

    def serve(listener: socket.socket) -> None:
        nonlocal asked
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection, suppress(OSError):
                while b"}" not in connection.recv(1 << 16):
                    pass
                asked += 1
                connection.sendall(f"{head}\r\nid: {name}.{asked}\n{chat({'content': 'a'})}".encode())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with (
                RelayProcess({"upstreams": [{"name": "far", "base_url": url}]}) as relay,
                begin(relay, "chat", "m") as read,
            ):
                read.events(6)
                before, since = asked, time.monotonic()
                read.events(6)
                assert (asked - before) / (time.monotonic() - since) < 10
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_what_passes_is_asked_again(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    frames = with_ids(answer("messages", WORDS).events)
    model = "ids-busy"
    upstream.on(model, *stream(*frames[:4], Gate(model), Cut()))
    with begin(relay, "messages", model) as read:
        upstream.wait_reached(model)
        upstream.on(model, *json_response(503, {"error": "starting"}, {"retry-after": "1"}))
        upstream.open(model)
        wait_until(lambda: len(upstream.calls_of(model)) > 1, 10)
        upstream.on(model, *stream(*frames[4:]))
        assert data_of(read) == given(frames)


def test_nothing_said_of_where_it_stands(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    frames = list(answer("messages", WORDS).events)
    events, calls = broken_off(relay, upstream, "messages", "ids-none", frames[:4], *stream(*frames))
    assert error_of("messages", events[-1:])[0] == "upstream_disconnected"
    assert len(calls) == 1


@pytest.mark.parametrize("model", ["off-1", "plain-1"])
def test_an_upstream_that_cannot(relay: RelayProcess, upstream: ScriptedUpstream, model: str) -> None:
    frames = with_ids(answer("messages", WORDS).events)
    events, calls = broken_off(relay, upstream, "messages", model, frames[:4], *stream(*frames[4:]))
    assert error_of("messages", events[-1:])[0] == "upstream_disconnected"
    assert len(calls) == 1


def test_a_response_in_the_background(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    frames = list(answer("responses", WORDS).events)
    created = json.loads(given(frames)[0])
    path = f"/v1/responses/{created['response']['id']}?stream=true&starting_after=4"
    upstream.on_path(f"GET {path}", *stream(*frames[5:]))
    events, calls = broken_off(
        relay, upstream, "responses", "background-1", frames[:5], *json_response(500, {}), background=True
    )
    assert [event.data for event in events] == given(frames)
    assert len(calls) == 1
    assert [call.method for call in upstream.calls if call.path == path] == ["GET"]


def test_a_keepalive_with_a_number(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    """As OpenAI sends them: numbered like every event of the response."""
    frames = list(answer("responses", WORDS).events)
    numbers = [int(frame.rpartition('"sequence_number": ')[2].rstrip("}\n")) for frame in frames]
    for n in numbers[4:]:
        frames[n] = frames[n].replace(f'"sequence_number": {n}', f'"sequence_number": {n + 1}')
    beat = 'event: keepalive\ndata: {"type":"keepalive","sequence_number":4}\n\n'
    created = json.loads(given(frames)[0])
    path = f"/v1/responses/{created['response']['id']}?stream=true&starting_after=4"
    upstream.on_path(f"GET {path}", *stream(*frames[4:]))
    first = [*frames[:4], beat]
    events, _ = broken_off(
        relay, upstream, "responses", "background-beat", first, *json_response(500, {}), background=True
    )
    assert [event.data for event in events if event.event != "keepalive"] == given(frames)


def test_a_response_in_the_foreground(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    frames = list(answer("responses", WORDS).events)
    events, calls = broken_off(relay, upstream, "responses", "background-2", frames[:5], *json_response(500, {}))
    assert events[-1].event == "response.failed"
    assert len(calls) == 1


# -- a relay behind the relay -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def far(upstream: ScriptedUpstream) -> Iterator[RelayProcess]:
    with RelayProcess({**served_by(upstream), "streams": {"heartbeat": "300ms"}}) as process:
        yield process


@pytest.fixture
def line(far: RelayProcess) -> Iterator[CuttingProxy]:
    with CuttingProxy(far.url) as proxy:
        yield proxy


@pytest.fixture
def near(line: CuttingProxy) -> Iterator[RelayProcess]:
    config = {
        "upstreams": [{"name": "far", "base_url": line.url}],
        "streams": {"upstream_resume": "3s", "abandon_after": "0s"},
    }
    with RelayProcess(config) as process:
        yield process


FRAMES = list(answer("chat", WORDS).events)


def test_a_silent_line_is_given_up_for_another(
    near: RelayProcess, line: CuttingProxy, upstream: ScriptedUpstream
) -> None:
    upstream.on("silent", *stream(*FRAMES))
    line.fate = lambda asked: Fate(cut_at=400, how="hang") if "last-event-id" not in asked.headers else Fate()
    with begin(near, "chat", "silent") as read:
        assert data_of(read) == given(FRAMES)
    assert len(upstream.calls_of("silent")) == 1


@pytest.mark.parametrize("how", ["stopped", "abandoned"])
def test_what_nobody_wants_is_stopped_at_the_far_relay(
    near: RelayProcess, line: CuttingProxy, upstream: ScriptedUpstream, how: str
) -> None:
    upstream.on(how, *stream(*FRAMES[:3], Gate(how), *FRAMES[3:]))
    with begin(near, "chat", how) as read:
        read.take(3)
        if how == "stopped":
            name = read.headers["relay-stream-id"]
            with open_stream(f"{near.url}/streams/{name}", "DELETE", credential("chat", "sk-1")) as stopped:
                assert stopped.status == 204
    (call,) = upstream.calls_of(how)
    assert call.ended.wait(10)
    assert call.cancelled


@pytest.mark.parametrize(("said", "kept_for"), [(None, "3s"), ("0s", "3s"), ("1500ms", "3s"), ("90s", "90s")])
def test_the_far_relay_is_told_how_long_to_keep_it(
    near: RelayProcess, line: CuttingProxy, upstream: ScriptedUpstream, said: str | None, kept_for: str
) -> None:
    """No shorter than the near one comes back, with the request and with each resume."""
    model = f"kept-{said}"
    for each in ("known", model):
        upstream.on(each, *stream(*FRAMES))
    line.fate = lambda asked: Fate(cut_at=700) if asked.model == model else Fate()
    with begin(near, "chat", "known") as read:  # its answer says that it is a relay
        read.events()
    headers = credential("chat", "sk-1") | ({} if said is None else {"relay-abandon-after": said})
    body = {"model": model, "stream": True, "messages": []}
    with open_stream(near.url + PATHS["chat"], headers=headers, body=body) as read:
        assert data_of(read) == given(FRAMES)
    first, *others = [asked.headers.get("relay-abandon-after") for asked in line.asked()]
    assert first is None, "nobody knows yet that it is a relay"
    assert len(others) == 2
    assert set(others) == {kept_for}
    assert upstream.calls_of(model)[0].header("relay-abandon-after") is None


BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
NOT_FOUND = (
    b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 55\r\nconnection: close\r\n\r\n"
    b'{"error": {"message":"no.", "code":"stream_not_found"}}'
)


@pytest.mark.parametrize("refusal", [BAD_GATEWAY, NOT_FOUND], ids=["for ever", "at once"])
def test_a_far_relay_that_cannot_go_on(
    near: RelayProcess, line: CuttingProxy, upstream: ScriptedUpstream, refusal: bytes
) -> None:
    model = f"lost-{len(refusal)}"
    upstream.on(model, *stream(*FRAMES[:4], Gate(model), *FRAMES[4:]))
    line.fate = lambda asked: Fate(instead=refusal) if "last-event-id" in asked.headers else Fate(cut_at=700)
    with begin(near, "chat", model) as read:
        *events, error, done = read.events()
    assert [event.data for event in events] == given(FRAMES)[: len(events)]
    assert error_of("chat", [error, done])[0] == "upstream_disconnected"
    upstream.open(model)


def test_a_slow_reader_holds_the_far_relay_back(
    near: RelayProcess, line: CuttingProxy, upstream: ScriptedUpstream
) -> None:
    """What comes back after a cut waits for its reader, too."""
    frames = [FRAMES[0], *(json_frame("x" * 60_000) for _ in range(200)), *FRAMES[-2:]]
    upstream.on("slow", *stream(*frames))
    cuts = iter([200_000, 700_000, 3_000_000])

    def fate(asked: Asked) -> Fate:
        return Fate(cut_at=next(cuts, None))

    line.fate = fate
    with begin(near, "chat", "slow") as read:
        assert data_of(read) == given(frames)
    assert len(upstream.calls_of("slow")) == 1


def json_frame(text: str) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n"
