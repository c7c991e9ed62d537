"""Requests that are the same share no generation while it is read, and pay for none that they could join, in every
state of the model; with any one rule broken they do."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.model.explorer import explore, show
from tests.model.orphans import OrphanModel, OrphanMutation

# Larger bounds, for runs by hand: RELAY_MODEL_REQUESTS=4 RELAY_MODEL_FAULTS=3.
REQUESTS = int(os.environ.get("RELAY_MODEL_REQUESTS", "3"))
FAULTS = int(os.environ.get("RELAY_MODEL_FAULTS", "2"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "bounds",
    [{"requests": REQUESTS, "faults": FAULTS}, {"requests": REQUESTS + 1, "faults": FAULTS - 1}],
    ids=["more-faults", "more-requests"],
)
def test_nothing_is_shared_or_paid_twice_in_any_state(bounds: dict[str, Any]) -> None:
    report = explore(OrphanModel(**bounds))
    show(str(bounds), report)
    assert report.violation is None


HOW: dict[OrphanMutation, tuple[str, dict[str, Any]]] = {
    OrphanMutation.NOT_AT_ONCE: ("SHARED", {}),
    OrphanMutation.TAKES_BACK: ("SHARED", {"faults": 1, "requests": 4}),
    OrphanMutation.READERS_ELSEWHERE: ("SHARED", {}),
    OrphanMutation.READERS_HERE: ("SHARED", {}),
    OrphanMutation.LEAVING_NOT_AWAITED: ("SHARED", {"requests": 4}),
    OrphanMutation.DELIVERED_NOT_SAID: ("OVER", {}),
    OrphanMutation.FAILURES_JOINED: ("OVER", {}),
    OrphanMutation.NOT_TOLD_AGAIN: ("PAID TWICE", {"faults": 1}),
    OrphanMutation.RETURN_NOT_AWAITED: ("SHARED", {"faults": 1}),
    OrphanMutation.DEAD_READ: ("PAID TWICE", {"faults": 1}),
    OrphanMutation.REPLY_LOST: ("PAID TWICE", {"faults": 1}),
    OrphanMutation.NAME_KEPT: ("TRAP", {}),
}
"""What each broken rule leads to."""


@pytest.mark.parametrize("mutation", OrphanMutation, ids=lambda mutation: mutation.name.lower())
def test_each_rule_is_needed(mutation: OrphanMutation) -> None:
    what, bounds = HOW[mutation]
    report = explore(OrphanModel(mutation=mutation, **{"requests": 3, "faults": 0, **bounds}), what)
    show(mutation.value, report)
    assert report.violation is not None
    assert report.violation.what.startswith(what)
