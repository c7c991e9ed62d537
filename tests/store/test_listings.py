"""An owner's list of streams: on fakeredis, a real server, and a Cluster."""

from __future__ import annotations

import base64
import secrets
from typing import Any

import pytest

from relay.config import LimitSettings, StreamSettings
from relay.encryption import PLAIN, Cipher
from relay.protocol.ids import new_stream_id
from relay.store.listings import Listed, Listings
from tests.store.benches import Bench, Play

SETTINGS = StreamSettings(retention=30, max_duration=60)


def listings(bench: Bench, most: int = 5, cipher: Cipher | None = None) -> Listings:
    limits = LimitSettings(listed_streams=most)
    return Listings(bench.log.commands, bench.log.names, SETTINGS, limits, cipher or Cipher(PLAIN))


def fresh() -> tuple[str, str]:
    """An owner, and a stream of his."""
    return secrets.token_hex(32), new_stream_id()


async def put(at: Listings, owner: str, stream: str, name: str = "", digest: str = "") -> Listed:
    listed = at.entry(owner, stream, "replica-1", digest, name)
    await at.put(owner, listed)
    return listed


async def raw(bench: Bench, at: Listings, owner: str, *command: Any) -> Any:
    key = at._key(owner)
    return await bench.log.commands.call(key, command[0], key, *command[1:])


def test_the_newest_comes_first(play: Play) -> None:
    async def story(bench: Bench) -> None:
        at = listings(bench)
        owner, one = fresh()
        two = new_stream_id()
        await put(at, owner, one, "chat é", "d1")
        await put(at, owner, two)
        found = await at.of(owner)
        assert [(each.stream, each.digest, at.name_of(each)) for each in found] == [
            (two, "", None),
            (one, "d1", "chat é"),
        ]
        assert found[0].replica == "replica-1"
        assert await at.of(fresh()[0]) == []

    play(story)


def test_it_has_so_many_at_most(play: Play) -> None:
    async def story(bench: Bench) -> None:
        at = listings(bench, 3)
        owner, _ = fresh()
        streams = [new_stream_id() for _ in range(8)]
        for stream in streams:
            await put(at, owner, stream)
        assert [each.stream for each in await at.of(owner)] == streams[:4:-1]
        narrower = listings(bench, 1)
        last = new_stream_id()
        await put(narrower, owner, last)
        assert [each.stream for each in await at.of(owner)] == [last]

    play(story)


def test_it_expires_with_the_streams(play: Play) -> None:
    async def story(bench: Bench) -> None:
        at = listings(bench)
        owner, stream = fresh()
        old = await put(at, owner, stream)
        assert 0 < int(await raw(bench, at, owner, "PTTL")) <= 90_000
        await raw(bench, at, owner, "ZADD", 1, old.entry)  # as old as can be
        new = new_stream_id()
        await put(at, owner, new)
        assert [each.stream for each in await at.of(owner)] == [new]

    play(story)


def test_what_is_asserted_again_keeps_its_place(play: Play) -> None:
    async def story(bench: Bench) -> None:
        at = listings(bench)
        owner, one = fresh()
        two = new_stream_id()
        first = at.entry(owner, one, "r", "", "")
        when = await at.put(owner, first)
        await put(at, owner, two)
        again = Listed(one, "r", "", first.entry, when)
        assert await at.put(owner, again) == when
        assert [each.stream for each in await at.of(owner)] == [two, one]
        await raw(bench, at, owner, "DEL")  # the store has lost it
        await put(at, owner, two)
        await at.put(owner, again)
        assert [each.stream for each in await at.of(owner)] == [two, one]
        await at.remove(owner, again)
        assert [each.stream for each in await at.of(owner)] == [two]

    play(story)


def test_what_no_relay_has_put_there_is_not_read(play: Play) -> None:
    key = base64.b64encode(secrets.token_bytes(32)).decode()

    async def story(bench: Bench) -> None:
        at = listings(bench, cipher=Cipher(key))
        owner, stream = fresh()
        listed = await put(at, owner, stream, "secret name", "d1")
        assert b"secret" not in listed.entry
        assert base64.urlsafe_b64encode(b"secret") not in listed.entry
        forged = listed.entry.replace(stream.encode(), new_stream_id().encode())
        renamed = listed.entry.replace(b" d1 ", b" d2 ")
        for entry in (forged, renamed, b"nonsense", b"\xff \xff - - -"):
            await raw(bench, at, owner, "ZADD", 10**16, entry)
        (found,) = await at.of(owner)
        assert (found.stream, at.name_of(found)) == (stream, "secret name")
        other, _ = fresh()
        await raw(bench, at, other, "ZADD", 10**15, listed.entry)  # moved to another owner's
        assert await at.of(other) == []

    play(story)


@pytest.mark.parametrize("name", ["a b", "-", "p", "x" * 128, "東京 🎉"])
def test_a_name_is_what_it_was(play: Play, name: str) -> None:
    async def story(bench: Bench) -> None:
        at = listings(bench)
        owner, stream = fresh()
        await put(at, owner, stream, name, "d1")
        (found,) = await at.of(owner)
        assert at.name_of(found) == name

    play(story)
