"""Nimbus: the OpenAI and the Anthropic format over one transport, reconnection, pings, errors in the stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from relay.config import Settings
from tests.seeds.gateway import (
    CHAT,
    MESSAGES,
    Gateway,
    arguments_of,
    assert_relayed,
    frames,
    numbered,
    text_of,
    texts,
    with_upstream_ids,
)
from tests.support.scripted import Cut, Gate, Pause, ScriptedUpstream, Step, json_response, stream
from tests.support.sseclient import RawStream

GPT = "openai/gpt-5.1"
CLAUDE = "anthropic/claude-opus-4.5"
# Of the OpenAI family behind an upstream without a log: the document's "do not support mid-stream resume".
BEST_EFFORT = "openai/best-effort"
# Behind an upstream that the relay reconnects to as the document says.
RECONNECTED = "anthropic/reconnected"

COUNT: list[dict[str, str]] = [{"role": "user", "content": "Count to 5."}]
CHAT_BODY = {"model": GPT, "messages": COUNT, "max_tokens": 64, "stream": True}
MESSAGES_BODY = {"model": CLAUDE, "messages": COUNT, "max_tokens": 64, "stream": True}

CHAT_EVENTS = frames("nimbus/chat.sse")
MESSAGES_EVENTS = frames("nimbus/messages.sse")
TOOL_EVENTS = frames("nimbus/messages_tools.sse")
ERROR = frames("nimbus/error.sse")[0]
PING = 'event: ping\ndata: {"type":"ping"}\n\n'
ENDPOINTS = [
    pytest.param(CHAT, CHAT_BODY, CHAT_EVENTS, id="chat"),
    pytest.param(MESSAGES, MESSAGES_BODY, MESSAGES_EVENTS, id="messages"),
]
WEATHER = {"city": "Reykjavik"}


@pytest.fixture(scope="module")
def settings(scripted: ScriptedUpstream) -> dict[str, Any]:
    return {
        "upstreams": [
            {"name": "best-effort", "base_url": scripted.url, "models": [BEST_EFFORT], "buffer": False},
            {"name": "ids", "base_url": scripted.url, "models": [RECONNECTED], "resume": "last-event-id"},
            {"name": "nimbus", "base_url": scripted.url},
        ],
        "streams": {"heartbeat": "200ms"},
    }


# The two formats


@pytest.mark.parametrize(("path", "body", "events"), ENDPOINTS)
def test_each_endpoint_streams_its_own_format(
    gateway: Gateway, path: str, body: dict[str, Any], events: list[str]
) -> None:
    gateway.plays(body["model"], *events)
    with gateway.post(path, body) as read:
        assert_relayed(read, events)
        assert gateway.outcome_of(read) == "completed"
    assert [call.path for call in gateway.calls] == [path]
    assert gateway.calls[0].json == body


@pytest.mark.parametrize(("path", "body", "events"), ENDPOINTS)
def test_no_proxy_may_buffer_the_stream(gateway: Gateway, path: str, body: dict[str, Any], events: list[str]) -> None:
    gateway.plays(body["model"], *events)
    with gateway.post(path, body) as read:
        assert read.headers["x-accel-buffering"] == "no"
        assert read.headers["cache-control"] == "no-cache, no-store, no-transform"
        assert read.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "content-encoding" not in read.headers
        assert "content-length" not in read.headers


def test_the_chat_catalogue(gateway: Gateway) -> None:
    gateway.plays(GPT, *CHAT_EVENTS)
    with gateway.post(CHAT, CHAT_BODY) as read:
        *chunks, done = assert_relayed(read, CHAT_EVENTS)
    assert all(event.event is None for event in (*chunks, done))
    assert done.data == "[DONE]"
    assert chunks[0].json["choices"][0]["delta"]["role"] == "assistant"
    assert text_of(chunks) == "Hello world"
    terminal = chunks[-1].json
    assert terminal["choices"][0]["finish_reason"] == "stop"
    assert terminal["usage"] == {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14}
    assert not any("usage" in chunk.json for chunk in chunks[:-1])


def test_the_messages_catalogue(gateway: Gateway) -> None:
    with_ping = [*MESSAGES_EVENTS[:3], PING, *MESSAGES_EVENTS[3:]]
    gateway.plays(CLAUDE, *with_ping)
    with gateway.post(MESSAGES, MESSAGES_BODY) as read:
        events = assert_relayed(read, MESSAGES_EVENTS)
    assert [event.event for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(event.json["type"] == event.event for event in events)
    assert events[0].json["message"]["usage"]["input_tokens"] == 41
    assert events[-2].json["usage"] == {"output_tokens": 2}
    assert events[-2].json["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_tool_calls_stream_in_fragments(gateway: Gateway) -> None:
    tools = frames("nimbus/chat_tools.sse")
    gateway.plays(GPT, *tools)
    with gateway.post(CHAT, CHAT_BODY) as read:
        events = assert_relayed(read, tools)
    assert json.loads(arguments_of(events)) == WEATHER
    assert events[-2].json["choices"][0]["finish_reason"] == "tool_calls"


def test_tool_use_streams_in_fragments(gateway: Gateway) -> None:
    gateway.plays(CLAUDE, *TOOL_EVENTS)
    with gateway.post(MESSAGES, MESSAGES_BODY) as read:
        events = assert_relayed(read, TOOL_EVENTS)
    assert [event.event for event in events].index("content_block_stop") == 4
    assert json.loads("".join(event.json["delta"]["partial_json"] for event in events[2:4])) == WEATHER
    assert events[-2].json["delta"]["stop_reason"] == "tool_use"


# The SDKs

COUNT_TO_FIVE = """
from openai import OpenAI
client = OpenAI(base_url="https://llm.nimbusapi.net/v1", api_key="sk-nim-YOUR_KEY")
stream = client.chat.completions.create(
    model="openai/gpt-5.1",
    messages=[{"role": "user", "content": "Count to 5."}],
    max_tokens=64,
    stream=True,
)
for chunk in stream:
    delta = chunk.choices[0].delta
    if delta.content:
        print(delta.content, end="", flush=True)
    if chunk.choices[0].finish_reason:
        print() # final newline
        break
"""

TOOL_USE = """
import json
from anthropic import Anthropic
client = Anthropic(base_url="https://llm.nimbusapi.net", api_key="sk-nim-YOUR_KEY")
stream = client.messages.create(
    model="anthropic/claude-opus-4.5",
    messages=[{"role": "user", "content": "Weather?"}],
    max_tokens=64,
    stream=True,
)
partial = ""
for event in stream:
    if event.type == "content_block_delta" and event.delta.type == "input_json_delta":
        partial += event.delta.partial_json
    if event.type == "content_block_stop":
        print(json.loads(partial))
"""

CHAT_UNTIL_ERROR = """
from openai import APIError, OpenAI
client = OpenAI(base_url="https://llm.nimbusapi.net/v1", api_key="sk-nim-YOUR_KEY", max_retries=0)
try:
    for chunk in client.chat.completions.create(model="openai/gpt-5.1", messages=[], stream=True):
        print(chunk.choices[0].delta.content)
except APIError as error:
    print(error.code, error.message)
"""

MESSAGES_UNTIL_ERROR = """
from anthropic import Anthropic, APIError
client = Anthropic(base_url="https://llm.nimbusapi.net", api_key="sk-nim-YOUR_KEY", max_retries=0)
try:
    with client.messages.stream(model="anthropic/claude-opus-4.5", messages=[], max_tokens=64) as stream:
        for text in stream.text_stream:
            print(text)
except APIError as error:
    print(error.body["error"]["code"], error.body["error"]["message"])
"""

NIMBUS = "https://llm.nimbusapi.net"


@pytest.mark.parametrize("silence", [0.0, 0.7], ids=["prompt", "slower than the heartbeat"])
def test_the_sdk_example(gateway: Gateway, silence: float) -> None:
    gateway.plays(GPT, CHAT_EVENTS[0], Pause(silence), *CHAT_EVENTS[1:])
    assert gateway.python(COUNT_TO_FIVE, NIMBUS) == "Hello world\n"
    assert gateway.calls[0].json == CHAT_BODY
    assert gateway.calls[0].header("authorization") == "Bearer sk-nim-YOUR_KEY"


def test_tool_use_with_the_sdk(gateway: Gateway) -> None:
    gateway.plays(CLAUDE, *with_upstream_ids(TOOL_EVENTS))
    assert gateway.python(TOOL_USE, NIMBUS) == "{'city': 'Reykjavik'}\n"


# Reconnection


def test_the_gateways_own_ids_are_not_forwarded(gateway: Gateway) -> None:
    gateway.plays(CLAUDE, *with_upstream_ids(MESSAGES_EVENTS))
    with gateway.post(MESSAGES, MESSAGES_BODY) as read:
        assert_relayed(read, MESSAGES_EVENTS)
    assert b"gateway-" not in read.raw_body


def test_reconnecting_to_the_same_url_resumes_mid_stream(gateway: Gateway) -> None:
    events = with_upstream_ids(MESSAGES_EVENTS)
    gateway.plays(CLAUDE, *events[:4], Gate("reconnected"), *events[4:])
    seen = gateway.post(MESSAGES, MESSAGES_BODY).take(3)
    last = seen[-1].id
    assert last is not None
    with gateway.resume(MESSAGES, MESSAGES_BODY, last) as again:
        stream_id = again.headers["relay-stream-id"]
        fourth = again.events(1)
        gateway.upstream.open("reconnected")
        rest = again.events()
    assert again.ended == "zero-chunk"
    assert texts([*seen, *fourth, *rest]) == numbered(stream_id, MESSAGES_EVENTS)
    assert len(gateway.calls) == 1


@pytest.mark.parametrize(("path", "body", "events"), ENDPOINTS)
def test_reconnecting_resumes_exactly_after_every_id(
    gateway: Gateway, path: str, body: dict[str, Any], events: list[str]
) -> None:
    gateway.plays(body["model"], *events)
    with gateway.post(path, body) as read:
        whole = assert_relayed(read, events)
    for n, event in enumerate(whole[:-1], 1):
        with gateway.resume(path, body, event.id or "") as again:
            assert_relayed(again, events[n:], after=n)
    with gateway.resume(path, body, whole[-1].id or "") as nothing_left:
        assert nothing_left.status == 204
    assert len(gateway.calls) == 1


def test_the_caveat_a_stream_without_a_log_is_not_resumed(gateway: Gateway) -> None:
    """Streamed as any other, but without ids; the reconnect is refused as documented."""
    body = {**CHAT_BODY, "model": BEST_EFFORT}
    gateway.plays(BEST_EFFORT, *CHAT_EVENTS)
    with gateway.post(CHAT, body) as read:
        assert read.headers["relay-resumable"] == "false"
        assert texts(read.events()) == CHAT_EVENTS
        assert read.ended == "zero-chunk"
    stream_id = read.headers["relay-stream-id"]
    for n in range(len(CHAT_EVENTS) + 1):
        with gateway.resume(CHAT, body, f"{stream_id}.{n}") as refused:
            assert refused.status == 400
            error = refused.json["error"]
        assert error["code"] == "resume_not_supported"
        assert error["message"]
    assert len(gateway.calls) == 1


def test_the_caveat_in_the_messages_shape(gateway: Gateway) -> None:
    body = {**MESSAGES_BODY, "model": BEST_EFFORT}
    gateway.plays(BEST_EFFORT, *with_upstream_ids(MESSAGES_EVENTS))
    with gateway.post(MESSAGES, body) as read:
        assert texts(read.events()) == MESSAGES_EVENTS
    with gateway.resume(MESSAGES, body, f"{read.headers['relay-stream-id']}.3") as refused:
        assert refused.status == 400
        answer = refused.json
    assert answer["type"] == "error"
    assert answer["error"]["code"] == "resume_not_supported"


# The relay as the client that the document tells to reconnect


def broken_off(gateway: Gateway, path: str, body: dict[str, Any], first: Sequence[str], *then: Step) -> RawStream:
    """The answer of a relay whose upstream breaks off behind the frames `first` and is then answered `then`, read."""
    model = body["model"]
    gate = f"{model} {len(gateway.upstream.calls)}"
    gateway.plays(model, *first, Gate(gate), Cut())
    read = gateway.post(path, body)
    gateway.upstream.wait_reached(gate)
    gateway.answers(model, *then)
    gateway.upstream.open(gate)
    return read


@pytest.mark.parametrize("half", [False, True], ids=["between events", "inside an event"])
@pytest.mark.parametrize("seen", range(1, len(MESSAGES_EVENTS)))
def test_the_relay_reconnects_to_the_same_url_with_the_last_observed_id(
    gateway: Gateway, seen: int, half: bool
) -> None:
    body = {**MESSAGES_BODY, "model": RECONNECTED}
    events = with_upstream_ids(MESSAGES_EVENTS)
    first = [*events[:seen], PING, *([events[seen][:-30]] if half else [])]
    with broken_off(gateway, MESSAGES, body, first, *stream(PING, *events[seen:])) as read:
        assert_relayed(read, MESSAGES_EVENTS)
        assert gateway.outcome_of(read) == "completed"
    once, again = gateway.calls
    assert (once.path, once.header("last-event-id")) == (MESSAGES, None)
    assert (again.path, again.header("last-event-id")) == (MESSAGES, f"gateway-{seen}")
    assert again.json == once.json == body


def test_a_reconnect_that_nimbus_rejects_ends_the_matter(gateway: Gateway) -> None:
    body = {**MESSAGES_BODY, "model": RECONNECTED}
    refusal = {"type": "error", "error": {"type": "invalid_request_error", "code": "resume_not_supported"}}
    first = with_upstream_ids(MESSAGES_EVENTS)[:3]
    with broken_off(gateway, MESSAGES, body, first, *json_response(400, refusal)) as read:
        *events, error = read.events()
    assert texts(events) == numbered(read.headers["relay-stream-id"], MESSAGES_EVENTS[:3])
    assert error.json["error"]["code"] == "upstream_disconnected"
    assert [call.header("last-event-id") for call in gateway.calls] == [None, "gateway-3"]


def test_the_caveat_the_chat_format_has_no_ids_to_reconnect_with(gateway: Gateway) -> None:
    body = {**CHAT_BODY, "model": RECONNECTED}
    with broken_off(gateway, CHAT, body, CHAT_EVENTS[:2], *stream(*CHAT_EVENTS)) as read:
        *_, error, done = read.events()
    assert error.json["error"]["code"] == "upstream_disconnected"
    assert done.data == "[DONE]"
    assert len(gateway.calls) == 1


def test_an_error_mid_stream_is_no_reason_to_reconnect(gateway: Gateway) -> None:
    body = {**MESSAGES_BODY, "model": RECONNECTED}
    broken = [*with_upstream_ids(MESSAGES_EVENTS)[:3], ERROR]
    with broken_off(gateway, MESSAGES, body, broken, *stream(*with_upstream_ids(MESSAGES_EVENTS)[3:])) as read:
        assert_relayed(read, [*MESSAGES_EVENTS[:3], ERROR])
    assert len(gateway.calls) == 1


# Pings


def test_pings_come_while_the_gateway_is_silent(gateway: Gateway) -> None:
    gateway.plays(CLAUDE, MESSAGES_EVENTS[0], Gate("messages silence"), *MESSAGES_EVENTS[1:])
    with gateway.post(MESSAGES, MESSAGES_BODY) as read:
        start = read.events(1)
        heard = iter(read)
        pings = [next(heard) for _ in range(3)]
        gateway.upstream.open("messages silence")
        rest = [event for event in heard if not event.is_heartbeat]
    assert [ping.raw.decode() for ping in pings] == [PING] * 3
    assert texts([*start, *rest]) == numbered(read.headers["relay-stream-id"], MESSAGES_EVENTS)


def test_pings_come_before_the_first_event_too(gateway: Gateway) -> None:
    gateway.plays(CLAUDE, Gate("first event"), *MESSAGES_EVENTS)
    with gateway.post(MESSAGES, MESSAGES_BODY) as read:
        heard = iter(read)
        assert [next(heard).raw.decode() for _ in range(2)] == [PING] * 2
        gateway.upstream.open("first event")
        rest = [event for event in heard if not event.is_heartbeat]
    assert texts(rest) == numbered(read.headers["relay-stream-id"], MESSAGES_EVENTS)


def test_a_chat_reader_hears_something_too(gateway: Gateway) -> None:
    """In this format a comment: an OpenAI client would take a ping for a chunk."""
    gateway.plays(GPT, CHAT_EVENTS[0], Gate("chat silence"), *CHAT_EVENTS[1:])
    with gateway.post(CHAT, CHAT_BODY) as read:
        read.events(1)
        heard = iter(read)
        beats = [next(heard) for _ in range(3)]
        gateway.upstream.open("chat silence")
        assert read.events()
    assert all(beat.raw.startswith(b":") and beat.is_heartbeat for beat in beats)


def test_a_resumed_reader_gets_pings_too(gateway: Gateway) -> None:
    gateway.plays(CLAUDE, *MESSAGES_EVENTS[:2], Gate("resumed silence"), *MESSAGES_EVENTS[2:])
    seen = gateway.post(MESSAGES, MESSAGES_BODY).take(2)
    with gateway.resume(MESSAGES, MESSAGES_BODY, seen[-1].id or "") as again:
        heard = iter(again)
        assert next(heard).raw.decode() == PING
        gateway.upstream.open("resumed silence")
        rest = [event for event in heard if not event.is_heartbeat]
    assert texts([*seen, *rest]) == numbered(again.headers["relay-stream-id"], MESSAGES_EVENTS)


def test_by_default_pings_come_as_often_as_documented() -> None:
    assert Settings().streams.heartbeat == 15.0


# Errors


@pytest.mark.parametrize(("path", "body", "events"), ENDPOINTS)
def test_an_error_mid_stream_is_forwarded_as_it_is(
    gateway: Gateway, path: str, body: dict[str, Any], events: list[str]
) -> None:
    broken = [*events[:3], ERROR]
    gateway.plays(body["model"], *broken)
    with gateway.post(path, body) as read:
        *_, error = assert_relayed(read, broken)
        assert error.event == "error"
        assert error.json["error"]["code"] == "upstream_disconnect"
        assert gateway.outcome_of(read) == "upstream_error"
    with gateway.resume(path, body, f"{read.headers['relay-stream-id']}.2") as again:
        assert_relayed(again, broken[2:], after=2)


def test_an_error_mid_stream_without_a_log(gateway: Gateway) -> None:
    broken = [*CHAT_EVENTS[:3], ERROR]
    gateway.plays(BEST_EFFORT, *broken)
    with gateway.post(CHAT, {**CHAT_BODY, "model": BEST_EFFORT}) as read:
        assert texts(read.events()) == broken
        assert read.ended == "zero-chunk"


@pytest.mark.parametrize(
    ("model", "program", "events", "texts_before"),
    [
        pytest.param(GPT, CHAT_UNTIL_ERROR, CHAT_EVENTS, "\nHello\n", id="chat"),
        pytest.param(CLAUDE, MESSAGES_UNTIL_ERROR, MESSAGES_EVENTS, "Hello\n", id="messages"),
    ],
)
def test_an_sdk_raises_the_error(
    gateway: Gateway, model: str, program: str, events: Sequence[str], texts_before: str
) -> None:
    cut = 2 if model == GPT else 3
    gateway.plays(model, *events[:cut], ERROR)
    error = "upstream_disconnect Upstream anthropic disconnected after 812 output tokens."
    assert gateway.python(program, NIMBUS) == f"{texts_before}{error}\n"


def test_an_error_before_the_stream_has_the_same_shape(gateway: Gateway) -> None:
    error = json.loads(ERROR.partition("data: ")[2])
    gateway.answers(CLAUDE, *json_response(502, error))
    with gateway.post(MESSAGES, MESSAGES_BODY) as refused:
        assert (refused.status, refused.json) == (502, error)
        assert "relay-stream-id" not in refused.headers
