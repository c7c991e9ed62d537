"""Going on with a text: which requests and answers are carried, what is asked, and what is shown of the rest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from relay.protocol.continuing import (
    LOCATED,
    ChatPartial,
    Differs,
    MessagesPartial,
    Partial,
    Prefill,
    carries,
    continued,
)
from relay.protocol.json_scan import Scanner
from tests.support import streams
from tests.support.streams import Body

TURN = {"role": "user", "content": "Count."}
CHAT: Body = {"model": "m", "stream": True, "messages": [TURN]}


class TestRequests:
    @pytest.mark.parametrize(
        "more",
        [
            {},
            {"max_tokens": 9, "temperature": 0, "stop": ["x"], "seed": 1},
            {"n": 1, "logprobs": False, "top_logprobs": 0, "response_format": {"type": "text"}},
            {"tools": [{"type": "function"}], "tool_choice": "auto"},
            {"unheard_of": None, "guided_json": {}},
            {"messages": [TURN, {"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]},
        ],
    )
    def test_carried(self, more: Body) -> None:
        assert carries("chat", {**CHAT, **more})

    @pytest.mark.parametrize(
        "more",
        [
            {"n": 2},
            {"logprobs": True},
            {"top_logprobs": 3},
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            {"guided_regex": "a+"},
            {"structured_outputs": {"choice": ["a"]}},
            {"tool_choice": "required"},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"reasoning_effort": "high"},
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"echo": True},
            {"modalities": ["text", "audio"]},
            {"unheard_of": 1},
            {"continue_final_message": True},
            {"messages": []},
            {"messages": "x"},
            {"messages": ["x"]},
            {"messages": [TURN, {"role": "assistant", "content": "The client's own"}]},
        ],
    )
    def test_not_carried(self, more: Body) -> None:
        assert not carries("chat", {**CHAT, **more})

    def test_only_apis_that_have_it(self) -> None:
        assert carries("messages", {**CHAT, "max_tokens": 9, "system": "s", "thinking": {"type": "disabled"}})
        assert not carries("responses", {**CHAT, "input": "x"})


def told(partial: Partial, bodies: Iterable[Body | str]) -> Partial:
    for body in bodies:
        kind = "" if isinstance(body, str) or partial_is_chat(partial) else body["type"]
        partial.see(kind.encode(), (body if isinstance(body, str) else json.dumps(body)).encode())
    return partial


def partial_is_chat(partial: Partial) -> bool:
    return isinstance(partial, ChatPartial)


def chat(words: Sequence[str], prefill: Prefill = "message", **more: Any) -> Partial:
    role = streams.chunk({"role": "assistant", "content": ""}, **more)
    return told(ChatPartial(prefill), [role, *(streams.chunk({"content": word}, **more) for word in words)])


def messages(words: Sequence[str]) -> Partial:
    start = streams.message_start({"input_tokens": 9, "output_tokens": 1})
    return told(MessagesPartial(), [start, *streams.text_block(0, words)[:-1]])


def asked(partial: Partial, body: bytes) -> bytes:
    scanner = Scanner(LOCATED)
    scanner.feed(body)
    return continued(body, scanner.finish(), partial)


class TestWhatIsAsked:
    @pytest.mark.parametrize(
        ("prefill", "member", "beside"),
        [
            ("continue_final_message", {}, {"continue_final_message": True, "add_generation_prompt": False}),
            ("prefix", {"prefix": True}, {}),
            ("prefix_echoed", {"prefix": True}, {}),
            ("message", {}, {}),
        ],
    )
    def test_each_spelling(self, prefill: Prefill, member: Body, beside: Body) -> None:
        sent = json.loads(asked(chat(["one ", "two"], prefill), json.dumps(CHAT).encode()))
        assert sent == {
            **CHAT,
            "messages": [TURN, {"role": "assistant", "content": "one two", **member}],
            **beside,
        }

    def test_of_messages(self) -> None:
        sent = json.loads(asked(messages(["one", " two\n"]), b'{"max_tokens": 9, "messages": [{"role": "user"}]}'))
        assert sent == {"max_tokens": 7, "messages": [{"role": "user"}, {"role": "assistant", "content": "one two"}]}

    def test_nothing_else_is_another_byte(self) -> None:
        body = b'{ "seed":12345678901234567890, "messages" : [ {"role":"user","content":"]}\\u00e9"} ] , "top_p": 1.0 }'
        sent = asked(chat(["a"]), body)
        added = b',{"role":"assistant","content":"a"}'
        assert sent == body.replace(b"} ] ,", b"} " + added + b"] ,")

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    def test_so_many_tokens_less(self, name: str) -> None:
        body = json.dumps({name: 10, **CHAT}).encode()
        assert json.loads(asked(chat(["a", "b", "c"]), body))[name] == 7

    def test_white_space_that_is_written_again_is_allowed_for(self) -> None:
        body = json.dumps({**CHAT, "max_tokens": 10}).encode()
        assert json.loads(asked(chat(["a", "b", " ", "\n"]), body))["max_tokens"] == 8

    def test_tokens_that_were_counted(self) -> None:
        partial = chat(["a b c"], usage={"prompt_tokens": 1, "completion_tokens": 3})
        assert json.loads(asked(partial, json.dumps({**CHAT, "max_tokens": 10}).encode()))["max_tokens"] == 7

    def test_an_answer_of_all_its_tokens(self) -> None:
        with pytest.raises(Differs, match="as many tokens"):
            asked(chat(["a", "b"]), json.dumps({**CHAT, "max_tokens": 2}).encode())

    @pytest.mark.parametrize("body", [b"{}", b'{"messages": 1}', b'{"messages": [1], "messages": [2]}'])
    def test_a_request_that_cannot_be_read(self, body: bytes) -> None:
        with pytest.raises(Differs):
            asked(chat(["a"]), body)


class TestAnswers:
    def test_of_text(self) -> None:
        for partial in (chat(["one ", "two"]), messages(["one ", "two"])):
            assert (partial.text, partial.tokens, partial.over, partial.obstacle) == ("one two", 2, False, "")

    @pytest.mark.parametrize(
        "more",
        [
            streams.tool_delta(0, "{", id="c", name="f"),
            streams.chunk({"reasoning_content": "Hm."}),
            streams.chunk({"refusal": "No."}),
            streams.chunk({"content": [{"type": "text", "text": "a"}]}),
            {**streams.chunk({"content": "b"}), "choices": [{"index": 1, "delta": {"content": "b"}}]},
            {"choices": [{"index": 0, "delta": {"content": "b"}, "logprobs": {"content": [1]}}]},
            "half an ev",
        ],
        ids=["tool", "reasoning", "refusal", "parts", "another choice", "logprobs", "no JSON"],
    )
    def test_chat_of_more(self, more: Body | str) -> None:
        assert told(chat(["a"]), [more]).obstacle

    @pytest.mark.parametrize(
        "more",
        [
            streams.block_delta(0, {"type": "citations_delta", "citation": {}}),
            streams.block_delta(1, {"type": "text_delta", "text": "b"}),
            streams.typed("content_block_stop", index=0),
            streams.block_start(1, {"type": "tool_use", "id": "t", "name": "f", "input": {}}),
        ],
    )
    def test_messages_of_more(self, more: Body) -> None:
        assert told(messages(["a"]), [more]).obstacle

    def test_messages_that_begin_otherwise(self) -> None:
        thinking = streams.block_start(0, {"type": "thinking", "thinking": ""})
        assert told(MessagesPartial(), [thinking]).obstacle

    @pytest.mark.parametrize("words", [[], ["\n"], ["a\ud83d"]])
    def test_without_a_text_to_send(self, words: list[str]) -> None:
        assert chat(words).obstacle
        assert messages(words).obstacle

    @pytest.mark.parametrize(
        "end",
        [
            streams.chunk({}, "stop"),
            streams.chunk({}, "error"),
            streams.chat_usage(1, 2),
            "[DONE]",
            {"error": {"message": "no"}},
            {"x_groq": {"error": "no"}},
        ],
    )
    def test_chat_that_has_come_to_an_end(self, end: Body | str) -> None:
        assert told(chat(["a"]), [end]).over

    @pytest.mark.parametrize("end", [*streams.message_end("end_turn", {"output_tokens": 1}), {"type": "error"}])
    def test_messages_that_have_come_to_an_end(self, end: Body) -> None:
        assert told(messages(["a"]), [end]).over

    def test_keep_alives_are_nothing(self) -> None:
        assert told(messages(["a"]), [{"type": "ping"}]).obstacle == ""
        assert told(chat(["a"]), [{"type": "ping"}]).obstacle == ""


def rest_of(partial: Partial, bodies: Iterable[Body | str]) -> list[Any]:
    """What is shown of the rest."""
    partial.begin()
    shown = []
    for body in bodies:
        kind = "" if isinstance(body, str) or partial_is_chat(partial) else body["type"]
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        shown += [event.data.decode() for event in partial.rewritten(kind.encode(), data)]
    return [data if data == "[DONE]" else json.loads(data) for data in shown]


def second(delta: Body | None, finish: str | None = None, **more: Any) -> Body:
    return {**streams.chunk(delta, finish, **more), "id": "chatcmpl-2", "created": 1770000000, "model": "gpt-y"}


class TestRests:
    def test_of_chat(self) -> None:
        usage = second(None, usage={"prompt_tokens": 9, "completion_tokens": 2})
        shown = rest_of(
            chat(["one"]),
            [
                second({"role": "assistant", "content": ""}),
                second({"content": " two"}),
                second({}, "stop"),
                usage,
                "[DONE]",
            ],
        )
        first = streams.chunk(None)
        assert [one["choices"][0]["delta"] for one in shown[:2]] == [{"content": " two"}, {}]
        assert shown[1]["choices"][0]["finish_reason"] == "stop"
        assert shown[2]["usage"] == {"prompt_tokens": 9, "completion_tokens": 2}
        assert shown[3] == "[DONE]"
        assert {(one["id"], one["created"], one["model"]) for one in shown[:3]} == {
            (first["id"], first["created"], first["model"])
        }

    def test_of_messages(self) -> None:
        partial = messages(["one"])
        whole = [streams.message_start({"input_tokens": 9}), *streams.text_block(0, [" two"])]
        end = streams.message_end("end_turn", {"output_tokens": 1})
        assert rest_of(partial, [*whole, *end]) == [*whole[2:], *end]
        assert partial.over

    def test_a_tool_that_follows_the_text(self) -> None:
        call = streams.block(1, {"type": "tool_use", "id": "t", "name": "f", "input": {}}, [])
        partial = messages(["one"])
        assert rest_of(partial, [*streams.text_block(0, [" two"]), *call])[-2:] == list(call)
        assert partial.obstacle
        also = chat(["one"])
        tool = second(streams.tool_delta(0, "{", id="c", name="f")["choices"][0]["delta"])
        assert len(rest_of(also, [tool])) == 1
        assert also.over, "what breaks now is not gone on with"

    @pytest.mark.parametrize("cut", range(1, 12))
    @pytest.mark.parametrize("make", [chat, messages])
    def test_the_joined_text(self, make: Any, cut: int) -> None:
        """Wherever it is cut, and whatever white space is there: what is sent and what comes are the whole text."""
        text = "a b\n\n c  d\te"
        partial = make([text[:cut]])
        rest = text[len(partial.sent()) :]
        pieces = [rest[at : at + 2] for at in range(0, len(rest), 2)]
        deltas: list[Body] = (
            [second({"content": piece}) for piece in pieces]
            if make is chat
            else list(streams.text_block(0, pieces)[:-1])
        )
        rest_of(partial, deltas)
        assert partial.text == text

    @pytest.mark.parametrize("pieces", [["one ", "two", " three"], ["one two three"], ["o", "ne two three"]])
    def test_an_echo_is_dropped(self, pieces: list[str]) -> None:
        partial = chat(["one ", "two"], "prefix_echoed")
        shown = rest_of(partial, [second({"role": "assistant", "content": piece}) for piece in pieces])
        assert [one["choices"][0]["delta"]["content"] for one in shown] == [" three"]
        assert partial.text == "one two three"

    @pytest.mark.parametrize("prefill", ["continue_final_message", "prefix", "message"])
    def test_a_text_that_repeats_itself_is_no_echo(self, prefill: Prefill) -> None:
        partial = chat(["ha", "ha"], prefill)
        rest_of(partial, [second({"content": "haha"})])
        assert partial.text == "hahahaha"

    @pytest.mark.parametrize(
        ("partial", "rest"),
        [
            (chat(["one", "\n"]), [second({"content": " two"})]),
            (messages(["one", "\n"]), streams.text_block(0, [" two"])),
            (chat(["one"], "prefix_echoed"), [second({"content": "on"}), second({"content": "ce"})]),
            (chat(["one"], "prefix_echoed"), [second({}, "stop")]),
            (chat(["one"]), [second({"reasoning_content": "Hm."})]),
            (chat(["one"]), ["half an ev"]),
            (messages(["one"]), streams.block(0, {"type": "thinking", "thinking": ""}, [])),
            (messages(["one"]), streams.block(0, {"type": "tool_use", "id": "t", "name": "f", "input": {}}, [])),
        ],
    )
    def test_that_do_not_follow(self, partial: Partial, rest: Sequence[Body | str]) -> None:
        with pytest.raises(Differs):
            rest_of(partial, rest)

    def test_white_space_at_the_end_need_not_come_again(self) -> None:
        assert len(rest_of(chat(["one", "\n"]), [second({}, "stop")])) == 1
        end = streams.message_end("end_turn", {"output_tokens": 0})
        assert len(rest_of(messages(["one", "\n"]), [*streams.text_block(0, []), *end])) == 3

    def test_an_error_is_told_as_it_is(self) -> None:
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "Busy."}}
        assert rest_of(messages(["one"]), [error]) == [error]
        assert rest_of(chat(["one"], "prefix_echoed"), [{"error": {"message": "Busy."}}]) == [
            {"error": {"message": "Busy."}}
        ]

    def test_one_that_breaks_off_too(self) -> None:
        partial = chat(["one"])
        rest_of(partial, [second({"content": " two"})])
        assert (partial.obstacle, partial.sent()) == ("", "one two")
        rest_of(partial, [second({"role": "assistant", "content": ""})])
        assert "no text" in partial.obstacle
