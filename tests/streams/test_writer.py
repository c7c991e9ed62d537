"""The writer's table, row by row, without a store: what each reply makes of each state, and of what readers see."""

from __future__ import annotations

from typing import Any

import pytest

from relay.encryption import Cipher
from relay.metrics import Metrics
from relay.protocol.end_mark import End
from relay.protocol.ids import new_stream_id
from relay.protocol.outcomes import StreamFailure
from relay.store import scripts
from relay.store.names import Names
from relay.streams.ahead import Ahead
from relay.streams.writer import (
    AHEAD,
    AWAY,
    ENDED,
    FENCED,
    GONE,
    MISMATCH,
    OK,
    OK_END,
    REPLIES,
    STATES,
    TRANSITIONS,
    UNLOGGED,
    WRITING,
    LogWriter,
)

_BLOCK = b"data: x\n\n"


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def usage_summary(self) -> str:
        return "1/2"

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.heard.append((name, *arguments))


class Names_:
    """What a writer needs of the log: names and a cipher."""

    names = Names()
    cipher = Cipher()


class Desk:
    """A writer, with what it has handed to the commit."""

    def __init__(self, events: int = 0, *, ahead: Ahead | None = None, max_bytes: int = 1 << 30) -> None:
        self.listener = Listener()
        self.submitted = 0
        self.writer = LogWriter(
            new_stream_id(),
            Names_(),  # type: ignore[arg-type]
            self.listener,  # type: ignore[arg-type]
            submit=self._submit,
            meter=Metrics().meter("chat", "u", "m"),
            ahead=ahead or Ahead(1 << 30),
            max_bytes=max_bytes,
        )
        self.add(events)

    def _submit(self, writer: LogWriter) -> None:
        self.submitted += 1

    def add(self, events: int, block: bytes = _BLOCK) -> None:
        for _ in range(events):
            self.writer.append(block)
        if events:
            self.writer.publish()

    def to(self, state: str) -> Desk:
        """The writer in a state, with 3 events of which the log holds 2."""
        writer = self.writer
        self.add(2)
        writer.on_append_result(OK, 2, 2, False)
        self.add(1)
        if state == AHEAD:
            writer.on_store_away()
        elif state == FENCED:
            writer.on_append_result(scripts.FENCED, 2, 3, False)
        elif state == ENDED:
            writer.finish(End("completed"))
            writer.on_append_result(OK, 3, 3, True)
        elif state == UNLOGGED:
            writer.state = UNLOGGED
        assert writer.state == state
        self.listener.heard.clear()
        return self


def test_every_state_has_a_row_for_every_reply() -> None:
    assert set(TRANSITIONS) == {(state, reply) for state in STATES for reply in REPLIES}


@pytest.mark.parametrize("state", [ENDED, FENCED, UNLOGGED])
@pytest.mark.parametrize("reply", REPLIES)
def test_nothing_changes_a_stream_that_is_over_or_has_no_log(state: str, reply: int) -> None:
    desk = Desk().to(state)
    writer = desk.writer
    before = (writer.acked, writer.feed.top, writer.feed.end)
    if reply == AWAY:
        writer.on_store_away()
    else:
        code, ended = (OK, True) if reply == OK_END else (reply, False)
        assert writer.on_append_result(code, 1, 3, ended) is False
    assert (writer.acked, writer.feed.top, writer.feed.end) == before
    assert writer.state == state
    assert not desk.listener.heard


def test_an_event_is_shown_once_the_log_holds_it() -> None:
    desk = Desk(2)
    assert desk.writer.feed.top == 0
    assert desk.writer.on_append_result(OK, 2, 2, False) is False
    assert desk.writer.feed.top == 2


def test_what_came_meanwhile_is_appended_next() -> None:
    desk = Desk(2)
    desk.add(1)
    assert desk.writer.on_append_result(OK, 2, 2, False) is True
    assert desk.writer.feed.top == 2


@pytest.mark.parametrize(("top", "shown"), [(3, 3), (2, 2), (1, 2), (0, 2)])
def test_the_log_s_own_top_says_where_to_go_on(top: int, shown: int) -> None:
    """Higher: a reply was lost. Lower: the store lost entries, whose ids stay as they were shown."""
    writer = Desk().to(WRITING).writer
    writer.on_append_result(MISMATCH, top, 3, False)
    assert (writer.acked, writer.feed.top, writer.state) == (top, shown, WRITING)


def test_a_log_that_is_longer_than_the_stream_is_no_reason_to_show_what_is_not_there() -> None:
    writer = Desk().to(WRITING).writer
    writer.on_append_result(MISMATCH, 9, 3, False)
    assert (writer.acked, writer.feed.top) == (3, 3)


def test_after_the_hold_events_are_shown_with_their_ids_and_still_appended() -> None:
    desk = Desk().to(WRITING)
    writer = desk.writer
    writer.on_store_away()
    assert (writer.feed.top, writer.acked) == (3, 2)
    submitted = desk.submitted
    desk.add(2)
    assert (writer.feed.top, writer.acked) == (5, 2)
    assert desk.submitted == submitted + 1
    assert writer.feed.frames[4].startswith(b"id: %b.5\n" % writer.stream.encode())


def test_a_store_that_is_back_gets_what_is_missing_and_holds_back_again() -> None:
    desk = Desk().to(AHEAD)
    writer = desk.writer
    desk.add(1)
    assert writer.on_append_result(OK, 3, 3, False) is True
    assert (writer.state, writer.acked, writer.feed.top) == (WRITING, 3, 4)
    assert writer.on_append_result(OK, 4, 4, False) is False
    desk.add(1)
    assert writer.feed.top == 4


@pytest.mark.parametrize("top", [1, 2, 3])
def test_any_answer_of_a_store_that_was_away_ends_the_showing_ahead(top: int) -> None:
    """It holds more than was known, or less: it takes what is missing now, and what comes then waits for it again."""
    desk = Desk().to(AHEAD)
    writer = desk.writer
    assert writer.on_append_result(MISMATCH, top, 3, False) is (top < 3)
    assert (writer.state, writer.acked, writer.feed.top) == (WRITING, top, 3)
    desk.add(1)
    assert writer.feed.top == 3


@pytest.mark.parametrize("state", [WRITING, AHEAD])
def test_a_stream_that_the_store_has_lost_is_made_again_and_written_whole(state: str) -> None:
    desk = Desk().to(state)
    writer = desk.writer
    assert writer.on_append_result(GONE, 0, 3, False) is False
    assert writer.on_append_result(GONE, 0, 3, False) is False
    assert desk.listener.heard.count(("on_log_gone",)) == 1
    submitted = desk.submitted
    desk.add(1)
    assert desk.submitted == submitted, "nothing is appended to a stream that is not there"
    writer.made_again()
    assert desk.submitted == submitted + 1
    assert writer.acked == 0
    assert writer.feed.top >= 2


@pytest.mark.parametrize("state", [WRITING, AHEAD])
def test_a_fenced_writer_closes_its_feed_and_shows_nothing_more(state: str) -> None:
    desk = Desk().to(state)
    writer = desk.writer
    shown = writer.feed.top
    writer.on_append_result(scripts.FENCED, 2, 3, False)
    desk.add(2)
    assert (writer.state, writer.feed.top, writer.feed.closed) == (FENCED, shown, True)
    assert ("on_fenced",) in desk.listener.heard


def test_the_end_is_shown_with_the_append_that_holds_it() -> None:
    desk = Desk().to(WRITING)
    writer = desk.writer
    writer.finish(End("completed"))
    assert writer.on_append_result(OK, 3, 3, False) is True
    assert writer.feed.end is None
    assert writer.on_append_result(OK, 3, 3, True) is False
    assert writer.feed.end == End("completed")
    assert desk.listener.heard == [("on_end_shown",), ("on_end_persisted",)]


def test_the_end_too_is_shown_ahead_and_persisted_later() -> None:
    desk = Desk().to(AHEAD)
    writer = desk.writer
    writer.finish(End("completed"))
    assert writer.feed.end == End("completed")
    assert writer.on_append_result(OK, 3, 3, True) is False
    assert writer.state == ENDED
    assert desk.listener.heard == [("on_end_shown",), ("on_end_persisted",)]


def test_a_renewal_finds_a_log_that_has_lost_events() -> None:
    desk = Desk(2)
    writer = desk.writer
    writer.on_append_result(OK, 2, 2, False)
    submitted = desk.submitted
    writer.on_renewed(OK, 2)
    assert desk.submitted == submitted
    writer.on_renewed(OK, 1)
    assert (writer.acked, writer.feed.top) == (1, 2)
    assert desk.submitted == submitted + 1


def test_a_renewal_says_nothing_of_an_append_that_is_on_its_way() -> None:
    desk = Desk().to(WRITING)
    desk.writer.queued = True
    desk.writer.on_renewed(OK, 0)
    assert desk.writer.acked == 2


def test_what_is_ahead_of_the_store_is_bounded_for_all_streams_together() -> None:
    ahead = Ahead(limit=3 * len(_BLOCK) + 300)
    first, second = Desk(ahead=ahead).to(AHEAD), Desk(ahead=ahead).to(AHEAD)
    while not ahead.full:
        first.add(1)
    second.add(1)
    assert ("on_pressure", True) in first.listener.heard
    assert ("on_pressure", True) in second.listener.heard
    first.writer.on_append_result(OK, first.writer.last, first.writer.last, False)
    assert ("on_pressure", False) in first.listener.heard
    assert ("on_pressure", False) in second.listener.heard


def test_a_log_that_answers_too_slowly_makes_the_upstream_wait() -> None:
    desk = Desk()
    desk.add(1, b"data: %b\n\n" % (b"x" * (300 << 10)))
    assert desk.listener.heard == [("on_pressure", True)]
    desk.writer.on_append_result(OK, 1, 1, False)
    assert desk.listener.heard[-1] == ("on_pressure", False)


def test_a_stream_has_a_largest_size() -> None:
    desk = Desk(max_bytes=200)
    with pytest.raises(StreamFailure):
        desk.add(9)


def test_without_a_log_events_have_no_ids_and_are_forgotten_once_read() -> None:
    desk = Desk()
    writer = desk.writer
    writer.go_unlogged(new_stream_id(logged=False), Names_())  # type: ignore[arg-type]
    desk.add(3)
    assert writer.feed.frames == [_BLOCK] * 3
    assert (writer.feed.top, desk.submitted) == (3, 0)
    writer.consumed(2)
    assert (writer.feed.base, writer.feed.frames) == (2, [_BLOCK])


def test_a_writer_that_is_held_is_not_appended_to_before_its_release() -> None:
    desk = Desk()
    desk.writer.held = True
    desk.add(1)
    assert desk.submitted == 0
    desk.writer.release()
    assert desk.submitted == 1


def test_a_closed_writer_holds_no_one_and_counts_nothing() -> None:
    ahead = Ahead(limit=1)
    desk = Desk(ahead=ahead).to(AHEAD)
    assert ahead.full
    desk.writer.close()
    assert not ahead.full
    assert desk.writer.on_append_result(OK, 3, 3, False) is False
