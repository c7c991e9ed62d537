"""Who takes over a stream whose producer is lost, and what becomes of the one before: on each kind of store."""

from __future__ import annotations

import asyncio

from relay.encryption import Binding
from relay.store.records import Succeeded
from relay.store.scripts import ALIVE, ENDED, FENCED, GONE, MISMATCH, OK
from tests.store.benches import Bench, Play, meta_key, numbered

OWNED = Binding("o1", "chat")


async def succeed(bench: Bench, stream: str, replica: str = "r2", *, fence: str = "1", top: int = 2) -> int:
    return (await bench.log.succeed(stream, fence, top, replica)).code


class TestTakeover:
    def test_moves_the_lease_and_raises_the_fence(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.lapse(stream)
            found = await bench.log.succeed(stream, "1", 2, "r2")
            assert (found.code, found.top) == (OK, 2)
            assert 0 <= found.age < 60
            assert 40 < found.lapsed < 60
            status = await bench.status(stream)
            assert (status.fence, status.replica, status.outcome) == ("2", "r2", "")
            assert status.lease_left > 0
            assert await bench.append(stream, 2, numbered(3, 3), fence="2") == (OK, 3)
            assert (await bench.log.read(stream, 0)).frames == numbered(1, 3)

        play(story)

    def test_exactly_one_of_many_has_it(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.lapse(stream)
            codes = await asyncio.gather(*(succeed(bench, stream, f"r{n}") for n in range(2, 10)))
            assert sorted(codes) == [OK, *[FENCED] * 7]

        play(story)

    def test_who_has_not_heard_the_answer_may_ask_again(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.lapse(stream)
            assert await succeed(bench, stream) == OK
            assert await succeed(bench, stream) == OK
            assert (await bench.status(stream)).fence == "2"
            assert await succeed(bench, stream, "r3") == FENCED

        play(story)

    def test_is_refused(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await succeed(bench, stream) == ALIVE
            await bench.lapse(stream)
            for top in (1, 3):
                assert await bench.log.succeed(stream, "1", top, "r2") == Succeeded(MISMATCH, 2, 0, 0)
            assert await succeed(bench, stream, fence="2") == FENCED
            await bench.log.force_end(stream, 2, "producer_lost")
            assert await succeed(bench, stream) == ENDED
            assert await succeed(bench, "st_unknown") == GONE

        play(story)

    def test_of_a_forced_end_and_a_takeover_one_comes_first(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.lapse(stream)
            assert await succeed(bench, stream) == OK
            assert await bench.log.force_end(stream, 2, "producer_lost") == (ALIVE, 2)

        play(story)

    def test_the_one_before_is_fenced_off(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.lapse(stream)
            await succeed(bench, stream)
            assert await bench.append(stream, 2, numbered(3, 3)) == (FENCED, 2)
            assert await bench.append(stream, 2, [], outcome="completed") == (FENCED, 2)
            assert (await bench.renew(stream)).code == FENCED
            await bench.log.learn(stream, {"replica": "r1"}, "1", [], OWNED)
            assert (await bench.status(stream)).replica == "r2"

        play(story)


class TestLostTakeover:
    """A failover may lose a takeover that was acknowledged; the events that followed are lost with it."""

    def test_who_has_taken_it_over_writes_on_and_says_so_again(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.raw(stream, "HSET", meta_key(stream), "replica", "r1")
            assert await bench.append(stream, 2, numbered(3, 3), fence="2") == (OK, 3)
            (answer,) = await bench.log.renew([(stream, "2")], "r2")
            assert (answer.code, answer.top) == (OK, 3)
            status = await bench.status(stream)
            assert (status.fence, status.replica) == ("2", "r2")
            assert await bench.append(stream, 3, numbered(4, 4)) == (FENCED, 3)

        play(story)

    def test_who_has_been_ended_meanwhile_writes_nothing(self, play: Play) -> None:
        """With a fence that is no lower than that of the forced end, and a top that is the log's."""

        async def story(bench: Bench) -> None:
            for fence in ("2", "3"):
                stream = await bench.made(frames=2)
                await bench.lapse(stream)
                await bench.log.force_end(stream, 2, "producer_lost")
                assert await bench.append(stream, 2, numbered(3, 3), fence=fence) == (FENCED, 2)
                assert await bench.append(stream, 2, numbered(3, 3), fence=fence, outcome="completed") == (FENCED, 2)
                assert await bench.append(stream, 2, [], fence=fence, outcome="completed") == (FENCED, 2)
                assert (await bench.status(stream)).outcome == "producer_lost"

        play(story)

    def test_who_has_ended_it_may_say_so_again(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            for _ in range(2):
                assert await bench.append(stream, 2, [], outcome="completed") == (OK, 2)

        play(story)

    def test_who_produces_alone_is_not_written_anew(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.raw(stream, "HSET", meta_key(stream), "replica", "r1")
            await bench.log.renew([(stream, "1")], "other")
            assert (await bench.status(stream)).replica == "r1"

        play(story)


class TestWhereTheUpstreamStands:
    def test_is_written_with_the_events(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert (await bench.status(stream)).at == b""
            assert await bench.append(stream, 2, numbered(3, 3), usage="3:4") == (OK, 3)
            assert (await bench.status(stream)).at == b"3:4"
            assert (await bench.status(stream)).usage == ""
            assert await bench.append(stream, 3, numbered(4, 4)) == (OK, 4)
            assert (await bench.status(stream)).at == b"3:4", "what is not said anew is as it was"
            assert await bench.append(stream, 2, numbered(5, 5), usage="5:9") == (MISMATCH, 4)
            assert (await bench.status(stream)).at == b"3:4"
            assert await bench.append(stream, 4, [], outcome="completed", usage="7/9") == (OK, 4)
            assert (await bench.status(stream)).usage == "7/9"

        play(story)

    def test_how_it_is_come_back_to_is_kept_with_the_stream(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            await bench.log.learn(stream, {}, "1", [], OWNED, b'{"how":"relay"}')
            assert (await bench.status(stream)).leg == b'{"how":"relay"}'
            await bench.raw(stream, "HSET", meta_key(stream), "abandon", "1500")
            assert (await bench.status(stream)).abandon_after == 1.5

        play(story)
