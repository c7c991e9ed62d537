"""A connection may be cut after any event and inside any event: what a client joins is what it would have got.

Every stream here is cut on one replica and continued on the other. Replica two sends heartbeats all the
time, replica one as good as never.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from tests.support.format_samples import FORMATS, PATH
from tests.support.ids import end_ids
from tests.support.replicas import Replicas, stream_id, two_replicas
from tests.support.samples import SAMPLES, Sample, masked, rest, resume, start
from tests.support.scripted import Cut, End, Gate, Head, Pause, ScriptedUpstream, Send, Step, stream
from tests.support.sseclient import RawEvent, RawStream, open_stream
from tests.support.streams import APIS, Api

pytestmark = pytest.mark.slow

STREAMS: dict[str, Sample] = dict[str, Sample](SAMPLES.items()) | FORMATS
each_api = pytest.mark.parametrize("api", APIS)
each_stream = pytest.mark.parametrize("api", STREAMS)
each_format = pytest.mark.parametrize("api", FORMATS)
each_way = pytest.mark.parametrize("how", ["post", "get"])


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def replicas(upstream: ScriptedUpstream) -> Iterator[Replicas]:
    config = {
        "upstreams": [
            {"name": "scripted", "base_url": upstream.url},
            {"name": "application", "base_url": upstream.url, "apis": ["sse"], "paths": [f"{PATH}*"]},
        ],
        "limits": {"streams_per_owner": 10000},
        "drain": {"timeout": "0s"},
    }
    # A chat API's answer begins with its first event, and after this in any case: every stream that is held before it
    # waits for so long.
    patience = {"patience": "300ms"}
    with two_replicas(config, {"heartbeat": "60s"} | patience, {"heartbeat": "5ms"} | patience) as pair:
        yield pair


@pytest.fixture(autouse=True)
def one_call_per_stream(upstream: ScriptedUpstream) -> Iterator[None]:
    """Every stream here names a model of its own: no model may be asked for twice, nor by a resume."""
    yield
    asked = Counter(call.json["model"] for call in upstream.calls)
    assert {model: count for model, count in asked.items() if count > 1} == {}
    assert "nothing-may-go-upstream" not in asked


def held_after(sample: Sample, k: int, gate: str) -> tuple[Step, ...]:
    """The sample, held after its event k until the gate is opened."""
    return stream(*sample.frames[:k], Gate(gate), *sample.frames[k:])


def offsets_within(frame: bytes) -> list[int]:
    """Where an event is cut: in its id, on both sides of the id's line end, before and in its data, inside
    a character where it has one of several bytes, and on both sides of its last line end but one."""
    id_line = frame.index(b"\n") + 1
    data = frame.index(b"data: ") + 6
    found = {1, id_line - 2, id_line - 1, id_line, data - 3, data, (data + len(frame)) // 2, len(frame) - 2}
    found.add(len(frame) - 1)
    found.update(i for i, byte in enumerate(frame) if byte == 0xE2)
    found.update(i + 1 for i, byte in enumerate(frame) if byte == 0xE2)
    return sorted(found - {0, len(frame)})


@pytest.mark.parametrize("api", STREAMS)
@pytest.mark.parametrize("number", [0, 1])
def test_uncut(replicas: Replicas, upstream: ScriptedUpstream, api: str, number: int) -> None:
    sample = STREAMS[api]
    model = f"uncut-{api}-{number}"
    upstream.on(model, *stream(*sample.frames))
    answer = start(replicas[number], sample, model)
    assert rest(answer) == sample.expected(stream_id(answer))


@each_stream
@each_way
@pytest.mark.parametrize("number", [0, 1])
def test_live_stream_cut_after_every_event(
    replicas: Replicas, upstream: ScriptedUpstream, api: str, how: str, number: int
) -> None:
    sample = STREAMS[api]
    for k in range(len(sample.events)):
        model = f"live-{api}-{how}-{number}-{k}"
        upstream.on(model, *held_after(sample, k, model))
        answer = start(replicas[number], sample, model)
        stream = stream_id(answer)
        head = masked(b"".join(event.raw for event in answer.take(k)))
        again = resume(replicas[number + 1], sample, f"{stream}.{k}", how)
        upstream.open(model)
        assert (k, head + rest(again)) == (k, sample.expected(stream))


@each_api
@each_way
def test_live_stream_cut_inside_every_event(replicas: Replicas, upstream: ScriptedUpstream, api: Api, how: str) -> None:
    sample = SAMPLES[api]
    for k, event in enumerate(sample.events):
        frame = event.to_client("st_" + "x" * 22 + f".{k + 1}")
        for offset in offsets_within(frame):
            model = f"inside-{api}-{how}-{k}-{offset}"
            # The last event ends the stream, so nothing is left to hold it after.
            upstream.on(model, *held_after(sample, k + 1, model))
            answer = start(replicas.first, sample, model)
            name = stream_id(answer)
            head = b"".join(event.raw for event in answer.events(k))
            assert answer.take_bytes(len(head) + offset)[: len(head)] == head
            again = resume(replicas.second, sample, f"{name}.{k}", how)
            upstream.open(model)
            assert (k, offset, masked(head) + rest(again)) == (k, offset, sample.expected(name))


@each_format
def test_live_stream_of_a_format_cut_inside_every_event(
    replicas: Replicas, upstream: ScriptedUpstream, api: str
) -> None:
    """One reader after another of the same stream is cut in another place of the event, and the next one goes on."""
    sample = FORMATS[api]
    for k, event in enumerate(sample.events):
        model = f"inside-{api}-{k}"
        upstream.on(model, *held_after(sample, k + 1, model))
        reader = start(replicas.first, sample, model)
        name = stream_id(reader)
        head = b"".join(event.raw for event in reader.events(k))
        frame = event.to_client(f"{name}.{k + 1}")
        for n, offset in enumerate(offsets_within(frame)):
            got = reader.take_bytes((0 if n else len(head)) + offset)
            assert (k, offset, masked(got if n else got[len(head) :])[:16]) == (k, offset, frame[:offset][:16])
            reader = resume(replicas.first, sample, f"{name}.{k}", "get" if n % 3 else "post")
        reader.close()
        again = resume(replicas.second, sample, f"{name}.{k}")
        upstream.open(model)
        assert (k, masked(head) + rest(again)) == (k, sample.expected(name))


@each_stream
@each_way
def test_finished_stream_cut_everywhere(replicas: Replicas, upstream: ScriptedUpstream, api: str, how: str) -> None:
    """Both replicas give the same bytes from every position, as often as they are asked."""
    sample = STREAMS[api]
    for number in (0, 1):
        model = f"finished-{api}-{how}-{number}"
        upstream.on(model, *stream(*sample.frames))
        answer = start(replicas[number], sample, model)
        stream_name = stream_id(answer)
        whole = rest(answer)
        assert whole == sample.expected(stream_name)
        for k in range(len(sample.events)):
            done = sample.expected(stream_name, k)
            for relay in (replicas.first, replicas.second):
                again = resume(relay, sample, f"{stream_name}.{k}", how)
                assert (k, done + rest(again)) == (k, whole)
        for relay in (replicas.first, replicas.second):
            with resume(relay, sample, f"{stream_name}.{len(sample.events)}", how) as again:
                assert (again.status, again.read()) == (204, b"")


@each_api
def test_the_retry_hint_belongs_to_the_stream(replicas: Replicas, upstream: ScriptedUpstream, api: Api) -> None:
    """What is drawn by lot is drawn once: every reader on every replica gets the same first event."""
    sample = SAMPLES[api]
    model = f"hint-{api}"
    upstream.on(model, *stream(*sample.frames))
    answer = start(replicas.first, sample, model)
    (first,) = answer.events(1)
    rest(answer)
    for relay in (replicas.first, replicas.second):
        (again,) = resume(relay, sample, f"{stream_id(answer)}.0").take(1)
        assert again.raw == first.raw


@each_api
def test_resume_itself_cut_at_every_byte_offset(replicas: Replicas, upstream: ScriptedUpstream, api: Api) -> None:
    """A client that goes by bytes alone: it keeps what ended in a blank line and asks for what is behind."""
    sample = SAMPLES[api]
    model = f"bytes-{api}"
    upstream.on(model, *stream(*sample.frames))
    answer = start(replicas.second, sample, model)
    name = stream_id(answer)
    whole = rest(answer)
    kept = b""
    n = 0
    step = 1
    while n < len(sample.events):
        got = resume(replicas.first, sample, f"{name}.{n}").take_bytes(step)
        last = got.rfind(b"\n\n")
        if last < 0:
            step += 37  # longer than before, so that in the end a whole event fits
            continue
        kept += got[: last + 2]
        n += got.count(b"\n\n")
        step = 1 + step // 2
    assert masked(kept) == whole


@each_stream
def test_chain_cut_after_every_event(replicas: Replicas, upstream: ScriptedUpstream, api: str) -> None:
    """One stream, one connection per event, alternating replicas; the upstream waits for each."""
    sample = STREAMS[api]
    model = f"chain-{api}"
    steps: list[bytes | Step] = []
    for k, frame in enumerate(sample.frames):
        steps += [Gate(f"{model}-{k}"), frame]
    upstream.on(model, *stream(*steps))

    answer = start(replicas.first, sample, model)
    name = stream_id(answer)
    joined = b""
    for k in range(len(sample.events)):
        if k:
            answer = resume(replicas[k], sample, f"{name}.{k}", "post" if k % 3 else "get")
        assert answer.status == 200, answer.read()
        upstream.open(f"{model}-{k}")
        (event,) = answer.take(1)
        assert event.id == f"{name}.{k + 1}"
        joined += event.raw
    assert masked(joined) == sample.expected(name)


@each_api
def test_chain_without_waiting(replicas: Replicas, upstream: ScriptedUpstream, api: Api) -> None:
    """The same while the upstream goes on: what falls between two connections is in the log."""
    sample = SAMPLES[api]
    model = f"race-{api}"
    steps: list[bytes | Step] = []
    for frame in sample.frames:
        steps += [frame, Pause(0.003)]
    upstream.on(model, *stream(*steps))

    answer = start(replicas.second, sample, model)
    name = stream_id(answer)
    joined = b""
    for k in range(len(sample.events)):
        if k:
            answer = resume(replicas[k + 1], sample, f"{name}.{k}")
        assert answer.status == 200, answer.read()
        (event,) = answer.take(1)
        joined += event.raw
    assert masked(joined) == sample.expected(name)


@each_api
@pytest.mark.parametrize("number", [0, 1])
def test_many_readers_of_one_live_stream(replicas: Replicas, upstream: ScriptedUpstream, api: Api, number: int) -> None:
    sample = SAMPLES[api]
    model = f"many-{api}-{number}"
    middle = len(sample.events) // 2
    frames = sample.frames
    gates = Gate(f"{model}-1"), Gate(f"{model}-2")
    upstream.on(model, *stream(*frames[:middle], gates[0], frames[middle], gates[1], *frames[middle + 1 :]))
    answer = start(replicas[number], sample, model)
    name = stream_id(answer)
    first = b"".join(event.raw for event in answer.events(middle))
    readers = [(0, answer)]
    readers += [
        (n % (middle + 1), resume(replicas[n], sample, f"{name}.{n % (middle + 1)}", "get" if n % 3 else "post"))
        for n in range(10)
    ]
    upstream.open(f"{model}-1")
    (event,) = answer.events(1)
    first += event.raw
    readers += [(n % (middle + 2), resume(replicas[n // 2], sample, f"{name}.{n % (middle + 2)}")) for n in range(10)]
    upstream.open(f"{model}-2")

    whole = sample.expected(name)
    for after, reader in readers:
        got = rest_of_first(reader, first) if reader is answer else sample.expected(name, after) + rest(reader)
        assert (after, got) == (after, whole)


def rest_of_first(answer: RawStream, already: bytes) -> bytes:
    """The uncut reader's bytes: those taken before and the rest."""
    with answer:
        got = already + b"".join(event.raw for event in answer.events())
        assert answer.ended == "zero-chunk"
        return masked(got)


@each_stream
def test_upstream_that_cuts_its_bytes_anywhere(replicas: Replicas, upstream: ScriptedUpstream, api: str) -> None:
    """Where TCP cuts the upstream's bytes, inside characters and line ends too, changes nothing."""
    sample = STREAMS[api]
    body = b"".join(sample.frames)
    for size in (1, 7, 1000, len(body)):
        model = f"tcp-{api}-{size}"
        pieces = [Send(body[i : i + size]) for i in range(0, len(body), size)]
        upstream.on(model, Head(200, {"content-type": "text/event-stream"}), *pieces, End())
        answer = start(replicas.first, sample, model)
        assert (size, rest(answer)) == (size, sample.expected(stream_id(answer)))


def spelled(api: str, events: Sequence[RawEvent], code: str) -> bool:
    """Is this how the format itself tells of an end by the relay?"""
    last = events[-1]
    stopped = code == "stopped"
    match api:
        case "ui":
            told = {"type": "abort"} if stopped else {"type": "error", "errorText": events[0].json.get("errorText")}
            return (events[0].json, last.data) == (told, "[DONE]")
        case "ag-ui":
            return (last.json["type"], stopped or last.json["code"]) == (
                ("RUN_FINISHED", True) if stopped else ("RUN_ERROR", code)
            )
        case "mcp" | "mcp-ids":
            return (last.event, last.json["id"], last.json["error"]["data"]) == ("message", 1, {"relay": code})
        case "completions":
            told = events[0].json
            return last.data == "[DONE]" and ("choices" in told if stopped else told["error"]["code"] == code)
    return (last.event == "stopped") if stopped and api == "plain" else last.json["error"]["code"] == code


def closed(answers: Sequence[RawStream], name: str, sample: Sample, k: int) -> list[RawEvent]:
    """What the relay adds behind event k, the same for every reader."""
    found = []
    for answer in answers:
        with answer:
            events = [event for event in answer if not event.is_heartbeat]
            assert answer.ended == "zero-chunk"
        assert masked(b"".join(event.raw for event in events[:k])) == sample.expected(name, k)
        found.append(events[k:])
    assert all([each.raw for each in more] == [each.raw for each in found[0]] for more in found)
    assert [event.id for event in found[0]] == end_ids(name, k, len(found[0]))
    return found[0]


@pytest.mark.parametrize("api", [name for name in FORMATS if name != "mcp-ids"])
@pytest.mark.parametrize("inside", [False, True])
def test_an_application_that_breaks_off_anywhere(
    replicas: Replicas, upstream: ScriptedUpstream, api: str, inside: bool
) -> None:
    """What has ids of its own is gone on with: tests/api/test_application_rpc.py."""
    sample = FORMATS[api]
    for k, frame in enumerate(sample.frames):
        model = f"breaks-{api}-{inside}-{k}"
        part = (Send(frame[: len(frame) // 2]),) if inside else ()
        head = Head(200, {"content-type": "text/event-stream", **sample.told})
        upstream.on(model, head, *map(Send, sample.frames[:k]), *part, Cut())
        answer = start(replicas.first, sample, model)
        name = stream_id(answer)
        added = closed([answer, *(resume(replicas[n], sample, f"{name}.0") for n in (0, 1))], name, sample, k)
        known = api if k or api in ("ui", "mcp") else "plain"
        assert spelled(known, added, "upstream_disconnected"), (k, added)


@each_format
def test_a_format_stopped_after_any_event(replicas: Replicas, upstream: ScriptedUpstream, api: str) -> None:
    sample = FORMATS[api]
    for k in range(1, len(sample.events)):
        model = f"stopped-{api}-{k}"
        upstream.on(model, *stream(*sample.frames[:k], Gate(model), headers=sample.told))
        answer = start(replicas.first, sample, model)
        name = stream_id(answer)
        assert len(answer.events(k)) == k
        answer.close()
        with open_stream(f"{replicas.second.url}/streams/{name}", "DELETE", sample.headers("sk-one")) as stopped:
            assert stopped.status == 204
        added = closed([resume(replicas[n], sample, f"{name}.0") for n in (0, 1)], name, sample, k)
        upstream.open(model)
        assert spelled(api, added, "stopped"), (k, added)
