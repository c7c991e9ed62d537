"""For how long an upstream is come back to: whatever waits are drawn, nearly all of the time is used."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from relay.client.policy import RetryBudget
from relay.upstream.resuming import policy_of


@pytest.mark.parametrize("within", [0.5, 3.0, 10.0, 60.0, 900.0])
@pytest.mark.parametrize("seed", range(20))
def test_the_last_try_is_near_the_end_of_the_time(within: float, seed: int) -> None:
    now = 0.0
    policy = replace(policy_of(within, 1), clock=lambda: now, random=random.Random(seed).random)
    budget = RetryBudget(policy)
    tries = 0
    while (wait := budget.next_wait(0.0)) is not None:
        now += wait
        tries += 1
    assert within * 0.9 < now <= within
    assert tries >= 10
