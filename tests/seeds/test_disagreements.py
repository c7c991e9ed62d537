"""Where two of the documents disagree, the relay takes both forms, side by side, and makes them no more alike.

One relay with its default settings stands before one gateway that speaks every form at once. What decides is
the format's own rule, which says what ends a stream and what fails it. Settings decide two things only: whether
the relay asks for usage (`usage`, see the Nexhina tests), and whether a stream has a log (`buffer`, see Nimbus).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.sdk.install import HERE, is_installed, python_generation
from tests.seeds.gateway import (
    CHAT,
    GENERATION,
    MESSAGES,
    RESPONSES,
    Gateway,
    frames,
    numbered,
    run,
    texts,
    with_upstream_ids,
)
from tests.support.processes import RelayProcess, needs
from tests.support.scripted import Gate, ScriptedUpstream, stream

PATHS = {"chat": CHAT, "messages": MESSAGES, "responses": RESPONSES}
PING = 'event: ping\ndata: {"type":"ping"}\n\n'

Transcript = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """One document's way."""

    document: str
    api: str
    sent: Sequence[str]
    outcome: str = "completed"
    seen: Transcript = field(default_factory=dict)
    """Of the SDK's transcript: what a user of it has to see."""
    error: Transcript | None = None
    relayed: Sequence[str] = ()
    """Where it is not what was sent."""


def usage_of(prompt: int, completion: int) -> Transcript:
    tokens = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"usage": tokens}


NIMBUS_CHAT = frames("nimbus/chat.sse")
NIMBUS_MESSAGES = frames("nimbus/messages.sse")
SANSA_CHAT = frames("sansa/chat.sse")
NEXHINA_CHAT = frames("nexhina/chat.sse")
YUHUAN_CHAT = frames("yuhuan/chat.sse")
CHEAPEST_CHAT = frames("cheapestinference/chat.sse")

DISAGREEMENTS: dict[str, tuple[Form, Form]] = {
    "usage comes always, or only if asked for": (
        Form("Sansa", "chat", SANSA_CHAT, seen=usage_of(12, 84)),
        Form("Nexhina", "chat", NEXHINA_CHAT, seen={"text": "You are", "usage": None}),
    ),
    "usage stands on the finish chunk, or on one of its own": (
        Form("Nexhina", "chat", frames("nexhina/chat_usage.sse"), seen=usage_of(10, 20)),
        Form("Yuhuan", "chat", frames("yuhuan/chat_usage.sse"), seen=usage_of(10, 25)),
    ),
    "an error is an error event, or data with a finish reason and [DONE]": (
        Form(
            "Nimbus",
            "chat",
            [*NIMBUS_CHAT[:2], *frames("nimbus/error.sse")],
            outcome="upstream_error",
            seen={"text": "Hello"},
            error={"code": "upstream_disconnect"},
        ),
        Form(
            "Sansa",
            "chat",
            frames("sansa/error.sse"),
            outcome="upstream_error",
            seen={"text": "Hello"},
            error={"code": "provider_error"},
        ),
    ),
    "[DONE] follows a responses stream, or nothing does": (
        Form("Nexhina", "responses", frames("nexhina/responses.sse"), seen={"text": "You are"}),
        Form("Yuhuan", "responses", frames("yuhuan/responses.sse"), seen={"text": "Once upon a"}),
    ),
    "reasoning_details, or reasoning_content": (
        Form(
            "Sansa",
            "chat",
            frames("sansa/reasoning.sse"),
            seen={"reasoning": "Two and two make four.", "text": "It is 4."},
        ),
        Form(
            "Yuhuan",
            "chat",
            frames("yuhuan/reasoning.sse"),
            seen={"reasoning": "15! / 13! is 15 × 14.", "text": "It is 210."},
        ),
    ),
    "a role chunk comes first, or none comes": (
        Form("Nimbus", "chat", NIMBUS_CHAT, seen={"text": "Hello world"}),
        Form("Nexhina", "chat", NEXHINA_CHAT, seen={"text": "You are"}),
    ),
    "a finish reason ends the text, or [DONE] alone does": (
        Form("Sansa", "chat", SANSA_CHAT, seen={"text": "Hello"}),
        Form("Yuhuan", "chat", YUHUAN_CHAT, seen={"text": "Once upon a"}),
    ),
    "every field of a chunk, or the fewest": (
        Form("Nimbus", "chat", NIMBUS_CHAT, seen={"text": "Hello world"}),
        Form("Cheapestinference", "chat", CHEAPEST_CHAT, seen={"text": "Hello world"}),
    ),
    "the gateway numbers its events and pings, or does neither": (
        Form(
            "Nimbus",
            "messages",
            with_upstream_ids([*NIMBUS_MESSAGES[:3], PING, *NIMBUS_MESSAGES[3:]]),
            seen={"text": "Hello world"},
            relayed=NIMBUS_MESSAGES,
        ),
        Form("Yuhuan", "messages", frames("yuhuan/messages.sse"), seen={"text": "Once upon a"}),
    ),
    "a message has its whole envelope, or two events": (
        Form("Yuhuan", "messages", frames("yuhuan/messages.sse"), seen={"text": "Once upon a"}),
        Form("Cheapestinference", "messages", frames("cheapestinference/messages.sse"), seen={"text": "Hello"}),
    ),
}

questions = pytest.mark.parametrize("question", DISAGREEMENTS)


def model_of(question: str, form: Form) -> str:
    return f"{form.document} on: {question}"


def body_of(question: str, form: Form) -> Transcript:
    return {"model": model_of(question, form), "messages": [], "input": "", "stream": True}


@questions
def test_the_relay_takes_both_forms_at_once(gateway: Gateway, question: str) -> None:
    forms = DISAGREEMENTS[question]
    for form in forms:
        gateway.plays(model_of(question, form), form.sent[0], Gate(question), *form.sent[1:])
    with ExitStack() as stack:
        reads = [stack.enter_context(gateway.post(PATHS[form.api], body_of(question, form))) for form in forms]
        events = [read.events(1) for read in reads]
        gateway.upstream.open(question)
        for read, got in zip(reads, events, strict=True):
            got += read.events()
    for form, read, got in zip(forms, reads, events, strict=True):
        assert read.ended == "zero-chunk"
        assert texts(got) == numbered(read.headers["relay-stream-id"], form.relayed or form.sent)
        assert gateway.outcome_of(read) == form.outcome
        with gateway.resume(PATHS[form.api], body_of(question, form), got[0].id or "") as again:
            assert again.events() == got[1:]
    assert len(gateway.calls) == len(forms)


@pytest.fixture(scope="module")
def transcripts(scripted: ScriptedUpstream, running: RelayProcess) -> dict[str, Transcript]:
    """Every form read through the relay by one process of the official SDKs, all at once; by model."""
    needs(is_installed(GENERATION), f"the SDKs of {GENERATION}: run tests/sdk/install.py")
    models = [(form.api, model_of(question, form), form) for question, forms in DISAGREEMENTS.items() for form in forms]
    for _, model, form in models:
        scripted.on(model, *stream(*form.sent))
    jobs = json.dumps([(api, model, "raw") for api, model, _ in models])
    command = [sys.executable, "-S", str(HERE / "driver.py"), running.url, jobs]
    printed = json.loads(run(command, HERE, {"PYTHONPATH": str(python_generation(GENERATION))}))
    return {model: transcript for (_, model, _), transcript in zip(models, printed, strict=True)}


@questions
def test_the_sdk_reads_both_forms(transcripts: dict[str, Transcript], question: str) -> None:
    for form in DISAGREEMENTS[question]:
        transcript = transcripts[model_of(question, form)]
        assert {name: transcript[name] for name in form.seen} == form.seen
        error = transcript["error"]
        assert (error and {name: error[name] for name in form.error or {}}) == form.error
