"""A relayed stream as its client sees it: its headers, its heartbeats, and each event as soon as it is there."""

from __future__ import annotations

import re

import pytest

from tests.api.scene import Scene, beats, bodies, each_api, logged_or_not, plain, sample_of
from tests.support.replicas import stream_id
from tests.support.samples import SAMPLES, Sample, rest, resume, start
from tests.support.scripted import Gate, Step, stream
from tests.support.sseclient import open_stream
from tests.support.streams import Api

pytestmark = pytest.mark.slow

# -- headers ------------------------------------------------------------------------------------------------


@each_api
@logged_or_not
def test_headers_of_a_stream(scene: Scene, api: Api, prefix: str) -> None:
    sample = sample_of(api, prefix)
    theirs = {
        "x-request-id": "req-theirs",
        "request-id": "req-theirs-2",
        "x-ratelimit-remaining-tokens": "17",
        "anthropic-ratelimit-requests-limit": "4",
        "set-cookie": "a=b",
        "cache-control": "public, max-age=600",
        "x-codex-turn-state": "state",
        "x-internal": "secret",
        "connection": "keep-alive, x-internal",
    }
    model = scene.play(*stream(*sample.frames, headers=theirs), prefix=prefix)
    asking = {**sample.headers(), "accept-encoding": "gzip, br, zstd"}
    with open_stream(scene.relay.url + sample.path, headers=asking, body=sample.body(model)) as answer:
        headers = answer.headers
        assert answer.status == 200
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-cache, no-store, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert headers["relay-resumable"] == ("true" if prefix == "" else "false")
        assert re.fullmatch(r"st_[A-Za-z0-9_-]{22,}", headers["relay-stream-id"])
        assert headers["transfer-encoding"] == "chunked"
        for name in ("x-request-id", "request-id", "x-ratelimit-remaining-tokens", "x-codex-turn-state"):
            assert headers[name] == theirs[name]
        assert headers["anthropic-ratelimit-requests-limit"] == "4"
        for name in ("content-length", "content-encoding", "set-cookie", "x-internal", "server"):
            assert name not in headers
        names = [name.lower() for name, _ in answer.header_list]
        assert len(names) == len(set(names))
        assert [plain(event) for event in answer.events()] == bodies(sample)
        assert answer.ended == "zero-chunk"


# -- heartbeats and patience --------------------------------------------------------------------------------


def beat_of(sample: Sample, prefix: str) -> bytes:
    """Without ids a comment is a block of its own."""
    return b": hb\n\n" if prefix and sample.heartbeat == b": hb\n" else sample.heartbeat


@each_api
@logged_or_not
def test_heartbeats_before_the_first_event_and_in_the_middle(scene: Scene, api: Api, prefix: str) -> None:
    sample = sample_of(api, prefix)
    beat = beat_of(sample, prefix)
    gate = f"beats-{api}-{prefix}"
    frames = sample.frames
    # The second silence falls inside an event of the upstream's: at the client it is between two.
    script = stream(Gate(f"{gate}-1"), *frames[:3], frames[3][:9], Gate(f"{gate}-2"), frames[3][9:], *frames[4:])
    with start(scene.relay, sample, scene.play(*script, prefix=prefix)) as answer:
        assert beats(answer, 3) == [beat] * 3
        assert answer.raw_body == beat * 3
        scene.main.open(f"{gate}-1")
        events = answer.events(3)
        assert beats(answer, 3) == [beat] * 3
        scene.main.open(f"{gate}-2")
        parts = list(answer)
        assert answer.ended == "zero-chunk"
        assert {part.raw for part in parts if part.is_heartbeat} <= {beat}
        events += [part for part in parts if not part.is_heartbeat]
        assert [plain(event) for event in events] == bodies(sample)


@each_api
def test_heartbeats_on_a_resume(scene: Scene, api: Api) -> None:
    sample = SAMPLES[api]
    gate = f"resume-beats-{api}"
    with start(scene.relay, sample, scene.play(*stream(sample.frames[0], Gate(gate), *sample.frames[1:]))) as answer:
        answer.events(1)
        again = resume(scene.relay, sample, f"{stream_id(answer)}.1")
        assert beats(again, 2) == [sample.heartbeat] * 2
        scene.main.open(gate)
        assert sample.expected(stream_id(answer), 1) + rest(again) == sample.expected(stream_id(answer))


@each_api
@logged_or_not
def test_late_stream(scene: Scene, api: Api, prefix: str) -> None:
    sample = sample_of(api, prefix)
    gate = f"late-{api}-{prefix}"
    model = scene.play(Gate(gate), *stream(*sample.frames), prefix=prefix)
    answer = start(scene.relay, sample, model)
    assert beats(answer, 2) == [beat_of(sample, prefix)] * 2
    scene.main.open(gate)
    events = answer.events()
    assert [plain(event) for event in events] == bodies(sample)
    assert answer.ended == "zero-chunk"
    assert scene.call(model).method == "POST"


# -- nothing is buffered ------------------------------------------------------------------------------------


@each_api
@logged_or_not
def test_every_event_arrives_before_the_next_is_sent(scene: Scene, api: Api, prefix: str) -> None:
    sample = sample_of(api, prefix)
    gate = f"step-{api}-{prefix}"
    steps: list[bytes | Step] = []
    for n, frame in enumerate(sample.frames):
        steps += [Gate(f"{gate}-{n}"), frame]
    with start(scene.relay, sample, scene.play(*stream(*steps), prefix=prefix)) as answer:
        for n, wanted in enumerate(bodies(sample)):
            scene.main.open(f"{gate}-{n}")
            (event,) = answer.events(1)
            assert plain(event) == wanted
        assert answer.events() == []
        assert answer.ended == "zero-chunk"
