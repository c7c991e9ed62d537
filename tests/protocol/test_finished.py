"""A stream's finished answer, put together from its events: row by row, and in pieces."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable
from typing import Any

import pytest

from relay.protocol import sse
from relay.protocol.apis import DIALECTS
from relay.protocol.finished import ASSEMBLIES, assembly_of
from relay.protocol.finished.cut_short import read_cut_short
from relay.protocol.finished.parts import Entries, Grown, Text, pieces
from relay.protocol.outcomes import StreamFailure
from tests.support.samples import SAMPLES
from tests.support.streams import (
    APIS,
    FIRST_TOKENS,
    Body,
    block,
    block_delta,
    block_start,
    chat_usage,
    chunk,
    message_end,
    message_start,
    response,
    response_start,
    text_block,
    tool_delta,
    typed,
)


def written(value: Any) -> Any:
    return json.loads(b"".join(pieces(value)))


def assembled(api: str, bodies: Iterable[Body | str]) -> Any:
    assembly = assembly_of(api)
    for n, body in enumerate(bodies, 1):
        kind = str(body.get("type", "")) if isinstance(body, dict) and api != "chat" else ""
        data = body if isinstance(body, str) else json.dumps(body)
        assembly.add(sse.Event(kind.encode(), data.encode()), f"st_1.{n}")
    return written(assembly.content())


# -- chat -----------------------------------------------------------------------------------------------------


def of_chat(*bodies: Body | str) -> Any:
    return assembled("chat", [*bodies, "[DONE]"])


def message_of(*deltas: Body) -> Any:
    return of_chat(*(chunk(delta) for delta in deltas), chunk({}, "stop"))["choices"][0]["message"]


def test_a_chat_completion_has_the_form_of_one_that_was_not_streamed() -> None:
    more = {"service_tier": "default"}
    found = of_chat(
        chunk({"role": "assistant", "content": "", "refusal": None}, obfuscation="x9", **more),
        chunk({"content": "Hel"}, obfuscation="aaa", **more),
        chunk({"content": "lo"}, obfuscation="b", usage=None, **more),
        chunk({}, "stop", **more),
        chat_usage(11, 5),
    )
    assert found == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1760000000,
        "model": "gpt-x",
        "system_fingerprint": "fp_1",
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16},
    }


MESSAGES_OF_CHAT: dict[str, tuple[list[Body], Body]] = {
    "labels that are sent again": (
        [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
        {"content": "ab"},
    ),
    "a refusal": ([{"content": None, "refusal": "I "}, {"refusal": "won't"}], {"content": None, "refusal": "I won't"}),
    "thoughts": (
        [{"reasoning_content": "a"}, {"content": None, "reasoning_content": "b"}, {"content": "c"}],
        {"reasoning_content": "ab", "content": "c"},
    ),
    "a string that nobody knows": ([{"vendor_notes": "x"}, {"vendor_notes": "y"}], {"vendor_notes": "xy"}),
    "details of thoughts by their index": (
        [
            {"reasoning_details": [{"type": "reasoning.text", "text": "a", "format": "f", "index": 0}]},
            {"reasoning_details": [{"type": "reasoning.text", "text": "b", "format": "f", "index": 0}]},
            {"reasoning_details": [{"type": "reasoning.encrypted", "data": "zz", "index": 0}]},
        ],
        {
            "reasoning_details": [
                {"type": "reasoning.text", "text": "ab", "format": "f", "index": 0},
                {"type": "reasoning.encrypted", "data": "zz", "index": 0},
            ]
        },
    ),
    "annotations without an index": (
        [{"content": "a", "annotations": [{"type": "url_citation", "url_citation": {"url": "u1"}}]},
         {"annotations": [{"type": "url_citation", "url_citation": {"url": "u2"}}]}],
        {"content": "a", "annotations": [
            {"type": "url_citation", "url_citation": {"url": "u1"}},
            {"type": "url_citation", "url_citation": {"url": "u2"}},
        ]},
    ),
    "the old function call": (
        [{"function_call": {"name": "f", "arguments": ""}}, {"function_call": {"arguments": "{}"}}],
        {"function_call": {"name": "f", "arguments": "{}"}},
    ),
    "content in parts": (
        [
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]},
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "b"}]}]},
            {"content": "c"},
            {"content": "d"},
        ],
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "ab"}]},
                {"type": "text", "text": "cd"},
            ]
        },
    ),
    "audio": (
        [
            {"audio": {"id": "a1", "data": base64.b64encode(b"xy").decode(), "transcript": "He"}},
            {"audio": {"data": base64.b64encode(b"z0123").decode(), "transcript": "y"}},
            {"audio": {"expires_at": 7}},
        ],
        {"audio": {"id": "a1", "data": base64.b64encode(b"xyz0123").decode(), "transcript": "Hey", "expires_at": 7}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES_OF_CHAT)
def test_what_deltas_make_of_a_message(name: str) -> None:
    deltas, wanted = MESSAGES_OF_CHAT[name]
    found = message_of(*deltas)
    assert found == {"role": "assistant", "content": None} | wanted


def call(name: str, arguments: str, **more: Any) -> Body:
    return {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


TOOL_CALLS: dict[str, tuple[list[Body], list[Body]]] = {
    "parts, of two that take turns": (
        [
            tool_delta(0, "", id="call_a", name="a"),
            tool_delta(1, "", id="call_b", name="b"),
            tool_delta(0, '{"x"'),
            tool_delta(1, "{}"),
            tool_delta(0, ":1}"),
        ],
        [call("a", '{"x":1}'), call("b", "{}")],
    ),
    "the later index first": (
        [tool_delta(1, "{}", id="call_b", name="b"), tool_delta(0, "{}", id="call_a", name="a")],
        [call("a", "{}"), call("b", "{}")],
    ),
    "labels that are sent again": (
        [tool_delta(0, part, id="call_a", name="a") for part in ("{", "}")],
        [call("a", "{}")],
    ),
    "no index": ([chunk({"tool_calls": [call("a", "{}"), call("b", "{}")]})], [call("a", "{}"), call("b", "{}")]),
    "no index, in parts": (
        [
            chunk({"tool_calls": [call("a", "{")]}),
            chunk({"tool_calls": [{"function": {"arguments": "}"}}]}),
            chunk({"tool_calls": [call("b", "1")]}),
            chunk({"tool_calls": [{"id": "call_a", "function": {"arguments": " "}}]}),
        ],
        [call("a", "{} "), call("b", "1")],
    ),
    "all under one index": (
        [chunk({"tool_calls": [call("a", "{}", index=0)]}), chunk({"tool_calls": [call("b", "{}", index=0)]})],
        [call("a", "{}"), call("b", "{}")],
    ),
    "a name in parts": (
        [tool_delta(0, "", id="call_get", name="g"), chunk({"tool_calls": [{"index": 0, "function": {"name": "et"}}]})],
        [call("get", "")],
    ),
    "members that nobody knows": (
        [chunk({"tool_calls": [call("a", "{}", index=0, extra_content={"google": {"thought_signature": "s"}})]})],
        [call("a", "{}", extra_content={"google": {"thought_signature": "s"}})],
    ),
}


@pytest.mark.parametrize("name", TOOL_CALLS)
def test_tool_calls_come_together(name: str) -> None:
    bodies, wanted = TOOL_CALLS[name]
    found = of_chat(*bodies, chunk({}, "tool_calls"))["choices"][0]
    assert found["message"] == {"role": "assistant", "content": None, "tool_calls": wanted}
    assert found["finish_reason"] == "tool_calls"


def test_choices_stand_in_the_order_of_their_index() -> None:
    def of(index: int, text: str, reason: str | None = None) -> Body:
        return chunk(None, choices=[{"index": index, "delta": {"content": text}, "finish_reason": reason}])

    found = of_chat(of(1, "b"), of(0, "a"), of(1, "B", "length"), of(0, "A", "stop"))
    read = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in found["choices"]]
    assert read == [(0, "aA", "stop"), (1, "bB", "length")]


def test_probabilities_go_on() -> None:
    def of(token: str, place: str = "content") -> Body:
        logprobs = {"content": None, "refusal": None, place: [{"token": token, "logprob": -0.5, "top_logprobs": []}]}
        return chunk(None, choices=[{"index": 0, "delta": {place: token}, "logprobs": logprobs, "finish_reason": None}])

    (choice,) = of_chat(of("a"), of("b"), of("no", "refusal"), chunk({}, "stop"))["choices"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["a", "b"]
    assert [entry["token"] for entry in choice["logprobs"]["refusal"]] == ["no"]


def test_what_gateways_put_beside_it_is_kept() -> None:
    found = of_chat(
        {"id": "", "object": "", "created": 0, "model": "", "choices": [],
         "prompt_filter_results": [{"prompt_index": 0}]},
        chunk({"content": "a"}, citations=["u1"], x_groq={"id": "req_1"}, provider="acme"),
        chunk({"content": "b"}, citations=["u1", "u2"], usage={"total_tokens": 1}),
        chunk(None, choices=[{"index": 0, "delta": {}, "finish_reason": "stop", "native_finish_reason": "STOP",
                              "content_filter_results": {"hate": {"filtered": False}}, "token_ids": [4]}],
              x_groq={"usage": {"total_tokens": 2}}),
    )  # fmt: skip
    assert found["id"] == "chatcmpl-1"
    assert (found["object"], found["created"], found["model"]) == ("chat.completion", 1760000000, "gpt-x")
    assert found["prompt_filter_results"] == [{"prompt_index": 0}]
    assert found["citations"] == ["u1", "u2"]
    assert found["provider"] == "acme"
    assert found["usage"] == {"total_tokens": 1}
    assert found["x_groq"] == {"id": "req_1", "usage": {"total_tokens": 2}}
    (choice,) = found["choices"]
    assert choice["native_finish_reason"] == "STOP"
    assert choice["content_filter_results"] == {"hate": {"filtered": False}}
    assert choice["token_ids"] == [4]


def test_usage_that_stands_in_x_groq_alone_is_the_answer_s() -> None:
    found = of_chat(chunk({"content": "a"}, "stop", x_groq={"usage": {"total_tokens": 2}}))
    assert found["usage"] == {"total_tokens": 2}


def test_an_answer_of_completions_keeps_its_text() -> None:
    base = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    found = of_chat(
        {**base, "choices": [{"index": 0, "text": "a", "finish_reason": None}]},
        {**base, "choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]},
    )
    assert found == {**base, "choices": [{"index": 0, "text": "ab", "finish_reason": "stop"}]}


def test_an_error_is_none_of_the_answer() -> None:
    found = of_chat(chunk({"content": "a"}), {"error": {"message": "broken"}})
    assert "error" not in found
    assert found["choices"][0]["finish_reason"] is None


# -- messages -------------------------------------------------------------------------------------------------

USAGE = {"input_tokens": 12, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 0, "output_tokens": 1}


def of_messages(*bodies: Body, usage: Body = USAGE) -> Any:
    return assembled("messages", [message_start(usage), typed("ping"), *bodies])


def test_a_message_has_the_form_of_one_that_was_not_streamed() -> None:
    end = message_end("end_turn", {"output_tokens": 9, "input_tokens": None, "server_tool_use": {"web_search": 1}})
    assert of_messages(*text_block(0, ["Hel", "lo"]), *end) == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {**USAGE, "output_tokens": 9, "server_tool_use": {"web_search": 1}},
    }


def tool(kind: str, **more: Any) -> Body:
    return {"type": kind, "id": "toolu_1", "name": "f", "input": {}, **more}


def deltas(kind: str, *members: Body) -> list[Body]:
    return [{"type": kind, **member} for member in members]


CITED = {"type": "char_location", "cited_text": "x"}
BLOCKS: dict[str, tuple[Body, list[Body], Body]] = {
    "text with citations": (
        {"type": "text", "text": "", "citations": None},
        [*deltas("citations_delta", {"citation": CITED}), *deltas("text_delta", {"text": "a"}, {"text": "b"})],
        {"type": "text", "text": "ab", "citations": [CITED]},
    ),
    "a tool's input": (
        tool("tool_use"),
        deltas("input_json_delta", {"partial_json": ""}, {"partial_json": '{"a":'}, {"partial_json": " [1]}"}),
        tool("tool_use", input={"a": [1]}),
    ),
    "no input": (tool("tool_use"), [], tool("tool_use")),
    "an input that came at once": (tool("tool_use", input={"a": 1}), [], tool("tool_use", input={"a": 1})),
    "a server's tool": (
        tool("server_tool_use"),
        deltas("input_json_delta", {"partial_json": '{"query": "q"}'}),
        tool("server_tool_use", input={"query": "q"}),
    ),
    "a tool of another kind": (
        tool("mcp_tool_use", server_name="s"),
        deltas("input_json_delta", {"partial_json": "{}"}),
        tool("mcp_tool_use", server_name="s"),
    ),
    "an input that was cut": (
        tool("tool_use"),
        deltas("input_json_delta", {"partial_json": '{"a": "b", "c": "d'}),
        tool("tool_use", input={"a": "b"}),
    ),
    "thoughts with a signature": (
        {"type": "thinking", "thinking": "", "signature": ""},
        [*deltas("thinking_delta", {"thinking": "a"}, {"thinking": "b"}),
         *deltas("signature_delta", {"signature": "one"}, {"signature": "two"})],
        {"type": "thinking", "thinking": "ab", "signature": "two"},
    ),
    "thoughts that are not shown": (
        {"type": "redacted_thinking", "data": "zzz"}, [], {"type": "redacted_thinking", "data": "zzz"}
    ),
    "results of a server's tool": (
        {"type": "web_search_tool_result", "tool_use_id": "t", "content": [{"type": "web_search_result", "url": "u"}]},
        [],
        {"type": "web_search_tool_result", "tool_use_id": "t", "content": [{"type": "web_search_result", "url": "u"}]},
    ),
    "a compaction": (
        {"type": "compaction", "content": None},
        deltas("compaction_delta", {"content": "short", "encrypted_content": "e"}),
        {"type": "compaction", "content": "short", "encrypted_content": "e"},
    ),
    "a delta that nobody knows": (
        {"type": "new_block", "notes": "", "rows": []},
        deltas("new_delta", {"notes": "a", "rows": [1]}, {"notes": "b", "rows": [2]}),
        {"type": "new_block", "notes": "ab", "rows": [1, 2]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_what_deltas_make_of_a_block(name: str) -> None:
    start, changes, wanted = BLOCKS[name]
    found = of_messages(*text_block(0, ["x"]), *block(1, start, changes), *message_end("end_turn", {}))
    assert found["content"] == [{"type": "text", "text": "x"}, wanted]


def test_what_a_message_s_end_tells_is_in_the_message() -> None:
    delta = {"stop_reason": "stop_sequence", "stop_sequence": "###", "container": {"id": "c"}}
    found = of_messages(
        typed("message_delta", delta=delta, usage={"output_tokens": 9}, context_management={"applied_edits": []}),
        typed("message_stop"),
    )
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "###")
    assert found["container"] == {"id": "c"}
    assert found["context_management"] == {"applied_edits": []}
    assert found["usage"] == {**USAGE, "output_tokens": 9}


def test_who_has_gone_on_with_a_message_is_its_model() -> None:
    start = {"type": "fallback", "from": {"model": "claude-x"}, "to": {"model": "claude-y"}}
    assert of_messages(block_start(0, start))["model"] == "claude-y"


@pytest.mark.parametrize("kind", [["x"], {"x": 1}, 5, None])
def test_a_deltas_type_that_is_no_name(kind: object) -> None:
    found = of_messages(*text_block(0, ["a"])[:-1], block_delta(0, {"type": kind, "text": "b", "marks": [1]}))
    assert found["content"] == [{"type": "text", "text": "ab", "marks": [1]}]


def test_deltas_without_a_start_are_not_lost() -> None:
    found = of_messages(block_delta(0, {"type": "text_delta", "text": "a"}))
    assert found["content"] == [{"type": "text", "text": "a"}]


def test_an_error_is_none_of_the_message() -> None:
    found = of_messages(*text_block(0, ["a"]), typed("error", error={"type": "overloaded_error", "message": "m"}))
    assert found["stop_reason"] is None
    assert "error" not in found


@pytest.mark.parametrize(
    "value", [{"a": 1, "b": [True, None, {"c": 'x,}]\\" {é🌍'}], "d": -1.25e-7, "e": {}, "f": [[], [[]]]}, [1, 2, "x"]]
)
def test_an_input_that_was_cut_anywhere_is_read(value: object) -> None:
    """What it has of the whole is right, wherever it ends."""

    def within(part: object, whole: object) -> bool:
        if isinstance(part, dict) and isinstance(whole, dict):
            return all(key in whole and within(part[key], whole[key]) for key in part)
        if isinstance(part, list) and isinstance(whole, list):
            return len(part) <= len(whole) and all(map(within, part, whole))
        if isinstance(part, int | float) and isinstance(whole, int | float):
            return str(whole).startswith(str(part).rstrip("0.")) or part == whole
        return part == whole

    text = json.dumps(value, ensure_ascii=False)
    assert read_cut_short(text) == value
    for end in range(1, len(text)):
        found = read_cut_short(text[:end])
        assert found == {} or within(found, value), text[:end]


@pytest.mark.parametrize("text", ["[" * 10**6, '"' + '\\"' * 10**6, "," * 10**6, '{"a":' * 10**5, "nonsense", ""])
def test_what_cannot_be_read_costs_little(text: str) -> None:
    began = time.perf_counter()
    assert read_cut_short(text) == {}
    assert time.perf_counter() - began < 5


# -- responses ------------------------------------------------------------------------------------------------

PART = {"type": "output_text", "text": "", "annotations": []}
MESSAGE = {"type": "message", "id": "msg_1", "role": "assistant", "status": "in_progress", "content": []}
AT = {"output_index": 0, "item_id": "msg_1", "content_index": 0}


def begun(*more: Body) -> list[Body]:
    return [
        *response_start(),
        typed("response.output_item.added", output_index=0, item=MESSAGE),
        typed("response.content_part.added", **AT, part=PART),
        typed("response.output_text.delta", **AT, delta="Hel", logprobs=[]),
        typed("response.output_text.delta", **AT, delta="lo"),
        *more,
    ]


WHOLE_ITEM = {**MESSAGE, "status": "completed", "content": [{**PART, "text": "Hello"}]}


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
def test_the_object_that_ends_a_response_is_the_answer(status: str) -> None:
    whole = response(status, [WHOLE_ITEM], usage={"total_tokens": 2}, vendor={"x": 1})
    assert assembled("responses", [*begun(), typed(f"response.{status}", response=whole)]) == whole


def test_items_are_put_into_an_end_without_any() -> None:
    end = response("completed", [], usage={"total_tokens": 2})
    done = typed("response.output_item.done", output_index=0, item=WHOLE_ITEM)
    assert assembled("responses", [*begun(done), typed("response.completed", response=end)]) == {
        **end,
        "output": [WHOLE_ITEM],
    }


def test_a_response_that_goes_on_is_as_far_as_it_has_come() -> None:
    found = assembled(
        "responses",
        begun(
            typed("response.output_text.annotation.added", **AT, annotation={"type": "url_citation", "url": "u"}),
            typed(
                "response.output_item.added",
                output_index=1,
                item={"type": "function_call", "id": "fc", "name": "f", "arguments": "", "status": "in_progress"},
            ),
            typed("response.function_call_arguments.delta", output_index=1, delta='{"a'),
            typed("response.output_item.added", output_index=2, item={"type": "reasoning", "id": "rs", "summary": []}),
            typed("response.reasoning_summary_text.delta", output_index=2, summary_index=0, delta="why"),
        ),
    )
    assert found == response(
        "in_progress",
        [
            {**MESSAGE, "content": [{**PART, "text": "Hello", "annotations": [{"type": "url_citation", "url": "u"}]}]},
            {"type": "function_call", "id": "fc", "name": "f", "arguments": '{"a', "status": "in_progress"},
            {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "why"}]},
        ],
    )


def test_a_response_that_failed_has_what_had_come_of_it() -> None:
    failed = response("failed", [], error={"code": "server_error", "message": "m"})
    found = assembled("responses", [*begun(), typed("response.failed", response=failed)])
    (item,) = found["output"]
    assert item["status"] == "incomplete"
    assert item["content"] == [{**PART, "text": "Hello"}]
    assert (found["status"], found["error"]["code"]) == ("failed", "server_error")


def test_whole_texts_count_where_deltas_are_missing() -> None:
    found = assembled("responses", begun(typed("response.output_text.done", **AT, text="Hello you")))
    assert found["output"][0]["content"][0]["text"] == "Hello you"


# -- all ------------------------------------------------------------------------------------------------------


def test_every_llm_api_has_its_answer() -> None:
    assert set(APIS) == set(ASSEMBLIES)
    assert set(ASSEMBLIES) <= set(DIALECTS)


def test_other_streams_are_their_events() -> None:
    assembly = assembly_of("sse")
    assembly.add(sse.Event(b"", b"hello\nworld"), "st_1.1")
    assembly.add(sse.Event(b"done", b"{}"), "st_1.2")
    assert written(assembly.content()) == [
        {"event": "message", "data": "hello\nworld", "id": "st_1.1"},
        {"event": "done", "data": "{}", "id": "st_1.2"},
    ]


@pytest.mark.parametrize("api", ASSEMBLIES)
def test_before_anything_has_come_there_is_nothing(api: str) -> None:
    assembly = assembly_of(api)
    assembly.add(sse.Event(b"", b"[DONE]"), "st_1.1")
    assembly.add(sse.Event(b"", b"no JSON"), "st_1.2")
    assembly.add(sse.Event(b"", b"[1]"), "st_1.3")
    assert assembly.content() is None


ODD: list[Any] = [
    None,
    True,
    0,
    -1.5,
    "",
    "x",
    [],
    [None],
    {},
    {"a": None},
    {"type": 1},
    {"index": "x"},
    [{"index": 0}],
]
NAMES = {
    "chat": ["id", "object", "choices", "usage", "x_groq"],
    "messages": ["type", "index", "message", "content_block", "delta", "usage"],
    "responses": ["type", "response", "item", "part", "output_index", "delta", "text", "annotation"],
}
CHOICE = ["index", "delta", "message", "text", "logprobs", "finish_reason"]
DELTA = ["role", "content", "tool_calls", "function_call", "audio", "reasoning_details"]


def _oddly(api: str) -> Iterable[list[Body]]:
    bases = {
        "chat": [chunk({"content": "a"}), tool_delta(0, "x", id="i", name="n")],
        "messages": [message_start(USAGE), *text_block(0, ["a"]), *message_end("end_turn", {"output_tokens": 1})],
        "responses": begun(),
    }[api]
    for odd in ODD:
        for at, body in enumerate(bases):
            for name in NAMES[api]:
                yield [*bases[:at], {**body, name: odd}, *bases[at:]]
        if api == "chat":
            for name in CHOICE:
                yield [
                    *bases,
                    {**bases[0], "choices": [odd, {"index": 0, "delta": {"content": "b"}, name: odd}]},
                    *bases,
                ]
            for name in DELTA:
                yield [
                    *bases,
                    chunk({name: odd}),
                    *bases,
                    chunk({name: "x"}),
                    chunk({name: [odd]}),
                    chunk({name: {"a": odd}}),
                ]
            for name in ("id", "type", "function", "index"):
                yield [*bases, chunk({"tool_calls": [{"index": 0, name: odd}]}), *bases]


@pytest.mark.parametrize("api", ASSEMBLIES)
def test_odd_members_break_nothing(api: str) -> None:
    for bodies in _oddly(api):
        assert assembled(api, bodies) is not None


# -- writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ASSEMBLIES)
def test_all_samples_are_read(api: Any) -> None:
    sample = SAMPLES[api]
    found = json.dumps(assembled(api, [event.data for event in sample.events]), ensure_ascii=False)
    assert ("Zürich" in found) == (api != "responses")  # whose whole text is another in its end


@pytest.mark.parametrize("case", FIRST_TOKENS)
def test_it_can_be_had_after_every_event_and_asking_changes_nothing(case: str) -> None:
    """Who looks at a stream that goes on sees it grow, and its end is what it is for who has not looked."""
    streamed = FIRST_TOKENS[case]
    looked_at, other = assembly_of(streamed.api), assembly_of(streamed.api)
    sizes = []
    for frame in streamed.events:
        for event in sse.Parser(1 << 16).feed(frame.encode()):
            looked_at.add(event, "")
            other.add(event, "")
            sizes.append(len(json.dumps(written(looked_at.content()))))
    assert written(looked_at.content()) == written(other.content())
    assert sizes[-1] > sizes[0]


def test_it_is_written_in_pieces() -> None:
    text = Text(*("wörd \u2028 😀\n" for _ in range(100_000)))
    whole = Grown(text=text, rows=Entries({"n": n} for n in range(3)), none=Grown())
    found = list(pieces(whole))
    assert max(map(len, found)) < 512 * 1024
    assert json.loads(b"".join(found)) == {"text": str(text), "rows": [{"n": 0}, {"n": 1}, {"n": 2}], "none": {}}


def test_a_character_may_be_cut_between_two_pieces() -> None:
    """Upstreams that cut text into UTF-16 units send half of a pair at a time."""
    parts = [("x" * 65535) + "\ud83d", "\ude00" + ("y" * 65536)]
    assert json.loads(b"".join(pieces(Text(*parts)))) == "x" * 65535 + "😀" + "y" * 65536


@pytest.mark.parametrize("value", [2**80, float("nan"), {"a": 10**30}])
def test_numbers_that_few_can_write_go_through(value: object) -> None:
    assert repr(json.loads(b"".join(pieces(value)))) in (repr(value), "None")


def test_what_is_nested_too_deeply_is_said_to_be() -> None:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(StreamFailure):
        list(pieces(value))


def test_base64_of_padded_pieces_is_one() -> None:
    data = bytes(range(256)) * 50
    deltas = [{"audio": {"data": base64.b64encode(data[at : at + 7]).decode()}} for at in range(0, len(data), 7)]
    assert base64.b64decode(message_of(*deltas)["audio"]["data"], validate=True) == data


@pytest.mark.parametrize("size", [64 * 1024 * 1024])
@pytest.mark.parametrize("api", ASSEMBLIES)
def test_a_large_stream_takes_time_in_proportion(api: str, size: int) -> None:
    """No step of it is longer than a large event takes, however long the answer is."""
    body, more = {
        "chat": (chunk({"content": "x" * 400}), []),
        "messages": (block_delta(0, {"type": "text_delta", "text": "x" * 400}), [message_start(USAGE)]),
        "responses": (typed("response.output_text.delta", **AT, delta="x" * 400), begun()),
    }[api]
    data = json.dumps(body).encode()
    assembly = assembly_of(api)
    for first in more:
        assembly.add(sse.Event(b"", json.dumps(first).encode()), "")
    event = sse.Event(b"", data)
    for _ in range(size // len(data) // 8):
        assembly.add(event, "")
    longest, total = 0.0, 0
    began = time.perf_counter()
    for piece in pieces(assembly.content()):
        longest = max(longest, time.perf_counter() - began)
        total += len(piece)
        began = time.perf_counter()
    assert total > size // 8 // len(data) * 400
    assert longest < 2
