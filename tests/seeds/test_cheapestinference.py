"""Cheapestinference: both endpoints, with the fewest fields that a chunk or a stream can have."""

from __future__ import annotations

from typing import Any

import pytest

from tests.seeds.gateway import CHAT, MESSAGES, Gateway, Language, assert_relayed, frames, printed_frames, text_of

GPT = "gpt-4o-mini"
CLAUDE = "claude-sonnet-4-20250514"
URL = "https://api.cheapestinference.com"
HAIKU: list[dict[str, str]] = [{"role": "user", "content": "Write a haiku about coding"}]
CHAT_BODY = {"model": GPT, "messages": HAIKU, "stream": True}
MESSAGES_BODY = {"model": CLAUDE, "max_tokens": 1024, "messages": HAIKU, "stream": True}

CHAT_EVENTS = frames("cheapestinference/chat.sse")
# What the document shows, and the same answer with the events that it leaves out.
MESSAGES_EVENTS = frames("cheapestinference/messages.sse")
WHOLE_MESSAGES_EVENTS = frames("cheapestinference/messages_whole.sse")
ENDPOINTS = [
    pytest.param(CHAT, CHAT_BODY, CHAT_EVENTS, id="chat"),
    pytest.param(MESSAGES, MESSAGES_BODY, MESSAGES_EVENTS, id="messages"),
]


@pytest.mark.parametrize(("path", "body", "events"), ENDPOINTS)
def test_both_endpoints_stream(gateway: Gateway, path: str, body: dict[str, Any], events: list[str]) -> None:
    gateway.plays(body["model"], *events)
    with gateway.post(path, body) as read:
        assert_relayed(read, events)
        assert gateway.outcome_of(read) == "completed"
    assert gateway.calls[0].json == body


@pytest.mark.parametrize(("path", "body", "events"), ENDPOINTS)
def test_both_endpoints_resume(gateway: Gateway, path: str, body: dict[str, Any], events: list[str]) -> None:
    gateway.plays(body["model"], *events)
    seen = gateway.post(path, body).take(1)
    with gateway.resume(path, body, seen[0].id or "") as again:
        assert_relayed(again, events[1:], after=1)
    assert len(gateway.calls) == 1


def test_chunks_need_no_index_and_no_finish_reason(gateway: Gateway) -> None:
    gateway.plays(GPT, *CHAT_EVENTS)
    with gateway.post(CHAT, CHAT_BODY) as read:
        events = assert_relayed(read, CHAT_EVENTS)
    assert text_of(events) == "Hello world"
    assert [sorted(event.json["choices"][0]) for event in events[:-1]] == [["delta"], ["delta"]]


def test_message_stop_alone_ends_a_messages_stream(gateway: Gateway) -> None:
    """Without it the same events are a failure, never a short answer."""
    gateway.plays(CLAUDE, MESSAGES_EVENTS[0])
    with gateway.post(MESSAGES, MESSAGES_BODY) as read:
        delta, error = read.events()
        assert gateway.outcome_of(read) == "upstream_disconnected"
    assert delta.json["delta"]["text"] == "Hello"
    assert error.event == "error"


# The examples. The document leaves out how its clients are made.

PYTHON_CHAT = """
from openai import OpenAI
client = OpenAI(base_url="https://api.cheapestinference.com/v1", api_key="YOUR_API_KEY")

stream = client.chat.completions.create(
    model="gpt-4o-mini",
    messages=[{"role": "user", "content": "Write a haiku about coding"}],
    stream=True,
)

for chunk in stream:
    content = chunk.choices[0].delta.content or ""
    print(content, end="", flush=True)
"""

NODE_CHAT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: "https://api.cheapestinference.com/v1", apiKey: "YOUR_API_KEY" });

const stream = await client.chat.completions.create({
  model: "gpt-4o-mini",
  messages: [{ role: "user", content: "Write a haiku about coding" }],
  stream: true,
});

for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content || "");
}
"""

PYTHON_MESSAGES = """
from anthropic import Anthropic
client = Anthropic(base_url="https://api.cheapestinference.com", api_key="YOUR_API_KEY")

with client.messages.stream(
    model="claude-sonnet-4-20250514",
    max_tokens=1024,
    messages=[{"role": "user", "content": "Write a haiku about coding"}],
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
"""

NODE_MESSAGES = """
import Anthropic from "@anthropic-ai/sdk";
const client = new Anthropic({ baseURL: "https://api.cheapestinference.com", apiKey: "YOUR_API_KEY" });

const stream = await client.messages.create({
  model: "claude-sonnet-4-20250514",
  max_tokens: 1024,
  messages: [{ role: "user", content: "Write a haiku about coding" }],
  stream: true,
});

for await (const event of stream) {
  if (event.type === "content_block_delta" && event.delta.type === "text_delta") {
    process.stdout.write(event.delta.text);
  }
}
"""

PYTHON_RAW_MESSAGES = """
from anthropic import Anthropic
client = Anthropic(base_url="https://api.cheapestinference.com", api_key="YOUR_API_KEY")
for event in client.messages.create(
    model="claude-sonnet-4-20250514",
    max_tokens=1024,
    messages=[{"role": "user", "content": "Write a haiku about coding"}],
    stream=True,
):
    if event.type == "content_block_delta":
        print(event.delta.text, end="")
"""

CURL = (
    '{ "model": "gpt-4o-mini", '
    '"messages": [{"role": "user", "content": "Write a haiku about coding"}], "stream": true }'
)


@pytest.mark.parametrize(("language", "program"), [("python", PYTHON_CHAT), ("node", NODE_CHAT)])
def test_the_chat_example(gateway: Gateway, language: Language, program: str) -> None:
    gateway.plays(GPT, *CHAT_EVENTS)
    assert gateway.prints(language, program, URL) == "Hello world"
    assert gateway.calls[0].json == CHAT_BODY


def test_the_curl_example(gateway: Gateway) -> None:
    gateway.plays(GPT, *CHAT_EVENTS)
    headers = ("-H", "Authorization: Bearer YOUR_API_KEY", "-H", "Content-Type: application/json")
    printed = gateway.curl(f"{URL}/v1/chat/completions", *headers, "-d", CURL, base_url=URL)
    assert printed_frames(printed) == "".join(CHAT_EVENTS)
    assert gateway.calls[0].body.decode() == CURL


@pytest.mark.parametrize("events", [MESSAGES_EVENTS, WHOLE_MESSAGES_EVENTS], ids=["as shown", "whole"])
def test_the_messages_example_in_python(gateway: Gateway, events: list[str]) -> None:
    gateway.plays(CLAUDE, *events)
    assert gateway.prints("python", PYTHON_MESSAGES, URL) == "Hello"
    assert gateway.calls[0].json == MESSAGES_BODY


@pytest.mark.parametrize(("language", "program"), [("python", PYTHON_RAW_MESSAGES), ("node", NODE_MESSAGES)])
def test_the_messages_example_event_by_event(gateway: Gateway, language: Language, program: str) -> None:
    gateway.plays(CLAUDE, *MESSAGES_EVENTS)
    assert gateway.prints(language, program, URL) == "Hello"
    assert gateway.calls[0].json == MESSAGES_BODY
