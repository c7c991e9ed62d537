"""A generation whose client has left: cancelled, or read to its end where its upstream bills it all the same."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.asking import ask
from tests.support.oracle import DONE, PATH, frame
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, Head, ScriptedUpstream, Send, Step, json_response, stream
from tests.support.site import Site
from tests.support.sseclient import RawStream
from tests.support.waiting import wait_until

AUTH = {"authorization": "Bearer sk-leaving"}
HEAD = Head(200, {"content-type": "text/event-stream"})
FINISH = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}}\n\n'
LARGE = json.dumps({"id": "c", "choices": [{"index": 0, "delta": {"content": "x" * 100_000}}]}).encode()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """An upstream under four names: cancelled or drained, with a log or without."""
    with ScriptedUpstream() as upstream:
        upstreams = [
            {
                "name": name,
                "base_url": upstream.url,
                "models": [f"{name}*"],
                "buffer": not name.startswith("bare"),
                "after_abandon": "cancel" if name.endswith("cancel") else "drain",
            }
            for name in ("bare-cancel", "bare", "cancel", "drain")
        ]
        streams = {"abandon_after": "0s", "patience": "300ms"}
        config: dict[str, Any] = {"upstreams": upstreams, "streams": streams, "log": {"format": "json"}}
        with RelayProcess(config) as relay:
            yield Site(upstream, relay)


def post(site: Site, model: str) -> RawStream:
    return ask(site.relay.url + PATH, headers=AUTH, body={"model": model, "stream": True, "messages": []})


def line(site: Site, model: str) -> dict[str, Any]:
    """What the log says of its end."""

    def ended() -> list[dict[str, Any]]:
        lines = [json.loads(each) for each in site.relay.log().splitlines() if each.startswith("{")]
        return [each for each in lines if each["message"] == "stream ended" and each["model"] == model]

    wait_until(ended, 10, "the stream's end in the log")
    return ended()[0]


def script(model: str, *more: bytes) -> tuple[Step, ...]:
    return stream(frame(1), frame(2), Gate(model), frame(3), *more, FINISH, USAGE, DONE)


@pytest.mark.parametrize("model", ["drain-1", "bare-1"])
def test_drained_it_is_read_to_its_usage_and_its_end(site: Site, model: str) -> None:
    more = [b"data: " + LARGE + b"\n\n"] * 30  # more than a stream without a log may be ahead of its reader
    site.upstream.on(model, *script(model, *more))
    answer = post(site, model)
    answer.events(2)
    answer.close()
    site.upstream.wait_reached(model)
    site.upstream.open(model)
    told = line(site, model)
    assert (told["outcome"], told["output_tokens"]) == ("completed", 9)
    (call,) = site.upstream.calls_of(model)
    assert call.ended.wait(2)
    assert not call.cancelled
    if model == "drain-1":
        again = ask(f"{site.relay.url}/streams/{told['stream']}", "GET", AUTH)
        assert len(again.events()) == told["events"] == 36


@pytest.mark.parametrize("model", ["cancel-1", "bare-cancel-1"])
def test_cancelled_the_call_ends(site: Site, model: str) -> None:
    site.upstream.on(model, *script(model))
    answer = post(site, model)
    answer.events(2)
    answer.close()
    told = line(site, model)
    assert told["outcome"] == "abandoned"
    assert "output_tokens" not in told
    (call,) = site.upstream.calls_of(model)
    assert call.ended.wait(2)
    assert call.cancelled


@pytest.mark.parametrize("model", ["drain-early", "bare-early"])
def test_a_client_that_leaves_before_the_answer_is_drained_as_well(site: Site, model: str) -> None:
    site.upstream.on(model, Gate(model), HEAD, *map(Send, (frame(1), FINISH, USAGE, DONE)))
    leave_before_the_answer(site, model)
    site.upstream.open(model)
    told = line(site, model)
    assert (told["outcome"], told["output_tokens"]) == ("completed", 9)


def test_a_refusal_that_nobody_waits_for_is_let_go_of(site: Site) -> None:
    site.upstream.on("drain-refused", Gate("drain-refused"), *json_response(429, {"error": {"message": "no"}}))
    leave_before_the_answer(site, "drain-refused")
    site.upstream.open("drain-refused")
    (call,) = site.upstream.calls_of("drain-refused")
    assert call.ended.wait(3)

    def active() -> float:
        text = ask(site.relay.metrics_url + "/metrics", "GET").read().decode()
        return sum(map(float, re.findall(r"^relay_streams_active{.*} (\S+)$", text, re.M)))

    wait_until(lambda: active() == 0, 5, "nothing to be left")


def leave_before_the_answer(site: Site, model: str) -> None:
    """Within the relay's patience, when nobody knows the stream's id."""
    host, _, port = site.relay.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("POST", PATH, json.dumps({"model": model, "stream": True, "messages": []}), AUTH)
    site.upstream.wait_reached(model)
    connection.close()
