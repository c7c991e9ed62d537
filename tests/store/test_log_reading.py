"""Reading a log: pages from every place, and gaps that are never skipped."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from relay.protocol.end_mark import End
from relay.store.log import Page
from relay.store.scripts import OK
from tests.store.benches import Bench, Play, log_key, numbered


class TestRead:
    def test_after_every_position(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=5, outcome="completed")
            for after in range(6):
                page = await bench.log.read(stream, after)
                assert page == Page(numbered(after + 1, 5), End("completed"), False, False)

        play(story)

    def test_of_a_live_stream_has_no_end(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.log.read(stream, 1) == Page(numbered(2, 2), None, False, False)
            assert await bench.log.read(stream, 2) == Page([], None, False, False)

        play(story)

    def test_readers_that_come_together_share_full_pages_and_only_those(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=300)
            first, second = await bench.log.read(stream, 0), await bench.log.read(stream, 256)
            assert (first.full, second.full) == (True, False)
            assert await bench.append(stream, 300, numbered(301, 301)) == (OK, 301)
            assert await bench.log.read(stream, 256) == Page(numbered(257, 301), None, False, False)
            await bench.raw(stream, "DEL", log_key(stream))
            assert await bench.log.read(stream, 0) is first
            assert await bench.log.read(stream, 256) == Page([], None, False, False)

        play(story)

    @pytest.mark.slow
    def test_pages_that_are_kept_are_bounded(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            size, kept = 1000, 32 << 20
            streams = [await bench.made() for _ in range(kept // size // 256 + 2)]
            for stream in streams:
                for first in range(1, 257, 64):
                    frames = [b"%03d %b" % (n, bytes(size - 4)) for n in range(first, first + 64)]
                    assert await bench.append(stream, first - 1, frames) == (OK, first + 63)
                assert await bench.append(stream, 256, [b"more"]) == (OK, 257)
                assert (await bench.log.read(stream, 0)).full
                await bench.raw(stream, "DEL", log_key(stream))
            held = [bool((await bench.log.read(stream, 0)).frames) for stream in streams]
            assert held == [False] * held.count(False) + [True] * held.count(True)  # the last ones
            assert kept // size // 256 - 2 < held.count(True) <= kept // size // 256

        play(story)

    @pytest.mark.parametrize("frames", [255, 256, 257, 511, 512, 513])
    def test_pages_join_without_gap_or_repeat(self, play: Play, frames: int) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=frames, outcome="completed")
            read: list[bytes] = []
            page = Page([], None, False, False)
            while page.end is None:
                page = await bench.log.read(stream, len(read))
                assert not page.gap
                assert page.frames or page.end
                assert page.full or page.end
                read += page.frames
            assert read == numbered(1, frames)

        play(story)

    @pytest.mark.parametrize("lost", [1, 3, 5])
    @pytest.mark.parametrize("outcome", ["", "completed"])
    def test_a_lost_entry_is_a_gap_and_never_skipped(self, play: Play, lost: int, outcome: str) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=6, outcome=outcome)
            await bench.raw(stream, "XDEL", log_key(stream), f"{lost}-0")
            assert await bench.log.read(stream, 0) == Page(numbered(1, lost - 1), None, True, False)
            if lost > 1:
                assert await bench.log.read(stream, lost - 1) == Page([], None, True, False)
            behind = await bench.log.read(stream, lost)
            assert (behind.frames, behind.gap) == (numbered(lost + 1, 6), False)
            assert behind.end == (End(outcome) if outcome else None)

        play(story)

    def test_the_last_one_lost_is_no_end(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=3, outcome="completed")
            await bench.raw(stream, "XDEL", log_key(stream), "3-0")
            assert await bench.log.read(stream, 0) == Page(numbered(1, 2), None, True, False)
            assert await bench.log.read(stream, 2) == Page([], None, True, False)
            assert await bench.log.read(stream, 3) == Page([], End("completed"), False, False)

        play(story)

    def test_a_trimmed_start_is_a_gap(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=6, outcome="completed")
            await bench.raw(stream, "XTRIM", log_key(stream), "MINID", "4-0")
            assert await bench.log.read(stream, 0) == Page([], None, True, False)
            assert (await bench.log.read(stream, 3)).frames == numbered(4, 6)

        play(story)

    @pytest.mark.parametrize("size", [1, 60 << 10, 100 << 10, 255 << 10, 300 << 10])
    def test_a_page_is_bounded_in_bytes_and_never_empty(self, play: Play, size: int) -> None:
        """One of large events would keep all that shares its connection waiting."""

        async def story(bench: Bench) -> None:
            stream = await bench.made()
            frames = [b"%d " % n + secrets.token_bytes(size) for n in range(1, 13)]
            for n in range(0, 12, 3):
                assert (await bench.append(stream, n, frames[n : n + 3]))[0] == OK
            assert await bench.append(stream, 12, [], outcome="completed") == (OK, 12)
            read: list[bytes] = []
            page = Page([], None, False, True)
            while page.end is None:
                page = await bench.log.read(stream, len(read))
                assert page.size <= 256 << 10 or len(page.frames) == 1
                assert page.full == (page.end is None)
                assert page.frames or page.end
                read += page.frames
            assert read == frames

        play(story)

    def test_an_event_of_the_largest_size(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            frame = b"data: " + secrets.token_bytes(bench.log.settings.max_event_bytes)
            assert await bench.append(stream, 0, [frame]) == (OK, 1)
            assert (await bench.log.read(stream, 0)).frames == [frame]

        play(story)

    def test_readers_of_one_place_share_a_call_and_each_place_has_its_own(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            one, two = await bench.made(frames=3), await bench.made(frames=1)
            places = [(one, 0), (one, 0), (one, 2), (two, 0), (one, 0)]
            pages = await asyncio.gather(*(bench.log.read(*place) for place in places))
            assert [len(page.frames) for page in pages] == [3, 3, 1, 1, 3]
            await bench.append(one, 3, numbered(4, 4))
            assert len((await bench.log.read(one, 0)).frames) == 4

        play(story)

    def test_a_reader_that_leaves_takes_no_one_elses_page_along(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=3)
            leaving, staying = (asyncio.ensure_future(bench.log.read(stream, 0)) for _ in range(2))
            await asyncio.sleep(0)
            leaving.cancel()
            assert (await staying).frames == numbered(1, 3)

        play(story)

    def test_one_frame(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            assert await bench.log.frame(await bench.made(), 0) == b""
            assert await bench.log.frame(await bench.made(outcome="stopped"), 0) == b""
            assert await bench.log.frame(await bench.made(frames=3), 4) == b""
            for n in (1, 2, 3):
                assert await bench.log.frame(await bench.made(frames=3, outcome="completed"), n) == numbered(n, n)[0]

        play(story)
