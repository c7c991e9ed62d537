"""What a writer has its log hold can be read, whatever the store loses or answers late, or another replica writes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from relay.config import StoreSettings
from relay.encryption import UNBOUND
from relay.metrics import Metrics
from relay.protocol.compact import COMPACT, Restorer, base_of
from relay.protocol.end_mark import End
from relay.store.names import Names
from relay.streams.ahead import Ahead
from relay.streams.entries import EntryWriter
from relay.streams.writer import GONE, MISMATCH, OK, LogWriter

STREAM = "st_AAAAAAAAAAAAAAAAAAAAAA"
KINDS = (
    b'data: {"id":"all of them have it","text":"%d"}\n\n',
    b'event: other\ndata: {"number":%d,"list":[1,2,3],"kind":"another"}\n\n',
)


class Listener:
    def usage_summary(self) -> str:
        return ""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Log:
    """What a writer needs of it."""

    def __init__(self, *, compact: bool = True) -> None:
        self.names = Names()
        self.store = StoreSettings(compact=compact)
        self.cipher = self.store.cipher()


class Store:
    """One writer and its log, of which a test says what becomes of each append."""

    def __init__(self, *, compact: bool = True) -> None:
        log: Any = Log(compact=compact)
        listener: Any = Listener()
        self.log = log
        self.writer = LogWriter(
            STREAM,
            log,
            listener,
            submit=lambda _: None,
            meter=Metrics().meter("chat", "u", "m"),
            ahead=Ahead(1 << 30),
            max_bytes=1 << 30,
        )
        self.entries: list[bytes] = []
        self.dice = random.Random(1)

    def say(self, count: int) -> None:
        for _ in range(count):
            kind = KINDS[self.dice.random() < 0.2]
            self.writer.append(kind % self.dice.randint(0, 99))

    def append(self, sent: int, *, arrives: bool = True, answered: bool = True) -> None:
        """A flush with the events up to one."""
        writer = self.writer
        first = writer.acked
        contents = writer.entries.events(first + 1, writer.feed.frames[first:sent])
        code = OK if len(self.entries) == first else MISMATCH
        if arrives and code == OK:
            self.entries += contents
        if answered:
            writer.on_append_result(code, len(self.entries), sent, False)

    def lose(self, top: int) -> None:
        del self.entries[top:]

    def written_elsewhere(self, top: int) -> None:
        """Another replica has what this one has, and writes it on."""
        frames = self.writer.feed.frames[len(self.entries) : top]
        self.entries += EntryWriter(self.log, STREAM, UNBOUND).events(len(self.entries) + 1, frames)

    def frame(self, n: int, depth: int = 0) -> bytes:
        """Event n, as one who has read nothing else restores it; at a depth as no chain of bases of one writer has."""
        assert depth <= 3
        content = self.entries[n - 1]
        if not content.startswith(COMPACT):
            return content
        return Restorer(STREAM).restore(n, content, lambda base: self.frame(base, depth + 1))

    def check(self) -> None:
        assert [self.frame(n) for n in range(1, len(self.entries) + 1)] == self.writer.feed.frames[: len(self.entries)]


def test_a_stream_without_trouble() -> None:
    store = Store()
    for _ in range(50):
        store.say(3)
        store.append(store.writer.last)
    store.check()
    assert len(store.entries) == 150
    assert sum(not content.startswith(COMPACT) for content in store.entries) == 4 + len(KINDS)


def test_the_first_few_events_are_written_as_they_are() -> None:
    store = Store()
    store.say(4)
    store.append(4)
    assert store.entries == store.writer.feed.frames
    assert store.writer.entries._compactor is None


def test_without_the_setting_events_are_in_full() -> None:
    store = Store(compact=False)
    store.say(20)
    store.append(20)
    assert store.entries == store.writer.feed.frames


def test_an_end_alone_is_no_event() -> None:
    store = Store()
    store.say(5)
    store.append(5)
    writer = store.writer
    assert writer.entries.events(6, []) == []
    writer.end = End("completed")
    assert writer.end_content(5, "1/2") == ("1/2", b"completed")


@pytest.mark.parametrize("kept", [1, 2, 3, 9])
def test_a_base_that_the_store_has_lost(kept: int) -> None:
    store = Store()
    store.say(10)
    store.append(10)
    assert {base_of(content) for content in store.entries if content.startswith(COMPACT)}
    store.lose(kept)
    store.say(3)
    store.append(13)  # it is told that the log holds less
    assert len(store.entries) == kept
    store.append(13)
    assert len(store.entries) == 13
    assert not store.entries[kept].startswith(COMPACT)
    store.check()


def test_a_renewal_that_tells_of_the_loss() -> None:
    store = Store()
    store.say(10)
    store.append(10)
    store.lose(4)
    store.writer.on_renewed(OK, 4)
    store.append(10)
    assert not store.entries[4].startswith(COMPACT)
    store.check()


def test_a_store_that_comes_back_empty() -> None:
    store = Store()
    store.say(10)
    store.append(10)
    store.lose(0)
    store.say(5)
    store.writer.on_append_result(GONE, 0, 15, False)
    store.writer.made_again()
    store.append(15)
    assert len(store.entries) == 15
    store.check()


def test_replies_that_are_lost_make_no_chains() -> None:
    """What stands in the log was written by an earlier attempt than the one that is remembered."""
    store = Store()
    store.say(2)
    store.append(2)
    for _ in range(60):
        store.say(2)
        store.append(store.writer.last, answered=False)
        store.append(store.writer.last)
        assert store.writer.acked == store.writer.last
        store.check()


@pytest.mark.parametrize("seed", range(60))
def test_whatever_becomes_of_appends(seed: int) -> None:
    store = Store()
    dice = store.dice = random.Random(seed)
    writer = store.writer
    for _ in range(60):
        store.say(dice.randint(0, 4))
        sent = dice.randint(writer.acked, writer.last)
        trouble = dice.random()
        if trouble < 0.6:
            store.append(sent)
        elif trouble < 0.7:
            store.append(sent, answered=False)
        elif trouble < 0.8:
            store.append(sent, arrives=False, answered=False)
        elif trouble < 0.9:
            store.lose(dice.randint(max(0, len(store.entries) - 6), len(store.entries)))
        elif trouble < 0.95:
            store.written_elsewhere(dice.randint(len(store.entries), writer.last))
        elif trouble < 0.97:
            store.lose(0)
            writer.on_append_result(GONE, 0, sent, False)
            writer.made_again()
        else:
            writer.on_renewed(OK, len(store.entries))
        store.check()
    for _ in range(3):
        store.append(writer.last)
    assert len(store.entries) == writer.last
    store.check()
