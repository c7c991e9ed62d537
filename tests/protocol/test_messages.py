"""Anthropic messages: every row of the grammar."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol.dialect import Usage
from relay.protocol.ends import END, ERROR, FAILURE, KEEP_ALIVE, TOKEN
from relay.protocol.messages import Messages
from relay.protocol.outcomes import Cause, Outcome
from relay.protocol.sse import Event
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

MESSAGES = Messages()


def watch() -> Followed:
    return Followed("messages", MESSAGES.watch())


def named(kind: str, **fields: Any) -> Event:
    return event({"type": kind, **fields}, kind.encode())


START = named("message_start", message={"id": "msg_1", "usage": {"input_tokens": 11, "output_tokens": 1}})


class TestFirstToken:
    @pytest.mark.parametrize(
        "delta",
        [
            {"type": "text_delta", "text": "Hi"},
            {"type": "thinking_delta", "thinking": "Let me"},
            {"type": "input_json_delta", "partial_json": "{"},
        ],
    )
    def test_a_delta(self, delta: dict[str, Any]) -> None:
        assert watch().see(named("content_block_delta", index=0, delta=delta)) & TOKEN

    def test_the_start_of_a_tool_call(self) -> None:
        block = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
        assert watch().see(named("content_block_start", index=0, content_block=block)) & TOKEN

    @pytest.mark.parametrize(
        "sent",
        [
            START,
            named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            named("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
            named("content_block_stop", index=0),
            named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}),
            named("content_block_start", index=0),
            named("an_event_of_the_upstreams_own", anything=1),
        ],
    )
    def test_nothing_else(self, sent: Event) -> None:
        assert not watch().see(sent) & TOKEN

    def test_a_ping_only_keeps_alive(self) -> None:
        assert watch().see(named("ping")) == KEEP_ALIVE

    def test_the_type_may_stand_on_the_event_line_alone(self) -> None:
        delta = {"index": 0, "delta": {"type": "text_delta", "text": "x"}}
        assert watch().see(event(delta, b"content_block_delta")) & TOKEN
        assert watch().see(event({}, b"message_stop")) == END

    def test_the_type_may_stand_in_the_json_alone(self) -> None:
        assert watch().see(event({"type": "message_stop"})) == END


class TestTheEnd:
    def test_message_stop(self) -> None:
        assert watch().see(named("message_stop")) == END

    def test_a_message_is_whole_but_for_its_last_event(self) -> None:
        w = watch()
        assert not w.ended_at_eof()
        w.see(START)
        assert not w.ended_at_eof()
        w.see(named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}))
        assert w.ended_at_eof()
        assert [e.type for e in w.left_out("req_1")] == [b"message_stop"]

    def test_with_a_block_open_it_is_not(self) -> None:
        w = watch()
        for sent in (START, named("content_block_start", index=0, content_block={"type": "text"})):
            w.see(sent)
        w.see(named("message_delta", delta={"stop_reason": "end_turn"}))
        assert not w.ended_at_eof()

    def test_a_done_is_not_malformed(self) -> None:
        assert watch().see(DONE_EVENT) & ERROR == 0


class TestErrors:
    @pytest.mark.parametrize(
        "sent",
        [
            named("error", error={"type": "overloaded_error", "message": "Overloaded"}),
            named("error", error={"type": "overloaded_error", "message": "Overloaded"}, request_id="req_9"),
            event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
            event({"error": {"type": "overloaded_error", "message": "Overloaded"}}, b"error"),
            event({"message": "Overloaded"}, b"error"),
            named("error", error="Overloaded"),
            event({"error": {"message": "Overloaded", "type": "server_error", "code": None}}),
        ],
    )
    def test_each_form(self, sent: Event) -> None:
        w = watch()
        assert w.see(sent) & (ERROR | FAILURE)
        assert w.error.message == "Overloaded"


class TestUsage:
    def test_input_at_the_start_and_output_at_the_end(self) -> None:
        w = watch()
        w.see(START)
        assert w.usage == Usage(11, 1)
        w.see(named("message_delta", delta={}, usage={"output_tokens": 7}))
        assert w.usage == Usage(11, 7)
        w.see(named("message_delta", delta={}, usage={"output_tokens": 9}))
        assert w.usage == Usage(11, 9)

    def test_the_last_word_on_the_input_counts(self) -> None:
        w = watch()
        w.see(START)
        w.see(named("message_delta", delta={}, usage={"input_tokens": 20, "output_tokens": 7}))
        assert w.usage == Usage(20, 7)

    def test_all_of_it_at_the_end(self) -> None:
        w = watch()
        w.see(named("message_start", message={"id": "msg_1"}))
        assert w.usage is None
        w.see(named("message_delta", delta={}, usage={"input_tokens": 20, "output_tokens": 7}))
        assert w.usage == Usage(20, 7)

    def test_it_comes_unasked(self) -> None:
        assert MESSAGES.asked_for_usage({})
        assert MESSAGES.ask_for_usage({"model": "m"}) is None


class TestWhatUpstreamsReallySend:
    @pytest.mark.parametrize(
        "data",
        [
            rb'{"type":"content_block_delta","delta":{"type":"text_delta","text":"\ud83d"}}',
            rb'{"type":"content_block_delta","delta":{"type":"text_delta","text":"x"},"p":NaN}',
            '{"type":"content_block_delta","delta":{"type":"text_delta","text":"\u2028\x85"}}'.encode(),
        ],
    )
    def test_is_accepted(self, data: bytes) -> None:
        assert watch().see(Event(b"content_block_delta", data)) & TOKEN

    def test_the_answers_own_id(self) -> None:
        w = watch()
        w.see(START)
        assert w.response_id == "msg_1"

    @pytest.mark.parametrize("data", NOT_OF_THE_FORMAT, ids=range(len(NOT_OF_THE_FORMAT)))
    def test_what_is_no_object_is_refused(self, data: bytes) -> None:
        refused(watch(), data)

    @pytest.mark.parametrize("kind", ["content_block_start", "content_block_stop", "content_block_delta"])
    @pytest.mark.parametrize("index", [[], {}, None, "0", 1.5, -1])
    def test_wrong_types_are_no_fault_of_the_relays(self, kind: str, index: object) -> None:
        never_a_fault_of_its_own(watch(), MESSAGES, {"type": kind, "index": index}, kind.encode())

    @given(
        hostile(
            ["type", "message", "id", "usage", "input_tokens", "output_tokens", "content_block", "index", "error"],
            ["message_start", "message_delta", "content_block_start", "tool_use", "error", "ping"],
        ),
        st.sampled_from([b"", b"error", b"message_start", b"\xff"]),
    )
    def test_no_json_is_a_fault_of_the_relays(self, message: dict[str, Any], kind: bytes) -> None:
        never_a_fault_of_its_own(watch(), MESSAGES, message, kind)


class TestStopped:
    @pytest.mark.parametrize("seen", range(5))
    def test_wherever_it_was_the_rest_makes_it_whole(self, seen: int) -> None:
        sent = [
            START,
            named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            named("content_block_delta", index=0, delta={"type": "text_delta", "text": "x"}),
            named("content_block_stop", index=0),
        ]
        w = watch()
        for known in sent[:seen]:
            w.see(known)
        rest = w.stop_events("req_1")
        assert [w.see(added) & (END | ERROR | FAILURE) for added in rest] == [0] * (len(rest) - 1) + [END]
        kinds = [json.loads(e.data)["type"] for e in [*sent[:seen], *rest]]
        assert [e.type.decode() for e in rest] == kinds[seen:]
        assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
        assert kinds.count("message_start") == 1
        assert kinds.count("content_block_start") == kinds.count("content_block_stop")


class TestErrorFrames:
    def test_bytes(self) -> None:
        sent = frames(MESSAGES, Cause.UPSTREAM_DISCONNECTED, "Gone.")
        assert sent.startswith(
            b'id: st_x.8\nevent: error\ndata: {"type":"error","error":{"type":"api_error","message":'
        )
        assert sent.endswith(b'"request_id":"req_1"}\n\n')
        assert sent.count(b"\n\n") == 1

    @pytest.mark.parametrize("cause", ABNORMAL)
    def test_of_each_cause(self, cause: Outcome) -> None:
        (error,) = MESSAGES.error_events(cause, 'It said "no"\nand 😀', 5, "req_1")
        assert error.type == b"error"
        body = json.loads(error.data)
        assert list(body) == ["type", "error", "request_id"]
        assert body["type"] == "error"
        assert body["request_id"] == "req_1"
        assert body["error"]["message"] == 'It said "no"\nand 😀'
        assert body["error"]["type"]
        assert body["error"]["code"] == cause.value

    def test_a_relay_behind_this_one_reads_them(self) -> None:
        (error,) = MESSAGES.error_events(Cause.SHUTDOWN, "Over.", None, "req_1")
        w = watch()
        assert w.see(error) & (ERROR | FAILURE)
        assert w.error.message == "Over."

    def test_the_heartbeat_is_a_ping_without_an_id(self) -> None:
        assert MESSAGES.event_heartbeat == b'event: ping\ndata: {"type":"ping"}\n\n'
