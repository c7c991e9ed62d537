"""A seed says what is played."""

from __future__ import annotations

import pytest

from tests.torture.bounds import BOUNDS
from tests.torture.plan import request, schedule

TOPOLOGIES = ("standalone", "sentinel", "cluster")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_same_seed_plays_the_same(topology: str) -> None:
    first = schedule(7, 120.0, topology, 3, 1)
    assert first == schedule(7, 120.0, topology, 3, 1)
    assert first != schedule(8, 120.0, topology, 3, 1)
    assert [request(7, n, topology) for n in range(50)] == [request(7, n, topology) for n in range(50)]
    assert request(7, 1, topology) != request(8, 1, topology)


def test_a_longer_run_begins_like_a_short_one() -> None:
    short = schedule(7, 60.0, "standalone", 3, 1)
    assert schedule(7, 120.0, "standalone", 3, 1)[: len(short)] == short


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_few_seeds_play_everything_above_and_below_the_bounds(topology: str) -> None:
    played = [fault for seed in range(20) for fault in schedule(seed, 120.0, topology, 3, 2)]
    kinds = {fault.kind for fault in played}
    assert {"pause", "kill", "drain", "blackhole", "refuse", "delay", "drop", "cut", "scripts", "connections"} <= kinds
    assert {"pause_worker", "kill_worker"} <= kinds
    own = {
        "standalone": {"store_freeze", "store_kill", "store_tail", "store_empty"},
        "sentinel": {"failover", "failover_lossy", "store_kill", "store_freeze", "sentinel_freeze"},
        "cluster": {"slots_move", "failover", "failover_lossy", "store_kill", "store_freeze"},
    }
    assert own[topology] <= kinds
    pauses = [fault.lasts for fault in played if fault.kind == "pause"]
    for bound in BOUNDS.values():
        assert any(bound * 0.2 <= lasts <= bound * 0.8 for lasts in pauses)
        assert any(bound * 1.2 <= lasts <= bound * 2.2 for lasts in pauses)


def test_one_thing_at_a_time_on_each_target() -> None:
    busy: dict[str, float] = {}
    for fault in schedule(3, 600.0, "cluster", 3, 1):
        assert fault.at >= busy.get(fault.target, 0.0)
        busy[fault.target] = fault.at + fault.lasts
