"""Nexhina: usage only where it was asked for, `[DONE]` after a responses stream, no resume of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.seeds.gateway import CHAT, RESPONSES, Gateway, Language, assert_relayed, frames, numbered, text_of, texts
from tests.support.scripted import Call, Gate, ScriptedUpstream, Step, stream

MODEL = "gpt-4o"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
ASKING = {**BODY, "stream_options": {"include_usage": True}}
EVENTS = frames("nexhina/chat.sse")
USAGE_EVENTS = frames("nexhina/chat_usage.sse")
# Usage in a chunk of its own with `choices: []`, as OpenAI sends it. The document's stands on the finish chunk.
USAGE_APART_EVENTS = frames("nexhina/chat_usage_apart.sse")
RESPONSES_EVENTS = frames("nexhina/responses.sse")
RESPONSES_BODY = {"model": MODEL, "input": "Write a poem", "stream": True}
USAGE = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}


class UsageOnRequest(ScriptedUpstream):
    """Streams usage to a chat request with `include_usage` and to no other."""

    with_usage: list[str] = USAGE_EVENTS

    def _script(self, call: Call) -> tuple[Step, ...]:
        if call.path != CHAT or call.json["model"] != MODEL:
            return super()._script(call)
        asked = (call.json.get("stream_options") or {}).get("include_usage")
        return stream(*(self.with_usage if asked else EVENTS))


@pytest.fixture(scope="module")
def scripted() -> Iterator[UsageOnRequest]:
    server = UsageOnRequest()
    with server:
        yield server


@pytest.fixture(scope="module")
def settings(scripted: ScriptedUpstream) -> dict[str, Any]:
    """The same gateway three times, each with another `usage`; to the gateway the model is always the same."""
    return {
        "upstreams": [
            {
                "name": usage,
                "base_url": scripted.url,
                "models": [f"{usage}/*"],
                "strip_prefix": f"{usage}/",
                "usage": usage,
            }
            for usage in ("observe", "always")
        ]
        + [{"name": "nexhina", "base_url": scripted.url}]
    }


@pytest.fixture(params=["as documented", "apart"])
def usage_events(request: pytest.FixtureRequest, scripted: UsageOnRequest) -> list[str]:
    scripted.with_usage = USAGE_EVENTS if request.param == "as documented" else USAGE_APART_EVENTS
    return scripted.with_usage


@pytest.fixture
def usage_apart(scripted: UsageOnRequest) -> None:
    scripted.with_usage = USAGE_APART_EVENTS


@pytest.fixture
def usage_on_the_finish_chunk(scripted: UsageOnRequest) -> None:
    scripted.with_usage = USAGE_EVENTS


def test_the_response_format(gateway: Gateway) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Write a poem"}], "stream": True}
    with gateway.post(CHAT, body) as read:
        assert read.headers["content-type"].startswith("text/event-stream")
        *chunks, done = assert_relayed(read, EVENTS)
        assert gateway.outcome_of(read) == "completed"
    assert done.data == "[DONE]"
    assert text_of(chunks) == "You are"
    assert chunks[-1].json["choices"][0]["finish_reason"] == "stop"


def test_parsing_by_hand_as_the_notes_say(gateway: Gateway) -> None:
    """Line by line: lines that start with `data:`, up to `data: [DONE]`."""
    with gateway.post(CHAT, BODY) as read:
        lines = read.read().decode().split("\n")
    data = [line for line in lines if line.startswith("data:")]
    assert data == [event.strip() for event in EVENTS]


# Usage


def test_no_usage_without_asking(gateway: Gateway, usage_events: list[str]) -> None:
    with gateway.post(CHAT, BODY) as read:
        assert_relayed(read, EVENTS)
    assert [call.json for call in gateway.calls] == [BODY]


@pytest.mark.parametrize("setting", ["", "observe/", "always/"], ids=["passthrough", "observe", "always"])
def test_usage_comes_to_whoever_asks(gateway: Gateway, usage_events: list[str], setting: str) -> None:
    with gateway.post(CHAT, {**ASKING, "model": setting + MODEL}) as read:
        *chunks, _done = assert_relayed(read, usage_events)
    assert chunks[-1].json["usage"] == USAGE
    assert [call.json for call in gateway.calls] == [ASKING]


@pytest.mark.usefixtures("usage_apart")
def test_observe_asks_for_usage_and_hides_it(gateway: Gateway) -> None:
    """The ids that the client sees have no gap where the hidden chunk was, on a resume neither."""
    body = {**BODY, "model": f"observe/{MODEL}"}
    with gateway.post(CHAT, body) as read:
        assert_relayed(read, EVENTS)
    stream_id = read.headers["relay-stream-id"]
    with gateway.resume(CHAT, body, f"{stream_id}.1") as again:
        assert_relayed(again, EVENTS[1:], after=1)
    assert [call.json for call in gateway.calls] == [ASKING]


@pytest.mark.usefixtures("usage_on_the_finish_chunk")
def test_observe_never_hides_a_chunk_that_says_more(gateway: Gateway) -> None:
    """Usage that stands on the finish chunk, as documented here, arrives with it: events are never rewritten."""
    with gateway.post(CHAT, {**BODY, "model": f"observe/{MODEL}"}) as read:
        *chunks, _done = assert_relayed(read, USAGE_EVENTS)
    assert chunks[-1].json["choices"][0]["finish_reason"] == "stop"


@pytest.mark.usefixtures("usage_apart")
def test_observe_keeps_other_stream_options(gateway: Gateway) -> None:
    body = {**BODY, "model": f"observe/{MODEL}", "stream_options": {"include_usage": False, "x_trace": 1}}
    with gateway.post(CHAT, body) as read:
        assert_relayed(read, EVENTS)
    (call,) = gateway.calls
    assert call.json["stream_options"] == {"include_usage": True, "x_trace": 1}


def test_always_asks_for_usage_and_shows_it(gateway: Gateway, usage_events: list[str]) -> None:
    with gateway.post(CHAT, {**BODY, "model": f"always/{MODEL}"}) as read:
        assert_relayed(read, usage_events)
    assert [call.json for call in gateway.calls] == [ASKING]


def test_no_setting_asks_a_responses_upstream(gateway: Gateway) -> None:
    """There usage always stands in the terminal event, and an unknown option would be refused."""
    gateway.upstream.on_path(f"POST {RESPONSES}", *stream(*RESPONSES_EVENTS))
    for setting in ("observe", "always"):
        with gateway.post(RESPONSES, {**RESPONSES_BODY, "model": f"{setting}/{MODEL}"}) as read:
            assert_relayed(read, RESPONSES_EVENTS)
    assert [call.json for call in gateway.calls] == [RESPONSES_BODY] * 2


# Responses


def test_a_responses_stream_ends_with_done(gateway: Gateway) -> None:
    gateway.upstream.on_path(f"POST {RESPONSES}", *stream(*RESPONSES_EVENTS))
    with gateway.post(RESPONSES, RESPONSES_BODY) as read:
        *_, completed, done = assert_relayed(read, RESPONSES_EVENTS)
        assert gateway.outcome_of(read) == "completed"
    assert completed.json["type"] == "response.completed"
    assert done.data == "[DONE]"
    with gateway.resume(RESPONSES, RESPONSES_BODY, completed.id or "") as again:
        assert_relayed(again, RESPONSES_EVENTS[-1:], after=len(RESPONSES_EVENTS) - 1)


def test_done_after_a_responses_stream_may_come_later(gateway: Gateway) -> None:
    script = stream(*RESPONSES_EVENTS[:-1], Gate("completed"), RESPONSES_EVENTS[-1])
    gateway.upstream.on_path(f"POST {RESPONSES}", *script)
    with gateway.post(RESPONSES, RESPONSES_BODY) as read:
        seen = read.events(len(RESPONSES_EVENTS) - 1)
        gateway.upstream.open("completed")
        rest = read.events()
    assert texts([*seen, *rest]) == numbered(read.headers["relay-stream-id"], RESPONSES_EVENTS)
    assert read.ended == "zero-chunk"


# The SDKs. The document's panels for them are empty: what its text says, in code.

PYTHON_CHAT = """
from openai import OpenAI
client = OpenAI(base_url="https://gateway.example/v1", api_key="YOUR_API_KEY")
stream = client.chat.completions.create(
    model="gpt-4o",
    messages=[{"role": "user", "content": "Hello"}],
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="")
    if chunk.usage:
        print("", chunk.usage.total_tokens)
"""

NODE_CHAT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: "https://gateway.example/v1", apiKey: "YOUR_API_KEY" });
const stream = await client.chat.completions.create({
  model: "gpt-4o",
  messages: [{ role: "user", content: "Hello" }],
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
  if (chunk.usage) console.log("", chunk.usage.total_tokens);
}
"""

PYTHON_RESPONSES = """
from openai import OpenAI
client = OpenAI(base_url="https://gateway.example/v1", api_key="YOUR_API_KEY")
for event in client.responses.create(model="gpt-4o", input="Write a poem", stream=True):
    print(event.type)
with client.responses.stream(model="gpt-4o", input="Write a poem") as stream:
    for event in stream:
        pass
    print(stream.get_final_response().output_text)
"""

NODE_RESPONSES = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: "https://gateway.example/v1", apiKey: "YOUR_API_KEY" });
const stream = await client.responses.create({ model: "gpt-4o", input: "Write a poem", stream: true });
for await (const event of stream) console.log(event.type);
const whole = client.responses.stream({ model: "gpt-4o", input: "Write a poem" });
console.log((await whole.finalResponse()).output_text);
"""


@pytest.mark.parametrize(("language", "program"), [("python", PYTHON_CHAT), ("node", NODE_CHAT)])
@pytest.mark.usefixtures("usage_on_the_finish_chunk")
def test_the_sdk_reads_text_and_usage(gateway: Gateway, language: Language, program: str) -> None:
    assert gateway.prints(language, program) == "You are 30\n"


@pytest.mark.parametrize(("language", "program"), [("python", PYTHON_RESPONSES), ("node", NODE_RESPONSES)])
def test_the_sdk_reads_a_responses_stream_with_done(gateway: Gateway, language: Language, program: str) -> None:
    gateway.upstream.on_path(f"POST {RESPONSES}", *stream(*RESPONSES_EVENTS))
    types = [event.partition("\n")[0].removeprefix("event: ") for event in RESPONSES_EVENTS[:-1]]
    assert gateway.prints(language, program).splitlines() == [*types, "You are"]


# Disconnections


def test_the_gateway_cannot_resume_and_the_relay_can(gateway: Gateway) -> None:
    """The document: "You'll need to initiate the request again". The gateway is asked once all the same."""
    model = "gpt-4o-long"
    body = {**BODY, "model": model}
    gateway.plays(model, *EVENTS[:2], Gate("reconnected"), *EVENTS[2:])
    seen = gateway.post(CHAT, body).take(1)
    with gateway.resume(CHAT, body, seen[0].id or "") as again:
        second = again.events(1)
        gateway.upstream.open("reconnected")
        rest = again.events()
    assert again.ended == "zero-chunk"
    assert texts([*seen, *second, *rest]) == numbered(again.headers["relay-stream-id"], EVENTS)
    assert len(gateway.calls) == 1
    assert gateway.calls[0].header("last-event-id") is None


def test_initiating_the_request_again_is_a_new_stream(gateway: Gateway) -> None:
    with gateway.post(CHAT, BODY) as first, gateway.post(CHAT, BODY) as second:
        assert_relayed(first, EVENTS)
        assert_relayed(second, EVENTS)
    assert first.headers["relay-stream-id"] != second.headers["relay-stream-id"]
    assert len(gateway.calls) == 2
