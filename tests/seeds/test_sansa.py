"""Sansa: usage always in the final chunk, JSON errors before the stream, errors with a finish reason in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.seeds.gateway import (
    CHAT,
    Gateway,
    Language,
    arguments_of,
    assert_relayed,
    deltas,
    document,
    frames,
    text_of,
)
from tests.support.scripted import Gate, Head, Send

MODEL = "sansa-auto"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
EVENTS = frames("sansa/chat.sse")
USAGE = {"prompt_tokens": 12, "completion_tokens": 84, "total_tokens": 96}

NO_CREDITS = document("sansa/insufficient_credits.json")
# The document names the case and not its body: the same shape.
BAD_KEY = '{"error": {"code": "invalid_api_key", "message": "Invalid API key."}}'


@pytest.mark.parametrize(
    "options",
    [{}, {"stream_options": {"include_usage": True}}, {"stream_options": {"include_usage": False}}],
    ids=["not asked", "asked", "declined"],
)
def test_usage_comes_without_being_asked_for(gateway: Gateway, options: dict[str, Any]) -> None:
    body = {**BODY, **options}
    gateway.plays(MODEL, *EVENTS)
    with gateway.post(CHAT, body) as read:
        *chunks, done = assert_relayed(read, EVENTS)
        assert gateway.outcome_of(read) == "completed"
    assert done.data == "[DONE]"
    assert [chunk.json.get("usage") for chunk in chunks] == [None, None, USAGE]
    assert gateway.calls[0].json == body


def test_stream_options_go_upstream_unchanged(gateway: Gateway) -> None:
    """To the byte, with what the relay does not know of and the client's own spacing."""
    body = b'{ "model":"sansa-auto","messages":[],\n "stream":true, "stream_options": {"x_trace": 1.50} }'
    gateway.plays(MODEL, *EVENTS)
    with gateway.post(CHAT, body) as read:
        assert_relayed(read, EVENTS)
    assert gateway.calls[0].body == body


def test_the_chunk_shape(gateway: Gateway) -> None:
    gateway.plays(MODEL, *EVENTS)
    with gateway.post(CHAT, BODY) as read:
        events = assert_relayed(read, EVENTS)
    assert ["role" in delta for delta in deltas(events)] == [True, False, False]
    assert text_of(events) == "Hello"
    assert events[-2].json["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
@pytest.mark.parametrize(("status", "error"), [(402, NO_CREDITS), (401, BAD_KEY)], ids=["credits", "key"])
def test_an_error_before_the_stream_is_passed_on_verbatim(
    gateway: Gateway, status: int, error: str, stream: bool
) -> None:
    head = Head(status, {"content-type": "application/json; charset=utf-8", "x-request-id": "req_1"}, "length")
    gateway.answers(MODEL, head, Send(error.encode()))
    with gateway.post(CHAT, {**BODY, "stream": stream}) as refused:
        assert refused.status == status
        assert refused.read() == error.encode()
        assert refused.headers["content-type"] == "application/json; charset=utf-8"
        assert refused.headers["x-request-id"] == "req_1"
        assert "relay-stream-id" not in refused.headers
    assert len(gateway.calls) == 1


def test_an_error_mid_stream_is_forwarded_as_it_is(gateway: Gateway) -> None:
    broken = frames("sansa/error.sse")
    gateway.plays(MODEL, *broken)
    with gateway.post(CHAT, BODY) as read:
        *_, error, done = assert_relayed(read, broken)
        assert gateway.outcome_of(read) == "upstream_error"
    assert error.event is None
    assert error.json["error"]["code"] == "provider_error"
    assert error.json["choices"][0]["finish_reason"] == "error"
    assert done.data == "[DONE]"


def test_done_follows_an_error_even_when_it_comes_later(gateway: Gateway) -> None:
    broken = frames("sansa/error.sse")
    gateway.plays(MODEL, *broken[:-1], Gate("error"), broken[-1])
    with gateway.post(CHAT, BODY) as read:
        read.events(len(broken) - 1)
        gateway.upstream.open("error")
        assert [event.data for event in read.events()] == ["[DONE]"]
        assert read.ended == "zero-chunk"


def test_tool_calls(gateway: Gateway) -> None:
    tools = frames("sansa/tools.sse")
    gateway.plays(MODEL, *tools)
    with gateway.post(CHAT, BODY) as read:
        events = assert_relayed(read, tools)
    first, *fragments = [delta["tool_calls"][0] for delta in deltas(events) if "tool_calls" in delta]
    assert (first["id"], first["function"]["name"]) == ("call_abc", "get_weather")
    assert len(fragments) == 2
    assert json.loads(arguments_of(events)) == {"city": "Reykjavik"}
    assert events[-2].json["choices"][0]["finish_reason"] == "tool_calls"


def test_reasoning_comes_before_content(gateway: Gateway) -> None:
    reasoning = frames("sansa/reasoning.sse")
    gateway.plays(MODEL, *reasoning)
    with gateway.post(CHAT, BODY) as read:
        events = assert_relayed(read, reasoning)
    kinds = [next(iter(delta), None) for delta in deltas(events)]
    assert kinds == ["role", "reasoning_details", "reasoning_details", "content", "content", None]
    assert text_of(events) == "It is 4."


def test_structured_output(gateway: Gateway) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "degrees": {"type": "number"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema}}
    structured = frames("sansa/structured.sse")
    gateway.plays(MODEL, *structured)
    with gateway.post(CHAT, {**BODY, "response_format": wanted}) as read:
        events = assert_relayed(read, structured)
    assert json.loads(text_of(events)) == {"city": "Reykjavik", "degrees": 4}
    assert gateway.calls[0].json["response_format"] == wanted


# "Compatible with OpenAI SDK streaming"

PYTHON = """
from openai import APIError, OpenAI
client = OpenAI(base_url="https://gateway.example/v1", api_key="YOUR_API_KEY", max_retries=0)
try:
    stream = client.chat.completions.create(
        model="sansa-auto", messages=[{"role": "user", "content": "Hello"}], stream=True
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content, chunk.usage.total_tokens if chunk.usage else None)
except APIError as error:
    print(type(error).__name__, error.code, error.body["message"])
"""

JAVASCRIPT = """
import OpenAI, { APIError } from "openai";
const client = new OpenAI({ baseURL: "https://gateway.example/v1", apiKey: "YOUR_API_KEY", maxRetries: 0 });
try {
  const stream = await client.chat.completions.create({
    model: "sansa-auto", messages: [{ role: "user", content: "Hello" }], stream: true,
  });
  for await (const chunk of stream) {
    console.log(chunk.choices[0].delta.content ?? "None", chunk.usage?.total_tokens ?? "None");
  }
} catch (error) {
  if (!(error instanceof APIError)) throw error;
  console.log(error.constructor.name, error.code, error.error.message);
}
"""
PROGRAMS = [pytest.param("python", PYTHON, id="python"), pytest.param("node", JAVASCRIPT, id="node")]


@pytest.mark.parametrize(("language", "program"), PROGRAMS)
def test_the_sdk_reads_text_and_usage(gateway: Gateway, language: Language, program: str) -> None:
    gateway.plays(MODEL, *EVENTS)
    assert gateway.prints(language, program) == "None None\nHello None\nNone 96\n"


@pytest.mark.parametrize(("language", "program"), PROGRAMS)
def test_the_sdk_raises_an_error_mid_stream(gateway: Gateway, language: Language, program: str) -> None:
    gateway.plays(MODEL, *frames("sansa/error.sse"))
    error = "APIError provider_error Provider disconnected"
    assert gateway.prints(language, program) == f"None None\nHello None\n{error}\n"


@pytest.mark.parametrize(("language", "program"), PROGRAMS)
def test_the_sdk_raises_an_error_before_the_stream(gateway: Gateway, language: Language, program: str) -> None:
    gateway.answers(MODEL, Head(401, {"content-type": "application/json"}, "length"), Send(BAD_KEY.encode()))
    assert gateway.prints(language, program) == "AuthenticationError invalid_api_key Invalid API key.\n"
