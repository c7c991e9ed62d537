"""The finished answer is the object that each generation of the SDKs puts together itself from the same stream.

Streams at random, of everything that the SDKs know, are read with their own accumulating helpers; what they hold in
the end is compared with what `relay.protocol.finished` makes of the same events.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from relay.protocol import sse
from relay.protocol.finished import assembly_of
from relay.protocol.finished.parts import pieces
from tests.sdk import scenarios_chat, scenarios_messages, scenarios_responses
from tests.sdk.install import PYTHON_GENERATIONS, is_installed, python_generation
from tests.sdk.test_parity import DRIVER, DRIVER_TIMEOUT
from tests.support.processes import needs
from tests.support.scripted import ScriptedUpstream, Send, stream
from tests.support.streams import (
    APIS,
    DONE,
    Api,
    Body,
    block,
    call_item,
    chat_usage,
    chunk,
    event,
    message_end,
    message_start,
    numbered,
    response_end,
    response_start,
    text_item,
    typed,
)

pytestmark = pytest.mark.slow

SDKS = tuple(name for name in PYTHON_GENERATIONS if name.startswith("py-"))
STREAMS = 30
SCENARIOS = {
    "chat": scenarios_chat.SCENARIOS,
    "messages": scenarios_messages.SCENARIOS,
    "responses": scenarios_responses.SCENARIOS,
}
DIFFERENT = {
    ("chat", "reasoning_details"): "a label that stands in every chunk (`format`) is doubled by the SDKs",
    ("chat", "usage_on_every_chunk"): "the SDKs have the last chunk's usage, which is none",
    ("chat", "no_role_chunk"): "an answer that is not streamed has a role",
    ("responses", "incomplete"): "the SDKs hold no answer that has not been completed",
    ("responses", "failed"): "the same",
    ("responses", "error_midstream"): "the same",
    ("responses", "error_nested"): "the same",
}
WORDS = ("Hel", "lo ", "wörld\u2028", "🌍", "", '"\\', "\n", "a" * 500)


def words(rng: random.Random, most: int = 6) -> list[str]:
    return [rng.choice(WORDS) for _ in range(rng.randrange(1, most))]


def json_in_parts(rng: random.Random) -> list[str]:
    value: Body = {
        rng.choice("abc") + str(n): rng.choice([1, 2.5, None, True, "ü}", [1, {"x": "y"}], {}]) for n in range(4)
    }
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    cuts = sorted({0, len(text), *(rng.randrange(len(text)) for _ in range(3))})
    return [text[a:b] for a, b in itertools.pairwise(cuts)]


# -- streams at random ----------------------------------------------------------------------------------------


def of_chat(rng: random.Random) -> list[Body]:
    tier = {"service_tier": "default"} if rng.random() < 0.5 else {}

    def of(index: int, delta: Body, reason: str | None = None, logprobs: Any = None) -> Body:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return chunk(None, choices=[choice], **tier)

    count = rng.choice((1, 1, 2, 3))
    queues: list[list[Body]] = []
    for index in range(count):
        deltas: list[tuple[Body, Any]] = []
        for kind in rng.sample(
            ("content", "reasoning_content", "vendor_notes", "refusal", "tools"), rng.randrange(1, 5)
        ):
            if kind == "tools":
                for number in range(rng.randrange(1, 4)):
                    call = {"index": number, "id": f"call_{number}", "type": "function"}
                    deltas.append(
                        ({"tool_calls": [{**call, "function": {"name": f"f{number}", "arguments": ""}}]}, None)
                    )
                    for part in json_in_parts(rng):
                        rest = {"index": number, "function": {"arguments": part}}
                        deltas += [({"tool_calls": [rest]}, None)]
            else:
                for word in words(rng):
                    logged = {"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": []}
                    probable = {"content": [logged], "refusal": None} if kind == "content" and index == 0 else None
                    deltas.append(({kind: word}, probable))
        reason = "tool_calls" if any("tool_calls" in delta for delta, _ in deltas) else "stop"
        parts = [of(index, delta, None, logprobs) for delta, logprobs in deltas]
        queues.append([*parts, of(index, {}, reason)])
    # The SDKs know a choice from the first chunk on, in the order of their indexes.
    events = [of(index, {"role": "assistant", "content": None}) for index in range(count)]
    while any(queues):
        events.append(rng.choice([queue for queue in queues if queue]).pop(0))
    return [*events, {**chat_usage(11, 5), **tier}]


def of_messages(rng: random.Random) -> list[Body]:
    usage = {"input_tokens": 12, "output_tokens": 1, "cache_read_input_tokens": rng.choice((None, 3))}
    events = [message_start(usage), typed("ping")]
    cited = {"type": "char_location", "cited_text": "x", "document_index": 0, "document_title": None,
             "start_char_index": 0, "end_char_index": 1}  # fmt: skip
    for index in range(rng.randrange(1, 6)):
        kind = rng.choice(("text", "cited", "thinking", "redacted", "tool_use", "server_tool_use", "result"))
        deltas: list[Body] = []
        match kind:
            case "text":
                start: Body = {"type": "text", "text": rng.choice(("", "So "))}
                deltas = [{"type": "text_delta", "text": word} for word in words(rng)]
            case "cited":
                start = {"type": "text", "text": "", "citations": []}
                deltas = [{"type": "citations_delta", "citation": cited}, {"type": "text_delta", "text": "a"}] * 2
            case "thinking":
                start = {"type": "thinking", "thinking": "", "signature": ""}
                deltas = [{"type": "thinking_delta", "thinking": word} for word in words(rng)]
                deltas.append({"type": "signature_delta", "signature": "EqQB"})
            case "redacted":
                start = {"type": "redacted_thinking", "data": "zzz"}
            case "result":
                found = {
                    "type": "web_search_result",
                    "url": "u",
                    "title": "t",
                    "encrypted_content": "e",
                    "page_age": None,
                }
                start = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [found]}
            case _:
                name = "web_search" if kind == "server_tool_use" else "f"
                start = {"type": kind, "id": f"toolu_{index}", "name": name, "input": {}}
                deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", *json_in_parts(rng))]
                deltas = rng.choice((deltas, []))
        events += block(index, start, deltas)
    told: Body = {"output_tokens": 9}
    if rng.random() < 0.5:
        told |= {"input_tokens": 13, "server_tool_use": {"web_search_requests": 2}}
    return [*events, *message_end(rng.choice(("end_turn", "tool_use", "max_tokens")), told)]


def renamed(n: int, item: tuple[Body, ...]) -> tuple[Body, ...]:
    """The item under ids of its own."""
    found: list[Body] = json.loads(re.sub(r'"(msg|fc|call)_(1|a)"', rf'"\1_{n}"', json.dumps(item)))
    return tuple(found)


def of_responses(rng: random.Random) -> list[Body]:
    items = [
        renamed(n, text_item(n, words(rng)) if rng.random() < 0.5 else call_item(n, json_in_parts(rng)))
        for n in range(rng.randrange(1, 4))
    ]
    usage = {"input_tokens": 1, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 2,
             "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 3}  # fmt: skip
    end = response_end("completed", items, usage)
    return [*numbered([*response_start(), *(body for item in items for body in item), end])]


MAKERS = {"chat": of_chat, "messages": of_messages, "responses": of_responses}


@cache
def streams_of(api: Api) -> dict[str, list[str]]:
    """Events by the name of their stream: those at random, and the parity tests' own that end well."""
    found = {}
    for seed in range(STREAMS):
        frames = [event(body) for body in MAKERS[api](random.Random(f"{api}-{seed}"))]
        found[f"{api}-{seed}"] = [*frames, DONE] if api == "chat" else frames
    for name, scenario in SCENARIOS[api].items():
        if scenario.error is None and (api, name) not in DIFFERENT and not name.startswith(("crlf", "late")):
            whole = b"".join(step.data for step in scenario.steps if isinstance(step, Send)).decode()
            found[f"{api}-{name}"] = [whole]
    return found


NAMES = [(api, name) for api in APIS for name in streams_of(api)]


@pytest.fixture(scope="module", params=SDKS)
def finals(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What one generation's helpers hold at the end of each stream."""
    sdk: str = request.param
    needs(is_installed(sdk), f"the SDKs of {sdk}: run tests/sdk/install.py")
    with ScriptedUpstream() as upstream:
        for api, name in NAMES:
            upstream.on(name, *stream(*streams_of(api)[name]))
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "ANTHROPIC_"))}
        env = {**keep, "NO_PROXY": "*", "no_proxy": "*", "PYTHONPATH": str(python_generation(sdk))}
        jobs = json.dumps([(api, name, "helper") for api, name in NAMES])
        command = [sys.executable, "-S", str(DRIVER), upstream.url, jobs]
        done = subprocess.run(
            command, cwd=DRIVER.parent, env=env, capture_output=True, text=True, timeout=DRIVER_TIMEOUT, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
    return {name: seen for (_, name), seen in zip(NAMES, json.loads(done.stdout), strict=True)}


def comparable(value: Any, within: str = "") -> Any:
    """Without what only an SDK's object has: nulls for what was not told, what it parsed, and tool calls' indexes,
    which no answer has that was not streamed."""
    if isinstance(value, list):
        return [comparable(entry, within) for entry in value]
    if isinstance(value, dict):
        own = ("parsed", "parsed_arguments", "parsed_output", *(("index",) if within == "tool_calls" else ()))
        return {k: comparable(v, k) for k, v in value.items() if v is not None and k not in own}
    return value


@pytest.mark.parametrize(("api", "name"), NAMES)
def test_it_is_what_the_sdk_puts_together(finals: dict[str, Any], api: Api, name: str) -> None:
    seen = finals[name]
    assert seen["error"] is None
    assembly = assembly_of(api)
    for frame in sse.Parser(1 << 20).feed("".join(streams_of(api)[name]).encode()):
        assembly.add(frame, "")
    ours = json.loads(b"".join(pieces(assembly.content())))
    assert comparable(ours) == comparable(seen["final"])
