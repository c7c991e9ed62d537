"""An answer that broke off is gone on with by another call, where that is asked for: what is sent, what a client reads,
and when it ends as it would have without."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.client.policy import Policy
from relay.client.resumable_stream import Action, Reconnect
from relay.upstream.prefilled import PrefilledStream
from tests.sdk.ends import drive
from tests.sdk.install import is_installed
from tests.support import streams
from tests.support.processes import RelayProcess, needs
from tests.support.samples import error_of
from tests.support.scripted import Call, Cut, Gate, ScriptedUpstream, Step, json_response, stream
from tests.support.sseclient import RawEvent, RawStream, open_stream
from tests.support.streams import PATHS, Api, Body, answer, chat, credential
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

WORDS = ["one ", "two ", "three ", "four"]
SDK = "py-new"
TURN = {"role": "user", "content": "Count."}
SPELLINGS = {"member": "continue_final_message", "prefix": "prefix", "echo": "prefix_echoed", "message": "message"}
EACH: tuple[Api, ...] = ("chat", "messages")
TOOL: Body = streams.tool_delta(0, "{", id="c", name="f")


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def relay(upstream: ScriptedUpstream) -> Iterator[RelayProcess]:
    """Its upstreams are one server, which the model's name says how to go on with."""
    common = {"base_url": upstream.url, "upstream_stall_timeout": "20s"}
    upstreams = [
        {**common, "name": name, "models": [f"{name}-*"], "continue": "prefill", "prefill": spelling}
        for name, spelling in SPELLINGS.items()
    ]
    upstreams.append({**common, "name": "silent", "continue": "prefill", "upstream_stall_timeout": "1s"})
    upstreams[-1]["models"] = ["silent-*"]
    upstreams.append({**common, "name": "off"})
    with RelayProcess({"upstreams": upstreams, "streams": {"upstream_resume": "8s"}}) as process:
        yield process


def begin(relay: RelayProcess, api: Api, model: str, **more: object) -> RawStream:
    body = {"model": model, "stream": True, "messages": [TURN], **more}
    return open_stream(relay.url + PATHS[api], headers=credential(api, "sk-1"), body=body)


def broken_off(
    relay: RelayProcess,
    upstream: ScriptedUpstream,
    api: Api,
    model: str,
    first: Sequence[str],
    *then: Step,
    **more: object,
) -> tuple[RawStream, list[RawEvent], list[Call]]:
    """What a client reads whose upstream's answer breaks off behind the frames `first`, and is then answered `then`."""
    upstream.on(model, *stream(*first, Gate(model), Cut()))
    with begin(relay, api, model, **more) as read:
        upstream.wait_reached(model)
        upstream.on(model, *then)
        upstream.open(model)
        return read, read.events(), upstream.calls_of(model)


def text_of(api: Api, events: Sequence[RawEvent]) -> str:
    parts = [event.json for event in events if event.data != "[DONE]"]
    if api == "messages":
        return "".join(one["delta"]["text"] for one in parts if one["type"] == "content_block_delta")
    return "".join(choice["delta"].get("content") or "" for one in parts for choice in one["choices"])


def beginning(api: Api, words: Sequence[str]) -> list[str]:
    whole = answer(api, words)
    return [*whole.before, *whole.words]


def rest(api: Api, words: Sequence[str]) -> tuple[Step, ...]:
    """What an upstream answers that goes on with a text: another answer, by its ids."""
    return stream(*(frame.replace("chatcmpl-1", "chatcmpl-2") for frame in answer(api, words).events))


def continuations(relay: RelayProcess) -> dict[str, float]:
    """By result, how often the relay has counted one that it came back from itself."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{relay.metrics_url}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found = dict.fromkeys(("resumed", "continued", "lost"), 0.0)
    for sample in (sample for family in families for sample in family.samples):
        if sample.name == "relay_upstream_resumes_total" and sample.labels["result"] in found:
            found[sample.labels["result"]] += sample.value
    return found


@pytest.mark.parametrize("name", SPELLINGS)
def test_chat(relay: RelayProcess, upstream: ScriptedUpstream, name: str) -> None:
    model = f"{name}-1"
    echoed = ["one two"] if name == "echo" else []
    read, events, calls = broken_off(
        relay, upstream, "chat", model, beginning("chat", WORDS[:2]), *rest("chat", [*echoed, " ", *WORDS[2:]])
    )
    assert text_of("chat", events) == "".join(WORDS)
    assert events[-1].data == "[DONE]"
    assert {event.json["id"] for event in events[:-1]} == {"chatcmpl-1"}
    assert [event.json["choices"][0]["delta"].get("role") for event in events[:-2]].count("assistant") == 1
    assert [int((event.id or "").rpartition(".")[2]) for event in events] == list(range(1, len(events) + 1))
    member = {"prefix": True} if name in ("prefix", "echo") else {}
    more = {"continue_final_message": True, "add_generation_prompt": False} if name == "member" else {}
    first, second = calls
    assert second.json == {
        **first.json,
        "messages": [TURN, {"role": "assistant", "content": "one two", **member}],
        **more,
    }
    assert "relay-continued" not in read.headers, "that was not known yet"


def test_messages(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    _, events, calls = broken_off(
        relay,
        upstream,
        "messages",
        "member-2",
        beginning("messages", WORDS[:2]),
        *rest("messages", [" ", *WORDS[2:]]),
        max_tokens=9,
    )
    assert text_of("messages", events) == "".join(WORDS)
    kinds = [event.event for event in events]
    deltas = ["content_block_delta"] * 4
    after = ["content_block_stop", "message_delta", "message_stop"]
    assert kinds == ["message_start", "content_block_start", *deltas, *after]
    assert calls[1].json["messages"] == [TURN, {"role": "assistant", "content": "one two"}]
    assert calls[1].json["max_tokens"] == 7


def test_an_event_that_was_cut_in_two(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    """What has come of it goes to nobody, for it comes again."""
    half = chat({"content": "two "})[:-20]
    _, events, calls = broken_off(
        relay, upstream, "chat", "prefix-half", [*beginning("chat", WORDS[:1]), half], *rest("chat", [" ", *WORDS[1:]])
    )
    assert text_of("chat", events) == "".join(WORDS)
    assert calls[1].json["messages"][-1]["content"] == "one"


def test_half_an_event_that_nothing_goes_on_with() -> None:
    """Of the answer it is what it would have been without; of its rest it has other ids, and goes to nobody."""
    half = chat({"content": " two"})[:-1].encode()
    broken = PrefilledStream("chat", "message", Policy())
    broken.feed(chat({"content": "one"}).encode() + half)
    assert broken.unfinished == half
    assert isinstance(broken.on_disconnect("ReadError"), Reconnect)
    assert broken.on_response(200, {"content-type": "text/event-stream"}, b"") is Action.READ_BODY
    assert broken.feed(half) == broken.unfinished == b""


def test_a_silent_upstream_is_left(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    model = "silent-1"
    upstream.on(model, *stream(*beginning("chat", ["one"]), Gate(model)))
    with begin(relay, "chat", model) as read:
        upstream.wait_reached(model)
        upstream.on(model, *rest("chat", [" two"]))
        assert text_of("chat", read.events()) == "one two"
    first, _ = upstream.calls_of(model)
    assert first.ended.wait(10)
    assert first.cancelled, "it is not generated on beside its continuation"
    upstream.open(model)


@pytest.mark.parametrize("end", [streams.event(TOOL), chat({}, "stop")], ids=["a tool", "a finish"])
def test_a_silent_upstream_that_cannot_be_gone_on_with_is_hung_up_on(
    relay: RelayProcess, upstream: ScriptedUpstream, request: pytest.FixtureRequest, end: str
) -> None:
    """Its connection ends with the stream."""
    model = f"silent-{request.node.callspec.id}"
    upstream.on(model, *stream(*beginning("chat", ["one"]), end, Gate(model)))
    with begin(relay, "chat", model) as read:
        read.events()
        (call,) = upstream.calls_of(model)
        assert call.ended.wait(10)
        assert call.cancelled
    upstream.open(model)


def test_whoever_comes_later_is_told(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    model = "member-told"
    before = continuations(relay)
    upstream.on(model, *stream(*beginning("chat", ["one"]), Gate(model), Cut()))
    with begin(relay, "chat", model) as read:
        upstream.wait_reached(model)
        end = f"{model} end"
        upstream.on(model, *stream(*beginning("chat", [" two"])[1:], Gate(end), *answer("chat", []).after))
        upstream.open(model)
        upstream.wait_reached(end)
        address = f"{relay.url}/streams/{read.headers['relay-stream-id']}"
        with open_stream(address, "GET", credential("chat", "sk-1")) as running:
            assert running.headers["relay-continued"] == "1"
        upstream.open(end)
        read.events()
    with open_stream(address, "GET", credential("chat", "sk-1")) as over:
        assert over.headers["relay-continued"] == "1"
        assert text_of("chat", over.events()) == "one two"
    wait_until(lambda: f"{read.headers['relay-stream-id']}" in relay.log() and "continued=1" in relay.log(), 10)
    counted = continuations(relay)
    assert {result: counted[result] - n for result, n in before.items()} == {
        "resumed": 0.0,
        "continued": 1.0,
        "lost": 0.0,
    }


@pytest.mark.parametrize("api", EACH)
def test_an_sdk_sees_one_answer(relay: RelayProcess, upstream: ScriptedUpstream, api: Api) -> None:
    needs(is_installed(SDK), f"the SDKs of {SDK}: run tests/sdk/install.py")
    model = f"member-sdk-{api}"
    upstream.on(model, *stream(*beginning(api, WORDS[:2]), Gate(model), Cut()))
    with ThreadPoolExecutor(1) as thread:
        driven = thread.submit(drive, SDK, relay.url, [[api, model, "helper"]])
        upstream.wait_reached(model, 60)
        upstream.on(model, *rest(api, [" ", *WORDS[2:]]))
        upstream.open(model)
        (seen,) = driven.result(90)
    assert seen["error"] is None
    if api == "chat":
        (choice,) = seen["final"]["choices"]
        told = choice["message"]["content"], choice["message"]["role"], choice["finish_reason"], seen["final"]["id"]
        assert told == ("".join(WORDS), "assistant", "stop", "chatcmpl-1")
    else:
        (block,) = seen["final"]["content"]
        assert (block["text"], seen["final"]["stop_reason"]) == ("".join(WORDS), "end_turn")
    assert len(upstream.calls_of(model)) == 2


def lost(
    relay: RelayProcess,
    upstream: ScriptedUpstream,
    model: str,
    first: Sequence[str],
    *then: Step,
    api: Api = "chat",
    **more: object,
) -> list[Call]:
    """The stream ends as it would have without; the calls that were made."""
    _, events, calls = broken_off(relay, upstream, api, model, first, *then, **more)
    assert [event.data for event in events[: len(first)]] == [frame.rpartition("data: ")[2].strip() for frame in first]
    assert error_of(api, events[len(first) :])[0] == "upstream_disconnected"
    return calls


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (beginning("chat", ["one", "two"])[:1], {}),
        ([*beginning("chat", ["one"]), streams.event(TOOL)], {}),
        ([chat({"reasoning_content": "Hm."}), *beginning("chat", ["one"])], {}),
        ([*beginning("chat", ["one"]), chat({}, "stop")], {}),
        (beginning("chat", ["one"]), {"n": 2}),
        (beginning("chat", ["one"]), {"logprobs": True}),
        (beginning("chat", ["one"]), {"response_format": {"type": "json_object"}}),
        (beginning("chat", ["one"]), {"max_tokens": 1}),
    ],
    ids=["no text", "tool", "reasoning", "finished", "n", "logprobs", "response_format", "all tokens"],
)
def test_what_it_cannot_carry(
    relay: RelayProcess, upstream: ScriptedUpstream, request: pytest.FixtureRequest, first: list[str], more: Body
) -> None:
    model = f"member-never-{request.node.callspec.id}"
    assert len(lost(relay, upstream, model, first, *rest("chat", ["x"]), **more)) == 1


def test_off_by_default(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    for api in EACH:
        first = beginning(api, ["one"])
        assert len(lost(relay, upstream, f"off-{api}", first, *rest(api, ["x"]), api=api)) == 1


@pytest.mark.parametrize(
    "then",
    [
        json_response(400, {"error": {"message": "The conversation must end with a user message."}}),
        json_response(200, {"choices": []}),
        (Cut(),),
        rest("chat", ["One two three, from the beginning"]),
        stream("".join(answer("chat", ["One two three, from the beginning"]).events)),
        stream(chat({"role": "assistant", "content": ""}), chat({"reasoning_content": "Hm."})),
        stream(chat({"role": "assistant", "content": ""}), Cut()),
    ],
    ids=[
        "refused",
        "no stream",
        "no answer",
        "begun anew",
        "in one piece",
        "reasoning",
        "no text",
    ],
)
def test_an_upstream_that_does_not_go_on(
    relay: RelayProcess, upstream: ScriptedUpstream, request: pytest.FixtureRequest, then: tuple[Step, ...]
) -> None:
    model = f"echo-no-{request.node.callspec.id}"
    assert len(lost(relay, upstream, model, beginning("chat", ["one"]), *then)) == 2


def test_a_refusal_that_passes(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    model = "member-busy"
    upstream.on(model, *stream(*beginning("chat", ["one"]), Gate(model), Cut()))
    with begin(relay, "chat", model) as read:
        upstream.wait_reached(model)
        upstream.on(model, *json_response(429, {"error": {"message": "busy"}}, {"retry-after": "1"}))
        upstream.open(model)
        wait_until(lambda: len(upstream.calls_of(model)) > 1, 10)
        upstream.on(model, *rest("chat", [" two"]))
        assert text_of("chat", read.events()) == "one two"
    assert upstream.calls_of(model)[-1].json["messages"][-1]["content"] == "one"


def test_it_is_gone_on_with_a_few_times(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    """Each of them from where the last one broke off."""
    model = "prefix-often"
    upstream.on(model, *stream(*beginning("chat", ["a"]), Cut()))
    with begin(relay, "chat", model) as read:
        *events, error, done = read.events()
    assert text_of("chat", events) == "aaaa"
    assert error_of("chat", [error, done])[0] == "upstream_disconnected"
    sent = [call.json["messages"][-1]["content"] for call in upstream.calls_of(model)]
    assert sent == ["Count.", "a", "aa", "aaa"]


def test_the_first_clients_key_is_not_sent_again(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    """An upstream that knows it would answer with the first answer, from its beginning."""
    model = "member-key"
    upstream.on(model, *stream(*beginning("chat", ["one"]), Gate(model), Cut()))
    headers = credential("chat", "sk-1") | {"idempotency-key": "k-1"}
    body = {"model": model, "stream": True, "messages": [TURN]}
    with open_stream(relay.url + PATHS["chat"], headers=headers, body=body) as read:
        upstream.wait_reached(model)
        upstream.on(model, *rest("chat", [" two"]))
        upstream.open(model)
        assert text_of("chat", read.events()) == "one two"
    assert [call.header("idempotency-key") for call in upstream.calls_of(model)] == ["k-1", None]
    assert [call.header("authorization") for call in upstream.calls_of(model)] == ["Bearer sk-1"] * 2
    assert json.loads(upstream.calls_of(model)[0].body) == body
