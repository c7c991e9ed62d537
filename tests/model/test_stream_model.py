"""The protocol of the log keeps its promise in every state of the model; broken in any one rule it does not."""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest

from tests.model.explorer import Report, explore, show
from tests.model.rules import Mutation
from tests.model.state import Client, State
from tests.model.stream import StreamModel

# Larger bounds, for runs by hand: RELAY_MODEL_EVENTS=3 RELAY_MODEL_FAULTS=3.
EVENTS = int(os.environ.get("RELAY_MODEL_EVENTS", "2"))
FAULTS = int(os.environ.get("RELAY_MODEL_FAULTS", "2"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "bounds",
    [
        {"client": Client.EVENT_SOURCE, "events": EVENTS, "faults": FAULTS},
        {"client": Client.EVENT_SOURCE, "events": EVENTS - 1, "faults": FAULTS + 1},
        {"client": Client.EVENT_SOURCE, "events": EVENTS, "faults": FAULTS - 1, "second_reader": True},
        {"client": Client.EVENT_SOURCE, "events": EVENTS, "faults": FAULTS - 1, "outage_lasts": True},
        {"client": Client.EVENT_SOURCE, "events": EVENTS, "faults": FAULTS, "terminal": True},
        {"client": Client.EVENT_SOURCE, "events": EVENTS - 1, "faults": FAULTS, "takeover": True},
        {"client": Client.RELAY_CLIENT, "events": EVENTS, "faults": FAULTS},
        {"client": Client.SDK, "events": EVENTS, "faults": FAULTS},
    ],
    ids=[
        "event-source",
        "more-faults",
        "second-reader",
        "lasting-outage",
        "terminal-event",
        "takeover",
        "relay-client",
        "sdk",
    ],
)
def test_the_promise_holds_in_every_state(bounds: dict[str, Any]) -> None:
    report = explore(StreamModel(**bounds))
    show(str(bounds), report)
    assert report.violation is None


HOW: dict[Mutation, tuple[str, dict[str, Any]]] = {
    Mutation.END_TAKES_NUMBER: ("HOLE", {"events": 2}),
    Mutation.FENCE_NOT_RAISED: ("UNLOGGED", {}),
    Mutation.WHOLE_IS_LOST: ("FALSE END", {"terminal": True}),
    Mutation.TOP_NOT_CHECKED: ("UNLOGGED", {}),
    Mutation.LEASE_NOT_CHECKED: ("FALSE END", {}),
    Mutation.RETURN_NOT_AWAITED: ("FALSE END", {}),
    Mutation.TOP_NOT_REPORTED: ("TRAP", {}),
    Mutation.REWIND_IGNORED: ("TRAP", {}),
    Mutation.LOST_REPLY_IGNORED: ("TRAP", {}),
    Mutation.NOT_MADE_AGAIN: ("FALSE ERROR", {}),
    Mutation.SHOWN_BEFORE_APPEND: ("FALSE ERROR", {}),
    Mutation.NEVER_AHEAD: ("TRAP", {"outage_lasts": True}),
    Mutation.REMAKING_NEVER_AHEAD: ("TRAP", {"outage_lasts": True, "faults": 2, "client": Client.SDK}),
    Mutation.END_NOT_SHOWN_AHEAD: ("TRAP", {"outage_lasts": True}),
    Mutation.AHEAD_WITHOUT_IDS: ("DUPLICATE", {}),
    Mutation.FENCED_FEED_OPEN: ("TRAP", {}),
    Mutation.FENCED_LOOKS_COMPLETE: ("TRUNCATION", {}),
    Mutation.TAKEN_FROM_THE_LIVING: ("TWO PRODUCERS", {"takeover": True, "faults": 2}),
    Mutation.TAKEOVER_LEAVES_FENCE: ("TWO PRODUCERS", {"takeover": True}),
    Mutation.LOST_TAKEOVER_IS_FENCED_OFF: ("FALSE END", {"takeover": True, "faults": 2}),
    Mutation.POSITION_NOT_KEPT: ("DUPLICATE", {"takeover": True, "events": 2}),
    Mutation.FENCED_STOPS: ("STOPPED", {"takeover": True}),
    Mutation.STOPPED_BEFORE_ITS_END: ("STOPPED", {"takeover": True, "faults": 2}),
    Mutation.AHEAD_IS_GONE: ("FALSE ERROR", {}),
    Mutation.AHEAD_IS_TOP: ("DUPLICATE", {}),
    Mutation.BEYOND_END_IS_COMPLETE: ("TRUNCATION", {}),
    Mutation.TOLD_END_IS_COMPLETE: ("TRUNCATION", {}),
    Mutation.LIVE_TOP_IS_COMPLETE: ("TRUNCATION", {}),
    Mutation.END_ID_IS_EVENT_ID: ("TRAP", {}),
    Mutation.UNKNOWN_AT_ONCE: ("FALSE ERROR", {}),
    Mutation.EMPTY_PAGE_IS_GONE: ("FALSE ERROR", {}),
    Mutation.CUT_LOOKS_CLEAN: ("TRUNCATION", {}),
    Mutation.OVER_FEED_SHARED: ("TRAP", {"second_reader": True, "faults": 2}),
    Mutation.END_BELOW_FEED_IGNORED: ("DELAY", {}),
    Mutation.ATTACHING_NOT_COUNTED: ("TRAP", {"second_reader": True}),
    Mutation.PLACE_NOT_GIVEN_BACK: ("LEAK", {}),
    Mutation.MESSAGE_WHILE_READING_DROPPED: ("DELAY", {}),
    Mutation.LOOK_BEFORE_SUBSCRIPTION: ("DELAY", {}),
    Mutation.NO_PERIODIC_CHECK: ("TRAP", {}),
}
"""What each broken rule leads to, within bounds that are no larger than that needs."""


def bounds_of(mutation: Mutation) -> dict[str, Any]:
    return {"events": 1, "faults": 1, **HOW[mutation][1]}


@functools.cache
def broken(mutation: Mutation) -> Report[State]:
    return explore(StreamModel(mutation=mutation, **bounds_of(mutation)), HOW[mutation][0])


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(mutation, marks=[pytest.mark.slow] if bounds_of(mutation)["faults"] > 1 else [])
        for mutation in Mutation
    ],
    ids=lambda mutation: mutation.name.lower(),
)
def test_each_rule_is_needed(mutation: Mutation) -> None:
    report = broken(mutation)
    show(mutation.value, report)
    assert report.violation is not None
    assert report.violation.what.startswith(HOW[mutation][0])
