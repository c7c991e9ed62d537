"""DELETE /streams/{id}: stops a generation wherever it runs, with an end that no SDK takes for a failure."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from tests.sdk import scenarios_chat as chat
from tests.sdk import scenarios_messages as messages
from tests.sdk import scenarios_responses as responses
from tests.sdk.install import NODE, PYTHON_GENERATIONS, is_installed, python_generation
from tests.support.asking import ask
from tests.support.oracle import check, frame
from tests.support.processes import RelayProcess, needs
from tests.support.replicas import stream_id, two_replicas
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.site import PairSite
from tests.support.sseclient import RawStream
from tests.support.streams import PATHS
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

STREAMS = {"heartbeat": "200ms", "lease": "1s", "patience": "1s"}
AUTH = {"authorization": "Bearer sk-stopper"}
SDK_AUTH = {
    "chat": {"authorization": "Bearer sk-test"},
    "responses": {"authorization": "Bearer sk-test"},
    "messages": {"x-api-key": "sk-ant-test"},
}
SOON = 1.5

_FINISH = chat.STOP.removeprefix("data: ")
_RESPONSE = responses.frames(*responses.whole(responses.message(0), responses.function_call(1)))
_PLAIN_RESPONSE = responses.frames(*responses.PLAIN)
# The frames that an upstream has sent when its stream is stopped.
POINTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("chat", "before-any-event"): (),
    ("chat", "after-the-role"): chat.PLAIN[:1],
    ("chat", "inside-text"): chat.PLAIN[:3],
    ("chat", "inside-a-tool-call"): chat.TOOLS[:3],
    ("chat", "inside-the-second-tool-call"): chat.TOOLS[:7],
    ("chat", "after-the-finish-reason"): chat.PLAIN[: chat.PLAIN.index(chat.STOP) + 1],
    ("chat", "after-usage"): chat.PLAIN[:-1],
    ("messages", "before-any-event"): (),
    ("messages", "after-the-start"): messages.PLAIN[:1],
    ("messages", "inside-text"): messages.PLAIN[:5],
    ("messages", "inside-thinking"): messages.THINKING[:3],
    ("messages", "between-blocks"): messages.TOOLS[: 1 + len(messages.text_block(0))],
    ("messages", "inside-a-tool-call"): messages.TOOLS[:-4],
    ("messages", "after-the-finish-reason"): messages.PLAIN[:-1],
    ("responses", "before-any-event"): (),
    ("responses", "after-created"): _PLAIN_RESPONSE[:1],
    ("responses", "inside-text"): _PLAIN_RESPONSE[:6],
    ("responses", "inside-a-tool-call"): _RESPONSE[:-4],
    ("responses", "after-the-last-item"): _PLAIN_RESPONSE[:-1],
    ("responses", "without-sequence-numbers"): responses.frames(*responses.PLAIN[:6], numbered=False),
}
SDKS = (*(name for name in PYTHON_GENERATIONS if name.startswith("py-")), "node")
MODES = ("raw", "helper")


class Site(PairSite):
    def live(self) -> list[tuple[str, str]]:
        """(stream id, API) of every stream that has not ended, from the store."""
        found = []
        with redis.Redis.from_url(self.replicas.store_url, decode_responses=True) as client:
            for key in client.scan_iter("relay:{*}:meta", count=1000):
                api, end = client.hmget(key, "api", "end")
                if end is None and api is not None:
                    found.append((re.sub(r".*\{(.*)\}.*", r"\1", key), api))
        return found


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ScriptedUpstream() as upstream:
        config = {
            "upstreams": [
                {"name": "unlogged", "base_url": upstream.url, "models": ["unlogged-*"], "buffer": False},
                {"name": "scripted", "base_url": upstream.url},
            ]
        }
        with two_replicas(config, STREAMS, STREAMS) as replicas:
            yield Site(upstream, replicas)


def post(relay: RelayProcess, api: str, model: str, auth: dict[str, str] = AUTH) -> RawStream:
    body = {"model": model, "stream": True, "messages": [], "input": ""}
    answer = ask(relay.url + PATHS[api], headers=auth, body=body)
    assert answer.status == 200, answer.read()
    return answer


def read(relay: RelayProcess, stream: str, *, after: str = "", status: int = 200) -> RawStream:
    headers = {**AUTH, "last-event-id": after} if after else AUTH
    answer = ask(f"{relay.url}/streams/{stream}", "GET", headers)
    assert answer.status == status, answer.read()
    return answer


def stop(relay: RelayProcess, stream: str, auth: dict[str, str] = AUTH) -> RawStream:
    return ask(f"{relay.url}/streams/{stream}", "DELETE", auth, timeout=15)


def outcome(relay: RelayProcess, stream: str) -> str:
    answer = ask(f"{relay.url}/streams/{stream}", "GET", {**AUTH, "accept": "application/json"})
    return str(answer.json["outcome"])


@pytest.mark.parametrize("where", [0, 1], ids=["producing-replica", "other-replica"])
@pytest.mark.parametrize(("api", "point"), POINTS)
def test_stopped_midway(site: Site, api: str, point: str, where: int) -> None:
    model = f"wire-{api}-{point}-{where}"
    sent = POINTS[api, point]
    site.upstream.on(model, *stream(*sent, Gate(model)))
    sent = tuple(frame for frame in sent if frame != messages.PING)
    here = post(site.replicas[0], api, model)
    name = stream_id(here)
    there = read(site.replicas[1], name)
    seen_here, seen_there = here.events(len(sent)), there.events(len(sent))
    (call,) = site.upstream.calls_of(model)

    answer = stop(site.replicas[where], name)
    assert (answer.status, answer.read()) == (204, b"")
    assert call.ended.wait(SOON), "the upstream call still runs"
    assert call.cancelled
    for number in (0, 1):
        assert stop(site.replicas[number], name).status == 204

    seen_here += here.events()
    seen_there += there.events()
    assert here.ended == there.ended == "zero-chunk"
    assert [e.raw for e in seen_here] == [e.raw for e in seen_there]
    told = len(seen_here) - len(sent)
    ids = [f"{name}.{n}" for n in range(1, len(sent) + 1)] + [None] * (told - 1) + [f"{name}.{len(sent)}e"]
    assert [e.id for e in seen_here] == ids, "a stop takes no number"
    assert [e.raw for e in read(site.replicas[1], name).events()] == [e.raw for e in seen_here]
    assert [f"{e.data}\n" for e in seen_here[: len(sent)]] == [re.split(r"data: ", s)[1][:-1] for s in sent]
    assert_well_ended(api, [e.data or "" for e in seen_here])
    for replica in (site.replicas.first, site.replicas.second):
        assert outcome(replica, name) == "stopped"
        again = read(replica, name, after=f"{name}.{len(sent)}")
        assert [e.raw for e in again.events()] == [e.raw for e in seen_here[len(sent) :]]
        assert read(replica, name, after=f"{name}.{len(sent)}e", status=204).read() == b""


def assert_well_ended(api: str, events: list[str]) -> None:
    """The API's own grammar, from the first event to its one terminal."""
    if api == "chat":
        assert events[-1] == "[DONE]"
        chunks = [json.loads(e) for e in events[:-1]]
        assert not any("error" in c for c in chunks)
        finished = [c for c in chunks for choice in c["choices"] if choice["finish_reason"]]
        assert len(finished) == 1, finished
        # What the upstream had finished itself is whole, stopped or not.
        assert [c for c in chunks if c.get("relay") == "stopped"] == [c for c in finished if c != json.loads(_FINISH)]
        return
    bodies = [json.loads(e) for e in events]
    kinds = [b["type"] for b in bodies]
    (mark,) = (b for b in bodies if b.get("relay") == "stopped")
    assert mark is bodies[-1] or mark["type"] == "message_delta"
    if api == "messages":
        kinds = [k for k in kinds if k != "ping"]
        block = r"content_block_start (content_block_delta )*content_block_stop "
        assert re.fullmatch(rf"message_start ({block})*message_delta message_stop", " ".join(kinds)), kinds
        return
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.completed") == 1
    assert bodies[-1]["response"]["status"] == "cancelled"
    assert bodies[-1]["response"]["id"] == bodies[0]["response"]["id"]
    numbers = [b["sequence_number"] for b in bodies if "sequence_number" in b]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.parametrize("sdk", SDKS)
def test_no_sdk_takes_it_for_a_failure(site: Site, sdk: str) -> None:
    if sdk == "node":
        needs(shutil.which("node"), "Node.js")
    needs(is_installed(sdk), f"the SDKs of {sdk}: run tests/sdk/install.py")
    gate = f"sdk-{sdk}"
    jobs = [(api, f"{sdk}-{api}-{point}", mode) for api, point in POINTS for mode in MODES]
    for (api, point), sent in POINTS.items():
        site.upstream.on(f"{sdk}-{api}-{point}", *stream(*sent, Gate(gate)))
    running = start_driver(sdk, site.replicas.first.url, jobs)
    try:
        site.upstream.wait_reached(gate, 40, len(jobs))
        wait_until(lambda: len(site.live()) == len(jobs), 10, "all streams in the store")
        live = site.live()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda s: stop(site.replicas[1], s[0], SDK_AUTH[s[1]]).status, live))
        assert set(answers) == {204}
        out, err = running.communicate(timeout=40)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0, err[-4000:]
    transcripts: list[dict[str, Any]] = json.loads(out)
    for (api, model, mode), transcript in zip(jobs, transcripts, strict=True):
        assert transcript["events"], (api, model, mode)
        error = transcript["error"]
        if error is not None:  # a helper that has one for an answer that is cut short
            assert (api, mode, error["class"]) == ("chat", "helper", "LengthFinishReasonError"), (model, error)
            continue
        if mode == "helper":
            assert transcript["final"] is not None, (api, model, mode)
        elif "inside-text" in model:
            assert transcript["text"], (api, model)
    assert site.live() == []


def start_driver(sdk: str, base_url: str, jobs: list[tuple[str, str, str]]) -> subprocess.Popen[str]:
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "ANTHROPIC_"))}
    env = {**keep, "NO_PROXY": "*", "no_proxy": "*"}
    if sdk == "node":
        command = ["node", "driver.mjs", base_url, json.dumps(jobs)]
    else:
        command = [sys.executable, "-S", str(NODE.parent / "driver.py"), base_url, json.dumps(jobs)]
        env["PYTHONPATH"] = str(python_generation(sdk))
    return subprocess.Popen(command, cwd=NODE, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_both_replicas_are_told_at_the_same_moment(site: Site) -> None:
    site.upstream.on("both", *stream(frame(1), Gate("both")))
    answer = post(site.replicas[0], "chat", "both")
    answer.events(1)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: stop(site.replicas[i], stream_id(answer)).status, range(6)))
    assert answers == [204] * 6
    ends = [e.data for e in answer.events()]
    assert len(ends) == 2
    assert ends[-1] == "[DONE]"


@pytest.mark.parametrize("where", [0, 1])
def test_stopping_a_finished_stream_changes_nothing(site: Site, where: int) -> None:
    model = f"finished-{where}"
    site.upstream.on(model, *stream(frame(1), "data: [DONE]\n\n"))
    answer = post(site.replicas[0], "chat", model)
    events = answer.events()
    assert check(events) == (1, "done")
    assert stop(site.replicas[where], stream_id(answer)).status == 204
    assert outcome(site.replicas[where], stream_id(answer)) == "completed"
    assert [e.raw for e in read(site.replicas[where], stream_id(answer)).events()] == [e.raw for e in events]


@pytest.mark.parametrize("where", [0, 1])
def test_another_owner_is_told_what_a_stranger_is_told(site: Site, where: int) -> None:
    model = f"foreign-{where}"
    site.upstream.on(model, *stream(frame(1), Gate(model), "data: [DONE]\n\n"))
    answer = post(site.replicas[0], "chat", model)
    events = answer.events(1)
    name = stream_id(answer)
    unknown = "st_" + "A" * (len(name) - 3)
    foreign, absent = (
        stop(site.replicas[where], stream, {"authorization": "Bearer sk-other"}) for stream in (name, unknown)
    )
    assert foreign.status == absent.status == 404
    assert foreign.read() == absent.read()
    assert foreign.json["error"]["code"] == "stream_not_found"
    variable = {"x-request-id", "date"}
    assert {k: v for k, v in foreign.headers.items() if k not in variable} == {
        k: v for k, v in absent.headers.items() if k not in variable
    }
    site.upstream.open(model)
    assert check(events + answer.events()) == (1, "done")


@pytest.mark.parametrize("where", [0, 1])
def test_stopped_before_the_upstream_has_answered(site: Site, where: int) -> None:
    """After `patience` the stream has its id, so it can be stopped."""
    model = f"unanswered-{where}"
    site.upstream.on(model, Gate(model), *stream(frame(1)))
    answer = post(site.replicas[0], "chat", model)
    (call,) = site.upstream.calls_of(model)
    assert stop(site.replicas[where], stream_id(answer)).status == 204
    assert call.ended.wait(SOON)
    assert call.cancelled
    assert_well_ended("chat", [e.data or "" for e in answer.events()])
    assert answer.ended == "zero-chunk"
    assert outcome(site.replicas[where], stream_id(answer)) == "stopped"


def test_a_stream_without_a_log_is_stopped_on_its_own_replica(site: Site) -> None:
    site.upstream.on("unlogged-1", *stream(frame(1), Gate("unlogged-1")))
    answer = post(site.replicas[0], "chat", "unlogged-1")
    answer.events(1)
    elsewhere = stop(site.replicas[1], stream_id(answer))
    assert (elsewhere.status, elsewhere.json["error"]["code"]) == (400, "resume_not_supported")
    assert stop(site.replicas[0], stream_id(answer)).status == 204
    (call,) = site.upstream.calls_of("unlogged-1")
    assert call.ended.wait(SOON)
    assert call.cancelled
    rest = answer.events()
    assert answer.ended == "zero-chunk"
    assert [e.id for e in rest] == [None] * len(rest)
    assert rest[-1].data == "[DONE]"


def test_stopped_between_the_terminal_event_and_a_done_that_may_follow(site: Site) -> None:
    site.upstream.on("late-stop", *stream(*_PLAIN_RESPONSE, Gate("late-stop")))
    answer = post(site.replicas[0], "responses", "late-stop")
    events = answer.events(len(_PLAIN_RESPONSE))
    assert stop(site.replicas[0], stream_id(answer)).status == 204
    events += answer.events()
    assert [e.json["type"] for e in events[-2:]] == ["response.output_item.done", "response.completed"]
    assert len(events) == len(_PLAIN_RESPONSE)


def test_stopped_after_the_upstreams_own_error(site: Site) -> None:
    """What the upstream has called a failure is not made a success by stopping it."""
    error = {"error": {"message": "overloaded", "type": "server_error", "param": None, "code": "overloaded"}}
    site.upstream.on("failed-stop", *stream(frame(1), f"data: {json.dumps(error)}\n\n", Gate("failed-stop")))
    answer = post(site.replicas[0], "chat", "failed-stop")
    events = answer.events(2)
    assert stop(site.replicas[0], stream_id(answer)).status == 204
    assert check(events + answer.events()) == (1, "overloaded")
