"""OpenAI responses: every row of the grammar."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol.dialect import Usage
from relay.protocol.ends import DONE_LINE, END, ERROR, FAILURE, KEEP_ALIVE, PART, TOKEN
from relay.protocol.outcomes import Cause, Outcome
from relay.protocol.responses import Responses
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

RESPONSES = Responses()


def watch() -> Followed:
    return Followed("responses", RESPONSES.watch())


def typed(kind: str, **fields: Any) -> Event:
    return event({"type": kind, **fields}, kind.encode())


class TestFirstToken:
    @pytest.mark.parametrize(
        "kind",
        [
            "output_text",
            "reasoning_text",
            "reasoning_summary_text",
            "refusal",
            "function_call_arguments",
            "custom_tool_call_input",
        ],
    )
    def test_a_delta(self, kind: str) -> None:
        assert watch().see(typed(f"response.{kind}.delta", delta="x")) & TOKEN
        assert not watch().see(typed(f"response.{kind}.done")) & ~PART

    def test_a_function_call_added(self) -> None:
        item = {"type": "function_call", "name": "f", "arguments": ""}
        assert watch().see(typed("response.output_item.added", item=item)) & TOKEN

    @pytest.mark.parametrize(
        "sent",
        [
            typed("response.created", response={"id": "resp_1"}),
            typed("response.in_progress", response={"id": "resp_1"}),
            typed("response.queued", response={"id": "resp_1"}),
            typed("response.output_item.added", item={"type": "message"}),
            typed("response.output_item.added", item={"type": "reasoning"}),
            typed("response.output_item.added"),
            typed("response.content_part.added", part={"type": "output_text", "text": ""}),
            typed("response.reasoning_summary_part.added"),
            typed("response.output_item.done", item={"type": "function_call"}),
            typed("an.event.of.the.upstreams.own"),
        ],
    )
    def test_nothing_else(self, sent: Event) -> None:
        assert not watch().see(sent) & ~PART

    def test_the_event_line_is_optional(self) -> None:
        assert watch().see(event({"type": "response.output_text.delta", "delta": "x"})) & TOKEN
        assert watch().see(event({"delta": "x"}, b"response.output_text.delta")) & TOKEN


class TestTheEnd:
    @pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
    def test_complete_or_cut_short_by_a_limit(self, kind: str) -> None:
        w = watch()
        assert not w.ended_at_eof()
        assert w.see(typed(kind, response={"id": "resp_1"})) == END
        assert w.ended_at_eof()
        assert w.error is None

    def test_a_done_may_follow(self) -> None:
        w = watch()
        w.see(typed("response.completed", response={}))
        assert w.see(DONE_EVENT) == DONE_LINE

    def test_failed(self) -> None:
        w = watch()
        response = {"id": "resp_1", "error": {"code": "server_error", "message": "Broken"}}
        assert w.see(typed("response.failed", response=response)) & (ERROR | FAILURE)
        assert w.error.message == "Broken"
        assert w.see(DONE_EVENT) & DONE_LINE

    @pytest.mark.parametrize("response", [None, {}, {"error": None}, {"error": "x"}, 5])
    def test_failed_without_words(self, response: object) -> None:
        assert watch().see(typed("response.failed", response=response)) & (ERROR | FAILURE)

    def test_deltas_alone_are_no_end(self) -> None:
        w = watch()
        w.see(typed("response.output_text.delta", delta="x"))
        w.see(typed("response.output_item.done", item={}))
        assert not w.ended_at_eof()


class TestErrors:
    @pytest.mark.parametrize(
        "sent",
        [
            typed("error", code="server_error", message="Broken", param=None, sequence_number=3),
            typed("error", error={"type": "server_error", "code": "x", "message": "Broken", "param": None}),
            event({"type": "error", "message": "Broken"}),
            event({"error": {"message": "Broken", "code": "x"}}, b"error"),
            event({"message": "Broken"}, b"error"),
            event({"error": {"message": "Broken", "type": "server_error", "param": None, "code": "x"}}),
            event({"error": "Broken"}),
        ],
    )
    def test_each_form(self, sent: Event) -> None:
        w = watch()
        assert w.see(sent) & (ERROR | FAILURE)
        assert w.error.message == "Broken"
        assert w.ended_at_eof()

    def test_an_error_field_that_is_null_is_none(self) -> None:
        w = watch()
        assert not w.see(typed("response.created", response={"id": "resp_1", "error": None}, error=None)) & ~PART
        assert w.error is None


class TestUsage:
    @pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
    def test_in_the_terminal_event(self, kind: str) -> None:
        w = watch()
        w.see(typed("response.created", response={"id": "resp_1", "usage": None}))
        assert w.usage is None
        w.see(typed(kind, response={"id": "resp_1", "usage": {"input_tokens": 5, "output_tokens": 7}}))
        assert w.usage == Usage(5, 7)

    def test_it_comes_unasked(self) -> None:
        assert RESPONSES.asked_for_usage({})
        assert RESPONSES.ask_for_usage({"model": "m"}) is None


class TestSequence:
    def test_the_last_is_kept(self) -> None:
        w = watch()
        for n in (0, 1, 2):
            w.see(typed("response.output_text.delta", delta="x", sequence_number=n))
        assert w.last_sequence == 2
        w.see(typed("response.output_text.delta", delta="x"))
        assert w.last_sequence == 2

    def test_an_upstream_without_any_keeps_none(self) -> None:
        w = watch()
        w.see(typed("response.output_text.delta", delta="x"))
        assert w.last_sequence is None

    @pytest.mark.parametrize("sequence", [None, "3", True, 1.5, [], {}])
    def test_what_is_no_number_is_none(self, sequence: object) -> None:
        w = watch()
        w.see(typed("response.created", sequence_number=sequence))
        assert w.last_sequence is None

    @pytest.mark.parametrize("sequence", [-1, 0, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30])
    def test_no_number_keeps_the_end_from_being_said(self, sequence: int) -> None:
        never_a_fault_of_its_own(watch(), RESPONSES, {"type": "response.created", "sequence_number": sequence}, b"")


class TestWhatUpstreamsReallySend:
    @pytest.mark.parametrize(
        "data",
        [
            rb'{"type":"response.output_text.delta","delta":"\ud83d"}',
            rb'{"type":"response.output_text.delta","delta":"x","logprobs":[NaN]}',
            '{"type":"response.output_text.delta","delta":"\u2028\x85"}'.encode(),
        ],
    )
    def test_is_accepted(self, data: bytes) -> None:
        assert watch().see(Event(b"response.output_text.delta", data)) & TOKEN

    def test_the_answers_own_id(self) -> None:
        w = watch()
        w.see(typed("response.created", response={"id": "resp_1"}))
        w.see(typed("response.completed", response={"id": "resp_2"}))
        assert w.response_id == "resp_1"

    @pytest.mark.parametrize("data", NOT_OF_THE_FORMAT, ids=range(len(NOT_OF_THE_FORMAT)))
    def test_what_is_no_object_is_refused(self, data: bytes) -> None:
        refused(watch(), data)

    @pytest.mark.parametrize(
        "message",
        [{"type": []}, {"type": {}}, {"type": ["response.completed"]}, {"type": 5}, {"type": True}, {"item": 1}],
    )
    def test_wrong_types_are_no_fault_of_the_relays(self, message: dict[str, Any]) -> None:
        never_a_fault_of_its_own(watch(), RESPONSES, message, b"")

    @given(
        hostile(
            ["type", "response", "id", "usage", "input_tokens", "item", "error", "message", "sequence_number", "code"],
            ["response.completed", "response.failed", "response.output_item.added", "function_call", "error"],
        ),
        st.sampled_from([b"", b"error", b"response.failed", b"\xff"]),
    )
    def test_no_json_is_a_fault_of_the_relays(self, message: dict[str, Any], kind: bytes) -> None:
        never_a_fault_of_its_own(watch(), RESPONSES, message, kind)


class TestStopped:
    @pytest.mark.parametrize("seen", range(4))
    def test_wherever_it_was_the_rest_makes_it_whole(self, seen: int) -> None:
        sent = [
            typed("response.created", response={"id": "resp_1", "output": []}, sequence_number=0),
            typed("response.output_text.delta", delta="x", sequence_number=1),
            typed("response.output_item.done", item={"type": "message", "id": "msg_1"}, sequence_number=2),
        ]
        w = watch()
        for known in sent[:seen]:
            w.see(known)
        rest = w.stop_events("req_1")
        assert [w.see(added) & (END | ERROR | FAILURE) for added in rest] == [0] * (len(rest) - 1) + [END]
        messages = [json.loads(e.data) for e in [*sent[:seen], *rest]]
        assert [message["sequence_number"] for message in messages] == list(range(len(messages)))
        assert [e.type.decode() for e in rest] == [message["type"] for message in messages[seen:]]
        assert messages[0]["type"] == "response.created"
        assert messages[-1]["type"] == "response.completed"
        assert messages[-1]["response"]["output"] == ([{"type": "message", "id": "msg_1"}] if seen == 3 else [])

    @pytest.mark.parametrize("value", [rb'"\ud83d"', b"NaN", b"[NaN,123456789012345678901234567890]"])
    def test_what_an_upstream_may_send_may_be_in_it(self, value: bytes) -> None:
        w = watch()
        w.see(Event(b"", b'{"type":"response.output_item.done","item":{"x":' + value + b"}}"))
        assert w.stop_events("req_1")


class TestErrorFrames:
    def test_bytes(self) -> None:
        assert frames(RESPONSES, Cause.UPSTREAM_DISCONNECTED, "Gone.", 41) == (
            b'id: st_x.8\nevent: error\ndata: {"type":"error","sequence_number":42,"code":"upstream_disconnected",'
            b'"message":"Gone.","param":null,"error":{"type":"server_error","code":"upstream_disconnected",'
            b'"message":"Gone.","param":null}}\n\n'
            b'id: st_x.9\nevent: response.failed\ndata: {"type":"response.failed","sequence_number":43,'
            b'"response":{"id":"resp_req_1","object":"response","created_at":0,"status":"failed","model":"",'
            b'"output":[],"parallel_tool_calls":true,"tool_choice":"auto","tools":[],'
            b'"error":{"code":"upstream_disconnected","message":"Gone."}}}\n\n'
        )

    @pytest.mark.parametrize("cause", ABNORMAL)
    def test_of_each_cause_flat_and_nested(self, cause: Outcome) -> None:
        error, failed = RESPONSES.error_events(cause, 'It said "no"\nand 😀', 5, "req_1")
        assert json.loads(failed.data)["sequence_number"] == 7
        assert error.type == b"error"
        body = json.loads(error.data)
        assert list(body) == ["type", "sequence_number", "code", "message", "param", "error"]
        assert (body["type"], body["sequence_number"], body["param"]) == ("error", 6, None)
        assert list(body["error"]) == ["type", "code", "message", "param"]
        for part in (body, body["error"]):
            assert part["code"] == cause.value
            assert part["message"] == 'It said "no"\nand 😀'

    def test_a_relay_behind_this_one_reads_them(self) -> None:
        error, failed = RESPONSES.error_events(Cause.SHUTDOWN, "Over.", None, "req_1")
        w = watch()
        assert w.watch.see(failed) & FAILURE
        assert w.see(error) & (ERROR | FAILURE)
        assert w.error.message == "Over."

    def test_the_heartbeat_that_is_an_event_has_no_number_and_goes_no_further_than_the_next_relay(self) -> None:
        (event,) = Parser(1000).feed(RESPONSES.event_heartbeat)
        assert event == (b"keepalive", b'{"type":"keepalive"}')
        w = watch()
        assert w.watch.see(event) == KEEP_ALIVE
        assert w.watch.last_sequence is None

    @pytest.mark.parametrize(
        ("message", "code"),
        [
            ("The upstream answered 429: Slow. Try again in 7 seconds.", "rate_limit_exceeded"),
            ("The upstream reported 429: Slow.", "rate_limit_exceeded"),
            ("The upstream answered 529: Busy.", "upstream_refused"),
            ("The upstream answered 503: Busy.", "upstream_refused"),
            ("The upstream answered 400: No.", "upstream_refused"),
        ],
    )
    def test_a_late_refusal_is_failed_with_a_code_after_which_agents_ask_again(self, message: str, code: str) -> None:
        error, failed = RESPONSES.error_events(Cause.UPSTREAM_REFUSED, message, None, "req_1")
        assert json.loads(error.data)["code"] == "upstream_refused"
        assert json.loads(failed.data)["response"]["error"] == {"code": code, "message": message}

    def test_what_is_left_out_of_an_error_has_no_code_at_which_agents_give_up(self) -> None:
        w = watch().watch
        w.see(Event(b"error", b'{"type":"error","code":"server_is_overloaded","message":"Busy."}'))
        (failed,) = w.left_out("req_1")
        assert json.loads(failed.data)["response"]["error"] == {"code": "server_error", "message": "Busy."}
