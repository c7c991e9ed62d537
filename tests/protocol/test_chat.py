"""Chat completions: every row of the grammar, and every spelling of it that upstreams use."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol.chat import Chat
from relay.protocol.dialect import Usage
from relay.protocol.ends import DONE_LINE, ERROR, FAILURE, HIDDEN, KEEP_ALIVE, PART, TOKEN
from relay.protocol.outcomes import Cause, Outcome
from relay.protocol.sse import Event, Parser
from tests.protocol.dialects import (
    ABNORMAL,
    DONE_EVENT,
    NOT_OF_THE_FORMAT,
    Followed,
    event,
    frames,
    hostile,
    never_a_fault_of_its_own,
    refused,
)

CHAT = Chat()


def watch(**options: bool) -> Followed:
    return Followed("chat", CHAT.watch(**options))


def chunk(delta: object = None, *, finish: str | None = None, index: int = 0, **more: Any) -> Event:
    choice = {"index": index, "delta": {} if delta is None else delta, "finish_reason": finish}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], **more})


def usage_chunk(given: int = 5, made: int = 7) -> Event:
    usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage})


class TestFirstToken:
    @pytest.mark.parametrize(
        "delta",
        [
            {"content": "Hi"},
            {"content": " "},
            {"content": "\n"},
            {"content": "0"},
            {"role": "assistant", "content": "Hi"},
            {"reasoning_content": "Let me"},
            {"reasoning": "Let me"},
            {"reasoning_details": [{"type": "reasoning.text", "text": "Let"}]},
            {"refusal": "I cannot"},
            {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}]},
            {"content": None, "reasoning_content": "x"},
            {"content": "", "tool_calls": [{"index": 0}]},
        ],
    )
    def test_a_token(self, delta: dict[str, Any]) -> None:
        assert watch().see(chunk(delta)) & TOKEN

    @pytest.mark.parametrize(
        "delta",
        [
            {"role": "assistant"},
            {"role": "assistant", "content": ""},
            {"role": "assistant", "content": None},
            {"role": "assistant", "content": "", "refusal": None},
            {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []},
            {"content": ""},
            {"reasoning_details": []},
            {"tool_calls": None},
            {},
            None,
        ],
    )
    def test_never_the_role_chunk_nor_an_empty_one(self, delta: dict[str, Any] | None) -> None:
        assert not watch().see(chunk(delta)) & ~PART

    def test_of_any_choice(self) -> None:
        two = {"choices": [{"index": 0, "delta": {"role": "assistant"}}, {"index": 1, "delta": {"content": "x"}}]}
        assert watch().see(event(two)) & TOKEN

    def test_it_may_stand_on_the_finish_chunk(self) -> None:
        assert watch().see(chunk({"content": "!"}, finish="stop")) & TOKEN

    @pytest.mark.parametrize("choices", [[], None])
    def test_a_chunk_without_choices_is_none(self, choices: object) -> None:
        assert not watch().see(event({"id": "x", "choices": choices, "prompt_filter_results": []})) & ~PART


class TestTheEnd:
    def test_done(self) -> None:
        assert watch().see(DONE_EVENT) == DONE_LINE

    def test_a_finish_reason_alone_does_not_end_it(self) -> None:
        w = watch()
        for reason in ("stop", "length", "tool_calls", "content_filter"):
            assert w.see(chunk(finish=reason)) & (DONE_LINE | ERROR | FAILURE) == 0

    def test_at_the_end_of_the_body_it_is_probably_complete(self) -> None:
        w = watch()
        w.see(chunk({"content": "Hi"}))
        assert not w.ended_at_eof()
        w.see(chunk(finish="stop"))
        assert w.ended_at_eof()

    def test_so_it_is_with_usage_after_the_finish_reason(self) -> None:
        w = watch()
        w.see(chunk({"content": "Hi"}))
        w.see(chunk(finish="stop"))
        w.see(usage_chunk())
        assert w.ended_at_eof()

    def test_every_choice_must_have_finished(self) -> None:
        w = watch()
        for index in (0, 1):
            w.see(chunk({"content": "Hi"}, index=index))
        w.see(chunk(finish="stop", index=0))
        assert not w.ended_at_eof()
        w.see(chunk(finish="length", index=1))
        assert w.ended_at_eof()

    def test_nothing_at_all_is_not_complete(self) -> None:
        assert not watch().ended_at_eof()

    def test_usage_ends_the_answer_of_an_upstream_without_finish_reasons(self) -> None:
        w = watch()
        w.see(chunk({"content": "Hi"}))
        w.see(usage_chunk())
        assert w.ended_at_eof()
        w.see(chunk({"content": "!"}))
        assert not w.ended_at_eof()

    @pytest.mark.parametrize("nothing", ["", "null", "None", "none"])
    def test_a_reason_that_says_nothing_is_none(self, nothing: str) -> None:
        w = watch()
        w.see(chunk({"content": "Hi"}, finish=nothing))
        assert not w.ended_at_eof()

    def test_a_choice_that_was_asked_for_and_never_began(self) -> None:
        w = Followed("chat", CHAT.watch(choices=2))
        w.see(chunk({"content": "Hi"}))
        w.see(chunk(finish="stop"))
        w.see(usage_chunk())
        assert not w.ended_at_eof()

    @pytest.mark.parametrize("reason", ["abort", "network_error", "insufficient_system_resource", "error"])
    def test_a_reason_that_is_a_failure_by_its_name(self, reason: str) -> None:
        w = watch()
        assert w.see(chunk(finish=reason)) & FAILURE
        assert w.error.code == reason


class TestErrors:
    ERROR = {"message": "Provider disconnected", "code": "provider_error"}  # noqa: RUF012

    @pytest.mark.parametrize(
        "sent",
        [
            event({"error": ERROR}),
            event({"error": ERROR}, b"error"),
            event({"error": ERROR, "choices": [{"finish_reason": "error"}]}),
            event({"error": ERROR, "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]}),
            event({"type": "error", "error": ERROR}, b"error"),
            event(ERROR, b"error"),
            event({"error": "Provider disconnected"}),
            event({"id": "x", "object": "chat.completion.chunk", "error": ERROR, "choices": []}),
        ],
    )
    def test_each_form(self, sent: Event) -> None:
        w = watch()
        assert w.see(chunk({"content": "Hi"})) & TOKEN
        assert w.see(sent) & (ERROR | FAILURE)
        assert w.error.message == "Provider disconnected"
        assert w.see(DONE_EVENT) & DONE_LINE
        assert w.ended_at_eof()

    def test_a_finish_reason_of_error_is_one(self) -> None:
        w = watch()
        assert w.see(chunk(finish="error")) & (ERROR | FAILURE)
        assert w.error

    def test_an_error_that_is_null_is_none(self) -> None:
        w = watch()
        assert w.see(chunk({"content": "Hi"}, error=None)) & TOKEN
        assert w.error is None


class TestUsage:
    def test_none(self) -> None:
        w = watch()
        w.see(chunk({"content": "Hi"}, usage=None))
        assert w.usage is None

    def test_on_a_chunk_of_its_own(self) -> None:
        w = watch()
        assert not w.see(usage_chunk()) & TOKEN
        assert w.usage == Usage(5, 7)

    def test_on_the_finish_chunk(self) -> None:
        w = watch()
        w.see(chunk(finish="stop", usage={"prompt_tokens": 5, "completion_tokens": 7}))
        assert w.usage == Usage(5, 7)

    def test_in_a_vendors_own_member(self) -> None:
        w = watch()
        w.see(chunk(finish="stop", x_groq={"id": "r", "usage": {"prompt_tokens": 5, "completion_tokens": 7}}))
        assert w.usage == Usage(5, 7)

    def test_on_every_chunk_the_last_counts(self) -> None:
        w = watch()
        for made in (1, 2, 3):
            w.see(chunk({"content": "x"}, usage={"prompt_tokens": 5, "completion_tokens": made}))
        assert w.usage == Usage(5, 3)

    @pytest.mark.parametrize("usage", [{}, {"prompt_tokens": None}, {"prompt_tokens": "5", "completion_tokens": True}])
    def test_what_is_no_count_is_not_counted(self, usage: dict[str, Any]) -> None:
        w = watch()
        w.see(event({"choices": [], "usage": usage}))
        assert w.usage == Usage(None, None)

    def test_the_relays_own_question_is_hidden(self) -> None:
        w = watch(hide_usage=True)
        assert w.see(chunk({"content": "Hi"}, usage=None)) & TOKEN
        w.see(chunk(finish="stop"))
        assert w.see(usage_chunk()) == HIDDEN
        assert w.usage == Usage(5, 7)

    def test_a_chunk_with_choices_is_never_hidden(self) -> None:
        w = watch(hide_usage=True)
        assert w.see(chunk({"content": "!"}, finish="stop", usage={"prompt_tokens": 5})) & TOKEN

    def test_a_chunk_without_usage_is_never_hidden(self) -> None:
        assert not watch(hide_usage=True).see(event({"choices": [], "prompt_filter_results": [{}]})) & ~PART

    @pytest.mark.parametrize(
        ("body", "asked"),
        [
            ({}, False),
            ({"stream_options": None}, False),
            ({"stream_options": {}}, False),
            ({"stream_options": {"include_usage": False}}, False),
            ({"stream_options": {"include_usage": True}}, True),
            ({"stream_options": "x"}, False),
        ],
    )
    def test_asking(self, body: dict[str, Any], asked: bool) -> None:
        before = json.dumps(body)
        assert CHAT.asked_for_usage(body) is asked
        question = CHAT.ask_for_usage(body)
        assert (question is None) is asked
        if question is not None:
            assert question["stream_options"]["include_usage"] is True
        assert json.dumps(body) == before

    def test_asking_keeps_the_other_options(self) -> None:
        body = {"model": "m", "stream_options": {"include_obfuscation": False}}
        assert CHAT.ask_for_usage(body) == {
            "model": "m",
            "stream_options": {"include_obfuscation": False, "include_usage": True},
        }


class TestWhatUpstreamsReallySend:
    @pytest.mark.parametrize(
        "data",
        [
            rb'{"choices":[{"index":0,"delta":{"content":"\ud83d"}}]}',
            rb'{"choices":[{"index":0,"delta":{"content":"x"},"logprobs":NaN}]}',
            rb'{"choices":[{"index":0,"delta":{"content":"x"},"score":-Infinity}]}',
            b'{"choices":[{"index":0,"delta":{"content":"\xed\xa0\xbd"}}]}',
            '{"choices":[{"index":0,"delta":{"content":"a\u2028b\x85"}}]}'.encode(),
            b'{"choices":[{"index":0,\n"delta":{"content":"x"}}]}',
            b' {"choices":[{"delta":{"content":"x"}}],"big":123456789012345678901234567890} ',
        ],
    )
    def test_is_accepted(self, data: bytes) -> None:
        assert watch().see(Event(b"", data)) & TOKEN

    def test_the_first_id_is_the_answers(self) -> None:
        w = watch()
        w.see(chunk({"role": "assistant"}))
        w.see(event({"id": "other", "choices": []}))
        assert w.response_id == "chatcmpl-1"

    @pytest.mark.parametrize("data", NOT_OF_THE_FORMAT, ids=range(len(NOT_OF_THE_FORMAT)))
    def test_what_is_no_object_is_refused(self, data: bytes) -> None:
        refused(watch(), data)

    @pytest.mark.parametrize(
        "message",
        [
            {"choices": 5},
            {"choices": True},
            {"choices": {"a": 1}},
            {"choices": "text"},
            {"choices": [None, 5, "x", []]},
            {"choices": [{"index": [], "finish_reason": "stop"}]},
            {"choices": [{"index": {}, "delta": {}}]},
            {"choices": [{"index": 0, "delta": {}}, {"index": None, "delta": {}}, {"index": "1", "delta": {}}]},
            {"choices": [{"delta": [1]}]},
            {"choices": [{"delta": 5, "finish_reason": {}}]},
            {"id": 5, "usage": [], "choices": []},
        ],
    )
    def test_wrong_types_are_no_fault_of_the_relays(self, message: dict[str, Any]) -> None:
        never_a_fault_of_its_own(watch(), CHAT, message, b"")

    @given(
        hostile(
            ["id", "choices", "delta", "index", "finish_reason", "usage", "prompt_tokens", "content", "error", "text"],
            ["stop", "error", "x"],
        ),
        st.sampled_from([b"", b"error", b"\xff"]),
    )
    def test_no_json_is_a_fault_of_the_relays(self, message: dict[str, Any], kind: bytes) -> None:
        never_a_fault_of_its_own(watch(), CHAT, message, kind)


class TestStopped:
    @pytest.mark.parametrize("seen", range(4))
    def test_wherever_it_was_the_rest_makes_it_whole(self, seen: int) -> None:
        sent = [chunk({"role": "assistant"}), chunk({"content": "Hi"}), chunk(finish="stop")]
        w = watch()
        for known in sent[:seen]:
            w.see(known)
        *rest, done = w.stop_events("req_1")
        assert done == DONE_EVENT
        assert not any(w.see(added) & TOKEN for added in rest)
        assert w.ended_at_eof()
        assert len(rest) == (0 if seen == 3 else 1)

    def test_what_an_upstream_may_send_may_be_in_it(self) -> None:
        w = watch()
        w.see(Event(b"", rb'{"id":"\ud83d","model":"\ud83d","created":NaN,"choices":[{"delta":{"content":"x"}}]}'))
        assert w.stop_events("req_1")


class TestErrorFrames:
    def test_bytes(self) -> None:
        assert frames(CHAT, Cause.UPSTREAM_DISCONNECTED, "Gone.") == (
            b'id: st_x.8\ndata: {"error":{"message":"Gone.","type":"server_error","param":null,'
            b'"code":"upstream_disconnected"}}\n\n'
            b"id: st_x.9\ndata: [DONE]\n\n"
        )

    @pytest.mark.parametrize("cause", ABNORMAL)
    def test_of_each_cause(self, cause: Outcome) -> None:
        error, done = CHAT.error_events(cause, 'It said "no"\nand 😀', 5, "req_1")
        assert done == DONE_EVENT
        assert error.type == b""
        body = json.loads(error.data)
        assert list(body) == ["error"]  # `choices` beside it would be silent truncation
        assert list(body["error"]) == ["message", "type", "param", "code"]
        assert body["error"]["code"] == cause.value
        assert body["error"]["message"] == 'It said "no"\nand 😀'

    def test_a_relay_behind_this_one_reads_them(self) -> None:
        w = watch()
        error, done = CHAT.error_events(Cause.SHUTDOWN, "Over.", None, "req_1")
        assert w.see(error) & (ERROR | FAILURE)
        assert w.see(done) & DONE_LINE

    def test_the_heartbeat_that_is_an_event_is_a_chunk_that_says_nothing(self) -> None:
        (event,) = Parser(1000).feed(CHAT.event_heartbeat)
        assert json.loads(event.data)["choices"] == []
        assert watch().see(event) == KEEP_ALIVE
