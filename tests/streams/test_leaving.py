"""Clients that leave: when a generation that nobody reads is cancelled, and when it is not.

The clock of `streams.abandon_after` runs from the last reader's departure, wherever that reader was; a client
that comes back stops it; the upstream call is really cancelled, and the log says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Relays
from tests.support.asking import ask
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.processes import RelayProcess
from tests.support.replicas import stream_id, two_replicas
from tests.support.scripted import Call, Gate, Head, Pause, ScriptedUpstream, Send, Step, stream
from tests.support.site import PairSite, pair_of_relays
from tests.support.sseclient import RawStream
from tests.support.stores import valkey_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

STREAMS = {"heartbeat": "200ms", "lease": "1s", "abandon_after": "1s", "patience": "20s"}
AUTH = {"authorization": "Bearer sk-leaver"}
# From the moment a cancellation is due until the upstream sees its connection closed: a second, on a busy machine more.
# Where the last reader was makes no difference: his replica tells the producer's.
SOON = 1.5


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with pair_of_relays(STREAMS) as found:
        yield found


def one(relays: Relays, upstream: ScriptedUpstream, buffer: bool = True, **streams: str) -> RelayProcess:
    upstreams = [{"name": "scripted", "base_url": upstream.url, "buffer": buffer}]
    return relays.start({"upstreams": upstreams, "streams": {**STREAMS, **streams}})


def held(gate: str, before: int = 3, after: int = 2) -> tuple[Step, ...]:
    """So many events, a wait at the gate, the rest and `[DONE]`."""
    first = [frame(n) for n in range(1, before + 1)]
    rest = [frame(n) for n in range(before + 1, before + after + 1)]
    return stream(*first, Gate(gate), *rest, DONE)


def post(relay: RelayProcess, model: str) -> RawStream:
    answer = ask(relay.url + PATH, headers=AUTH, body={"model": model, "stream": True, "messages": []})
    assert answer.status == 200, answer.read()
    return answer


def come_back(relay: RelayProcess, stream: str, n: int) -> RawStream:
    answer = ask(f"{relay.url}/streams/{stream}", "GET", {**AUTH, "last-event-id": f"{stream}.{n}"})
    assert answer.status == 200, answer.read()
    return answer


def status(relay: RelayProcess, stream: str) -> dict[str, Any]:
    answer = ask(f"{relay.url}/streams/{stream}", "GET", {**AUTH, "accept": "application/json"})
    assert answer.status == 200, answer.read()
    found: dict[str, Any] = answer.json
    return found


def only_call(upstream: ScriptedUpstream, model: str) -> Call:
    (call,) = upstream.calls_of(model)
    return call


def stay(answer: RawStream, seconds: float) -> None:
    """Read heartbeats for so long: the stream is silent, and this reader is there."""
    until = time.monotonic() + seconds
    for event in answer:
        assert event.is_heartbeat, event
        if time.monotonic() > until:
            return
    raise AssertionError(f"the stream ended: {answer.ended}")


def assert_cancelled(call: Call, within: float) -> float:
    """When, after now, the upstream saw its connection closed in the middle of its answer."""
    began = time.monotonic()
    assert call.ended.wait(within), f"the upstream call still runs after {within} s"
    assert call.cancelled
    return time.monotonic() - began


def wait_ended(relay: RelayProcess, stream: str) -> dict[str, Any]:
    wait_until(lambda: status(relay, stream)["state"] == "ended", 5, "the stream's end")
    return status(relay, stream)


def test_the_last_reader_leaves_and_the_call_is_cancelled(site: PairSite) -> None:
    site.upstream.on("last", *held("last"))
    first = post(site.replicas[0], "last")
    stream = stream_id(first)
    second = come_back(site.replicas[0], stream, 0)
    assert check(first.take(3)) == (3, None)
    second.events(3)
    call = only_call(site.upstream, "last")
    stay(second, 2.0)
    assert not call.cancelled, "one reader was still there"
    second.close()
    assert assert_cancelled(call, 1 + SOON) > 0.6

    found = wait_ended(site.replicas[1], stream)
    assert (found["outcome"], found["events"]) == ("abandoned", 3)
    for replica in (site.replicas.first, site.replicas.second):
        answer = come_back(replica, stream, 0)
        assert check(answer.events()) == (3, "abandoned")
        assert answer.ended == "zero-chunk"
    assert len(site.upstream.calls_of("last")) == 1


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
def test_a_client_that_comes_back_stops_the_clock(site: PairSite, where: int) -> None:
    model = f"back-{where}"
    site.upstream.on(model, *held(model))
    answer = post(site.replicas[0], model)
    stream = stream_id(answer)
    events = answer.take(3)
    wait_until(lambda: status(site.replicas[1], stream)["events"] == 3, 5)
    again = come_back(site.replicas[where], stream, 3)
    stay(again, 2.6)
    assert not only_call(site.upstream, model).cancelled
    site.upstream.open(model)
    assert check(events + again.events()) == (5, "done")
    assert wait_ended(site.replicas[0], stream)["outcome"] == "completed"
    assert len(site.upstream.calls_of(model)) == 1


def test_the_clock_runs_again_after_the_return(site: PairSite) -> None:
    site.upstream.on("again", *held("again"))
    answer = post(site.replicas[0], "again")
    stream = stream_id(answer)
    answer.take(3)
    again = come_back(site.replicas[1], stream, 3)
    stay(again, 1.5)
    again.close()
    assert_cancelled(only_call(site.upstream, "again"), 1 + SOON)
    assert wait_ended(site.replicas[0], stream)["outcome"] == "abandoned"


def test_a_reader_on_another_replica_keeps_it_alive(site: PairSite) -> None:
    site.upstream.on("elsewhere", *held("elsewhere"))
    first = post(site.replicas[0], "elsewhere")
    other = come_back(site.replicas[1], stream_id(first), 0)
    events = other.events(3)
    first.close()
    stay(other, 2.6)
    site.upstream.open("elsewhere")
    assert check(events + other.events()) == (5, "done")
    assert len(site.upstream.calls_of("elsewhere")) == 1


@pytest.mark.parametrize("abandon_after", ["0s", "300ms"])
def test_a_reader_elsewhere_counts_also_when_the_lease_is_longer_than_the_clock(
    upstream: ScriptedUpstream, abandon_after: str
) -> None:
    upstream.on("long-lease", *held("long-lease"))
    config = {"upstreams": [{"name": "scripted", "base_url": upstream.url}]}
    streams = {**STREAMS, "lease": "3s", "abandon_after": abandon_after}
    with two_replicas(config, streams, streams) as replicas:
        first = post(replicas[0], "long-lease")
        other = come_back(replicas[1], stream_id(first), 0)
        events = other.events(3)
        first.close()
        stay(other, 4.0)
        assert not only_call(upstream, "long-lease").cancelled
        other.close()
        assert_cancelled(only_call(upstream, "long-lease"), SOON)
        assert check(events) == (3, None)


@dataclass(frozen=True)
class Trio:
    upstream: ScriptedUpstream
    relays: list[RelayProcess]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Three replicas that look after their streams every few seconds only: what is noticed sooner was told."""
    with ExitStack() as stack:
        upstream = stack.enter_context(ScriptedUpstream())
        store = stack.enter_context(valkey_server(tmp_path_factory.mktemp("store"), unix=True))
        config = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "streams": {**STREAMS, "lease": "30s", "abandon_after": "500ms", "detached": "never"},
            "store": {"url": store.url},
        }
        yield Trio(upstream, [stack.enter_context(RelayProcess(config)) for _ in range(3)])


def detached(relay: RelayProcess, model: str) -> str:
    """A generation that nobody reads yet; its stream."""
    body = {"model": model, "stream": True, "messages": []}
    answer = ask(relay.url + PATH, headers={**AUTH, "prefer": "respond-async"}, body=body)
    assert answer.status == 202, answer.read()
    return stream_id(answer)


@pytest.mark.parametrize("how", ["attached", "detached"])
def test_leaving_another_replica_is_noticed_as_soon_as_leaving_this_one(trio: Trio, how: str) -> None:
    model = f"noticed-{how}"
    trio.upstream.on(model, *held(model))
    if how == "detached":
        stream = detached(trio.relays[0], model)
    else:
        first = post(trio.relays[0], model)
        stream = stream_id(first)
    there = [come_back(trio.relays[1], stream, 0), come_back(trio.relays[1], stream, 0)]
    elsewhere = come_back(trio.relays[2], stream, 0)
    for reader in (*there, elsewhere):
        assert check(reader.events(3)) == (3, None)
    if how == "attached":
        first.close()
    for left in (there[0], elsewhere):
        left.close()
        stay(there[1], 1.2)
        assert not only_call(trio.upstream, model).cancelled, "one reader was still there"
    there[1].close()
    assert assert_cancelled(only_call(trio.upstream, model), 0.5 + SOON) > 0.3
    assert wait_ended(trio.relays[2], stream)["outcome"] == "abandoned"


def test_hopping_from_replica_to_replica_is_no_departure(trio: Trio) -> None:
    """Each time it is the last reader of one replica that leaves, and the first of another that comes."""
    trio.upstream.on("hops", *held("hops"))
    stream = detached(trio.relays[0], "hops")
    reader = come_back(trio.relays[1], stream, 0)
    events = reader.events(3)
    until = time.monotonic() + 3
    turn = 1
    while time.monotonic() < until:
        turn += 1
        reader.close()
        reader = come_back(trio.relays[1 + turn % 2], stream, 3)
        stay(reader, 0.1)
    assert not only_call(trio.upstream, "hops").cancelled
    trio.upstream.open("hops")
    assert check(events + reader.events()) == (5, "done")


def test_readers_whose_replica_has_died_have_left(upstream: ScriptedUpstream, relays: Relays, tmp_path: Path) -> None:
    """Within a lease: it is not told, but the replica does not say any more that they are there."""
    lease = 2.0
    with valkey_server(tmp_path / "store", unix=True) as store:
        config = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "streams": {**STREAMS, "lease": f"{lease}s", "abandon_after": "500ms"},
            "store": {"url": store.url},
        }
        first, second = relays.start(config), relays.start(config)
        upstream.on("died", *held("died"))
        own = post(first, "died")
        there = come_back(second, stream_id(own), 0)
        assert check(there.events(3)) == (3, None)
        own.close()
        stay(there, 1.5 * lease)
        second.kill()
        assert_cancelled(only_call(upstream, "died"), 0.5 + lease * 4 / 3 + SOON)
        assert wait_ended(first, stream_id(own))["outcome"] == "abandoned"
        relays.stop_all()


def test_leaving_before_the_first_token_counts(site: PairSite) -> None:
    site.upstream.on("no-token", *held("no-token", before=0))
    answer = post(site.replicas[0], "no-token")
    stay(answer, 0.3)
    answer.close()
    assert_cancelled(only_call(site.upstream, "no-token"), 1 + SOON)
    again = come_back(site.replicas[1], stream_id(answer), 0)
    assert check(again.events()) == (0, "abandoned")


def test_leaving_before_the_upstreamanswers_cancels_the_call(site: PairSite) -> None:
    """Nobody was told this stream's id, so nobody can come back for it: there is nothing to wait for."""
    site.upstream.on("no-answer", Gate("no-answer"), *held("x"))
    body = json.dumps({"model": "no-answer", "stream": True, "messages": []}).encode()
    with pytest.raises(OSError, match="timed out"):
        ask(site.replicas.first.url + PATH, headers=AUTH, body=body, timeout=0.5)
    assert_cancelled(only_call(site.upstream, "no-answer"), SOON)


def test_leaving_after_patience_but_before_the_answer(relays: Relays, upstream: ScriptedUpstream) -> None:
    """The stream has its id by then, so the client may come back for it."""
    relay = one(relays, upstream, patience="200ms")
    upstream.on("patient", Gate("patient"), *held("rest"))
    answer = post(relay, "patient")
    stay(answer, 0.3)
    answer.close()
    again = come_back(relay, stream_id(answer), 0)
    stay(again, 1.5)
    again.close()
    assert_cancelled(only_call(upstream, "patient"), 1 + SOON)
    assert wait_ended(relay, stream_id(answer))["outcome"] == "abandoned"


def test_at_once(relays: Relays, upstream: ScriptedUpstream) -> None:
    relay = one(relays, upstream, abandon_after="0s")
    upstream.on("at-once", *held("at-once"))
    answer = post(relay, "at-once")
    events = answer.take(3)
    assert_cancelled(only_call(upstream, "at-once"), SOON)
    assert wait_ended(relay, stream_id(answer))["outcome"] == "abandoned"
    assert check(events + come_back(relay, stream_id(answer), 3).events()) == (3, "abandoned")


def test_the_call_is_cancelled_while_the_upstream_keeps_sending(relays: Relays, upstream: ScriptedUpstream) -> None:
    """Not only a silent call: what an abandoned upstream goes on to send is not read for seconds."""
    relay = one(relays, upstream, abandon_after="0s")
    upstream.on("chatty", Head(200, {"content-type": "text/event-stream"}), *_trickle())
    answer = post(relay, "chatty")
    answer.take(3)
    assert_cancelled(only_call(upstream, "chatty"), SOON)


def _trickle() -> tuple[Step, ...]:
    return tuple(step for n in range(1, 400) for step in (Send(frame(n)), Pause(0.05)))


def test_never(relays: Relays, upstream: ScriptedUpstream) -> None:
    """It runs to its end with nobody there, and what it used is on record."""
    relay = one(relays, upstream, abandon_after="never")
    usage = {"id": "c", "choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}}
    steps = held("never")
    upstream.on("never", *steps[:-2], *stream(f"data: {json.dumps(usage)}\n\n", DONE)[1:])
    answer = post(relay, "never")
    events = answer.take(3)
    call = only_call(upstream, "never")
    assert not call.ended.wait(2.0)
    upstream.open("never")
    found = wait_ended(relay, stream_id(answer))
    assert found["outcome"] == "completed"
    assert found["usage"] == {"input_tokens": 11, "output_tokens": 5}
    rest = come_back(relay, stream_id(answer), 3).events()
    assert json.loads(rest[-2].data or "")["usage"]["total_tokens"] == 16
    assert check(events + rest[:-2]) == (5, None)
    assert rest[-1].data == "[DONE]"
    assert not call.cancelled


def test_usage_is_on_record_when_an_abandoned_stream_has_said_it(relays: Relays, upstream: ScriptedUpstream) -> None:
    relay = one(relays, upstream, abandon_after="0s")
    start = {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 12, "output_tokens": 1}}}
    upstream.on("used", *stream(f"event: message_start\ndata: {json.dumps(start)}\n\n", Gate("used")))
    answer = ask(f"{relay.url}/v1/messages", headers=AUTH, body={"model": "used", "stream": True, "messages": []})
    answer.take(1)
    found = wait_ended(relay, stream_id(answer))
    assert (found["outcome"], found["usage"]) == ("abandoned", {"input_tokens": 12, "output_tokens": 1})
    last = come_back(relay, stream_id(answer), 1).events()
    assert [(e.event, e.json["error"]["code"]) for e in last] == [("error", "abandoned")]


def test_a_stream_without_a_log_is_cancelled_when_its_reader_leaves(relays: Relays, upstream: ScriptedUpstream) -> None:
    """Nobody can come back to it, whatever `abandon_after` says."""
    relay = one(relays, upstream, buffer=False, abandon_after="never")
    upstream.on("unlogged", *held("unlogged"))
    answer = post(relay, "unlogged")
    assert answer.headers["relay-resumable"] == "false"
    events = answer.take(3)
    assert [e.id for e in events] == [None] * 3
    assert check(events) == (3, None)
    assert_cancelled(only_call(upstream, "unlogged"), SOON)


def test_hanging_up_on_the_terminal_event_is_a_normal_end(relays: Relays, upstream: ScriptedUpstream) -> None:
    """openai-python hangs up on [DONE]."""
    relay = one(relays, upstream, abandon_after="0s")
    upstream.on("hang-up", *stream(frame(1), DONE, Gate("hang-up")))
    answer = post(relay, "hang-up")
    assert check(answer.take(2)) == (1, "done")
    assert wait_ended(relay, stream_id(answer))["outcome"] == "completed"


def test_leaving_between_the_terminal_event_and_a_done_that_may_follow(
    relays: Relays, upstream: ScriptedUpstream
) -> None:
    """`response.completed` is an end; an upstream that keeps its connection open afterwards adds no second one."""
    relay = one(relays, upstream, abandon_after="0s")
    done = {"type": "response.completed", "sequence_number": 0, "response": {"id": "r", "status": "completed"}}
    upstream.on("linger", *stream(f"data: {json.dumps(done)}\n\n", Gate("linger")))
    answer = ask(f"{relay.url}/v1/responses", headers=AUTH, body={"model": "linger", "stream": True})
    answer.take(1)
    found = wait_ended(relay, stream_id(answer))
    assert (found["outcome"], found["events"]) == ("completed", 1)
