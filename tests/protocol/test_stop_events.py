"""What is written after a stopped stream, at every point of every format: a well-formed whole, and no second end."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from relay.protocol.apis import DIALECTS
from relay.protocol.dialect import DONE, Watch
from relay.protocol.ends import DONE_LINE, END
from relay.protocol.sse import Event, Parser
from tests.sdk import scenarios_chat as chat
from tests.sdk import scenarios_messages as messages
from tests.sdk import scenarios_responses as responses
from tests.support import streams

_CALLS = responses.whole(responses.message(0), responses.function_call(1))
_THOUGHTS = responses.whole(responses.reasoning(0), responses.message(1))
STREAMS: dict[tuple[str, str], tuple[str, ...]] = {
    ("chat", "plain"): chat.PLAIN,
    ("chat", "tools"): chat.TOOLS,
    ("messages", "plain"): messages.PLAIN,
    ("messages", "tools"): messages.TOOLS,
    ("messages", "thinking"): messages.THINKING,
    ("responses", "plain"): responses.frames(*responses.PLAIN),
    ("responses", "calls"): responses.frames(*_CALLS),
    ("responses", "thoughts"): responses.frames(*_THOUGHTS),
    ("responses", "unnumbered"): responses.frames(*_CALLS, numbered=False),
}
POINTS = [(api, name, at) for (api, name), sent in STREAMS.items() for at in range(len(sent))]


def watch(api: str, *frames: str) -> tuple[Watch, list[Event], int]:
    """A watch that has seen the frames, the events, and the bits of the last."""
    seen = DIALECTS[api].watch()
    events = list(Parser(1 << 20).feed("".join(frames).encode()))
    bits = 0
    for event in events:
        bits = seen.see(event)
    return seen, events, bits


def bodies(events: list[Event]) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in events if event.data != DONE]


def marked(sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The objects that say that the stream was stopped."""
    return [body for body in sent if body.get("relay") == "stopped"]


@pytest.mark.parametrize(("api", "name", "at"), POINTS)
def test_a_whole_at_every_point(api: str, name: str, at: int) -> None:
    seen, events, bits = watch(api, *STREAMS[api, name][:at])
    assert not bits & (END | DONE_LINE)
    whole = events + seen.stop_events("req_1")
    {"chat": whole_chat, "messages": whole_messages, "responses": whole_responses}[api](whole)
    again = DIALECTS[api].watch()
    assert [bool(again.see(event) & (END | DONE_LINE)) for event in whole] == [False] * (len(whole) - 1) + [True]


def whole_chat(events: list[Event]) -> None:
    assert events[-1].data == DONE
    chunks = bodies(events)
    assert len(chunks) == len(events) - 1
    finished = [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert finished == [0]
    assert [chunk["choices"][0]["finish_reason"] for chunk in marked(chunks)] in ([], ["length"])
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(event.type == b"" for event in events)


def whole_messages(events: list[Event]) -> None:
    sent = bodies(events)
    assert [event.type.decode() for event in events] == [body["type"] for body in sent]
    kinds = " ".join(body["type"] for body in sent if body["type"] != "ping")
    block = "content_block_start (content_block_delta )*content_block_stop "
    assert re.fullmatch(f"message_start ({block})*message_delta message_stop", kinds), kinds
    (mark,) = marked(sent)
    assert mark["type"] in ("message_delta", "message_stop")
    assert mark.get("delta", {}).get("stop_reason") in (None, "max_tokens")
    started = [body["index"] for body in sent if body["type"] == "content_block_start"]
    assert started == [body["index"] for body in sent if body["type"] == "content_block_stop"]


def whole_responses(events: list[Event]) -> None:
    sent = bodies(events)
    assert sent[0]["type"] == "response.created"
    assert [body["type"] for body in sent].count("response.completed") == 1
    final = sent[-1]["response"]
    assert marked(sent) == [sent[-1]]
    assert (sent[-1]["type"], final["status"]) == ("response.completed", "cancelled")
    assert final["id"] == sent[0]["response"]["id"]
    assert final["usage"]["total_tokens"] == 0
    numbers = [body["sequence_number"] for body in sent if "sequence_number" in body]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    # The SDKs' helpers raise where an item that was begun is missing from the final output.
    begun = [body["item"]["id"] for body in sent if body["type"] == "response.output_item.added"]
    assert [item["id"] for item in final["output"]] == begun


def test_an_unfinished_items_text_is_in_the_final_output() -> None:
    sent = responses.frames(*_CALLS)
    calling = next(n for n, body in enumerate(_CALLS) if body["type"] == "response.function_call_arguments.delta")
    writing = next(n for n, body in enumerate(_CALLS) if body["type"] == "response.output_text.delta")
    seen, _, _ = watch("responses", *sent[: writing + 2])
    (text,) = bodies(seen.stop_events("req_1"))[-1]["response"]["output"]
    assert [part["text"] for part in text["content"]] == ["Hello "]
    assert text["status"] == "incomplete"
    seen, _, _ = watch("responses", *sent[: calling + 2])
    whole, call = bodies(seen.stop_events("req_1"))[-1]["response"]["output"]
    assert whole == _CALLS[calling - 2]["item"]
    assert (call["call_id"], call["arguments"], call["status"]) == ("call_a", '{"city": "Par', "incomplete")


def test_an_unfinished_summary_is_in_the_final_output() -> None:
    at = next(n for n, b in enumerate(_THOUGHTS) if b["type"] == "response.reasoning_summary_text.delta")
    seen, _, _ = watch("responses", *responses.frames(*_THOUGHTS)[: at + 1])
    (item,) = bodies(seen.stop_events("req_1"))[-1]["response"]["output"]
    assert item["summary"] == [{"type": "summary_text", "text": "Think "}]


def test_every_choice_of_a_chat_is_finished() -> None:
    def chunk(index: int, reason: str | None) -> str:
        return streams.data(
            {"id": "c", "choices": [{"index": index, "delta": {"content": "x"}, "finish_reason": reason}]}
        )

    seen, _, _ = watch("chat", chunk(0, None), chunk(1, None), chunk(2, None), chunk(1, "stop"))
    last, done = seen.stop_events("req_1")
    assert [choice["index"] for choice in json.loads(last.data)["choices"]] == [0, 2]
    assert done.data == DONE


@pytest.mark.parametrize(
    "error",
    [
        streams.data({"error": chat.ERROR}),
        streams.chat(None, error=chat.ERROR, choices=[chat.ERROR_CHOICE]),
    ],
)
def test_a_failed_chat_is_not_made_a_success(error: str) -> None:
    seen, _, _ = watch("chat", *chat.PLAIN[:3], error)
    assert [event.data for event in seen.stop_events("req_1")] in ([], [DONE])


def test_a_response_that_is_over_has_no_second_end() -> None:
    for last in (responses.PLAIN[-1], responses.FAILED, responses.FLAT_ERROR):
        seen, _, _ = watch("responses", *responses.frames(*responses.PLAIN[:-1], last))
        assert seen.stop_events("req_1") == []


@pytest.mark.parametrize("at", range(len(chat.PLAIN)))
def test_a_chat_that_was_stopped_says_so_unless_its_text_was_whole(at: int) -> None:
    seen, _, _ = watch("chat", *chat.PLAIN[:at])
    told = marked(bodies(seen.stop_events("req_1")))
    assert len(told) == (chat.STOP not in chat.PLAIN[:at])
