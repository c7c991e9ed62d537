"""Long streams of the three APIs: text, a tool call and usage, an event each few milliseconds."""

from __future__ import annotations

from tests.sdk import scenarios_chat as chat
from tests.sdk import scenarios_messages as messages
from tests.sdk import scenarios_responses as responses
from tests.support import streams
from tests.support.scripted import Gate, Pause, Step, stream

WORDS = tuple(f"wörd{n}\u2028🌍 " for n in range(40))
TEXT = "".join(WORDS)
PARTS = ('{"cities": [0', *(f", {n}" for n in range(1, 20)), "]}")


def _chat() -> tuple[str, ...]:
    return (
        chat.ROLE,
        *(streams.chat({"content": word}) for word in WORDS),
        chat.tool_delta(0, "", id="call_a", name="get_weather"),
        *(chat.tool_delta(0, part) for part in PARTS),
        streams.chat({}, "tool_calls"),
        chat.USAGE_CHUNK,
        streams.DONE,
    )


def _messages() -> tuple[str, ...]:
    return (
        messages.START,
        *messages.block(0, {"type": "text", "text": ""}, *({"type": "text_delta", "text": word} for word in WORDS)),
        *messages.block(1, messages.TOOL, *({"type": "input_json_delta", "partial_json": part} for part in PARTS)),
        *messages.ending("tool_use"),
    )


def _responses() -> tuple[str, ...]:
    whole = {"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}
    at = {"content_index": 0, "logprobs": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant"}
    call = {"id": "fc_1", "type": "function_call", "call_id": "call_a", "name": "get_weather"}
    text = streams.item(
        0,
        {**message, "status": "in_progress", "content": []},
        {**message, "status": "completed", "content": [whole]},
        {"type": "response.content_part.added", "content_index": 0, "part": {**whole, "text": ""}},
        *({"type": "response.output_text.delta", "delta": word, **at} for word in WORDS),
        {"type": "response.output_text.done", "text": TEXT, **at},
        {"type": "response.content_part.done", "content_index": 0, "part": whole},
    )
    tool = streams.item(
        1,
        {**call, "arguments": "", "status": "in_progress"},
        {**call, "arguments": "".join(PARTS), "status": "completed"},
        *({"type": "response.function_call_arguments.delta", "delta": part} for part in PARTS),
        {"type": "response.function_call_arguments.done", "name": "get_weather", "arguments": "".join(PARTS)},
    )
    return responses.frames(*responses.whole(text, tool))


FRAMES = {"chat": _chat(), "messages": _messages(), "responses": _responses()}
TOOLS = {
    "chat": {"id": "call_a", "name": "get_weather", "arguments": "".join(PARTS)},
    "messages": {"id": "toolu_1", "name": "get_weather", "arguments": "".join(PARTS)},
    "responses": {"id": "call_a", "name": "get_weather", "arguments": "".join(PARTS)},
}


def script(api: str, *, gate: str | None = None) -> tuple[Step, ...]:
    """The API's stream; in its middle it waits at the gate."""
    steps: list[bytes | str | Step] = []
    for n, frame in enumerate(FRAMES[api]):
        if gate is not None and n == len(FRAMES[api]) // 2:
            steps.append(Gate(gate))
        steps += [frame, Pause(0.01)]
    return stream(*steps)
