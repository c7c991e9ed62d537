"""Retries that do not pay twice: `Idempotency-Key`, and `attach_retries` for the SDKs' own retries.

In every case the upstream counts its calls.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.conftest import Relays
from tests.sdk.install import is_installed, python_generation
from tests.support.asking import answers
from tests.support.oracle import DONE, PATH, check, frame, word
from tests.support.processes import RelayProcess, needs
from tests.support.replicas import stream_id
from tests.support.scripted import Gate, ScriptedUpstream, Step, json_response, stream
from tests.support.site import PairSite, pair_of_relays
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import valkey_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

STREAMS = {"heartbeat": "200ms", "lease": "1s", "patience": "2s"}


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with pair_of_relays(STREAMS) as found:
        yield found


def held(gate: str) -> tuple[Step, ...]:
    return stream(frame(1), frame(2), Gate(gate), frame(3), DONE)


def post(
    relay: RelayProcess,
    model: str,
    headers: Mapping[str, str],
    token: str = "sk-one",
    path: str = PATH,
    timeout: float = 20.0,
    **more: Any,
) -> RawStream:
    body = {"model": model, "stream": True, "messages": [], **more}
    auth = {"authorization": f"Bearer {token}"}
    answer = open_stream(relay.url + path, headers={**auth, **headers}, body=body, timeout=timeout)
    answers.append(answer)
    return answer


def key(value: str) -> dict[str, str]:
    return {"idempotency-key": value}


def retry(count: int) -> dict[str, str]:
    return {"x-stainless-retry-count": str(count)}


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
def test_a_key_joins_from_the_start_live_and_finished(site: PairSite, where: int) -> None:
    model = f"key-{where}"
    site.upstream.on(model, *held(model))
    first = post(site.replicas[0], model, key(model))
    seen = first.events(2)
    second = post(site.replicas[where], model, key(model))
    assert stream_id(second) == stream_id(first)
    again = second.events(2)
    site.upstream.open(model)
    seen += first.events()
    again += second.events()
    assert check(seen) == check(again) == (3, "done")
    third = post(site.replicas[where], model, key(model))
    assert [e.raw for e in third.events()] == [e.raw for e in again] == [e.raw for e in seen]
    assert third.ended == "zero-chunk"
    assert len(site.upstream.calls_of(model)) == 1


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
def test_a_key_joins_while_the_first_waits_for_the_upstream(site: PairSite, where: int) -> None:
    model = f"key-waiting-{where}"
    site.upstream.on(model, Gate(model), *stream(frame(1), DONE))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, site.replicas[0], model, key(model))
        site.upstream.wait_reached(model)
        second = pool.submit(post, site.replicas[where], model, key(model))
        with pytest.raises(TimeoutError):
            second.result(0.5)
        site.upstream.open(model)
        ends = [check(answer.result(10).events()) for answer in (first, second)]
    assert ends == [(1, "done")] * 2
    assert len(site.upstream.calls_of(model)) == 1


def test_at_the_very_same_moment_on_two_replicas(site: PairSite) -> None:
    site.upstream.on("same-moment", *stream(frame(1), frame(2), DONE))
    barrier = threading.Barrier(8)

    def one(number: int) -> tuple[str, tuple[int, str | None]]:
        barrier.wait(10)
        answer = post(site.replicas[number], "same-moment", key("same-moment"))
        return stream_id(answer), check(answer.events())

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(8)))
    assert len({stream for stream, _ in answers}) == 1
    assert {seen for _, seen in answers} == {(2, "done")}
    assert len(site.upstream.calls_of("same-moment")) == 1


@pytest.mark.parametrize("where", [0, 1])
def test_another_body_is_refused(site: PairSite, where: int) -> None:
    model = f"other-body-{where}"
    site.upstream.on(model, *stream(frame(1), DONE))
    assert check(post(site.replicas[0], model, key(model)).events()) == (1, "done")
    other = post(site.replicas[where], model, key(model), temperature=1)
    assert (other.status, other.json["error"]["code"]) == (422, "idempotency_key_reused")
    assert len(site.upstream.calls_of(model)) == 1


def test_the_same_body_on_another_path_is_another_request(site: PairSite) -> None:
    site.upstream.on("other-path", *stream(frame(1), DONE))
    assert check(post(site.replicas[0], "other-path", key("other-path")).events()) == (1, "done")
    other = post(site.replicas[0], "other-path", key("other-path"), path="/v1/messages")
    assert (other.status, other.json["error"]["code"]) == (422, "idempotency_key_reused")


def test_another_owner_has_keys_of_its_own(site: PairSite) -> None:
    site.upstream.on("owners", *stream(frame(1), DONE))
    mine = post(site.replicas[0], "owners", key("owners"))
    theirs = post(site.replicas[1], "owners", key("owners"), token="sk-two")
    assert stream_id(mine) != stream_id(theirs)
    assert check(mine.events()) == check(theirs.events()) == (1, "done")
    assert len(site.upstream.calls_of("owners")) == 2


@pytest.mark.parametrize("where", [0, 1])
def test_a_refused_request_gives_its_key_back(site: PairSite, where: int) -> None:
    model = f"refused-{where}"
    site.upstream.on(model, *json_response(429, {"error": {"message": "slow down"}}, {"retry-after": "7"}))
    refused = post(site.replicas[0], model, key(model))
    assert (refused.status, refused.headers["retry-after"]) == (429, "7")
    assert refused.json == {"error": {"message": "slow down"}}
    site.upstream.on(model, *stream(frame(1), DONE))
    assert check(post(site.replicas[where], model, key(model)).events()) == (1, "done")
    assert len(site.upstream.calls_of(model)) == 2


@pytest.mark.parametrize("length", [0, 256])
def test_a_key_has_bounds(site: PairSite, length: int) -> None:
    answer = post(site.replicas[0], "bounds", key("k" * length))
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_request")
    assert site.upstream.calls_of("bounds") == []


def test_the_first_ones_replica_dies_before_its_stream_came_to_be(
    upstream: ScriptedUpstream, tmp_path: Path, relays: Relays
) -> None:
    """Nothing was given out, so the request may be sent once more; whoever waits does so within bounds."""
    upstream.on("dies", Gate("dies"), *stream(frame(1), DONE))
    with valkey_server(tmp_path / "valkey") as store:
        config = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "streams": STREAMS,
            "store": {"url": store.url},
        }
        first, second = relays.start(config), relays.start(config)
        with ThreadPoolExecutor(2) as pool:
            lost = pool.submit(post, first, "dies", key("dies"))
            upstream.wait_reached("dies")
            waiting = pool.submit(post, second, "dies", key("dies"))
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            first.kill()
            with pytest.raises(ConnectionError):
                lost.result(5)
            upstream.open("dies")
            answer = waiting.result(10)
            assert check(answer.events()) == (1, "done")
        assert len(upstream.calls_of("dies")) == 2
        relays.stop_all()


@pytest.mark.parametrize("headers", [key("cut"), retry(0)], ids=["key", "attach_retries"])
@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
def test_a_client_cut_off_before_its_answer_comes_back_to_the_same_generation(
    site: PairSite, headers: dict[str, str], where: int
) -> None:
    model = f"cut-{next(iter(headers))}-{where}"
    headers = {name: f"{value}-{where}" if name == "idempotency-key" else value for name, value in headers.items()}
    again = {**headers, **retry(1)}
    site.upstream.on(model, Gate(model), *stream(frame(1), DONE))
    with pytest.raises(TimeoutError):
        post(site.replicas[0], model, headers, timeout=0.5)
    time.sleep(0.3)
    with ThreadPoolExecutor(1) as pool:
        answer: Future[RawStream] = pool.submit(post, site.replicas[where], model, again)
        with pytest.raises(TimeoutError):
            answer.result(0.5)
        site.upstream.open(model)
        assert check(answer.result(10).events()) == (1, "done")
    assert len(site.upstream.calls_of(model)) == 1


def test_who_waits_is_not_cut_off_when_the_first_one_leaves(site: PairSite) -> None:
    site.upstream.on("waits-on", Gate("waits-on"), *stream(frame(1), DONE))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, site.replicas[0], "waits-on", key("waits-on"), timeout=1.0)
        site.upstream.wait_reached("waits-on")
        second = pool.submit(post, site.replicas[1], "waits-on", key("waits-on"))
        with pytest.raises(TimeoutError):
            first.result(5)
        site.upstream.open("waits-on")
        assert check(second.result(10).events()) == (1, "done")
    assert len(site.upstream.calls_of("waits-on")) == 1


def test_joining_needs_no_room(relays: Relays, upstream: ScriptedUpstream) -> None:
    """Whoever holds as many streams as allowed may still come back to one of them."""
    upstream.on("room", *held("room"))
    relay = relays.start(
        {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "streams": STREAMS,
            "limits": {"streams_per_owner": 1},
        }
    )
    first = post(relay, "room", key("room"))
    events = first.events(2)
    second = post(relay, "room", key("room"))
    assert second.status == 200, second.json
    assert post(relay, "room", key("another")).status == 429
    upstream.open("room")
    assert check(second.events()) == check(events + first.events()) == (3, "done")
    assert check(post(relay, "room", key("another")).events()) == (3, "done")


# -- attach_retries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 1], ids=["same-replica", "other-replica"])
def test_a_retry_joins_the_generation_in_flight(site: PairSite, where: int) -> None:
    model = f"retry-{where}"
    site.upstream.on(model, *held(model))
    first = post(site.replicas[0], model, retry(0))
    first.events(2)
    first.close(reset=True)
    time.sleep(0.3)  # an SDK waits for half a second
    others = [
        post(site.replicas[where], model, retry(1), token="sk-two"),
        post(site.replicas[where], model, retry(1), temperature=1),
        post(site.replicas[where], model, {}, max_tokens=7),
    ]
    second = post(site.replicas[where], model, retry(1))
    assert stream_id(second) == stream_id(first)
    site.upstream.open(model)
    assert {check(answer.events()) for answer in (second, *others)} == {(3, "done")}
    assert len({stream_id(answer) for answer in (first, *others)}) == 4
    assert len(site.upstream.calls_of(model)) == 4


def test_a_first_attempt_never_joins(site: PairSite) -> None:
    site.upstream.on("count-0", *held("count-0"))
    first = post(site.replicas[0], "count-0", retry(0))
    second = post(site.replicas[0], "count-0", retry(0))
    assert stream_id(first) != stream_id(second)
    site.upstream.open("count-0")
    assert check(first.events()) == check(second.events()) == (3, "done")


@pytest.mark.parametrize("where", [0, 1])
def test_a_retry_after_the_end_is_a_new_generation(site: PairSite, where: int) -> None:
    model = f"after-end-{where}"
    site.upstream.on(model, *stream(frame(1), DONE))
    first = post(site.replicas[0], model, retry(0))
    assert check(first.events()) == (1, "done")
    second = post(site.replicas[where], model, retry(1))
    assert stream_id(first) != stream_id(second)
    assert check(second.events()) == (1, "done")


def test_without_the_setting_a_retry_is_a_new_generation(relays: Relays, upstream: ScriptedUpstream) -> None:
    upstream.on("off", *held("off"))
    relay = relays.start(
        {"upstreams": [{"name": "scripted", "base_url": upstream.url}], "streams": {"attach_retries": "off"}}
    )
    first = post(relay, "off", retry(0))
    first.events(1)
    first.close(reset=True)
    assert stream_id(first) != stream_id(post(relay, "off", retry(1)))


def test_a_retry_does_not_join_what_another_client_reads(site: PairSite) -> None:
    """Two requests that are the same, and one of them was refused before and comes again."""
    site.upstream.on("samples", *held("samples"))
    first = post(site.replicas[0], "samples", retry(0))
    seen = first.events(2)
    second = post(site.replicas[1], "samples", retry(1))
    assert stream_id(second) != stream_id(first)
    site.upstream.open("samples")
    assert check(seen + first.events()) == check(second.events()) == (3, "done")


@pytest.mark.parametrize("count", ["\xb2", "-1", "x", "9" * 5000, ""])
def test_a_strange_retry_count_is_no_retry(site: PairSite, count: str) -> None:
    site.upstream.on("strange", *stream(frame(1), DONE))
    answer = post(site.replicas[0], "strange", {"x-stainless-retry-count": count})
    assert check(answer.events()) == (1, "done")


# -- the OpenAI SDK's own retry -------------------------------------------------------------------------------


class CuttingProxy:
    """Forwards TCP to the relay; the first connection is cut before a byte of its answer came through: when
    the test says so, or when the answer has begun."""

    def __init__(self, target: str, *, on_answer: bool) -> None:
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        self._on_answer = on_answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.cut = threading.Event()
        self.accepted = 0
        self.answered = threading.Event()
        """The second connection has got the first bytes of its answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> CuttingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (self._listener, *self._sockets):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            relay = socket.create_connection(self._target)
            self._sockets += [client, relay]
            first = self.accepted == 0
            self.accepted += 1
            threading.Thread(target=self._pump, args=(client, relay, False, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(relay, client, first, not first), daemon=True).start()
            if first:
                threading.Thread(target=self._cut, args=(client, relay), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, cuts: bool, answers: bool) -> None:
        try:
            while data := source.recv(65536):
                if cuts:
                    if self._on_answer:
                        self.cut.set()
                    continue
                sink.sendall(data)
                if answers:
                    self.answered.set()
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def _cut(self, client: socket.socket, relay: socket.socket) -> None:
        if self.cut.wait(30):
            for each in (client, relay):
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


_CLIENT = """
import json, sys, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="sk-sdk", max_retries=2, timeout=20)
headers = {"Idempotency-Key": sys.argv[3]} if sys.argv[3] else {}
stream = client.chat.completions.create(
    model=sys.argv[2], messages=[{"role": "user", "content": "hi"}], stream=True, extra_headers=headers)
print(json.dumps("".join(chunk.choices[0].delta.content or "" for chunk in stream)))
"""


@pytest.mark.parametrize("idempotency_key", ["", "sdk-key"], ids=["attach_retries", "key"])
@pytest.mark.parametrize("on_answer", [False, True], ids=["while-the-upstream-thinks", "as-the-answer-begins"])
def test_the_openai_sdks_own_retry(site: PairSite, on_answer: bool, idempotency_key: str) -> None:
    needs(is_installed("py-new"), "the SDKs of py-new: run tests/sdk/install.py")
    model = f"sdk-{on_answer}-{idempotency_key}"
    name = f"{idempotency_key}-{on_answer}" if idempotency_key else ""
    head = () if on_answer else (Gate(f"{model}-head"),)
    site.upstream.on(model, *head, *stream(frame(1), frame(2), Gate(model), frame(3), DONE))
    env = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    env |= {"NO_PROXY": "*", "no_proxy": "*", "PYTHONPATH": str(python_generation("py-new"))}
    with CuttingProxy(site.replicas.first.url, on_answer=on_answer) as proxy:
        command = [sys.executable, "-S", "-c", _CLIENT, proxy.url, model, name]
        running = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            site.upstream.wait_reached(model if on_answer else f"{model}-head", 20)
            if not on_answer:
                proxy.cut.set()
            wait_until(lambda: proxy.accepted == 2, 15, "the SDK's second attempt")
            site.upstream.open(f"{model}-head")
            assert proxy.answered.wait(15), "the second attempt has no answer"
            site.upstream.open(model)
            out, err = running.communicate(timeout=20)
        finally:
            running.kill()
            running.wait()
    assert running.returncode == 0, err[-3000:]
    assert json.loads(out) == "".join(word(n) for n in (1, 2, 3))
    assert len(site.upstream.calls_of(model)) == 1
