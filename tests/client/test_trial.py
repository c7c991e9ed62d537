"""The trial for a moment: `python -m tests.client.trial 600` is the whole of it."""

from __future__ import annotations

import shutil

import pytest

from tests.client.trial import WAYS, faults, trial
from tests.support.processes import needs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_every_stream_is_exact_while_the_replicas_roll() -> None:
    needs(shutil.which("node"), "Node.js")
    found = trial(12, seed=1)
    assert faults(found) == []
    assert found["streams"] > 20
    assert found["rolled"] > 0
    assert found["compressed"] > 0
    assert set(found["clients"]) == set(WAYS)
    assert all(one["counters"]["cuts"] > 0 for one in found["clients"].values())
