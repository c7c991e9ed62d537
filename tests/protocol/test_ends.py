"""The table of ends, cell by cell, in the order in which a stream can come to each."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.protocol.apis import DIALECTS
from relay.protocol.ends import ENDS, KEEP_ALIVE, Act, Cell, Name, State, reference
from relay.protocol.sse import Event

ROOT = Path(__file__).parents[2]
APIS = ("chat", "messages", "responses")
OF_APPLICATIONS = ("events", "ended events", "ui messages")


@pytest.mark.parametrize("api", [*APIS, *OF_APPLICATIONS])
def test_every_state_says_something_to_every_name(api: str) -> None:
    assert set(ENDS) == {*APIS, *OF_APPLICATIONS}
    assert {*APIS, "sse"} == set(DIALECTS)
    for row in ENDS[api].values():
        assert list(row) == list(Name)
        assert all(cell in ENDS[api] for cell in row.values() if isinstance(cell, State))


@pytest.mark.parametrize("api", [*APIS, *OF_APPLICATIONS])
def test_a_keep_alive_is_never_forwarded(api: str) -> None:
    assert {row[Name.KEEP_ALIVE] for row in ENDS[api].values()} == {Act.DROP}


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("state", [State.NOTHING, State.BEGUN])
def test_what_is_not_whole_is_never_completed_by_its_bodys_end(api: str, state: State) -> None:
    row = ENDS[api][state]
    assert (row[Name.CLEAN_END], row[Name.SILENCE], row[Name.CUT]) == (Act.CUT_OFF, Act.TIMED_OUT, Act.CUT_OFF)


@pytest.mark.parametrize("api", APIS)
def test_an_end_that_was_told_stays_what_it_is(api: str) -> None:
    for state in (State.FAILED, State.OVER):
        for name in (Name.CLEAN_END, Name.SILENCE, Name.CUT):
            assert ENDS[api].get(state, {}).get(name, Act.CLOSE) is Act.CLOSE


FORWARDED = (Name.OTHER, Name.PART, Name.FINISH, Name.USAGE, Name.END, Name.DONE, Name.FAILURE, Name.ERROR)


@pytest.mark.parametrize("api", OF_APPLICATIONS)
def test_every_event_of_an_application_is_forwarded(api: str) -> None:
    """Nothing that it sends is dropped, and nothing but its own last line ends its stream."""
    for row in ENDS[api].values():
        for name in FORWARDED:
            ends = name is Name.DONE and api == "ui messages"
            assert isinstance(row[name], State) or (ends and row[name] in (Act.COMPLETE, Act.FAIL))


@pytest.mark.parametrize("api", OF_APPLICATIONS)
def test_an_application_that_has_told_an_error_has_not_completed(api: str) -> None:
    row = ENDS[api][State.ERRED]
    assert (row[Name.CLEAN_END], row[Name.ERROR], row[Name.PART]) == (Act.FAIL, State.ERRED, State.ERRED)


@pytest.mark.parametrize("api", ["ended events", "ui messages"])
def test_what_has_an_end_is_not_whole_without_it(api: str) -> None:
    for state in (State.NOTHING, State.BEGUN):
        row = ENDS[api][state]
        assert (row[Name.CLEAN_END], row[Name.SILENCE], row[Name.CUT]) == (Act.CUT_OFF, Act.TIMED_OUT, Act.CUT_OFF)


@pytest.mark.parametrize(
    ("api", "state", "name", "cell"),
    [
        ("events", State.NOTHING, Name.CLEAN_END, Act.COMPLETE),
        ("events", State.BEGUN, Name.CLEAN_END, Act.COMPLETE),
        ("events", State.BEGUN, Name.CUT, Act.CUT_OFF),
        ("events", State.BEGUN, Name.SILENCE, Act.TIMED_OUT),
        ("events", State.ERRED, Name.CUT, Act.CUT_OFF),
        ("ended events", State.BEGUN, Name.END, State.FINISHED),
        ("ended events", State.FINISHED, Name.PART, State.FINISHED),
        ("ended events", State.FINISHED, Name.OTHER, State.BEGUN),
        ("ended events", State.FINISHED, Name.CLEAN_END, Act.COMPLETE),
        ("ended events", State.FINISHED, Name.CUT, Act.COMPLETE),
        ("ended events", State.FINISHED, Name.SILENCE, Act.COMPLETE),
        ("ended events", State.ERRED, Name.END, State.FINISHED),
        ("ended events", State.ERRED, Name.OTHER, State.BEGUN),
        ("ui messages", State.NOTHING, Name.DONE, Act.COMPLETE),
        ("ui messages", State.BEGUN, Name.DONE, Act.COMPLETE),
        ("ui messages", State.FINISHED, Name.CLEAN_END, Act.WHOLE),
        ("ui messages", State.FINISHED, Name.CUT, Act.CUT_OFF),
        ("ui messages", State.FINISHED, Name.PART, State.BEGUN),
        ("ui messages", State.ERRED, Name.FINISH, State.ERRED),
        ("ui messages", State.ERRED, Name.DONE, Act.FAIL),
        ("chat", State.NOTHING, Name.DONE, Act.CUT_OFF),
        ("chat", State.BEGUN, Name.DONE, Act.COMPLETE),
        ("chat", State.BEGUN, Name.USAGE, State.COUNTED),
        ("chat", State.COUNTED, Name.PART, State.BEGUN),
        ("chat", State.COUNTED, Name.CLEAN_END, Act.WHOLE),
        ("chat", State.COUNTED, Name.CUT, Act.CUT_OFF),
        ("chat", State.COUNTED, Name.SILENCE, Act.TIMED_OUT),
        ("chat", State.FINISHED, Name.CLEAN_END, Act.WHOLE),
        ("chat", State.FINISHED, Name.SILENCE, Act.WHOLE),
        ("chat", State.FINISHED, Name.CUT, Act.CUT_OFF),
        ("chat", State.FINISHED, Name.ERROR, State.FAILED),
        ("chat", State.FAILED, Name.DONE, Act.FAIL),
        ("messages", State.NOTHING, Name.END, Act.CUT_OFF),
        ("messages", State.BEGUN, Name.END, Act.COMPLETE),
        ("messages", State.BEGUN, Name.DONE, Act.DROP),
        ("messages", State.FINISHED, Name.DONE, Act.WHOLE),
        ("messages", State.FINISHED, Name.CLEAN_END, Act.WHOLE),
        ("messages", State.FINISHED, Name.CUT, Act.CUT_OFF),
        ("messages", State.BEGUN, Name.ERROR, Act.FAIL),
        ("messages", State.FAILED, Name.END, Act.FAIL),
        ("responses", State.BEGUN, Name.DONE, Act.CUT_OFF),
        ("responses", State.BEGUN, Name.END, State.OVER),
        ("responses", State.OVER, Name.DONE, Act.COMPLETE),
        ("responses", State.OVER, Name.PART, Act.CLOSE),
        ("responses", State.FAILED, Name.FAILURE, State.FAILED),
        ("responses", State.FAILED, Name.DONE, Act.FAIL),
    ],
)
def test_cells(api: str, state: State, name: Name, cell: Cell) -> None:
    assert ENDS[api][state][name] is cell


def test_the_tables_are_drawn_in_the_documents() -> None:
    assert reference() in (ROOT / "relay/protocol/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("api", ["chat", "messages", "responses"])
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"", b'{"type":"heartbeat"}'),
        (b"", b'{"type":"keep-alive"}'),
        (b"", b'{"type":"Ping"}'),
        (b"", b'{"event":"ping"}'),
        (b"", b'{"object":"keepalive"}'),
        (b"Heartbeat", b'{"at":1}'),
        (b"PING", b"1"),
    ],
)
def test_a_keep_alive_may_be_named_by_its_line_or_in_its_json(api: str, kind: bytes, data: bytes) -> None:
    assert DIALECTS[api].watch().see(Event(kind, data)) == KEEP_ALIVE
