"""Retries without a key join what runs: clients that behave like the agents do, cut in every way, on two replicas.

In every case the upstream counts its calls.
"""

from __future__ import annotations

import ctypes
import json
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.asking import answers, ask
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.processes import RelayProcess
from tests.support.replicas import stream_id, two_replicas
from tests.support.scripted import Cut, Gate, ScriptedUpstream, Step, json_response, stream
from tests.support.site import PairSite, pair_of_relays
from tests.support.sseclient import RawStream, open_stream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

WINDOW = 2.0
STREAMS = {"heartbeat": "100ms", "lease": "2s", "patience": "2s", "attach_window": f"{WINDOW:g}s"}


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with ScriptedUpstream() as upstream:
        config = {"upstreams": [{"name": "scripted", "base_url": upstream.url, "headers": ["x-turn-state"]}]}
        with two_replicas(config, STREAMS, STREAMS) as replicas:
            yield PairSite(upstream, replicas)


@dataclass
class Agent:
    """What one client sends: its session's header, a body, and the retry count of its SDK, if it has one."""

    name: str
    model: str
    session: str | None
    counts: bool = False
    shuffles: bool = False
    token: str = "sk-one"
    tries: int = 0
    closes: bool = False
    """Its connections are for one request each, and say so."""

    def body(self, **more: Any) -> bytes:
        metadata = {"turn_id": "t1", "window": "w", "sandbox": "none", "big": 12345678901234567890}
        members = list(metadata.items())
        if self.shuffles:
            members = random.Random(self.tries).sample(members, len(members))
        body = {
            "model": self.model,
            "stream": True,
            "messages": [{"role": "user", "content": "hi"}],
            "client_metadata": dict(members),
            **more,
        }
        return json.dumps(body).encode()

    def headers(self) -> dict[str, str]:
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        if self.session is not None:
            name = {"codex": "session-id", "claude": "x-claude-code-session-id"}.get(self.name, "x-session-id")
            headers[name] = self.session
        if self.name == "claude":
            headers["x-stainless-retry-count"] = "0"
        elif self.counts:
            headers["x-stainless-retry-count"] = str(self.tries)
        if self.closes:
            headers["connection"] = "close"
        return headers

    def ask(self, relay: RelayProcess, path: str = PATH, timeout: float = 20.0, **more: Any) -> RawStream:
        body = self.body(**more)
        self.tries += 1
        answer = open_stream(relay.url + path, headers=self.headers(), body=body, timeout=timeout)
        answers.append(answer)
        return answer


def agent(name: str, model: str) -> Agent:
    return {
        "codex": Agent("codex", model, "s1", shuffles=True),
        "claude": Agent("claude", model, "s1"),
        "opencode": Agent("opencode", model, "s1"),
        "sdk": Agent("sdk", model, None, counts=True),
    }[name]


AGENTS = ["codex", "claude", "opencode", "sdk"]


def held(model: str) -> tuple[Step, ...]:
    return stream(frame(1), frame(2), Gate(model), frame(3), DONE)


def calls(site: PairSite, model: str) -> int:
    return len(site.upstream.calls_of(model))


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
@pytest.mark.parametrize("reset", [True, False], ids=["rst", "fin"])
@pytest.mark.parametrize("read", [1, 2], ids=["first-event", "text"])
@pytest.mark.parametrize("name", AGENTS)
def test_a_retry_after_a_cut_joins_from_the_first_event(
    site: PairSite, name: str, read: int, reset: bool, where: int
) -> None:
    model = f"cut-{name}-{read}-{reset}-{where}"
    site.upstream.on(model, *held(model))
    it = agent(name, model)
    first = it.ask(site.replicas[0])
    first.events(read)
    first.close(reset=reset)
    time.sleep(0.2)  # as long as the quickest of them waits
    second = it.ask(site.replicas[where])
    assert stream_id(second) == stream_id(first)
    site.upstream.open(model)
    assert check(second.events()) == (3, "done")
    assert second.ended == "zero-chunk"
    assert calls(site, model) == 1


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
@pytest.mark.parametrize("name", AGENTS)
def test_a_retry_after_a_cut_before_the_head_joins(site: PairSite, name: str, where: int) -> None:
    model = f"head-{name}-{where}"
    site.upstream.on(model, Gate(model), *stream(frame(1), DONE, headers={"x-turn-state": "of-the-upstream"}))
    it = agent(name, model)
    with pytest.raises(TimeoutError):
        it.ask(site.replicas[0], timeout=0.3)
    time.sleep(0.2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(it.ask, site.replicas[where])
        with pytest.raises(TimeoutError):
            waiting.result(0.4)
        site.upstream.open(model)
        second = waiting.result(10)
    assert second.headers["x-turn-state"] == "of-the-upstream"
    assert check(second.events()) == (1, "done")
    assert calls(site, model) == 1


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
@pytest.mark.parametrize("name", AGENTS)
def test_what_is_refused_after_its_client_left_is_asked_for_again(site: PairSite, name: str, where: int) -> None:
    """Nothing was paid for, and whoever comes has a right to the refusal's status."""
    model = f"refused-{name}-{where}"
    site.upstream.on(model, Gate(model), *json_response(429, {"error": {"message": "slow"}}, {"retry-after": "7"}))
    it = agent(name, model)
    with pytest.raises(TimeoutError):
        it.ask(site.replicas[0], timeout=0.3)
    time.sleep(0.2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(it.ask, site.replicas[where])
        with pytest.raises(TimeoutError):
            waiting.result(0.4)
        site.upstream.open(model)
        second = waiting.result(10)
    assert (second.status, second.headers["retry-after"]) == (429, "7")
    assert calls(site, model) == 2


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
@pytest.mark.parametrize("name", AGENTS)
def test_a_generation_that_has_ended_meanwhile_is_joined_within_the_window(
    site: PairSite, name: str, where: int
) -> None:
    model = f"ended-{name}-{where}"
    site.upstream.on(model, *held(model))
    it = agent(name, model)
    first = it.ask(site.replicas[0])
    first.events(2)
    first.close()
    site.upstream.open(model)
    wait_until(lambda: status(site.replicas[1], stream_id(first))["state"] == "ended", 5, "the end")
    second = it.ask(site.replicas[where])
    assert stream_id(second) == stream_id(first)
    assert check(second.events()) == (3, "done")
    third = it.ask(site.replicas[where])
    assert stream_id(third) != stream_id(first), "it was read to its end"
    third.events()
    assert calls(site, model) == 2


def status(relay: RelayProcess, stream: str, token: str = "sk-one") -> Any:
    headers = {"authorization": f"Bearer {token}", "accept": "application/json"}
    with ask(f"{relay.url}/streams/{stream}", "GET", headers) as answer:
        answer.read()
        return answer.json


def test_after_the_window_it_is_a_new_one(site: PairSite) -> None:
    model = "window"
    site.upstream.on(model, *held(model))
    it = agent("opencode", model)
    first = it.ask(site.replicas[0])
    first.events(2)
    first.close()
    site.upstream.open(model)
    wait_until(lambda: status(site.replicas[1], stream_id(first))["state"] == "ended", 5, "the end")
    ended = status(site.replicas[1], stream_id(first))["ended_at"]
    wait_until(lambda: time.time() > ended + WINDOW + 0.3, 10, "the end of the window")
    assert stream_id(it.ask(site.replicas[1])) != stream_id(first)


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
def test_an_end_that_was_written_and_never_arrived_is_not_delivered(site: PairSite, where: int) -> None:
    """The client's machine has not taken all of it when the connection is reset."""
    model = f"at-the-end-{where}"
    big = 'data: {"pad":"%s"}\n\n' % ("x" * 1_500_000)
    site.upstream.on(model, *stream(frame(1), big, frame(2), DONE))
    it = agent("codex", model)
    first = it.ask(site.replicas[0])
    first.events(1)
    wait_until(lambda: status(site.replicas[1], stream_id(first))["state"] == "ended", 5, "the end")
    time.sleep(0.3)  # so that the relay has written it
    first.close(reset=True)
    second = it.ask(site.replicas[where])
    assert stream_id(second) == stream_id(first)
    assert calls(site, model) == 1


@pytest.mark.parametrize("how", ["read", "read-and-closed", "failed", "stopped"])
@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
@pytest.mark.parametrize("name", AGENTS)
def test_what_is_over_is_joined_by_nobody(site: PairSite, name: str, where: int, how: str) -> None:
    model = f"over-{name}-{where}-{how}"
    read = (frame(1), DONE)
    steps = {
        "read": read,
        "read-and-closed": read,
        "failed": (frame(1), Gate(model), Cut()),
        "stopped": (frame(1), Gate(model)),
    }
    site.upstream.on(model, *stream(*steps[how]))
    it = agent(name, model)
    it.closes = how == "read-and-closed"
    first = it.ask(site.replicas[0])
    if how.startswith("read"):
        assert check(first.events()) == (1, "done")
    else:
        first.events(1)
        first.close()
        if how == "stopped":
            headers = {"authorization": "Bearer sk-one"}
            assert ask(f"{site.replicas[1].url}/streams/{stream_id(first)}", "DELETE", headers).status == 204
        site.upstream.open(model)
        wait_until(lambda: status(site.replicas[1], stream_id(first))["state"] == "ended", 5, "the end")
    site.upstream.on(model, *stream(frame(1), DONE))
    second = it.ask(site.replicas[where])
    assert stream_id(second) != stream_id(first)
    assert check(second.events()) == (1, "done")
    assert calls(site, model) == 2


@pytest.mark.parametrize("name", ["codex", "claude", "opencode"])
def test_parallel_requests_that_are_the_same_stay_apart(site: PairSite, name: str) -> None:
    model = f"parallel-{name}"
    site.upstream.on(model, *held(model))
    it = agent(name, model)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: it.ask(site.replicas[n % 2]), range(4)))
    assert len({stream_id(answer) for answer in found}) == 4
    site.upstream.open(model)
    assert {check(answer.events()) for answer in found} == {(3, "done")}
    assert calls(site, model) == 4


def test_two_retries_at_once_on_two_replicas_do_not_share(site: PairSite) -> None:
    for n in range(5):
        model = f"two-{n}"
        site.upstream.on(model, *held(model))
        it = agent("claude", model)
        first = it.ask(site.replicas[0])
        first.events(2)
        first.close(reset=True)
        barrier = threading.Barrier(2)

        def again(where: int, it: Agent = it, barrier: threading.Barrier = barrier) -> RawStream:
            barrier.wait(10)
            return it.ask(site.replicas[where])

        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(again, range(2)))
        streams = [stream_id(answer) for answer in found]
        assert streams.count(stream_id(first)) == 1
        assert len(set(streams)) == 2
        site.upstream.open(model)
        assert {check(answer.events()) for answer in found} == {(3, "done")}
        assert calls(site, model) == 2


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
def test_cut_again_and_again_it_is_one_generation(site: PairSite, where: int) -> None:
    model = f"again-{where}"
    site.upstream.on(model, *held(model))
    it = agent("codex", model)
    first = it.ask(site.replicas[0])
    name = stream_id(first)
    first.events(1)
    first.close(reset=True)
    for n in range(6):
        answer = it.ask(site.replicas[(n * where + n // 2) % 2])
        assert stream_id(answer) == name, n
        answer.events(2)
        answer.close(reset=bool(n % 2))
    site.upstream.open(model)
    last = it.ask(site.replicas[where])
    assert (stream_id(last), check(last.events())) == (name, (3, "done"))
    assert calls(site, model) == 1


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
def test_a_retry_that_comes_before_the_cut_is_seen_waits_for_it(site: PairSite, where: int) -> None:
    """A proxy in between has kept the relay's side of the line for a moment."""
    model = f"early-{where}"
    site.upstream.on(model, *held(model))
    it = agent("codex", model)
    first = it.ask(site.replicas[0])
    first.events(2)
    closing = threading.Timer(0.4, first.close)
    closing.start()
    second = it.ask(site.replicas[where])
    closing.join()
    assert stream_id(second) == stream_id(first)
    site.upstream.open(model)
    assert check(second.events()) == (3, "done")
    assert calls(site, model) == 1


SO_ATTACH_FILTER = 26


def vanish(answer: RawStream) -> None:
    """From now on the client's machine hears nothing, acknowledges nothing, and says nothing: as after a change of
    networks. A filter on its socket drops whatever comes."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    answer._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a peer has acknowledged")
@pytest.mark.parametrize("reads_at", [0, 1], ids=["read-at-the-producer", "read-elsewhere"])
@pytest.mark.parametrize("where", [0, 1], ids=["asks-the-producer", "asks-the-other"])
def test_a_client_that_has_vanished_without_a_word_is_found_out(site: PairSite, where: int, reads_at: int) -> None:
    model = f"vanished-{where}-{reads_at}"
    site.upstream.on(model, *held(model))
    it = agent("claude", model)
    first = it.ask(site.replicas[0])
    reading = first
    first.events(2)
    if reads_at:
        first.close()
        time.sleep(0.2)
        reading = it.ask(site.replicas[1])
        reading.events(2)
    vanish(reading)
    second = it.ask(site.replicas[where])
    assert stream_id(second) == stream_id(first)
    site.upstream.open(model)
    assert check(second.events()) == (3, "done")
    assert calls(site, model) == 1


def test_who_comes_back_by_id_reads_it_and_a_retry_does_not_join(site: PairSite) -> None:
    model = "by-id"
    site.upstream.on(model, *held(model))
    it = agent("claude", model)
    first = it.ask(site.replicas[0])
    last = first.events(2)[-1].id
    first.close(reset=True)
    for where in (0, 1):
        resumed = ask(
            site.replicas[where].url + PATH, headers={**it.headers(), "last-event-id": str(last)}, body={"a": 1}
        )
        assert resumed.status == 200
        second = it.ask(site.replicas[1])
        assert stream_id(second) != stream_id(first)
        second.close()
        resumed.close()


@pytest.mark.parametrize(
    "other",
    [
        {"token": "sk-two"},
        {"session": "s2"},
        {"session": None},
        {"path": "/v1/messages"},
        {"body": {"temperature": 1}},
        {"body": {"client_metadata": {"turn_id": "t1", "window": "w", "sandbox": "none", "big": 12345678901234567891}}},
    ],
    ids=["owner", "session", "no-session", "path", "body", "big-number"],
)
@pytest.mark.parametrize("where", [0, 1])
def test_another_request_does_not_join(site: PairSite, where: int, other: dict[str, Any]) -> None:
    model = f"other-{where}-{'-'.join(other)}-{sorted(str(value) for value in other.values())[0][:20]}"
    site.upstream.on(model, *held(model))
    it = agent("codex", model)
    first = it.ask(site.replicas[0])
    first.events(1)
    first.close(reset=True)
    it.token = other.get("token", it.token)
    it.session = other.get("session", it.session) if "session" in other else it.session
    second = it.ask(site.replicas[where], path=other.get("path", PATH), **other.get("body", {}))
    assert second.headers.get("relay-stream-id") != stream_id(first)
    assert calls(site, model) == 2


def test_what_nobody_owns_is_joined_by_nobody(site: PairSite) -> None:
    model = "nobody"
    site.upstream.on(model, *held(model))
    body = {"model": model, "stream": True, "messages": []}
    headers = {"x-session-id": "s1", "authorization": ""}
    with ask(site.replicas[0].url + PATH, headers=headers, body=body) as first:
        first.events(1)
    time.sleep(0.2)
    second = ask(site.replicas[0].url + PATH, headers=headers, body=body)
    assert stream_id(second) != stream_id(first)


# -- what a session goes beyond ---------------------------------------------------------------------------------------

HI = {"role": "user", "content": "hi"}
TITLE = {"role": "user", "content": "a title, please"}


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
@pytest.mark.parametrize(
    ("messages", "stops"),
    [
        ([HI, {"role": "assistant", "content": "so f"}, {"role": "user", "content": "no, otherwise"}], True),
        ([{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "e"}}]}, TITLE], True),
        ([TITLE], False),
        ([TITLE, HI], False),
        ([], False),
    ],
    ids=["goes-on", "marked-for-the-cache", "title", "other-beginning", "nothing"],
)
def test_an_orphan_is_stopped_when_its_session_goes_on(
    site: PairSite, where: int, messages: list[Any], stops: bool
) -> None:
    model = f"beyond-{where}-{len(messages)}-{stops}-{hash(str(messages))}"
    site.upstream.on(model, *held(model))
    it = agent("claude", model)
    first = it.ask(site.replicas[0])
    first.events(2)
    first.close()
    time.sleep(0.2)
    site.upstream.on(model, *stream(frame(1), DONE))
    assert check(it.ask(site.replicas[where], messages=messages).events()) == (1, "done")
    if stops:
        wait_until(lambda: status(site.replicas[1], stream_id(first))["state"] == "ended", 5, "its end")
        assert status(site.replicas[1], stream_id(first))["outcome"] == "abandoned"
        (call, _) = site.upstream.calls_of(model)
        assert call.ended.wait(5)
    else:
        time.sleep(0.3)
        again = it.ask(site.replicas[where])
        assert stream_id(again) == stream_id(first)
        site.upstream.open(model)
        assert check(again.events()) == (3, "done")


@pytest.mark.parametrize("other", [False, True], ids=["the-same-picture", "another-picture"])
def test_pictures_of_megabytes_are_told_apart_by_all_that_they_are(site: PairSite, other: bool) -> None:
    """Of so long a text the parser does not get all."""
    model = f"picture-{other}"
    site.upstream.on(model, *held(model))
    it = agent("claude", model)
    picture = "AbCd" * (5 << 18)
    shown = {"role": "user", "content": [{"type": "image", "data": picture}]}
    first = it.ask(site.replicas[0], messages=[shown])
    first.events(2)
    first.close()
    time.sleep(0.2)
    site.upstream.on(model, *stream(frame(1), DONE))
    if other:
        shown["content"] = [{"type": "image", "data": picture[: 5 << 19] + "x" + picture[(5 << 19) + 1 :]}]
    assert check(it.ask(site.replicas[0], messages=[shown, TITLE]).events()) == (1, "done")
    if other:
        time.sleep(0.3)
        assert status(site.replicas[0], stream_id(first))["state"] == "live"
        site.upstream.open(model)
    wait_until(lambda: status(site.replicas[0], stream_id(first))["state"] == "ended", 5, "its end")


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
def test_what_somebody_reads_is_not_stopped(site: PairSite, where: int) -> None:
    model = f"beyond-read-{where}"
    site.upstream.on(model, *held(model))
    it = agent("claude", model)
    first = it.ask(site.replicas[0])
    seen = first.events(2)
    longer = [HI, {"role": "assistant", "content": "x"}, TITLE]
    second = it.ask(site.replicas[where], messages=longer)
    second.events(2)
    time.sleep(0.3)
    site.upstream.open(model)
    assert check(seen + first.events()) == (3, "done")


# -- replicas that die, settings --------------------------------------------------------------------------------------


def test_a_replica_that_dies_with_the_reader_leaves_an_orphan() -> None:
    with pair_of_relays({**STREAMS, "lease": "10s"}) as site:
        site.upstream.on("m", *held("m"))
        it = agent("codex", "m")
        first = it.ask(site.replicas[0])
        first.events(1)
        first.close(reset=True)
        time.sleep(0.2)
        second = it.ask(site.replicas[1])
        second.events(1)
        assert stream_id(second) == stream_id(first)
        site.replicas[1].kill()
        third = it.ask(site.replicas[0])
        assert stream_id(third) == stream_id(first)
        site.upstream.open("m")
        assert check(third.events()) == (3, "done")
        assert calls(site, "m") == 1


def test_a_replica_that_dies_with_the_generation_is_not_waited_for() -> None:
    with pair_of_relays({**STREAMS, "lease": "10s"}) as site:
        site.upstream.on("m", *held("m"))
        it = agent("codex", "m")
        first = it.ask(site.replicas[0])
        first.events(1)
        site.replicas[0].kill()
        site.upstream.on("m", *stream(frame(1), DONE))
        began = time.monotonic()
        second = it.ask(site.replicas[1])
        assert check(second.events()) == (1, "done")
        assert time.monotonic() - began < 3, "long before the lease has lapsed"
        assert calls(site, "m") == 2


@pytest.mark.parametrize(
    ("mode", "joined"), [("auto", AGENTS), ("marked", ["sdk"]), ("off", [])], ids=["auto", "marked", "off"]
)
def test_the_setting_says_who_joins(upstream: ScriptedUpstream, mode: str, joined: list[str]) -> None:
    config = {
        "upstreams": [{"name": "scripted", "base_url": upstream.url}],
        "streams": {**STREAMS, "attach_retries": mode},
    }
    with RelayProcess(config) as relay:
        found = []
        for name in AGENTS:
            upstream.on(name, *held(name))
            it = agent(name, name)
            first = it.ask(relay)
            first.events(1)
            first.close(reset=True)
            time.sleep(0.2)
            if stream_id(it.ask(relay)) == stream_id(first):
                found.append(name)
        assert found == joined
