"""What a run's faults excuse, and what nothing does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.torture.bounds import ABANDON, LEASE, STALL
from tests.torture.clients import Client
from tests.torture.evidence import Evidence, Refusal, StreamSeen, Wait
from tests.torture.generation import Spec
from tests.torture.judging import judge
from tests.torture.timeline import STORE, Record, Timeline, gaps, line, merged, replica
from tests.torture.upstream import Call

STREAM = "st_" + "a" * 22
SPEC = Spec("chat", 50, 0.1)


class Case:
    """One stream of replica 0, from second 10 to second 20."""

    def __init__(self, *, key: str | None = None, ended: float | None = 20.0, cancelled: bool = False) -> None:
        self.timeline = Timeline(lambda: 60.0)
        self.evidence = Evidence(self.timeline, 3, 1, finished=60.0)
        self.call(key=key, ended=ended, cancelled=cancelled)
        self.stream = StreamSeen(STREAM, SPEC, 10.0, logged=True)
        self.evidence.streams[STREAM] = self.stream
        self.evidence.call_of[STREAM] = 1
        self.stream.reading.append(((10.0, 20.0), 0))

    def call(
        self, *, key: str | None = None, began: float = 10.0, ended: float | None, cancelled: bool = False
    ) -> None:
        number = len(self.evidence.calls) + 1
        call = Call(number, 0, key or "s1/1", key, SPEC, began, sent=52, ended=ended, cancelled=cancelled)
        self.evidence.calls.append(call)

    def broke(self, kind: str, target: str, began: float, ended: float, *, loses: bool = False) -> None:
        self.timeline.records.append(Record(kind, target, began, ended, loses=loses))

    def refused(self, at: float, *, held: int | None = None, wanted: int = 30, status: int = 410) -> None:
        code = "position_unknown"
        self.evidence.refusals.append(Refusal(at, "s1", STREAM, 1, status, code, "POST", wanted, held))

    def kinds(self) -> list[str]:
        return [found.kind for found in judge(self.evidence)]


def test_nothing_is_wrong_with_a_stream_that_ended() -> None:
    case = Case()
    case.stream.ends.append((20.0, "s1", "complete"))
    assert case.kinds() == []


@pytest.mark.parametrize(
    ("fault", "excused"),
    [
        (None, False),
        (("kill", replica(0), 15.0, 18.0), True),
        (("kill", replica(1), 15.0, 18.0), False),
        (("pause", replica(0), 15.0, 15.0 + LEASE), True),
        (("pause", replica(0), 15.0, 15.0 + LEASE / 10), False),
        (("blackhole", line(0), 15.0, 15.0 + LEASE), True),
        (("store_freeze", STORE, 12.0, 18.0), False),
    ],
)
def test_a_lost_producer_has_to_have_been_lost(fault: tuple[str, str, float, float] | None, excused: bool) -> None:
    case = Case()
    case.stream.ends.append((20.0, "s1", "producer_lost"))
    if fault is not None:
        case.broke(*fault)
    assert case.kinds() == ([] if excused else ["end"])


@pytest.mark.parametrize("end", ["stopped", "abandoned", "shutdown", "store_lost", "upstream_disconnected", "new"])
def test_an_end_that_nobody_asked_for(end: str) -> None:
    case = Case()
    case.stream.ends.append((20.0, "s1", end))
    assert case.kinds() == ["end"]


def test_a_stream_that_was_read_is_not_abandoned() -> None:
    case = Case()
    case.stream.reading[:] = [((10.0, 11.0), 0), ((11.0 + ABANDON + 1.0, 20.0), 0)]
    case.stream.ends.append((20.0, "s1", "abandoned"))
    assert case.kinds() == []


def test_two_ends_of_one_stream() -> None:
    case = Case()
    case.stream.ends += [(20.0, "s1", "complete"), (20.0, "s1w0", "stopped")]
    case.stream.stop_asked.append(19.0)
    assert case.kinds() == ["two_ends"]


def test_nothing_is_missing_while_the_producer_lives() -> None:
    case = Case(ended=40.0)
    case.broke("store_empty", STORE, 15.0, 16.0, loses=True)
    case.refused(18.0)
    assert case.kinds() == ["refused"]


def test_what_the_store_lost_with_its_producer_is_missing() -> None:
    case = Case(ended=15.5, cancelled=True)
    case.broke("kill", replica(0), 15.4, 19.0)
    case.broke("store_tail", STORE, 15.0, 16.0, loses=True)
    case.refused(18.0, held=20)
    assert case.kinds() == []


def test_what_the_log_holds_is_not_missing() -> None:
    case = Case(ended=15.5, cancelled=True)
    case.broke("kill", replica(0), 15.4, 19.0)
    case.broke("store_tail", STORE, 15.0, 16.0, loses=True)
    case.refused(18.0, held=30)
    assert case.kinds() == ["refused"]


def test_a_stream_that_ended_before_the_store_was_emptied_is_gone() -> None:
    case = Case()
    case.broke("store_empty", STORE, 25.0, 26.0, loses=True)
    case.refused(30.0, status=404, held=0)
    assert case.kinds() == []


def test_a_refusal_that_no_fault_may_lead_to() -> None:
    case = Case()
    case.broke("store_empty", STORE, 25.0, 26.0, loses=True)
    case.refused(30.0, status=500)
    assert case.kinds() == ["refused"]


def test_a_request_without_a_key_goes_upstream_once() -> None:
    case = Case()
    case.call(began=12.0, ended=14.0)
    assert case.kinds() == ["posted_twice"]


@pytest.mark.parametrize(
    ("ended", "cancelled", "again", "found"),
    [
        (20.0, False, 15.0, ["paid_twice"]),  # while the first runs
        (20.0, False, 25.0, ["paid_twice"]),  # though the first was whole
        (20.0, True, 25.0, []),  # the first failed
    ],
)
def test_a_key_is_paid_for_once(ended: float, cancelled: bool, again: float, found: list[str]) -> None:
    case = Case(key="key-1", ended=ended, cancelled=cancelled)
    case.call(key="key-1", began=again, ended=again + 1.0)
    assert case.kinds() == found


def test_a_replica_that_is_paused_while_the_store_is_restarted_cannot_be_told_from_a_dead_one() -> None:
    case = Case(key="key-1")
    case.call(key="key-1", began=17.0, ended=18.0)
    case.broke("pause", replica(0), 14.0, 14.0 + LEASE + 1.0)
    assert case.kinds() == ["paid_twice"]
    case.broke("store_kill", STORE, 13.0, 14.5)
    assert case.kinds() == []


def agents_case(twins: int = 1, *, ended: float | None = None) -> Case:
    case = Case(ended=ended)
    case.evidence.calls[0].attempt = f"agent-{twins}-1-0"
    return case


@pytest.mark.parametrize(
    ("twins", "ended", "cancelled", "found"),
    [
        (1, 40.0, False, ["turn_paid_twice"]),  # while the first runs
        (2, 40.0, False, []),  # two have asked
        (1, 25.0, False, []),  # the first was at its end
        (1, 29.0, True, []),  # the first was stopped
        (1, 33.0, True, ["turn_paid_twice"]),  # it was stopped later
    ],
)
def test_a_turn_is_paid_for_once(twins: int, ended: float, cancelled: bool, found: list[str]) -> None:
    case = agents_case(twins, ended=ended)
    case.evidence.calls[0].cancelled = cancelled
    case.stream.reading.append(((20.0, 30.0), 0))
    case.call(began=30.0, ended=41.0)
    case.evidence.calls[1].attempt = case.evidence.calls[0].attempt
    assert case.kinds() == found


@pytest.mark.parametrize("target", [STORE, replica(1), line(2)])
def test_a_fault_excuses_a_turn_that_is_paid_twice(target: str) -> None:
    case = agents_case(ended=40.0)
    case.call(began=30.0, ended=41.0)
    case.evidence.calls[1].attempt = case.evidence.calls[0].attempt
    case.broke("cut", "front 0", 29.0, 29.1)
    assert case.kinds() == ["turn_paid_twice"]
    case.broke("store_freeze", target, 26.0, 27.0)
    assert case.kinds() == []


@pytest.mark.parametrize(("second", "found"), [(15.0, ["shared"]), (20.0, [])])
def test_agents_share_no_stream(second: float, found: list[str]) -> None:
    case = Case()
    case.stream.agents += [((10.0, 20.0), "s1a"), ((second, 25.0), "s1b")]
    assert case.kinds() == found


def test_a_stop_stops_the_upstream() -> None:
    case = Case(ended=40.0)
    case.stream.stop_asked.append(14.9)
    case.stream.stopped.append(15.0)
    assert case.kinds() == ["not_stopped"]


def test_a_stream_that_nobody_reads_is_cancelled() -> None:
    case = Case(ended=45.0, cancelled=True)
    assert case.kinds() == ["not_abandoned"]


def test_a_wait_is_a_hang_where_nothing_was_broken() -> None:
    case = Case()
    case.evidence.waits.append(Wait("s1", 12.0, 12.0 + STALL + 0.5, frozenset((1,)), 0))
    assert case.kinds() == ["hang"]
    case.broke("store_freeze", STORE, 12.5, 15.0)
    assert case.kinds() == []


def test_silence_of_a_replica_that_is_well() -> None:
    case = Case()
    case.evidence.waits.append(Wait("s1", 12.0, 16.0, frozenset((1,)), None, mute=True))
    case.broke("store_freeze", STORE, 11.0, 17.0)  # a heartbeat needs no store
    assert case.kinds() == ["mute"]
    case.broke("pause", replica(1), 12.0, 15.5)
    assert case.kinds() == []


def test_a_client_that_gets_nothing_though_its_upstream_sends_is_waiting() -> None:
    case = Case(ended=None)
    now = [12.0]
    world: Any = SimpleNamespace(evidence=case.evidence, now=lambda: now[0], upstream=SimpleNamespace(by_attempt={}))
    client = Client(world, "s1", SPEC, "owner", 1)
    client.witness.watch(STREAM, 3)
    client.check_waiting()
    now[0] += STALL + 1.0
    client.check_waiting()
    client.end("the run is over")
    assert case.kinds() == ["hang"]


def test_intervals() -> None:
    assert merged([(3.0, 4.0), (1.0, 2.0), (1.5, 2.5), (5.0, 5.0)]) == [(1.0, 2.5), (3.0, 4.0)]
    assert gaps([(1.0, 2.0), (4.0, 9.0)], 0.0, 6.0) == [(0.0, 1.0), (2.0, 4.0)]
    assert gaps([], 0.0, 6.0) == [(0.0, 6.0)]
