"""Yuhuan: chunks without a finish reason, `reasoning_content`, and the event tables of all three APIs.

Three of the four tool-call lines in the document have a closing brace too many; they are played without it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.seeds.gateway import (
    CHAT,
    MESSAGES,
    RESPONSES,
    Gateway,
    Language,
    arguments_of,
    assert_relayed,
    frames,
    printed_frames,
    text_of,
)
from tests.support.scripted import Pause

MODEL = "model-id"
YUHUAN = "https://api.yuhuanstudio.com"
STORY = [{"role": "user", "content": "Tell me a story."}]
BODY = {"model": MODEL, "messages": STORY, "stream": True}
MESSAGES_BODY = {"model": MODEL, "max_tokens": 1024, "messages": STORY, "stream": True}
RESPONSES_BODY = {"model": MODEL, "input": "Tell me a story.", "stream": True}
EVENTS = frames("yuhuan/chat.sse")

MESSAGES_TABLE = [
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
]
RESPONSES_TABLE = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.output_item.done",
    "response.completed",
]


def in_order(names: list[str | None]) -> list[str | None]:
    """The names without repetitions."""
    return list(dict.fromkeys(names))


# Chat


def test_the_chat_chunks(gateway: Gateway) -> None:
    gateway.plays(MODEL, *EVENTS)
    with gateway.post(CHAT, BODY) as read:
        *chunks, done = assert_relayed(read, EVENTS)
        assert gateway.outcome_of(read) == "completed"
    assert [chunk.json["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant"},
        {"content": "Once"},
        {"content": " upon"},
        {"content": " a"},
    ]
    assert done.data == "[DONE]"
    assert gateway.calls[0].json == BODY


def test_chunks_without_a_finish_reason_end_with_done_only(gateway: Gateway) -> None:
    """Nothing else says that such an answer is whole: without `[DONE]` it is a failure."""
    gateway.plays(MODEL, *EVENTS[:-1])
    with gateway.post(CHAT, BODY) as read:
        *_, error, done = read.events()
        assert gateway.outcome_of(read) == "upstream_disconnected"
    assert error.json["error"]["code"] == "upstream_disconnected"
    assert done.data == "[DONE]"


def test_usage_in_the_final_chunk(gateway: Gateway) -> None:
    with_usage = frames("yuhuan/chat_usage.sse")
    body = {**BODY, "stream_options": {"include_usage": True}}
    gateway.plays(MODEL, *with_usage)
    with gateway.post(CHAT, body) as read:
        *_, final, _done = assert_relayed(read, with_usage)
    assert final.json["usage"] == {"prompt_tokens": 10, "completion_tokens": 25, "total_tokens": 35}
    assert gateway.calls[0].json == body


def test_reasoning_content(gateway: Gateway) -> None:
    reasoning = frames("yuhuan/reasoning.sse")
    gateway.plays(MODEL, *reasoning)
    with gateway.post(CHAT, BODY) as read:
        events = assert_relayed(read, reasoning)
    assert text_of(events, "reasoning_content") == "15! / 13! is 15 × 14."
    assert text_of(events) == "It is 210."


def test_tool_calls_in_chunks_of_choices_alone(gateway: Gateway) -> None:
    tools = frames("yuhuan/tools.sse")
    gateway.plays(MODEL, *tools)
    with gateway.post(CHAT, BODY) as read:
        events = assert_relayed(read, tools)
        assert gateway.outcome_of(read) == "completed"
    assert json.loads(arguments_of(events)) == {"location": "Tokyo"}


# The event tables of the other two APIs


@pytest.mark.parametrize(
    ("path", "body", "name", "table"),
    [
        pytest.param(MESSAGES, MESSAGES_BODY, "yuhuan/messages.sse", MESSAGES_TABLE, id="messages"),
        pytest.param(RESPONSES, RESPONSES_BODY, "yuhuan/responses.sse", RESPONSES_TABLE, id="responses"),
    ],
)
def test_the_event_table(gateway: Gateway, path: str, body: dict[str, Any], name: str, table: list[str]) -> None:
    gateway.plays(MODEL, *frames(name))
    with gateway.post(path, body) as read:
        events = assert_relayed(read, frames(name))
        assert gateway.outcome_of(read) == "completed"
    assert in_order([event.event for event in events]) == table
    assert all(event.json["type"] == event.event for event in events)


# The examples

PYTHON = """
from openai import OpenAI

client = OpenAI(
    api_key="YOUR_API_KEY",
    base_url="https://api.yuhuanstudio.com/v1"
)

stream = client.chat.completions.create(
    model="model-id",
    messages=[{"role": "user", "content": "Tell me a story."}],
    stream=True
)

for chunk in stream:
    content = chunk.choices[0].delta.content
    if content:
        print(content, end="", flush=True)
"""

JAVASCRIPT = """
import OpenAI from "openai";

const client = new OpenAI({
  apiKey: "YOUR_API_KEY",
  baseURL: "https://api.yuhuanstudio.com/v1",
});

const stream = await client.chat.completions.create({
  model: "model-id",
  messages: [{ role: "user", content: "Tell me a story." }],
  stream: true,
});

for await (const chunk of stream) {
  const content = chunk.choices[0]?.delta?.content;
  if (content) process.stdout.write(content);
}
"""

CURL = """{
    "model": "model-id",
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "stream": true
  }"""

OPENAI_CLIENT = """
from openai import OpenAI
client = OpenAI(api_key="YOUR_API_KEY", base_url="https://api.yuhuanstudio.com/v1")
"""

REASONING = """
stream = client.chat.completions.create(
    model="model-id",
    messages=[{"role": "user", "content": "Solve: What is 15! / 13!?"}],
    stream=True
)

for chunk in stream:
    delta = chunk.choices[0].delta

    # Reasoning content (thinking process)
    if hasattr(delta, 'reasoning_content') and delta.reasoning_content:
        print(f"[Thinking] {delta.reasoning_content}", end="")

    # Final content
    if delta.content:
        print(delta.content, end="")
"""

TOOLS = """
stream = client.chat.completions.create(model="model-id", messages=[], stream=True)

tool_calls = {}

for chunk in stream:
    if chunk.choices[0].delta.tool_calls:
        for tc in chunk.choices[0].delta.tool_calls:
            idx = tc.index
            if idx not in tool_calls:
                tool_calls[idx] = {"id": tc.id, "name": tc.function.name, "arguments": ""}
            if tc.function.arguments:
                tool_calls[idx]["arguments"] += tc.function.arguments

import json
print(json.dumps(tool_calls))
"""

MESSAGES_STREAM = """
from anthropic import Anthropic
client = Anthropic(api_key="YOUR_API_KEY", base_url="https://api.yuhuanstudio.com")

with client.messages.stream(
    model="model-id",
    max_tokens=1024,
    messages=[{"role": "user", "content": "Write a story"}]
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
"""

RESPONSES_STREAM = """
for event in client.responses.create(model="model-id", input="Tell me a story.", stream=True):
    print(event.type)
"""


@pytest.mark.parametrize(("language", "program"), [("python", PYTHON), ("node", JAVASCRIPT)])
def test_the_chat_example(gateway: Gateway, language: Language, program: str) -> None:
    gateway.plays(MODEL, *EVENTS[:2], Pause(0.1), *EVENTS[2:])
    assert gateway.prints(language, program, YUHUAN) == "Once upon a"
    assert gateway.calls[0].json == BODY
    assert gateway.calls[0].header("authorization") == "Bearer YOUR_API_KEY"


def test_the_curl_example(gateway: Gateway) -> None:
    gateway.plays(MODEL, *EVENTS)
    headers = ("-H", "Content-Type: application/json", "-H", "Authorization: Bearer YOUR_API_KEY")
    printed = gateway.curl(f"{YUHUAN}/v1/chat/completions", *headers, "-N", "-d", CURL, base_url=YUHUAN)
    assert printed_frames(printed) == "".join(EVENTS)
    assert gateway.calls[0].body.decode() == CURL


def test_the_reasoning_example(gateway: Gateway) -> None:
    gateway.plays(MODEL, *frames("yuhuan/reasoning.sse"))
    printed = gateway.python(OPENAI_CLIENT + REASONING, YUHUAN)
    assert printed == "[Thinking] 15! / 13! is[Thinking]  15 × 14.It is 210."


def test_the_tool_call_example(gateway: Gateway) -> None:
    gateway.plays(MODEL, *frames("yuhuan/tools.sse"))
    printed = json.loads(gateway.python(OPENAI_CLIENT + TOOLS, YUHUAN))
    assert printed == {"0": {"id": "call_abc", "name": "get_weather", "arguments": '{"location":"Tokyo"}'}}


def test_the_messages_example(gateway: Gateway) -> None:
    gateway.plays(MODEL, *frames("yuhuan/messages.sse"))
    assert gateway.python(MESSAGES_STREAM, YUHUAN) == "Once upon a"
    assert gateway.calls[0].header("authorization") == "Bearer YOUR_API_KEY"
    assert gateway.calls[0].path.partition("?")[0] == MESSAGES


def test_the_responses_events_with_the_sdk(gateway: Gateway) -> None:
    gateway.plays(MODEL, *frames("yuhuan/responses.sse"))
    printed: list[str | None] = list(gateway.python(OPENAI_CLIENT + RESPONSES_STREAM, YUHUAN).splitlines())
    assert in_order(printed) == RESPONSES_TABLE
