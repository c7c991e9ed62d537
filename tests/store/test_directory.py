"""Claims, aliases, replicas and the secret: on fakeredis, a real server, and a Cluster.

No test waits for a time to pass: what expires is seen by its PTTL, and a sign of life is dated back.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.exceptions

from relay.config import StoreSettings, StreamSettings
from relay.protocol.errors import ResponseIdAmbiguous, StoreUnavailable
from relay.protocol.ids import new_stream_id
from relay.store.commands import Sent
from relay.store.directory import Claim, Directory, new_secret
from relay.store.log import Log
from relay.store.topology import Topology
from tests.store.benches import STORES, FakeTopology, just_below

SETTINGS = StreamSettings(lease=10, retention=30, tombstone=90, max_duration=60)
LONGEST = 1000 * (30 + 60)
RETENTION = 1000 * 30
SECRET_KEY = b"relay:secret"


class Bench:
    """A directory, and a look behind it."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.log = Log(topology, SETTINGS, StoreSettings())
        self.directory = Directory(self, self.log.names, SETTINGS)
        self.directory._began = float("-inf")  # it has known its store for ever
        self.confirmed: list[bytes] = []
        self.moved: set[bytes] = set()  # keys that another server holds, as the others see it
        self.back: dict[bytes, float] = {}  # for how many seconds the node of a key has been back

    def send(self, key: bytes, *command: Any) -> Sent:
        return self.log.commands.send(key, *command)

    def send_script(self, key: bytes, script: Any, keys: list[bytes], args: list[Any]) -> Sent:
        return self.log.commands.send_script(key, script, keys, args)

    async def call(self, key: bytes, *command: Any) -> Any:
        return await self.log.commands.call(key, *command)

    async def run(self, key: bytes, script: Any, keys: list[bytes], args: list[Any]) -> Any:
        return await self.log.commands.run(key, script, keys, args)

    async def confirm(self, key: bytes) -> None:
        self.confirmed.append(key)
        if key in self.moved:
            raise StoreUnavailable

    def returned_for(self, key: bytes) -> float:
        return self.back.get(key, float("inf"))

    async def raw(self, key: bytes, *command: Any) -> Any:
        return await self.topology.node_of(key).query.call(*command)

    async def lives_for(self, name: str) -> int:
        key = self.log.names.name_key(name)
        return int(await self.raw(key, "PTTL", key))

    async def age(self, replica: str) -> None:
        """It was last heard of longer than a lease ago."""
        key = self.log.names.replicas
        seconds, _ = await self.raw(key, "TIME")
        await self.raw(key, "ZADD", key, (int(seconds) - 60) * 1000, replica)


Story = Callable[[Bench], Awaitable[None]]
Play = Callable[[Story], None]


@pytest.fixture
def play(store: Callable[[], Topology]) -> Play:
    def run(story: Story) -> None:
        async def scene() -> None:
            topology = store()
            try:
                await topology.refresh()
                await story(Bench(topology))
            finally:
                await topology.close()

        asyncio.run(scene())

    return run


def some_claim(digest: str = "d") -> Claim:
    return Claim(new_stream_id(), digest, f"host-{secrets.token_hex(4)}")


def some_name() -> str:
    return f"key:{secrets.token_hex(16)}"


class TestClaims:
    def test_the_first_one_holds(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            name, one, two = some_name(), some_claim("d1"), some_claim("d2")
            assert await bench.directory.claim_of(name) is None
            assert await bench.directory.claim(name, one) == one
            assert await bench.directory.claim(name, two) == one
            assert await bench.directory.claim_of(name) == one

        play(story)

    def test_of_any_number_at_the_same_moment_one_holds(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            name = some_name()
            held = await asyncio.gather(*(bench.directory.claim(name, some_claim(str(n))) for n in range(20)))
            assert len(set(held)) == 1

        play(story)

    def test_asserted_again_it_lives_on_and_says_what_has_changed(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            name, one = some_name(), some_claim()
            await bench.directory.claim(name, one)
            key = bench.log.names.name_key(name)
            await bench.raw(key, "PEXPIRE", key, 1000)
            unlogged = Claim(one.stream, one.digest, one.replica, joinable=False)
            assert await bench.directory.claim(name, unlogged) == unlogged
            assert await bench.directory.claim(name, some_claim()) == unlogged
            assert just_below(await bench.lives_for(name), LONGEST)

        play(story)

    def test_a_store_that_came_back_empty_gets_it_again(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            name, one = some_name(), some_claim()
            await bench.directory.claim(name, one)
            key = bench.log.names.name_key(name)
            await bench.raw(key, "DEL", key)
            assert await bench.directory.claim(name, one) == one
            assert await bench.directory.claim(name, some_claim()) == one

        play(story)

    def test_asserted_again_it_takes_the_place_of_an_earlier_one_that_is_there_again(self, play: Play) -> None:
        """A failover has brought back a claim that had been given back, and that nobody else is left to give back."""

        async def story(bench: Bench) -> None:
            name, first = some_name(), some_claim()
            key = bench.log.names.name_key(name)
            second = await bench.directory.claim(name, some_claim())
            await bench.raw(key, "HSET", key, "stream", first.stream, "replica", first.replica, "at", second.at - 1)
            assert await bench.directory.claim(name, some_claim()) == Claim(first.stream, "d", first.replica)
            assert await bench.directory.claim(name, second) == second
            assert await bench.directory.claim_of(name) == second
            assert (await bench.directory.claim(name, some_claim())).at == second.at
            later = Claim(new_stream_id(), "d", "b", at=second.at)
            assert await bench.directory.claim(name, later) == second

        play(story)

    def test_only_its_own_stream_gives_it_back(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            name, one, two = some_name(), some_claim("d1"), some_claim("d2")
            await bench.directory.claim(name, one)
            await bench.directory.release(name, two.stream)
            assert await bench.directory.claim_of(name) == one
            for _ in range(2):
                await bench.directory.release(name, one.stream)
                assert await bench.directory.claim_of(name) is None
            assert await bench.directory.claim(name, two) == two

        play(story)

    def test_it_lives_as_long_as_a_stream_may_and_then_as_long_as_its_log(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            name, one = some_name(), some_claim()
            await bench.directory.claim(name, one)
            assert just_below(await bench.lives_for(name), LONGEST)
            await bench.directory.claim(name, one, completed=True)
            assert 0 < await bench.lives_for(name) <= RETENTION

        play(story)

    def test_one_of_an_earlier_version_names_no_replica(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            name, stream = some_name(), new_stream_id()
            key = bench.log.names.name_key(name)
            await bench.raw(key, "HSET", key, "stream", stream, "digest", "d")
            assert await bench.directory.claim_of(name) == Claim(stream, "d", "")
            assert await bench.directory.claim(name, some_claim()) == Claim(stream, "d", "")

        play(story)

    def test_how_long_its_store_is_back(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            bench.back = {bench.log.names.name_key("back"): 7.0}
            assert bench.directory.returned_for("back") == 7.0
            assert bench.directory.returned_for("never-away") == float("inf")

        play(story)


class TestAliases:
    def test_it_leads_to_its_stream(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            name, stream = some_name(), new_stream_id()
            assert await bench.directory.resolve_alias(name) is None
            for _ in range(2):  # a lost reply makes the caller ask twice
                await bench.directory.set_alias(name, stream)
                assert await bench.directory.resolve_alias(name) == stream
            assert just_below(await bench.lives_for(name), LONGEST)

        play(story)

    def test_a_server_that_has_been_replaced_knows_of_no_name_that_is_none(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            name, stream = some_name(), new_stream_id()
            key = bench.log.names.name_key(name)
            bench.moved.add(key)
            with pytest.raises(StoreUnavailable):
                await bench.directory.resolve_alias(name)
            await bench.directory.set_alias(name, stream)
            assert await bench.directory.resolve_alias(name) == stream
            assert bench.confirmed == [key]

        play(story)

    def test_given_to_two_streams_it_leads_to_neither(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            name, one, two = some_name(), new_stream_id(), new_stream_id()
            await bench.directory.set_alias(name, one)
            await bench.directory.set_alias(name, two)
            for _ in range(2):
                with pytest.raises(ResponseIdAmbiguous):
                    await bench.directory.resolve_alias(name)
                await bench.directory.set_alias(name, one)
            assert just_below(await bench.lives_for(name), LONGEST)

        play(story)

    def test_name_and_time_to_live_are_one_command(self) -> None:
        """What dies between two leaves a name that stays for ever."""
        sent: list[tuple[Any, ...]] = []

        class Recorder:
            async def call(self, key: bytes, *command: Any) -> Any:
                sent.append(command)

            async def send_script(self, key: bytes, script: Any, keys: list[bytes], args: list[Any]) -> Any:
                sent.append((script.text, *args))

            def returned_for(self, key: bytes) -> float:
                return float("inf")

        async def scene() -> None:
            directory = Directory(Recorder(), Log(FakeTopology(), SETTINGS, StoreSettings()).names, SETTINGS)  # type: ignore[arg-type]
            await directory.set_alias("a", "st_x")
            await directory.set_alias("b", "st_x")

        asyncio.run(scene())
        assert [("PEXPIRE" in text, LONGEST in args) for text, *args in sent] == [(True, True)] * 2


class TestReplicas:
    def test_one_that_gives_no_sign_is_lost(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            lost, alive = new_stream_id(), new_stream_id()
            assert lost not in await bench.directory.announce_replica(lost, 30)
            assert lost not in await bench.directory.announce_replica(alive, 30)
            found = await bench.directory.announce_replica(alive, -1)  # whoever's last sign is not of the future
            assert {lost, alive} <= set(found)
            await bench.directory.remove_replica(lost)
            assert lost not in await bench.directory.announce_replica(alive, -1)

        play(story)

    def test_what_it_runs_can_be_found(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            replica, one, two = new_stream_id(), new_stream_id(), new_stream_id()
            assert await bench.directory.streams_of(replica) == []
            for stream in (one, two, one):
                await bench.directory.add_stream(replica, stream)
            assert sorted(await bench.directory.streams_of(replica)) == sorted([one, two])
            await bench.directory.remove_streams(replica, [one])
            assert await bench.directory.streams_of(replica) == [two]

        play(story)

    def test_one_that_nobody_knows_is_gone_and_one_that_was_heard_of_is_not(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            replica = new_stream_id()
            assert await bench.directory.replica_gone(replica)
            await bench.directory.announce_replica(replica, 30)
            assert not await bench.directory.replica_gone(replica)
            await bench.age(replica)
            assert await bench.directory.replica_gone(replica)

        play(story)

    def test_who_has_just_come_cannot_say_who_is_gone(self, play: Play) -> None:
        """Those who were there before may not have said so again, to a store that came back empty."""

        async def story(bench: Bench) -> None:
            replica = new_stream_id()
            assert await bench.directory.replica_gone(replica)
            bench.back = {bench.log.names.replicas: 7.0}
            assert not await bench.directory.replica_gone(replica)
            bench.back = {bench.log.names.replica(replica): 7.0}
            assert not await bench.directory.replica_gone(replica)
            bench.back = {}
            assert await bench.directory.replica_gone(replica)
            assert not await Directory(bench, bench.log.names, SETTINGS).replica_gone(replica)

        play(story)

    def test_who_was_silent_for_long_says_that_it_lives_when_it_runs_a_stream(self, play: Play) -> None:
        """Others may have struck it off, and nobody would look for its streams."""

        async def story(bench: Bench) -> None:
            replica, stream = new_stream_id(), new_stream_id()
            await bench.directory.announce_replica(replica, 10)
            await bench.directory.add_stream(replica, new_stream_id())
            key = bench.log.names.replicas
            await bench.directory.remove_replica(replica)
            await bench.directory.add_stream(replica, new_stream_id())
            assert await bench.raw(key, "ZSCORE", key, replica) is None  # not long enough
            bench.directory._announced_at -= 8
            await bench.directory.add_stream(replica, stream)
            assert await bench.raw(key, "ZSCORE", key, replica) is not None
            assert stream in await bench.directory.streams_of(replica)

        play(story)

    def test_a_message_that_nobody_hears(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            assert not await bench.directory.tell(new_stream_id(), "stop", "st_x")

        play(story)

    @pytest.mark.parametrize("store", STORES[1:], indirect=True, scope="module")
    def test_one_that_listens_is_not_gone_however_long_it_was_silent(self, play: Play) -> None:
        """A paused process keeps its connection; a dead one's is closed. (fakeredis has no connections.)"""

        async def story(bench: Bench) -> None:
            replica = new_stream_id()
            channel = bench.log.names.replica(replica)
            await bench.age(replica)
            ear = await bench.topology.node_of(channel).dial()
            await ear.send_command("SSUBSCRIBE", channel)
            assert (await ear.read_response(disable_decoding=True))[:2] == [b"ssubscribe", channel]
            assert not await bench.directory.replica_gone(replica)
            assert await bench.directory.tell(replica, "stop", "st_x")
            heard = [await ear.read_response(disable_decoding=True) for _ in range(2)]
            assert [message for *_, message in heard] == [b"", b"stop st_x"]  # the first only asked whether it is there
            await ear.disconnect(nowait=True)
            async with asyncio.timeout(5):
                while await bench.directory.tell(replica, "stop", "st_x"):  # until the server has seen it go
                    pass
            assert await bench.directory.replica_gone(replica)

        play(story)


class TestSecret:
    def test_it_is_the_first_ones(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            first, second = new_secret(), new_secret()
            await bench.raw(SECRET_KEY, "DEL", SECRET_KEY)
            assert await bench.directory.share_secret(first, shared=False) == first
            assert await bench.directory.share_secret(second, shared=False) == first
            others = (bench.directory.share_secret(new_secret(), shared=False) for _ in range(4))
            assert await asyncio.gather(*others) == [first] * 4
            assert await bench.raw(SECRET_KEY, "PTTL", SECRET_KEY) == -1

        play(story)

    def test_who_knows_it_says_it_again_over_a_newer_one(self, play: Play) -> None:
        """A store came back empty, and a replica that had not heard of the secret was there first."""

        async def story(bench: Bench) -> None:
            of_all, newcomers = _made(1000), _made(2000)
            await bench.raw(SECRET_KEY, "SET", SECRET_KEY, newcomers)
            assert await bench.directory.share_secret(of_all, shared=True) == of_all
            assert await bench.directory.share_secret(newcomers, shared=True) == of_all
            assert await bench.raw(SECRET_KEY, "GET", SECRET_KEY) == of_all

        play(story)

    def test_one_of_random_bytes_alone_is_the_oldest(self, play: Play) -> None:
        """Version 0.1 made such secrets."""

        async def story(bench: Bench) -> None:
            old = b"\x01" * 32
            await bench.raw(SECRET_KEY, "SET", SECRET_KEY, old)
            assert await bench.directory.share_secret(_made(1000), shared=True) == old
            await bench.raw(SECRET_KEY, "SET", SECRET_KEY, _made(1000))
            assert await bench.directory.share_secret(old, shared=True) == old

        play(story)

    def test_nobody_offers_a_secret_of_his_own_to_a_store_that_has_just_come_back(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            mine, of_all = new_secret(), new_secret()
            await bench.raw(SECRET_KEY, "DEL", SECRET_KEY)
            bench.back[SECRET_KEY] = 1.9
            with pytest.raises(StoreUnavailable):
                await bench.directory.share_secret(mine, shared=False)
            assert await bench.raw(SECRET_KEY, "GET", SECRET_KEY) is None
            assert await bench.directory.share_secret(of_all, shared=True) == of_all  # it was known before
            assert await bench.directory.share_secret(mine, shared=False) == of_all
            await bench.raw(SECRET_KEY, "DEL", SECRET_KEY)
            bench.back[SECRET_KEY] = 2.1
            assert await bench.directory.share_secret(mine, shared=False) == mine

        play(story)


def _made(at: int) -> bytes:
    return at.to_bytes(8, "big") + secrets.token_bytes(24)


def test_a_name_of_the_wrong_kind_is_an_unavailable_store(play: Play) -> None:
    async def story(bench: Bench) -> None:
        name = some_name()
        key = bench.log.names.name_key(name)
        await bench.raw(key, "SET", key, "x")
        for asked in (
            bench.directory.claim(name, some_claim()),
            bench.directory.claim_of(name),
            bench.directory.set_alias(name, "st_x"),
            bench.directory.resolve_alias(name),
        ):
            with pytest.raises(StoreUnavailable) as raised:
                await asked
            assert isinstance(raised.value.__cause__, redis.exceptions.ResponseError)

    play(story)
