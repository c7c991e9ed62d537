"""The formats of an application's streams, on what their own libraries write: known by what they are, whole with their
own end, and at every point before it ended by the relay as that library's clients read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from relay.protocol.application import Application
from relay.protocol.dialect import DONE, Watch
from relay.protocol.end_mark import closing_events, error_frames
from relay.protocol.ends import ENDS, TOKEN, Act, Name, State, name_of
from relay.protocol.headers import Headers
from relay.protocol.json_rpc import requests_of
from relay.protocol.outcomes import Cause, Ending
from relay.protocol.plain_events import PlainEvents
from relay.protocol.sse import Event, Parser, encode
from tests.support import streams

RECORDED = Path(__file__).parent / "recorded"
UI: Headers = [(b"X-Vercel-AI-UI-Message-Stream".lower(), b"v1")]
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}'
Bodies = list[tuple[str, dict[str, Any]]]
IMAGES: Bodies = [
    ("image_generation.partial_image", {"b64_json": "AA==", "partial_image_index": 0}),
    ("image_generation.completed", {"b64_json": "AA==", "usage": {"total_tokens": 1}}),
]
TRANSCRIPT: Bodies = [("transcript.text.delta", {"delta": "Hi"}), ("transcript.text.done", {"text": "Hi"})]
SPEECH: Bodies = [("speech.audio.delta", {"audio": "AA=="}), ("speech.audio.done", {"usage": {}})]


def typed(*bodies: tuple[str, dict[str, Any]], named: bool = True) -> str:
    return "".join(streams.data({"type": kind, **body}, kind if named else "") for kind, body in bodies)


def completion(text: str, finish: str | None = None) -> str:
    choices = [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]
    return streams.data({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": choices})


WHOLE: dict[str, str] = {
    **{path.stem: path.read_text(encoding="utf-8") for path in sorted(RECORDED.glob("*.sse"))},
    "images": typed(*IMAGES),
    "images_unnamed": typed(*IMAGES, named=False),
    "edits": typed(*[(kind.replace("generation", "edit"), body) for kind, body in IMAGES]),
    "transcript": typed(*TRANSCRIPT),
    "speech": typed(*SPEECH),
    "completions": completion("Hi") + completion("", "stop") + streams.DONE,
    "chat": streams.chat({"content": "Hi"}) + streams.chat({}, "stop") + streams.DONE,
    "plain": "data: one\n\nevent: two\ndata: 2\n\ndata:\n\n",
    "plain_json": 'data: {"type":"start"}\n\ndata: {"delta":"x"}\n\n',
    "ended": 'data: one\n\nevent: done\ndata: {"n":1}\n\n',
    "ended_by_data": "data: one\n\ndata: [DONE]\n\n",
}
FAILED = ("ui_messages_error", "ag_ui_error")
NAMES = tuple(WHOLE)
each = pytest.mark.parametrize("name", NAMES)
ENDS_OF = {"ended": b"done", "ended_by_data": b"[DONE]"}
# A clean end in the middle of these is the end.
WITHOUT_END = ("plain", "plain_json")


class Play:
    """A watch on a stream, and what its table makes of it."""

    def __init__(self, name: str) -> None:
        requests = requests_of(CALL) if name.startswith("mcp") else ()
        self.dialect = Application(ENDS_OF.get(name, b""), requests)
        self.watch: Watch = self.dialect.watch()
        self.headers = UI if name.startswith("ui_") else []
        self.watch.begin(self.headers)
        self.state = State.NOTHING
        self.outcome: Act | None = None
        self.bits: list[int] = []

    def see(self, *events: Event) -> Play:
        for event in events:
            assert self.outcome is None, "an event after the end"
            bits = self.watch.see(event)
            self.bits.append(bits)
            cell = ENDS[self.watch.grammar][self.state][name_of(bits)]
            if isinstance(cell, State):
                self.state = cell
            else:
                self.outcome = cell
        return self

    def at(self, end: Name) -> Act:
        if self.outcome is not None:
            return self.outcome
        cell = ENDS[self.watch.grammar][self.state][end]
        assert isinstance(cell, Act)
        return cell


def parsed(text: str) -> list[Event]:
    return list(Parser(1 << 20, verbatim=True).feed(text.encode()))


@each
def test_whole_it_is_complete_or_its_own_error(name: str) -> None:
    play = Play(name).see(*parsed(WHOLE[name]))
    assert play.at(Name.CLEAN_END) is (Act.FAIL if name in FAILED else Act.COMPLETE)
    assert (play.watch.error is not None) is (name in FAILED)
    assert play.bits[0] & TOKEN


@each
def test_cut_anywhere_before_its_end_it_is_not(name: str) -> None:
    events = parsed(WHOLE[name])
    for n in range(1, len(events)):
        play = Play(name).see(*events[:n])
        if play.watch.error is None and play.state is not State.FINISHED:
            assert play.at(Name.CUT) is Act.CUT_OFF
            assert play.at(Name.CLEAN_END) is (Act.COMPLETE if name in WITHOUT_END else Act.CUT_OFF)
            assert play.at(Name.SILENCE) is Act.TIMED_OUT


@each
def test_every_event_is_forwarded_as_it_was(name: str) -> None:
    for event in parsed(WHOLE[name]):
        assert parsed(encode(event, b"st_x.1").decode()) == [event]


@each
@pytest.mark.parametrize("outcome", [Cause.SHUTDOWN, Cause.UPSTREAM_DISCONNECTED, Ending.STOPPED, Ending.ABANDONED])
def test_at_every_point_the_relay_can_end_it(name: str, outcome: Cause | Ending) -> None:
    """What it adds is the format's own, and ends the stream for the format's own clients."""
    events = parsed(WHOLE[name])
    for n in range(len(events)):
        play = Play(name).see(*events[:n])
        if play.outcome is not None:
            continue
        closing = closing_events(play.dialect, play.watch, outcome, "It ended.", "req_1")
        assert closing
        if n and play.watch.error is None and play.state is not State.FINISHED:
            assert play.see(*closing).at(Name.CLEAN_END) in (Act.COMPLETE, Act.FAIL, Act.WHOLE)


@each
def test_a_reader_elsewhere_is_told_in_the_same_format(name: str) -> None:
    """A replica that has the log alone knows the format by the first frame, and the AI SDK's by the kept headers."""
    events = parsed(WHOLE[name])[: 2 if name == "mcp_call_with_ids" else 1]  # its first one only names a position
    frames = [encode(event, b"st_x.%d" % n) for n, event in enumerate(events, 1)]
    play = Play(name).see(*events)
    here = closing_events(play.dialect, play.watch, Cause.PRODUCER_LOST, "Gone.", "req_1")
    elsewhere = Application().of(play.headers)
    there = parsed(error_frames(elsewhere, "producer_lost", "st_x", 1, frames[-1], "req_1", frames[0]).decode())
    if name.startswith("mcp"):  # which request it was is not known there
        assert json.loads(there[0].data)["method"] == "notifications/message"
    else:
        assert [event.type for event in there] == [event.type for event in here]
        assert [json.loads(e.data).keys() for e in there if e.data != DONE] == [
            json.loads(e.data).keys() for e in here if e.data != DONE
        ]


def last(name: str, n: int, outcome: Cause | Ending) -> list[Any]:
    play = Play(name).see(*parsed(WHOLE[name])[:n])
    events = closing_events(play.dialect, play.watch, outcome, "It ended.", "req_1")
    return [event.data.decode() if event.data[:1] != b"{" else json.loads(event.data) for event in events]


class TestUiMessages:
    def test_an_error_and_a_stop_have_no_member_that_its_clients_do_not_know(self) -> None:
        error = {"type": "error", "errorText": "It ended. (shutdown)"}
        assert last("ui_messages_tool", 4, Cause.SHUTDOWN) == [error, "[DONE]"]
        assert last("ui_messages_tool", 4, Ending.STOPPED) == [{"type": "abort"}, "[DONE]"]

    def test_its_own_error_is_the_streams(self) -> None:
        play = Play("ui_messages_error").see(*parsed(WHOLE["ui_messages_error"]))
        assert play.outcome is Act.FAIL
        assert play.watch.error is not None
        assert play.watch.error.message == "It failed."

    def test_a_stream_without_its_header_is_plain(self) -> None:
        play = Play("plain").see(*parsed(WHOLE["ui_messages_custom"]))
        assert isinstance(play.watch.format, PlainEvents)
        assert play.at(Name.CLEAN_END) is Act.COMPLETE

    def test_what_only_quotes_its_last_parts_is_none_of_them(self) -> None:
        text = streams.data({"type": "text-delta", "id": "1", "delta": '{"type":"finish"} "error"'})
        part = streams.data({"type": "data-x", "data": {"type": "error", "kind": "finish"}})
        play = Play("ui_messages_tool").see(*parsed(text + part))
        assert (play.state, play.watch.error) == (State.BEGUN, None)


class TestAgUi:
    def test_what_is_open_is_closed_before_a_stop_finishes_the_run(self) -> None:
        run = {"threadId": "thread-1", "runId": "run-1", "result": {"relay": "stopped"}}
        finished = {"type": "RUN_FINISHED", **run}
        assert last("ag_ui_run", 1, Ending.STOPPED) == [finished]
        step = {"type": "STEP_FINISHED", "stepName": "agent"}
        assert last("ag_ui_run", 4, Ending.STOPPED) == [{"type": "TEXT_MESSAGE_END", "messageId": "m1"}, step, finished]
        assert last("ag_ui_run", 8, Ending.STOPPED) == [
            {"type": "TOOL_CALL_END", "toolCallId": "call_1"},
            step,
            finished,
        ]
        assert last("ag_ui_run", 17, Ending.STOPPED) == [finished]

    def test_an_error(self) -> None:
        assert last("ag_ui_run", 4, Cause.SHUTDOWN) == [
            {"type": "RUN_ERROR", "message": "It ended.", "code": "shutdown"}
        ]

    def test_another_run_is_not_over_with_the_one_before_it(self) -> None:
        events = parsed(WHOLE["ag_ui_two_runs"])
        states = [Play("ag_ui_two_runs").see(*events[:n]).state for n in (4, 5, 8, 9)]
        assert states == [State.FINISHED, State.BEGUN, State.BEGUN, State.FINISHED]


class TestJsonRpc:
    @pytest.mark.parametrize(
        ("body", "ids"),
        [
            (CALL, (1,)),
            (b'[{"jsonrpc":"2.0","id":"a","method":"x"},{"jsonrpc":"2.0","id":2,"method":"y"}]', ("a", 2)),
            (b'{"jsonrpc":"2.0","method":"notifications/initialized"}', ()),
            (b'{"jsonrpc":"2.0","id":1,"result":{}}', ()),
            (b'{"jsonrpc":"2.0","id":true,"method":"x"}', ()),
            (b'{"jsonrpc":', ()),
            (b'{"id":1,"method":"x"}', ()),
            (b'["jsonrpc"]', ()),
            (b"", ()),
        ],
    )
    def test_the_requests_of_a_body(self, body: bytes, ids: tuple[object, ...]) -> None:
        assert requests_of(body) == ids

    def test_an_error_answers_each_request_that_is_open(self) -> None:
        error = {"code": -32000, "message": "It ended.", "data": {"relay": "shutdown"}}
        assert last("mcp_call", 2, Cause.SHUTDOWN) == [{"jsonrpc": "2.0", "id": 1, "error": error}]
        watch = Application(requests=("a", 2)).watch()
        watch.see(Event(b"message", b'{"jsonrpc":"2.0","id":"a","result":{}}'))
        events = closing_events(Application(), watch, Cause.SHUTDOWN, "It ended.", "req_1")
        assert [json.loads(event.data)["id"] for event in events] == [2]

    def test_a_request_of_the_servers_is_no_answer(self) -> None:
        play = Play("mcp_call").see(
            *parsed('data: {"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{"error":"result"}}\n\n')
        )
        assert play.at(Name.CLEAN_END) is Act.CUT_OFF

    def test_what_a_get_opens_ends_with_its_connection(self) -> None:
        play = Play("plain").see(*parsed('data: {"jsonrpc":"2.0","method":"notifications/message"}\n\n'))
        assert play.at(Name.CLEAN_END) is Act.COMPLETE
        assert json.loads(closing_events(play.dialect, play.watch, Cause.SHUTDOWN, "It ended.", "req_1")[0].data)[
            "params"
        ]["data"] == {"message": "It ended.", "code": "shutdown"}


class TestPlain:
    def test_an_error_of_its_own_is_the_streams(self) -> None:
        play = Play("plain").see(*parsed("data: a\n\nevent: error\ndata: it broke\n\ndata: b\n\n"))
        assert play.at(Name.CLEAN_END) is Act.FAIL
        assert play.watch.error is not None
        assert play.watch.error.message == "it broke"

    def test_a_stop_has_the_event_that_its_readers_wait_for(self) -> None:
        assert last("plain", 1, Ending.STOPPED) == [{"relay": "stopped"}]
        assert last("ended", 1, Ending.STOPPED) == [{"relay": "stopped"}, "done"]
        assert last("ended_by_data", 1, Ending.STOPPED) == [{"relay": "stopped"}, "[DONE]"]


def test_a_stop_of_completions_is_one_of_theirs() -> None:
    chunk, done = last("completions", 1, Ending.STOPPED)
    assert (chunk["object"], chunk["choices"][0]["finish_reason"], chunk["relay"]) == (
        "text_completion",
        "length",
        "stopped",
    )
    assert done == "[DONE]"


@pytest.mark.parametrize(
    "first",
    [
        streams.chat({"content": "Hi"}),
        streams.event({"type": "message_start", "message": {"id": "m", "usage": {}}}),
        streams.event({"type": "response.created", "sequence_number": 0, "response": {"id": "r", "status": "queued"}}),
    ],
)
@pytest.mark.parametrize("kind", ["", "ping", "step"])
@pytest.mark.parametrize("data", ["", "ping", "no JSON", '{"step":1}', "[1]"])
def test_what_an_application_sends_beside_an_apis_events_goes_on(first: str, kind: str, data: str) -> None:
    play = Play("plain").see(*parsed(first))
    before = play.state
    play.see(*parsed(streams.data(data, kind)))
    assert (play.state, play.outcome, play.watch.error) == (State.BEGUN, None, None) or play.state is before


def test_an_error_of_an_apis_goes_on_as_it_is() -> None:
    play = Play("plain").see(*parsed(streams.chat({"content": "Hi"}) + "data: Error: overloaded\n\n"))
    assert (play.state, play.watch.readable) == (State.FAILED, True)


@pytest.mark.parametrize("last", [IMAGES[-1][0], "image_edit.completed", TRANSCRIPT[-1][0], SPEECH[-1][0], "error"])
@pytest.mark.parametrize("size", [1, 300, 20_000])
@pytest.mark.parametrize("behind", [0, 1, 2])
def test_what_an_event_of_openais_is_counts_wherever_it_says_so(last: str, size: int, behind: int) -> None:
    """Its own API names the type first; whoever dumps its package's models names it last."""
    kind = last.rpartition(".")[0] + ".delta" if last != "error" else SPEECH[0][0]
    members = [("text", "é" * size), ("usage", {"text": ".completed" * size}), ("error", None)]
    for each_kind, want in ((kind, Act.CUT_OFF), (last, Act.FAIL if last == "error" else Act.COMPLETE)):
        body = dict([*members[:behind], ("type", each_kind), *members[behind:]])
        play = Play("plain").see(*parsed(streams.data({"type": SPEECH[0][0]}) + streams.data(body)))
        assert play.at(Name.CLEAN_END) is want, body


def test_an_error_of_openais_is_the_streams() -> None:
    play = Play("images").see(*parsed(typed(IMAGES[0]) + 'event: error\ndata: {"error":{"message":"no"}}\n\n'))
    assert play.at(Name.CLEAN_END) is Act.FAIL


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"null", b'{"type":7}', b'{"object":[]}', b"[" * 10_000])
def test_nothing_that_an_application_sends_is_malformed(data: bytes) -> None:
    for first in (b"", b"data: x\n\n", *(WHOLE[name].encode() for name in ("ag_ui_run", "mcp_call", "images"))):
        watch = Application(requests=(1,)).watch()
        for event in [*Parser(1 << 20, verbatim=True).feed(first), Event(b"", data), Event(b"error", data)]:
            assert watch.see(event) >= 0
