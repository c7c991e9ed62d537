"""An Idempotency-Key is paid for once in every state of the model; with any one rule broken it is not."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.model.claims import ClaimModel, ClaimMutation
from tests.model.explorer import explore, show

# Larger bounds, for runs by hand: RELAY_MODEL_REQUESTS=3 RELAY_MODEL_FAULTS=3.
REQUESTS = int(os.environ.get("RELAY_MODEL_REQUESTS", "2"))
FAULTS = int(os.environ.get("RELAY_MODEL_FAULTS", "2"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "bounds",
    [
        {"requests": REQUESTS, "faults": FAULTS},
        {"requests": REQUESTS, "faults": FAULTS, "late_start": True},
        {"requests": REQUESTS + 1, "faults": FAULTS - 1},
    ],
    ids=["two-replicas", "late-start", "more-requests"],
)
def test_nothing_is_paid_twice_in_any_state(bounds: dict[str, Any]) -> None:
    report = explore(ClaimModel(**bounds))
    show(str(bounds), report)
    assert report.violation is None


HOW: dict[ClaimMutation, tuple[str, dict[str, Any]]] = {
    ClaimMutation.CLAIM_AFTER_POST: ("PAID TWICE", {}),
    ClaimMutation.UNMADE_IS_OVER: ("PAID TWICE", {}),
    ClaimMutation.LEASE_IS_PROOF: ("PAID TWICE", {}),
    ClaimMutation.FORCED_END_IS_OVER: ("PAID TWICE", {}),
    ClaimMutation.RETURN_NOT_AWAITED: ("PAID TWICE", {}),
    ClaimMutation.SETTLES_TOO_SOON: ("PAID TWICE", {}),
    ClaimMutation.START_IS_NO_RETURN: ("PAID TWICE", {"late_start": True}),
    ClaimMutation.NOT_ASSERTED: ("PAID TWICE", {}),
    ClaimMutation.UNLOGGED_GIVES_BACK: ("PAID TWICE", {}),
    ClaimMutation.UNLOGGED_IS_JOINABLE: ("EMPTY", {}),
    ClaimMutation.FAILED_KEEPS_KEY: ("TRAP", {}),
    ClaimMutation.LOST_REPLY_KEEPS_KEY: ("TRAP", {}),
    ClaimMutation.RELEASE_UNCONDITIONAL: ("PAID TWICE", {"requests": 3}),
    ClaimMutation.GIVEN_BACK_ONCE: ("TRAP", {"requests": 3}),
    ClaimMutation.EARLIER_CLAIM_HOLDS: ("PAID TWICE", {"requests": 3, "faults": 2}),
}
"""What each broken rule leads to."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(mutation, marks=[pytest.mark.slow] if {"requests", "faults"} & HOW[mutation][1].keys() else [])
        for mutation in ClaimMutation
    ],
    ids=lambda mutation: mutation.name.lower(),
)
def test_each_rule_is_needed(mutation: ClaimMutation) -> None:
    what, bounds = HOW[mutation]
    bounds = {"requests": 2, "faults": 1, **bounds}
    report = explore(ClaimModel(mutation=mutation, **bounds), what)
    show(mutation.value, report)
    assert report.violation is not None
    assert report.violation.what.startswith(what)
