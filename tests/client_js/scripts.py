"""One answer per API with text, tool calls and usage, and the SDKs that read it."""

from __future__ import annotations

from tests.sdk import scenarios_chat as chat
from tests.sdk import scenarios_messages as messages
from tests.sdk import scenarios_responses as responses
from tests.support.scripted import Gate, Pause, Step, stream

FRAMES: dict[str, tuple[str, ...]] = {
    "chat": (chat.ROLE, *chat.DELTAS, *chat.TOOLS[1:]),
    "messages": messages.TOOLS,
    "responses": responses.frames(*responses.whole(responses.message(0), responses.function_call(1))),
}
SDKS = (
    ("openai", "chat"),
    ("openai", "responses"),
    ("anthropic", "messages"),
    ("ai-openai", "chat"),
    ("ai-openai", "responses"),
    ("ai-anthropic", "messages"),
    ("ai-compatible", "chat"),
)


def script(api: str, gate: str | None = None) -> tuple[Step, ...]:
    """The answer, event by event; it waits at the gate after its fourth."""
    steps: list[str | bytes | Step] = []
    for number, frame in enumerate(FRAMES[api], start=1):
        steps += [frame, Pause(0.01)]
        if gate is not None and number == 4:
            steps.append(Gate(gate))
    return stream(*steps)
