"""A connection may be cut after any event and inside any event: what a client joins is what it would have got.

Every stream here is cut on one replica and continued on the other. Replica two sends heartbeats all the
time, replica one as good as never.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.format_samples import FORMATS, PATH
from tests.support.replicas import Replicas, stream_id, two_replicas
from tests.support.samples import SAMPLES, Sample, masked, rest, resume, start
from tests.support.scripted import End, Gate, Head, Pause, ScriptedUpstream, Send, Step, stream
from tests.support.sseclient import RawStream
from tests.support.streams import APIS, Api

STREAMS: dict[str, Sample] = dict[str, Sample](SAMPLES.items()) | FORMATS
each_api = pytest.mark.parametrize("api", APIS)
each_stream = pytest.mark.parametrize("api", [*APIS, "ui", "plain"])
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
    with two_replicas(config, {"heartbeat": "60s"}, {"heartbeat": "5ms"}) as pair:
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
