"""Logs in the compact form: read from every place, in one round trip, and never with a byte that is not the event's."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from relay.config import StoreSettings
from relay.encryption import Binding, Cipher, Tampered
from relay.protocol.compact import COMPACT, base_of
from relay.protocol.end_mark import End
from relay.protocol.errors import EncryptionKeyMissing
from relay.store.log import Log, Page
from relay.store.scripts import OK
from relay.streams.entries import EntryWriter
from tests.store.benches import FIELDS, Bench, Play, log_key, meta_key
from tests.support.deltas import DELTAS, PLAIN_EVENTS, deltas, frames_of
from tests.support.stores import valkey_server

BOUND = Binding(FIELDS["owner"], FIELDS["api"])
RANDOM = random.Random(3)
KEY, OTHER = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))


@pytest.fixture(params=["plain", "sealed"])
def keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The variable's name that holds them, "" without."""
    monkeypatch.setenv("KEYS", KEY)
    return "KEYS" if request.param == "sealed" else ""


class Compact:
    """A stream that is written in the compact form, by writers of one replica or more."""

    def __init__(self, bench: Bench, keys: str) -> None:
        self.bench = bench
        self.keys = keys
        self.calls: list[str] = []
        self.stream = ""

    def replica(self, **settings: Any) -> Log:
        """One that has read nothing yet; what it asks the store is noted."""
        log = Log(
            self.bench.topology, self.bench.log.settings, StoreSettings(encryption_env=self.keys or None, **settings)
        )
        run, call = log.commands.run, log.commands.call

        async def noted_run(*words: Any, **named: Any) -> Any:
            reply = await run(*words, **named)
            self.calls.append(f"read, {len(reply[4])} bases" if len(reply) == 5 else "run")
            return reply

        async def noted_call(key: bytes, *words: Any, **named: Any) -> Any:
            self.calls.append(str(words[0]))
            return await call(key, *words, **named)

        log.commands.run, log.commands.call = noted_run, noted_call  # type: ignore[method-assign]
        return log

    def writer(self) -> EntryWriter:
        return EntryWriter(self.replica(), self.stream, BOUND, in_full=0)

    async def begin(self) -> None:
        self.stream = await self.bench.made()

    async def append(self, first: int, entries: list[bytes], end: bytes = b"") -> None:
        sent = [*entries, end] if end else entries
        args: list[Any] = ["1", first - 1, "completed" if end else "", "", len(sent), *sent]
        assert await self.bench.append_raw(self.stream, args) == (OK, first - 1 + len(entries))

    async def written(self, frames: list[bytes], outcome: str = "", together: int = 7) -> None:
        await self.begin()
        writer = self.writer()
        for at in range(0, len(frames), together):
            some = frames[at : at + together]
            await self.append(at + 1, list(writer.events(at + 1, some)))
        if outcome:
            _, mark = writer.end(len(frames), End(outcome), "")
            await self.append(len(frames) + 1, [], mark)

    async def put(self, entries: list[bytes]) -> None:
        """Give it another log."""
        await self.bench.raw(self.stream, "DEL", log_key(self.stream))
        for n, content in enumerate(entries, 1):
            await self.bench.raw(self.stream, "XADD", log_key(self.stream), f"{n}-0", "f", content)
        await self.bench.raw(self.stream, "HSET", meta_key(self.stream), "top", len(entries))

    async def contents(self) -> list[bytes]:
        return [content for _, _, content in await self.bench.entries(self.stream)]

    def is_compact(self, content: bytes) -> bool:
        return content[:5] in compact_heads(self.replica().cipher)


def compact_heads(cipher: Cipher) -> list[bytes]:
    return [cipher.compact_heads[at : at + 5] for at in range(0, len(cipher.compact_heads), 5)]


@pytest.mark.parametrize("name", ["chat", "responses-in-turns"])
def test_from_every_place_in_one_round_trip(play: Play, keys: str, name: str) -> None:
    async def story(bench: Bench) -> None:
        it = Compact(bench, keys)
        frames = deltas(name, 300, "st_GjHt7RkIwN5m1yXntbsJBu")
        it.stream = "st_GjHt7RkIwN5m1yXntbsJBu"
        await bench.log.create(it.stream, FIELDS, "1")
        writer = it.writer()
        await it.append(1, list(writer.events(1, frames)), writer.end(300, End("completed"), "")[1])
        for after in (*range(12), *range(12, 300, 13), 299, 300):
            log = it.replica()
            it.calls.clear()
            page = await log.read(it.stream, after, BOUND)
            assert len(it.calls) == 1
            assert page.frames == frames[after : after + 256]
            assert not page.gap
            assert page.end == (End("completed") if after >= 44 else None)
            if after and after < 300:
                it.calls.clear()
                assert await log.frame(it.stream, after, BOUND) == frames[after - 1]
                assert it.calls in (["XRANGE"], ["XRANGE", "XRANGE"])
        await bench.raw(it.stream, "DEL", log_key(it.stream), meta_key(it.stream))

    play(story)


def made(stream: str, *texts: str) -> list[bytes]:
    return frames_of((b'data: {"id":"all of them have it","text":"%b"}\n\n' % text.encode() for text in texts), stream)


def test_who_follows_is_given_a_base_once(play: Play, keys: str) -> None:
    async def story(bench: Bench) -> None:
        it = Compact(bench, keys)
        await it.begin()
        frames = made(it.stream, *map(str, range(20)))
        writer, tail = it.writer(), it.replica()
        await it.append(1, list(writer.events(1, frames[:5])))
        bases = []
        for top in range(5, 20):
            it.calls.clear()
            page = await tail.read(it.stream, top - 1, BOUND, shared=False)
            assert page == Page([frames[top - 1]], None, False, False)
            bases += it.calls
            await it.append(top + 1, list(writer.events(top + 1, frames[top : top + 1])))
        assert bases == ["read, 1 bases", *["read, 0 bases"] * 14]

    play(story)


def test_there_is_no_event_before_the_first(play: Play, keys: str) -> None:
    async def story(bench: Bench) -> None:
        it = Compact(bench, keys)
        await it.begin()
        assert await it.replica().frame(it.stream, 0, BOUND) == b""
        assert await it.replica().frame(it.stream, 1, BOUND) == b""

    play(story)


def test_pages_are_no_larger_for_it(play: Play, keys: str) -> None:
    """Their bound is on what goes to clients, of which little may be in the log."""

    async def story(bench: Bench) -> None:
        it = Compact(bench, keys)
        await it.begin()
        frames = made(it.stream, *(f'{n}","more":"{"m" * 3500}' for n in range(200)))
        writer = it.writer()
        await it.append(1, list(writer.events(1, frames)))
        assert sum(map(len, await it.contents())) < 20_000
        read: list[bytes] = []
        while len(read) < 200:
            page = await it.replica().read(it.stream, len(read), BOUND)
            assert 0 < page.size <= 256 << 10
            assert page.full is (len(read) + len(page.frames) < 200)
            read += page.frames
        assert read == frames

    play(story)


@pytest.mark.parametrize("lost", [True, False], ids=["missing", "another"])
def test_without_its_base_an_event_is_a_gap(play: Play, keys: str, lost: bool) -> None:
    async def story(bench: Bench) -> None:
        it = Compact(bench, keys)
        await it.begin()
        frames = made(it.stream, *"abcdefgh")
        await it.append(1, list(it.writer().events(1, frames)))
        contents = await it.contents()
        if lost:
            await bench.raw(it.stream, "XDEL", log_key(it.stream), "2-0")
        else:
            other = [frames[0], frames[1].replace(b"all of them", b"none of them")]
            await it.put([*it.writer().events(1, other), *contents[2:]])
        assert await it.replica().read(it.stream, 4, BOUND) == Page([], None, True, False)
        assert await it.replica().frame(it.stream, 5, BOUND) == b""
        page = await it.replica().read(it.stream, 0, BOUND)
        assert page.gap
        assert page.frames == frames[:1] + ([] if lost else [other[1]])

    play(story)


def test_a_base_that_another_replica_has_written_after_one_of_its_own(play: Play, keys: str) -> None:
    """Two have written the same events, in turns: each event is the same, and stands there as one of them wrote it."""

    async def story(bench: Bench) -> None:
        it = Compact(bench, keys)
        await it.begin()
        frames = made(it.stream, *map(str, range(12)))
        one, two = list(it.writer().events(1, frames)), list(it.writer().events(6, frames[5:]))
        assert not it.is_compact(two[0])
        assert it.is_compact(one[5])
        await it.put([*one[:6], *two[1:]])
        for after in range(12):
            page = await it.replica().read(it.stream, after, BOUND)
            assert (page.frames, page.gap) == (frames[after:], False)
            assert await it.replica().frame(it.stream, after + 1, BOUND) == frames[after]

    play(story)


def test_bases_upon_bases_are_bounded(play: Play, keys: str) -> None:
    """As no replicas write them: an event is restored after 16 others at most that are not on its page."""

    async def story(bench: Bench) -> None:
        it = Compact(bench, keys)
        await it.begin()
        frames = made(it.stream, *map(str, range(40)))
        entries = list(it.writer().events(1, frames[:2]))
        for n in range(2, 40):
            entries.append(it.writer().events(n, frames[n - 1 : n + 1])[1])  # noqa: PERF401
        await it.put(entries)
        assert (await it.replica().read(it.stream, 0, BOUND)).frames == frames
        assert (await it.replica().read(it.stream, 10, BOUND)).frames == frames[10:]
        assert await it.replica().read(it.stream, 39, BOUND) == Page([], None, True, False)

    play(story)


@pytest.mark.parametrize("part", ["base", "text", "place", "whole"])
def test_what_was_changed_is_a_gap(play: Play, keys: str, part: str) -> None:
    """In a log that is not encrypted, where what an event is made of is not its base's, or none."""

    async def story(bench: Bench) -> None:
        it = Compact(bench, keys)
        await it.begin()
        frames = made(it.stream, *"abcdefgh")
        contents = list(it.writer().events(1, frames))
        assert base_of(contents[5]) == 2
        if part == "base":
            contents[5] = contents[5][:5] + (1).to_bytes(4) + contents[5][9:]
        elif part == "text":
            contents[5] = contents[5][:9] + bytes((contents[5][9] ^ 1,)) + contents[5][10:]
        elif part == "whole":
            contents[5] = contents[5][:5]
        elif keys:
            contents[5] = contents[4]
        else:
            contents[5] = contents[4][:5] + (7).to_bytes(4) + contents[4][9:]
        await it.put(contents)
        page = await it.replica().read(it.stream, 0, BOUND)
        assert (page.frames, page.gap) == (frames[:5], True)
        assert await it.replica().read(it.stream, 5, BOUND) == Page([], None, True, False)

    play(story)


def test_what_is_not_encrypted_is_not_read_where_that_is_not_allowed(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(bench: Bench) -> None:
        plain = Compact(bench, "")
        await plain.begin()
        frames = made(plain.stream, *"abcd")
        await plain.append(1, list(plain.writer().events(1, frames)))
        assert (await plain.replica().read(plain.stream, 0, BOUND)).frames == frames
        plain.keys = "KEYS"
        monkeypatch.setenv("KEYS", KEY)
        assert (await plain.replica().read(plain.stream, 2, BOUND)).gap
        monkeypatch.setenv("KEYS", f"{KEY},none")
        assert (await plain.replica().read(plain.stream, 2, BOUND)).frames == frames[2:]

    play(story)


def test_another_owner_and_another_key_open_nothing(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", KEY)

    async def story(bench: Bench) -> None:
        it = Compact(bench, "KEYS")
        await it.begin()
        frames = made(it.stream, *"abcd")
        await it.append(1, list(it.writer().events(1, frames)))
        log = it.replica()
        assert (await log.read(it.stream, 2, BOUND)).frames == frames[2:]
        assert await log.read(it.stream, 2, BOUND._replace(owner="o2")) == Page([], None, True, False)
        monkeypatch.setenv("KEYS", OTHER)
        with pytest.raises(EncryptionKeyMissing):
            await it.replica().read(it.stream, 2, BOUND)
        monkeypatch.setenv("KEYS", f"{OTHER},{KEY}")
        assert (await it.replica().read(it.stream, 2, BOUND)).frames == frames[2:]

    play(story)


def test_a_replica_that_does_not_know_the_form_lacks_its_key(play: Play, keys: str) -> None:
    """As version 0.2 reads an entry: what begins as something encrypted has the name of a key, or none that it has."""

    def decrypt_0_2(cipher: Cipher, content: bytes) -> None:
        if not content.startswith(b"\x01"):
            assert cipher.reads_plain
        elif content[1:5] not in cipher._keys and content[1:5] not in cipher._keys_of_0_1:
            raise EncryptionKeyMissing(content[1:5].hex())

    async def story(bench: Bench) -> None:
        it = Compact(bench, keys)
        await it.begin()
        await it.append(1, list(it.writer().events(1, made(it.stream, *"abcd"))))
        cipher = it.replica().cipher
        contents = await it.contents()
        assert [it.is_compact(content) for content in contents] == [False, False, True, True]
        for content in contents:
            if it.is_compact(content):
                with pytest.raises(EncryptionKeyMissing):
                    decrypt_0_2(cipher, content)
            else:
                decrypt_0_2(cipher, content)

    play(story)


def test_the_setting(play: Play, keys: str) -> None:
    async def story(bench: Bench) -> None:
        it = Compact(bench, keys)
        await it.begin()
        frames = made(it.stream, *"abcdefgh")
        writer = EntryWriter(it.replica(compact=False), it.stream, BOUND)
        await it.append(1, list(writer.events(1, frames)))
        assert not any(map(it.is_compact, await it.contents()))
        assert (await it.replica().read(it.stream, 3, BOUND)).frames == frames[3:]
        # And a fleet that is rolled back: what is there already is read all the same.
        other = Compact(bench, keys)
        await other.written(made("st_x", *"abcdefgh")[:0], "")
        frames = made(other.stream, *"abcdefgh")
        await other.append(1, list(other.writer().events(1, frames)))
        assert (await other.replica(compact=False).read(other.stream, 3, BOUND)).frames == frames[3:]

    play(story)


class TestNoNonceTwice:
    def test_what_is_written_again_is_under_another_salt(self, keys: str) -> None:
        """A position is given one text by one encryptor, whatever is written again and from wherever."""
        log = Log.__new__(Log)
        log.store, log.cipher = (
            StoreSettings(encryption_env=keys or None),
            StoreSettings(encryption_env="KEYS").cipher(),
        )
        frames = made("st_x", *map(str, range(30)))
        writer = EntryWriter(log, "st_x", BOUND)
        texts: dict[tuple[bytes, int], bytes] = {}
        opened = Cipher(KEY)
        for first, last in ((1, 4), (5, 9), (5, 9), (7, 12), (13, 13), (13, 13), (13, 20), (21, 30), (1, 30)):
            if first == 21:
                writer.forget()
            for n, content in enumerate(writer.events(first, frames[first - 1 : last]), first):
                compact = content[:5] in compact_heads(opened)
                salt = content[9:17] if compact else content[5:13]
                text = opened.decrypt("st_x", n, b"f", content, BOUND)
                assert texts.setdefault((salt, n), text) == text
                assert not compact or 2 <= base_of(text) < n
            _, mark = writer.end(last, End("completed"), "")
            assert texts.setdefault((mark[5:13], -last), mark) == mark

    def test_an_entry_opens_at_its_place_alone(self) -> None:
        cipher = Cipher(KEY)
        encryptor = cipher.encryptor("st_x", BOUND)
        assert encryptor is not None
        entry = COMPACT + (2).to_bytes(4) + b"text"
        content = encryptor.event(7, entry)
        assert cipher.decrypt("st_x", 7, b"f", content, BOUND) == entry
        for stream, n, binding in (("st_y", 7, BOUND), ("st_x", 8, BOUND), ("st_x", 7, Binding("o2", "chat"))):
            with pytest.raises(Tampered):
                cipher.decrypt(stream, n, b"f", content, binding)
        for at in range(len(content)):
            spoiled = content[:at] + bytes((content[at] ^ 1,)) + content[at + 1 :]
            with pytest.raises((Tampered, EncryptionKeyMissing)):
                assert cipher.decrypt("st_x", 7, b"f", spoiled, BOUND) is None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with valkey_server(tmp_path_factory.mktemp("memory"), unix=True) as store:
        client: Any = redis.Redis.from_url(store.url)
        yield client
        client.close()


@pytest.mark.parametrize("name", [*DELTAS, "plain"])
def test_memory_for_each_byte_of_frames(server: redis.Redis, keys: str, name: str) -> None:
    """All that the store has allocated for a stream's log, its own structures included."""
    frames = deltas(name, 1000) if name in DELTAS else frames_of(PLAIN_EVENTS(n, RANDOM) for n in range(1000))
    _, plain, sealed = DELTAS.get(name, (None, 0.65, 1.05))
    most = sealed if keys else plain
    log = Log.__new__(Log)
    log.store = StoreSettings(encryption_env=keys or None)
    log.cipher = log.store.cipher()
    writer = EntryWriter(log, "st_GjHt7RkIwN5m1yXntbsJBu", BOUND)
    server.flushall()
    for n, frame in enumerate(frames, 1):
        server.xadd("log", {"f": writer.events(n, [frame])[0]}, id=f"{n}-0")
    used = server.memory_usage("log", samples=0)
    assert used is not None
    ratio = used / sum(map(len, frames))
    print(f"{name}: {ratio:.3f} bytes for each byte of frames")
    assert ratio < most
    if name.startswith("chat"):
        assert ratio <= 0.35
