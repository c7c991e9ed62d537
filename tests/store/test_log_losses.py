"""What a store has lost, and what a reply that was lost leaves open."""

from __future__ import annotations

import pytest
import redis.exceptions

from relay.protocol.end_mark import End
from relay.protocol.errors import StoreUnavailable
from relay.store.log import Page, Renewed
from relay.store.scripts import GONE, MISMATCH, OK
from tests.store.benches import FIELDS, LONGEST, NEVER, Bench, Play, log_key, meta_key, numbered


class TestMismatch:
    def test_an_append_whose_reply_was_lost_does_not_double(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.append(stream, 2, numbered(3, 4)) == (OK, 4)
            assert await bench.append(stream, 2, numbered(3, 4)) == (MISMATCH, 4)
            assert await bench.append(stream, 2, numbered(3, 6)) == (MISMATCH, 4)
            assert await bench.append(stream, 4, numbered(5, 6)) == (OK, 6)
            assert (await bench.log.read(stream, 0)).frames == numbered(1, 6)

        play(story)

    def test_an_end_whose_reply_was_lost_is_one_end(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.append(stream, 2, numbered(3, 3), outcome="completed") == (OK, 3)
            assert await bench.append(stream, 2, numbered(3, 3), outcome="completed") == (MISMATCH, 3)
            assert await bench.append(stream, 3, [], outcome="completed") == (OK, 3)
            assert [entry for entry, *_ in await bench.entries(stream)] == ["1-0", "2-0", "3-0", "3-1"]

        play(story)

    def test_a_hole_cannot_be_made(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.append(stream, 5, numbered(6, 6)) == (MISMATCH, 2)
            assert await bench.append(stream, 3, [], outcome="completed") == (MISMATCH, 2)
            assert len(await bench.entries(stream)) == 2
            status = await bench.status(stream)
            assert not status.outcome

        play(story)

    def test_entries_that_the_store_lost_go_in_again_under_their_ids(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=3)
            kept = {key: await bench.raw(stream, "DUMP", key) for key in (log_key(stream), meta_key(stream))}
            assert await bench.append(stream, 3, numbered(4, 6)) == (OK, 6)
            for key, dump in kept.items():  # a replica that had not got them yet has become the primary
                await bench.raw(stream, "RESTORE", key, LONGEST, dump, "REPLACE")
            assert await bench.append(stream, 6, numbered(7, 7)) == (MISMATCH, 3)
            assert await bench.append(stream, 3, numbered(4, 7), outcome="completed") == (OK, 7)
            page = await bench.log.read(stream, 0)
            assert (page.frames, page.end, page.gap) == (numbered(1, 7), End("completed"), False)

        play(story)

    def test_all_entries_lost_with_the_stream_itself_left(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            empty = await bench.raw(stream, "DUMP", meta_key(stream))
            assert await bench.append(stream, 0, numbered(1, 2)) == (OK, 2)
            await bench.raw(stream, "DEL", log_key(stream))
            await bench.raw(stream, "RESTORE", meta_key(stream), LONGEST, empty, "REPLACE")
            assert await bench.append(stream, 2, numbered(3, 3)) == (MISMATCH, 0)
            assert await bench.append(stream, 0, numbered(1, 3)) == (OK, 3)
            assert all(left > 0 for left in await bench.pttl(stream))

        play(story)

    def test_a_stream_that_the_store_lost_is_gone(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.raw(stream, "DEL", log_key(stream), meta_key(stream))
            assert await bench.append(stream, 2, numbered(3, 3)) == (GONE, 0)
            assert await bench.append(stream, 0, numbered(1, 3), outcome="completed") == (GONE, 0)
            assert await bench.log.renew([(stream, "1")]) == [Renewed(GONE, 0, False, NEVER)]
            assert await bench.log.force_end(stream, 2, "producer_lost") == (GONE, 0)
            assert await bench.raw(stream, "EXISTS", log_key(stream), meta_key(stream)) == 0

        play(story)

    def test_its_producer_makes_it_again_and_writes_all_of_it_under_the_same_ids(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            born = await bench.status(stream)
            await bench.raw(stream, "DEL", log_key(stream), meta_key(stream))
            await bench.log.create(stream, FIELDS, "1")
            again = await bench.status(stream)
            assert (again.top, again.fence, again.kept, again.owner) == (0, "1", True, born.owner)
            assert await bench.append(stream, 2, numbered(3, 3)) == (MISMATCH, 0)
            assert await bench.append(stream, 0, numbered(1, 3), outcome="completed") == (OK, 3)
            assert [entry for entry, *_ in await bench.entries(stream)] == ["1-0", "2-0", "3-0", "3-1"]
            assert await bench.log.read(stream, 0) == Page(numbered(1, 3), End("completed"), False, False)

        play(story)


def test_a_key_of_the_wrong_kind_is_an_unavailable_store(play: Play) -> None:
    async def story(bench: Bench) -> None:
        stream = await bench.made()
        await bench.raw(stream, "SET", log_key(stream), "x")
        with pytest.raises(StoreUnavailable):
            await bench.log.read(stream, 0)
        with pytest.raises(redis.exceptions.ResponseError):
            await bench.append(stream, 0, [b"x"])

    play(story)
