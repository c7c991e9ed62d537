"""How an end stands in a log, and how it is told."""

from __future__ import annotations

import pytest

from relay.protocol.apis import DIALECTS
from relay.protocol.end_mark import End, decode_end, encode_frames, error_frames, outcome_from_log
from relay.protocol.outcomes import OUTCOMES, Cause, Ending
from relay.protocol.sse import Event

_STREAM = "st_" + "a" * 22


@pytest.mark.parametrize(
    "end", [End("completed"), End("stopped", b"data: x\n\nid: s.3e\ndata: [DONE]\n\n"), End("of a newer relay")]
)
def test_a_mark_says_what_was_put_into_it(end: End) -> None:
    assert decode_end(end.encode()) == end


@pytest.mark.parametrize("outcome", [known for known, row in OUTCOMES.items() if row.message])
def test_the_upstream_tells_its_own_ends_and_the_relay_all_others(outcome: Cause | Ending) -> None:
    own = outcome is Cause.UPSTREAM_ERROR
    assert End(outcome.value).sent_by_relay is not own
    assert not End(Ending.COMPLETED.value).sent_by_relay


def test_only_the_last_frame_of_an_end_has_an_id() -> None:
    told = encode_frames([Event(b"", b"{}"), Event(b"", b"[DONE]")], _STREAM, 7)
    assert told == b"data: {}\n\nid: %b.7e\ndata: [DONE]\n\n" % _STREAM.encode()
    assert b"id:" not in encode_frames([Event(b"", b"{}")], "", 7)


@pytest.mark.parametrize("api", DIALECTS)
@pytest.mark.parametrize("outcome", ["producer_lost", "of_a_newer_relay"])
def test_an_end_without_words_is_spelled_as_an_error_of_its_code(api: str, outcome: str) -> None:
    told = error_frames(DIALECTS[api], outcome, _STREAM, 3, b"", "req_1")
    assert f'"code":"{outcome}"'.encode() in told
    assert told.count(b"id: ") == 1
    assert f"id: {_STREAM}.3e\n".encode() in told
    assert b"send the request again" in told


def test_a_spelled_error_goes_on_from_the_last_event_s_number() -> None:
    last = b'id: %b.3\nevent: response.x\ndata: {"type":"response.x","sequence_number":41}\n\n' % _STREAM.encode()
    assert b'"sequence_number":42' in error_frames(DIALECTS["responses"], "producer_lost", _STREAM, 3, last, "req_1")


@pytest.mark.parametrize(
    ("api", "frame", "outcome"),
    [
        ("chat", b"data: [DONE]\n\n", Ending.COMPLETED),
        ("chat", b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n', Cause.PRODUCER_LOST),
        ("chat", b'data: {"error":{"message":"x"}}\n\n', Cause.UPSTREAM_ERROR),
        ("messages", b'event: message_stop\ndata: {"type":"message_stop"}\n\n', Ending.COMPLETED),
        ("responses", b'data: {"type":"response.completed","response":{}}\n\n', Ending.COMPLETED),
        ("responses", b'data: {"type":"response.failed","response":{}}\n\n', Cause.UPSTREAM_ERROR),
        ("responses", b"data: nonsense\n\n", Cause.PRODUCER_LOST),
        ("messages", b"", Cause.PRODUCER_LOST),
    ],
)
def test_an_answer_whose_last_event_is_there_is_whole_without_its_mark(
    api: str, frame: bytes, outcome: Cause | Ending
) -> None:
    assert outcome_from_log(DIALECTS[api], b"id: %b.9\n%b" % (_STREAM.encode(), frame)) is outcome
