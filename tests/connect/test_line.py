"""Programs beside `relay connect` see no cut of the line to the far relay: client → near → line → far → upstream.

What the client reads is byte for byte what it would have read, it is never cut off itself, and the upstream is asked
once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.asking import ask
from tests.support.cutting_http import BEFORE_HEAD, CuttingBalancer, CuttingProxy, Fate
from tests.support.near import NearRelay
from tests.support.processes import RelayProcess
from tests.support.samples import SAMPLES, Sample, masked
from tests.support.scripted import Gate, Pause, ScriptedUpstream, Step, stream
from tests.support.site import served_by
from tests.support.sseclient import RawStream
from tests.support.stores import valkey_server
from tests.support.streams import APIS, Api
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

each_api = pytest.mark.parametrize("api", APIS)
HEARTBEAT = 0.3
CALM = {"streams": {"heartbeat": f"{HEARTBEAT}s"}, "drain": {"timeout": "0s"}}


def post(near: RelayProcess, sample: Sample, model: str, **headers: str) -> RawStream:
    return ask(near.url + sample.path, headers={**sample.headers(), **headers}, body=sample.body(model), timeout=60)


def paced(sample: Sample, pause: float) -> tuple[Step, ...]:
    return stream(*(step for frame in sample.frames for step in (frame, Pause(pause))))


def check(answer: RawStream, sample: Sample, upstream: ScriptedUpstream, model: str) -> None:
    """Read to its end, it is the whole answer, over one connection and out of one call."""
    without_beats = b"".join(event.raw for event in answer if not event.is_heartbeat)
    assert answer.ended == "zero-chunk"
    assert masked(without_beats) == sample.expected(answer.headers["relay-stream-id"])
    assert len(upstream.calls_of(model)) == 1


def in_front_of(line: str, **env: str) -> NearRelay:
    return NearRelay(line, **env)


def reached(near: NearRelay) -> NearRelay:
    wait_until(lambda: "is a relay" in near.log(), 15, "the far relay to be found")
    return near


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def far(upstream: ScriptedUpstream) -> Iterator[RelayProcess]:
    with RelayProcess({**served_by(upstream), **CALM}) as process:
        yield process


@contextmanager
def balanced(far: RelayProcess) -> Iterator[tuple[CuttingBalancer, NearRelay]]:
    """A line whose connections can all be reset at any moment."""
    port = urlsplit(far.url).port
    assert port is not None
    with CuttingBalancer(port) as line, in_front_of(f"http://127.0.0.1:{line.port}") as near:
        yield line, reached(near)


def test_cut_every_300_ms(far: RelayProcess, upstream: ScriptedUpstream) -> None:
    over = threading.Event()
    with balanced(far) as (line, near), ThreadPoolExecutor(len(APIS) + 1) as threads:

        def cut() -> int:
            cuts = 0
            while not over.wait(0.3):
                cuts += bool(line.clients)
                line.cut_all()
            return cuts

        def read(api: Api) -> None:
            model = f"often-{api}"
            upstream.on(model, *paced(SAMPLES[api], 0.4))
            check(post(near, SAMPLES[api], model), SAMPLES[api], upstream, model)

        cutting = threads.submit(cut)
        try:
            list(threads.map(read, APIS))
        finally:
            over.set()
        assert cutting.result() >= 3


@each_api
@pytest.mark.parametrize("at", [0, 150, 700])
def test_a_line_that_goes_silent_is_found_within_two_heartbeats(
    far: RelayProcess, upstream: ScriptedUpstream, api: Api, at: int
) -> None:
    """Half-open: nothing ends it and nothing comes. Before that a silence of the upstream's own is no end."""
    sample, model = SAMPLES[api], f"half-{api}-{at}"
    first, *others = sample.frames
    upstream.on(model, *stream(first, Pause(5 * HEARTBEAT), *others))
    with CuttingProxy(far.url) as line, in_front_of(line.url) as near:
        reached(near)
        line.fate = lambda asked: Fate(cut_at=at, how="hang") if "last-event-id" not in asked.headers else Fate()
        began = time.monotonic()
        check(post(near, sample, model), sample, upstream, model)
        assert time.monotonic() - began < 15, "two heartbeats, a second, and what a busy machine takes"


@each_api
def test_the_very_first_request_joins_what_it_began(far: RelayProcess, upstream: ScriptedUpstream, api: Api) -> None:
    """The far relay is known for one before anything is asked of it, so a loss before the head costs nothing."""
    sample, model = SAMPLES[api], f"first-{api}"
    upstream.on(model, *stream(*sample.frames))
    with CuttingProxy(far.url) as line, in_front_of(line.url) as near:
        reached(near)
        line.fate = lambda asked: Fate(cut_at=BEFORE_HEAD if len(line.asked(model)) == 1 else None)
        check(post(near, sample, model), sample, upstream, model)
        assert [asked.headers["relay-abandon-after"] for asked in line.asked(model)] == ["900s", "900s"]


@contextmanager
def away(line: CuttingBalancer, near: RelayProcess, seconds: float) -> Iterator[None]:
    """Nobody listens at the line's address meanwhile."""
    line.run(line.closing())
    line.cut_all()
    yield
    threading.Event().wait(seconds)
    line.run(line.listen())


def test_away_for_20_s(far: RelayProcess, upstream: ScriptedUpstream) -> None:
    """What was in flight goes on, and what is asked meanwhile waits: as for a laptop that slept."""
    with balanced(far) as (line, near):
        answers: dict[str, tuple[Sample, RawStream]] = {}
        for api in APIS:
            first, second, *others = SAMPLES[api].frames
            upstream.on(f"away-{api}", *stream(first, second, Gate("away"), *others))
            upstream.on(f"asked-{api}", *stream(*SAMPLES[api].frames))
            answers[f"away-{api}"] = SAMPLES[api], post(near, SAMPLES[api], f"away-{api}")
        upstream.wait_reached("away", connections=len(APIS))
        asked = {}
        with away(line, near, 20), ThreadPoolExecutor(len(APIS)) as threads:
            upstream.open("away")
            for api in APIS:
                asked[api] = threads.submit(post, near, SAMPLES[api], f"asked-{api}")
            answers |= {f"asked-{api}": (SAMPLES[api], waiting.result(20)) for api, waiting in asked.items()}
        for model, (sample, answer) in answers.items():
            assert answer.status == 200
            check(answer, sample, upstream, model)


@each_api
def test_the_far_relay_restarts_on_the_same_store(upstream: ScriptedUpstream, tmp_path: Path, api: Api) -> None:
    sample, model = SAMPLES[api], f"restart-{api}"
    upstream.on(model, *stream(*sample.frames[:2], Gate(model), *sample.frames[2:]))
    with valkey_server(tmp_path / "store", unix=True) as store:
        config: dict[str, Any] = {**served_by(upstream), "store": {"url": store.url}, **CALM}
        with RelayProcess(config) as far, balanced(far) as (line, near):
            answer = post(near, sample, model)
            answer_began = answer.events(2)
            with away(line, near, 0.0):
                upstream.open(model)
                (call,) = upstream.calls_of(model)
                assert call.ended.wait(10), "the far relay reads it to its end"
                far.stop_for_restart()
                far.start()
            rest = b"".join(event.raw for event in answer if not event.is_heartbeat)
            begun = b"".join(event.raw for event in answer_began)
            assert masked(begun + rest) == sample.expected(answer.headers["relay-stream-id"])
            assert len(upstream.calls_of(model)) == 1


# -- a local close ----------------------------------------------------------------------------------------------------


def begin(near: RelayProcess, upstream: ScriptedUpstream, model: str, **headers: str) -> RawStream:
    sample = SAMPLES["chat"]
    upstream.on(model, *stream(sample.frames[0], Gate(model), *sample.frames[1:]))
    answer = post(near, sample, model, **headers)
    answer.events(1)
    return answer


def ends(upstream: ScriptedUpstream, model: str, within: float) -> bool:
    (call,) = upstream.calls_of(model)
    return call.ended.wait(within)


def near_with(far: RelayProcess, env: Mapping[str, str]) -> NearRelay:
    return in_front_of(far.url, **env)


def test_a_client_that_has_gone_for_good_stops_the_far_generation(
    far: RelayProcess, upstream: ScriptedUpstream
) -> None:
    """The far relay keeps it for `upstream_resume`, a quarter of an hour, so what ends it is the near one's word."""
    with near_with(far, {"RELAY_STREAMS__ABANDON_AFTER": "1s"}) as near:
        reached(near)
        begin(near, upstream, "gone").close()
        assert not ends(upstream, "gone", 0.5), "it may come back"
        assert ends(upstream, "gone", 10)
        assert upstream.calls_of("gone")[0].cancelled


def test_a_client_that_says_when_is_heard(far: RelayProcess, upstream: ScriptedUpstream) -> None:
    with near_with(far, {}) as near:
        reached(near)
        begin(near, upstream, "at-once", **{"relay-abandon-after": "0s"}).close()
        assert ends(upstream, "at-once", 10)


def test_a_session_that_goes_on_without_it_stops_it_at_the_far_relay(
    far: RelayProcess, upstream: ScriptedUpstream
) -> None:
    sample, session = SAMPLES["chat"], {"session-id": "s-1"}
    with near_with(far, {}) as near:
        reached(near)
        begin(near, upstream, "orphan", **session).close()
        upstream.on("beyond", *stream(*sample.frames))
        body = sample.body("beyond")
        body["messages"] += [{"role": "assistant", "content": "x"}, {"role": "user", "content": "and now?"}]
        answer = ask(near.url + sample.path, headers={**sample.headers(), **session}, body=body)
        answer.read()
        assert ends(upstream, "orphan", 10), "its setting is a minute"
        assert upstream.calls_of("orphan")[0].cancelled


@pytest.mark.parametrize("header", ["session-id", "x-claude-code-session-id", "x-session-id"])
def test_an_agents_own_retry_joins_at_the_near_relay(
    far: RelayProcess, upstream: ScriptedUpstream, header: str
) -> None:
    sample, model = SAMPLES["chat"], f"retry-{header}"
    with near_with(far, {}) as near:
        reached(near)
        begin(near, upstream, model, **{header: model}).close()
        again = post(near, sample, model, **{header: model})
        again.events(1)
        upstream.open(model)
        again.read()
        assert masked(again.raw_body) == sample.expected(again.headers["relay-stream-id"])
    assert len(upstream.calls_of(model)) == 1
