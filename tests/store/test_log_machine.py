"""The log's scripts against a model, on fakeredis and a real server in lockstep.

A producer that may lose replies, a store that may fall back to what it held before or forget all of it, leases that
lapse, others that end the stream, readers elsewhere, time that expires: after every step both servers hold the same,
and what they hold keeps the promise: number n is event n and nothing else, whatever was lost in between.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fakeredis
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relay.encryption import Cipher
from relay.protocol.end_mark import End
from relay.protocol.ids import new_stream_id
from relay.store import scripts
from relay.store.names import Names
from relay.store.scripts import ALIVE, ENDED, FENCED, GONE, MISMATCH, OK, Script
from tests.support.stores import valkey_server

pytestmark = pytest.mark.slow

LEASE, RETENTION, TOMBSTONE, LONGEST = 600_000, 700_000, 800_000, 900_000
REPLICAS = ("r2", "r3")
ENDS = (End("completed"), End("stopped", b"data: \xff\n\nid: s.0e\ndata: [DONE]\n\n"))

replicas = st.sampled_from(REPLICAS)


def frame(n: int) -> bytes:
    return b"id: s.%d\ndata: \xff%d\n\n" % (n, n * 7919)


class Twins:
    """Two servers that are told the same and must answer the same."""

    def __init__(self, servers: list[Any]) -> None:
        self.servers = servers

    def __call__(self, *words: Any) -> Any:
        answers = self.each(*words)
        assert all(answer == answers[0] for answer in answers), f"{words}: {answers}"
        return answers[0]

    def run(self, script: Script, keys: list[bytes], *args: Any) -> Any:
        return self("EVALSHA", script.sha, len(keys), *keys, *args)

    def each(self, *words: Any) -> list[Any]:
        """Where the answer depends on the server's clock."""
        return [server.execute_command(*words) for server in self.servers]

    def each_run(self, script: Script, keys: list[bytes], *args: Any) -> list[Any]:
        return self.each("EVALSHA", script.sha, len(keys), *keys, *args)


@dataclass
class Held:
    """What the store is to hold: `there` of the stream, `kept` of its events; `seen` is when a reader elsewhere was
    last known, `fresh` whose word is younger than a lease, `known` whose word there is at all."""

    there: bool = False
    kept: bool = False
    top: int = 0
    end: bytes | None = None
    outcome: str = ""
    forced: bool = False
    lapsed: bool = False
    seen: str = "never"
    unread: int = -1
    fresh: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)


class Writer:
    """What a producer knows: what it believes the log to hold, every frame it has made, and how it ended."""

    def __init__(self, made: int) -> None:
        self.acked = 0
        self.made = made
        self.end: End | None = None
        self.fenced = False


class LogMachine(RuleBasedStateMachine):
    twins: Twins

    @initialize(frames=st.integers(0, 3))
    def begin(self, frames: int) -> None:
        self.begin_anew(frames)

    def begin_anew(self, frames: int) -> None:
        stream = new_stream_id()
        self.log, self.meta = Names().log(stream), Names().meta(stream)
        self.writer = Writer(frames)
        self.held = Held()
        self.earlier: tuple[Held, list[list[Any]]] | None = None
        self.ended: list[Any] | None = None  # what the log held when it ended
        self.make()

    # -- the producer -------------------------------------------------------------------------------------

    def make(self) -> None:
        args = [LEASE, LONGEST, "fence", "1", "api", "chat", "owner", "o"]
        assert self.twins.run(scripts.CREATE, [self.meta], *args) == 1
        if not self.held.there:
            self.held = Held(there=True)

    @precondition(lambda self: self.held.there)
    @rule()
    def make_what_is_there(self) -> None:
        self.make()

    @precondition(lambda self: not self.held.there and not self.writer.fenced)
    @rule()
    def make_again_what_the_store_has_lost(self) -> None:
        """And write all of it, from event 1 on."""
        self.make()
        self.writer.acked = 0

    @rule(count=st.integers(1, 4))
    def generate(self, count: int) -> None:
        if self.writer.end is None:
            self.writer.made += count

    @rule(end=st.sampled_from(ENDS))
    def finish(self, end: End) -> None:
        self.writer.end = self.writer.end or end

    def _append(self, expected: int, upto: int, *, fence: str = "1") -> tuple[int, int]:
        end = self.writer.end if upto == self.writer.made else None
        sent = [frame(n) for n in range(expected + 1, upto + 1)] + ([end.encode()] if end else [])
        note = (end.outcome, "1/2") if end else ("", "")
        args = [RETENTION, TOMBSTONE, fence, expected, *note, len(sent), *sent]
        ((code, top, *visits),) = self.twins.run(scripts.APPEND, [self.log, self.meta], *args)
        came = self.twins("HGET", self.meta, "visits")
        assert visits == ([int(came)] if code == OK and end and came else [])
        return code, top

    def _predict(self, expected: int, upto: int, *, fence: str = "1") -> tuple[int, int]:
        """What an append must answer, and what it makes of the model."""
        held = self.held
        if not held.there:
            return GONE, 0
        if fence != "1" or held.forced:
            return FENCED, held.top
        if expected != held.top:
            return MISMATCH, held.top
        if held.end is None:
            held.top = upto
            held.kept = held.kept or upto > expected
            if upto == self.writer.made and self.writer.end is not None:
                held.end, held.outcome, held.kept = self.writer.end.encode(), self.writer.end.outcome, True
        return OK, held.top

    def _flush(self, share: float, *, heard: bool) -> None:
        writer = self.writer
        if writer.fenced:
            return
        upto = writer.acked + round((writer.made - writer.acked) * share)
        wanted = self._predict(writer.acked, upto)
        code, top = self._append(writer.acked, upto)
        assert (code, top) == wanted
        if not heard:
            return
        if code == OK:
            writer.acked = upto
        elif code == MISMATCH:
            assert top <= writer.made
            writer.acked = top
        elif code == FENCED:
            writer.fenced = True

    @rule(share=st.sampled_from([0.0, 0.5, 1.0, 1.0]))
    def append(self, share: float) -> None:
        self._flush(share, heard=True)

    @rule(share=st.sampled_from([0.5, 1.0]), times=st.integers(1, 2))
    def append_with_a_lost_reply(self, share: float, times: int) -> None:
        """Done or not, the producer does not know; it says the same again."""
        for _ in range(times):
            self._flush(share, heard=False)

    @rule(before=st.integers(1, 3))
    def append_from_a_stale_top(self, before: int) -> None:
        expected = max(self.writer.acked - before, 0)
        wanted = self._predict(expected, self.writer.made)
        assert self._append(expected, self.writer.made) == wanted

    @rule(fence=st.sampled_from(["0", "2", "3"]))
    def append_of_an_impostor(self, fence: str) -> None:
        before = self._entries()
        # A higher fence is of who took the stream over, where the store has lost that.
        actual = self.twins("HGET", self.meta, "fence")
        if actual is None or int(actual) > int(fence):
            wanted = self._predict(self.held.top, self.writer.made, fence=fence)
            assert self._append(self.held.top, max(self.writer.made, self.held.top), fence=fence) == wanted
            assert self._entries() == before

    @rule()
    def renew(self) -> None:
        """It tells what the log holds and who reads elsewhere, which is all that a silent producer learns."""
        held, writer = self.held, self.writer
        for (answer,) in self.twins.each_run(scripts.RENEW, [self.meta], LEASE, "r1", "1"):
            code, top, present, ago, unread = answer
            if not held.there:
                assert answer == [GONE, 0, 0, -1, -1]
            elif held.forced:
                assert answer == [FENCED, held.top, 0, -1, -1]
            else:
                assert (code, top) == (OK, held.top)
                assert present == (held.seen == "lately" and bool(held.fresh))
                assert ago == -1 if held.seen == "never" else ago >= 0
                assert (ago >= LEASE) == (held.seen == "long ago")
                assert unread == held.unread
        if held.there and not held.forced:
            held.lapsed = False
            if not writer.fenced and held.end is None and held.top < writer.acked:
                writer.acked = held.top

    # -- readers elsewhere --------------------------------------------------------------------------------

    @rule(replica=replicas, came=st.booleans(), wanted=st.sampled_from(["", "0", "900", "5000"]))
    def somebody_reads(self, replica: str, came: bool, wanted: str) -> None:
        held = self.held
        visits = self.twins("HGET", self.meta, "visits")
        self.twins.each_run(scripts.STATUS, [self.meta, self.log], replica, "1" if came else "0", wanted, "o")
        counted = held.there and held.end is None
        if counted:
            held.unread = max(held.unread, int(wanted or -1))
            held.seen = "lately"
            held.known.add(replica)
            held.fresh.add(replica)
        assert int(self.twins("HGET", self.meta, "visits") or 0) == int(visits or 0) + (came and counted)

    @rule(replica=replicas)
    def a_stranger_asks(self, replica: str) -> None:
        before = self._fields()
        asked = self.twins.each_run(scripts.STATUS, [self.meta, self.log], replica, "1", "7000", "somebody else")
        assert asked == [None, None]
        assert self._fields() == before

    @rule(replica=replicas)
    def its_last_reader_leaves(self, replica: str) -> None:
        held = self.held
        assert self.twins.run(scripts.LEAVE, [self.meta], replica) == (replica in held.known)
        if replica in held.known:
            held.seen = "lately"
            held.known.discard(replica)
            held.fresh.discard(replica)

    @rule(replica=replicas)
    def one_is_not_heard_of_for_longer_than_a_lease(self, replica: str) -> None:
        if replica in self.held.fresh:
            self._date_back(f"r:{replica}")
            self.held.fresh.discard(replica)

    @precondition(lambda self: self.held.known)
    @rule()
    def nobody_is_heard_of_for_longer_than_a_lease(self) -> None:
        for name in ("seen", *(f"r:{replica}" for replica in sorted(self.held.known))):
            self._date_back(name)
        self.held.seen = "long ago"
        self.held.fresh.clear()

    def _date_back(self, name: str) -> None:
        for server, said in zip(self.twins.servers, self.twins.each("HGET", self.meta, name), strict=True):
            server.execute_command("HSET", self.meta, name, int(said) - 2 * LEASE)

    # -- the store and the others -------------------------------------------------------------------------

    @precondition(lambda self: self.held.there)
    @rule()
    def a_replica_of_the_store_falls_behind_here(self) -> None:
        dumps = [self.twins.each("DUMP", key) for key in (self.log, self.meta)]
        self.earlier = copy.deepcopy(self.held), dumps

    @precondition(lambda self: self.earlier is not None)
    @rule()
    def it_is_promoted(self) -> None:
        """All since then is lost: events, an end, a forced end with its fence."""
        assert self.earlier is not None
        held, dumps = self.earlier
        self.held = copy.deepcopy(held)
        for key, found in zip((self.log, self.meta), dumps, strict=True):
            self.twins("DEL", key)
            for server, dump in zip(self.twins.servers, found, strict=True):
                if dump is not None:
                    server.execute_command("RESTORE", key, LONGEST, dump)
        self.ended = None

    @precondition(lambda self: self.held.there)
    @rule()
    def it_comes_back_empty(self) -> None:
        self.twins("DEL", self.log, self.meta)
        self.held = Held()
        self.ended = None

    @precondition(lambda self: self.held.there)
    @rule()
    def lease_lapses(self) -> None:
        self._date_back("lease")
        self.held.lapsed = True

    @rule(off=st.sampled_from([0, 0, 0, -1, 1]))
    def others_end_it(self, off: int) -> None:
        held = self.held
        expected = max(held.top + off, 0)
        if not held.there:
            wanted = [GONE, 0]
        elif held.end is not None:
            wanted = [ENDED, held.top]
        elif not held.lapsed:
            wanted = [ALIVE, held.top]
        elif expected != held.top:
            wanted = [MISMATCH, held.top]
        else:
            held.end, held.outcome, held.forced, held.kept = b"producer_lost", "producer_lost", True, True
            wanted = [OK, held.top]
        args = [expected, "producer_lost", RETENTION, TOMBSTONE, "producer_lost"]
        assert self.twins.run(scripts.FORCE_END, [self.log, self.meta], *args) == wanted

    @precondition(lambda self: self.held.end is not None and self.held.kept)
    @rule()
    def events_expire(self) -> None:
        self.twins("PEXPIRE", self.log, 0)
        self.held.kept = False

    @precondition(lambda self: self.writer.fenced)
    @rule(frames=st.integers(0, 3))
    def another_stream(self, frames: int) -> None:
        self.begin_anew(frames)

    # -- the promise --------------------------------------------------------------------------------------

    def _entries(self) -> list[Any]:
        entries: list[Any] = self.twins("XRANGE", self.log, "-", "+")
        return entries

    def _fields(self) -> list[Any]:
        return self.twins.each("HGETALL", self.meta)

    @invariant()
    def number_n_is_event_n_and_an_end_has_none(self) -> None:
        held, entries = self.held, self._entries()
        if not held.kept:
            assert entries == []
            return
        assert held.top <= self.writer.made
        wanted = [(b"%d-0" % n, b"f", frame(n)) for n in range(1, held.top + 1)]
        if held.end is not None:
            wanted.append((b"%d-1" % held.top, b"end", held.end))
        assert [(entry, name, content) for entry, (name, content) in entries] == wanted

    @invariant()
    def an_ended_log_never_changes(self) -> None:
        """But for what the store itself loses."""
        if self.held.end is None or not self.held.kept:
            self.ended = None
        elif self.ended is None:
            self.ended = self._entries()
        else:
            assert self._entries() == self.ended

    @invariant()
    def what_is_said_of_it_is_so(self) -> None:
        held = self.held
        answers = self.twins.each_run(scripts.STATUS, [self.meta, self.log], "", "0", "")
        if not held.there:
            assert answers == [None, None]
            return
        kept = held.kept or (held.top == 0 and held.end is None)
        for (
            top,
            outcome,
            lease,
            is_kept,
            *_,
        ) in answers:
            assert (top, outcome.decode(), bool(is_kept)) == (held.top, held.outcome, kept)
            assert (lease < 0) == held.lapsed
        assert {answer[6] for answer in answers} == {b"2" if held.forced else b"1"}

    @invariant()
    def pages_from_any_place_hold_what_follows(self) -> None:
        entries = self._entries()
        head = [self.held.top if self.held.there else -1, self.held.outcome.encode()]
        for after in range(self.held.top + 2):
            following = [entry for entry in entries if entry[0] not in {b"%d-0" % n for n in range(after + 1)}]
            following = [entry for entry in following if int(entry[0].partition(b"-")[0]) >= after]
            for most, room in ((1000, 1 << 20), (2, 1 << 20), (1000, 2 * len(frame(1)) - 1)):
                arguments = (after, most, room, Cipher().compact_heads)
                *said, more, found, bases = self.twins.run(scripts.READ, [self.log, self.meta], *arguments)
                assert (said, bases) == (head, [])
                assert found == following[: len(found)]
                assert bool(more) == (len(found) < len(following))
                assert len(found) <= most
                assert len(found) >= 1 or not following
                assert sum(len(content) for _, (_, content) in found) <= room or len(found) == 1
                assert room < 1 << 20 or len(found) == min(most, len(following))

    @invariant()
    def what_is_there_is_to_expire(self) -> None:
        for key, there in ((self.meta, self.held.there), (self.log, self.held.kept)):
            for left in self.twins.each("PTTL", key):
                assert (0 < left <= RETENTION + TOMBSTONE) if there else left == -2


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with valkey_server(tmp_path_factory.mktemp("machine"), unix=True) as store:
        fake: Any = fakeredis.FakeRedis(version=(7, 2))
        real: Any = redis.Redis.from_url(store.url)
        for client in (fake, real):
            client.response_callbacks.clear()  # replies as they stand on the wire
            for script in scripts.SCRIPTS:
                client.execute_command("SCRIPT", "LOAD", script.text)
        yield Twins([fake, real])
        real.close()
        fake.close()


def test_the_promise(twins: Twins) -> None:
    machine = type("Machine", (LogMachine,), {"twins": twins})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
