"""The table of ends, cell by cell, in the order in which a stream can come to each."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.protocol.apis import DIALECTS
from relay.protocol.ends import ENDS, Act, Cell, Name, State, reference

ROOT = Path(__file__).parents[2]
APIS = ("chat", "messages", "responses")


@pytest.mark.parametrize("api", APIS)
def test_every_state_says_something_to_every_name(api: str) -> None:
    assert set(ENDS) == set(DIALECTS)
    for row in ENDS[api].values():
        assert list(row) == list(Name)
        assert all(cell in ENDS[api] for cell in row.values() if isinstance(cell, State))


@pytest.mark.parametrize("api", APIS)
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


@pytest.mark.parametrize(
    ("api", "state", "name", "cell"),
    [
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
