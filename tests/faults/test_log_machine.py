"""The log's scripts against a model, on fakeredis and a real server in lockstep.

A producer that may lose replies, a store that may lose its last acknowledged entries, leases that lapse, others
that seal, time that expires: after every step both servers hold the same, and what they hold keeps the promise.
"""

from __future__ import annotations

from collections.abc import Iterator
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

from relay.protocol.ids import new_stream_id
from relay.store import scripts
from relay.store.names import Names
from relay.store.scripts import ALIVE, ENDED, FENCED, GONE, MISMATCH, OK, Script
from tests.support.stores import valkey_server

LEASE, RETENTION, TOMBSTONE, LONGEST = 600_000, 700_000, 800_000, 900_000


def frame(n: int) -> bytes:
    return b"id: s.%d\ndata: \xff%d\n\n" % (n, n * 7919)


def error(n: int) -> bytes:
    return b"id: s.%d\ndata: error\n\n" % n


class Twins:
    """Two servers that are told the same and must answer the same."""

    def __init__(self, servers: list[Any]) -> None:
        self.servers = servers

    def __call__(self, *words: Any) -> Any:
        answers = [server.execute_command(*words) for server in self.servers]
        assert all(answer == answers[0] for answer in answers), f"{words}: {answers}"
        return answers[0]

    def run(self, script: Script, keys: list[bytes], *args: Any) -> Any:
        return self("EVALSHA", script.sha, len(keys), *keys, *args)

    def each(self, *words: Any) -> list[Any]:
        """Where the answer depends on the server's clock."""
        return [server.execute_command(*words) for server in self.servers]


class Writer:
    """What a producer knows: its fence, what it believes the log to hold, and every frame it has made."""

    def __init__(self) -> None:
        self.acked = 0
        self.made = 0
        self.outcome = ""


class LogMachine(RuleBasedStateMachine):
    twins: Twins

    @initialize(frames=st.integers(0, 3))
    def begin(self, frames: int) -> None:
        self.begin_anew(frames)

    def begin_anew(self, frames: int) -> None:
        stream = new_stream_id()
        self.log, self.meta = Names().log(stream), Names().meta(stream)
        self.writer = Writer()
        self.there = True  # does the meta hash exist?
        self.kept = False  # do the events?
        self.top = 0
        self.end: bytes | None = None
        self.last_words = 0  # how many events a seal has added
        self.sealed: list[Any] | None = None  # what the log held when it ended
        self.create()
        self.writer.made = frames

    # -- the producer -------------------------------------------------------------------------------------

    @rule()
    def create(self) -> None:
        """Also asked a second time: it changes nothing then, and after the store's loss it makes a new stream,
        which only a tombstone does."""
        if self.there:
            args = [LEASE, LONGEST, "fence", "1", "api", "chat", "owner", "o"]
            assert self.twins.run(scripts.CREATE, [self.meta], *args) == 1

    @rule(count=st.integers(1, 4))
    def generate(self, count: int) -> None:
        if not self.writer.outcome:
            self.writer.made += count

    @rule()
    def finish(self) -> None:
        self.writer.outcome = "completed"

    def _append(self, expected: int, upto: int, *, fence: str = "1") -> tuple[int, int]:
        ended = upto == self.writer.made and self.writer.outcome
        frames = [frame(n) for n in range(expected + 1, upto + 1)]
        outcome, usage = (self.writer.outcome, "1/2") if ended else ("", "")
        sent = [*frames, outcome.encode()] if outcome else frames
        args = [RETENTION, TOMBSTONE, fence, expected, outcome, usage, len(sent), *sent]
        ((code, top),) = self.twins.run(scripts.APPEND, [self.log, self.meta], *args)
        return code, top

    def _predict(self, expected: int, upto: int, *, fence: str = "1") -> tuple[int, int]:
        """What an append must answer, and what it makes of the model."""
        if not self.there:
            return GONE, 0
        if fence != "1" or self.last_words:
            return FENCED, self.top
        if expected != self.top:
            return MISMATCH, self.top
        if self.end is None:
            self.top = upto
            self.kept = self.kept or upto > expected
            if upto == self.writer.made and self.writer.outcome:
                self.end = self.writer.outcome.encode()
                self.kept = True
        return OK, self.top

    def _flush(self, share: float, *, heard: bool) -> None:
        writer = self.writer
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

    @rule(share=st.sampled_from([0.0, 0.5, 1.0, 1.0]))
    def append(self, share: float) -> None:
        self._flush(share, heard=True)

    @rule(share=st.sampled_from([0.5, 1.0]), times=st.integers(1, 2))
    def append_with_a_lost_reply(self, share: float, times: int) -> None:
        """Done or not, the producer does not know; it says the same again."""
        for _ in range(times):
            self._flush(share, heard=False)

    @rule(behind=st.integers(1, 3))
    def append_from_a_stale_top(self, behind: int) -> None:
        expected = max(self.writer.acked - behind, 0)
        wanted = self._predict(expected, self.writer.made)
        assert self._append(expected, self.writer.made) == wanted

    @rule(fence=st.sampled_from(["0", "2", "3"]))
    def append_of_an_impostor(self, fence: str) -> None:
        before = self._entries()
        # What a seal has raised the fence to is no producer's.
        actual = self.twins("HGET", self.meta, "fence")
        if actual is None or actual.decode() != fence:
            wanted = self._predict(self.top, self.writer.made, fence=fence)
            assert self._append(self.top, max(self.writer.made, self.top), fence=fence) == wanted
            assert self._entries() == before

    @rule()
    def renew(self) -> None:
        answers = self.twins.each("EVALSHA", scripts.RENEW.sha, 1, self.meta, LEASE, "1")
        code = GONE if not self.there else FENCED if self.last_words else OK
        assert [answer[0][0] for answer in answers] == [code, code]

    # -- the store and the others -------------------------------------------------------------------------

    @precondition(lambda self: self.there and self.end is None and self.top > 0)
    @rule(count=st.integers(1, 4))
    def store_loses_its_last_entries(self, count: int) -> None:
        """A replica is promoted behind its primary."""
        self.top = max(self.top - count, 0)
        self._rebuild()

    def _rebuild(self) -> None:
        """The log as it was at an earlier top."""
        kept = self._entries()[: self.top]
        self.twins("DEL", self.log)
        for entry_id, fields in kept:
            self.twins("XADD", self.log, entry_id, *fields)
        self.kept = bool(kept)
        if kept:
            self.twins("PEXPIRE", self.log, LONGEST)
        self.twins("HSET", self.meta, "top", self.top)

    @precondition(lambda self: self.there and self.kept and self.end is not None and not self.last_words)
    @rule()
    def store_loses_the_end(self) -> None:
        self._rebuild()
        self.twins("HDEL", self.meta, "end", "usage", "ended")
        self.twins("PEXPIRE", self.meta, LONGEST)
        self.end = None
        self.sealed = None

    @precondition(lambda self: self.there)
    @rule()
    def lease_lapses(self) -> None:
        for server, lease in zip(self.twins.servers, self.twins.each("HGET", self.meta, "lease"), strict=True):
            server.execute_command("HSET", self.meta, "lease", int(lease) - 2 * LEASE)

    def _lapsed(self) -> bool:
        first, *others = (
            reply[2] < 0 for reply in self.twins.each("EVALSHA", scripts.LOOK.sha, 2, self.meta, self.log, "0")
        )
        assert all(other == first for other in others)
        return bool(first)

    @rule(off=st.sampled_from([0, 0, 0, -1, 1]), force=st.booleans(), words=st.integers(1, 2))
    def seal(self, off: int, force: bool, words: int) -> None:
        expected = max(self.top + off, 0)
        frames = [error(expected + i) for i in range(1, words + 1)]
        if not self.there:
            wanted = [GONE, 0]
        elif self.end is not None:
            wanted = [ENDED, self.top]
        elif not force and not self._lapsed():
            wanted = [ALIVE, self.top]
        elif expected != self.top:
            wanted = [MISMATCH, self.top]
        else:
            self.top += words
            self.end, self.last_words, self.kept = b"producer_lost", words, True
            wanted = [OK, self.top]
        args = [expected, "producer_lost", RETENTION, TOMBSTONE, "1" if force else "0", "producer_lost", *frames]
        assert self.twins.run(scripts.SEAL, [self.log, self.meta], *args) == wanted

    @precondition(lambda self: self.end is not None and self.kept)
    @rule()
    def events_expire(self) -> None:
        self.twins("PEXPIRE", self.log, 0)
        self.kept = False

    @precondition(lambda self: self.end is not None)
    @rule()
    def all_expires(self) -> None:
        self.twins("DEL", self.log, self.meta)
        self.there = self.kept = False
        self.top, self.end, self.last_words, self.sealed = 0, None, 0, None

    @precondition(lambda self: not self.there)
    @rule(frames=st.integers(0, 3))
    def another_stream(self, frames: int) -> None:
        self.begin_anew(frames)

    # -- the promise --------------------------------------------------------------------------------------

    def _entries(self) -> list[Any]:
        entries: list[Any] = self.twins("XRANGE", self.log, "-", "+")
        return entries

    @invariant()
    def the_log_is_a_prefix_and_one_end(self) -> None:
        entries = self._entries()
        if not self.kept:
            assert entries == []
            return
        generated = self.top - self.last_words
        assert generated <= self.writer.made
        wanted = [(b"%d-0" % n, frame(n)) for n in range(1, generated + 1)]
        wanted += [(b"%d-0" % n, error(n)) for n in range(generated + 1, self.top + 1)]
        if self.end is not None:
            wanted.append((b"%d-1" % self.top, self.end))
        assert [(entry, content) for entry, (_, content) in entries] == wanted

    @invariant()
    def an_ended_log_never_changes(self) -> None:
        if self.end is None or not self.kept:
            self.sealed = None
        elif self.sealed is None:
            self.sealed = self._entries()
        else:
            assert self._entries() == self.sealed

    @invariant()
    def what_is_said_of_it_is_so(self) -> None:
        looks = self.twins.each("EVALSHA", scripts.LOOK.sha, 2, self.meta, self.log, "0")
        if not self.there:
            assert looks == [None, None]
            return
        kept = self.kept or (self.top == 0 and self.end is None)
        for look in looks:
            assert (look[0], look[1], bool(look[3])) == (self.top, self.end or b"", kept)
            assert look[6] == (b"2" if self.last_words else b"1")

    @invariant()
    def what_is_there_is_to_expire(self) -> None:
        for key, there in ((self.meta, self.there), (self.log, self.kept)):
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
