"""Writing a log: streams are made, appended to, ended, and expire."""

from __future__ import annotations

from typing import Any

import pytest

from relay.config import StreamSettings
from relay.encryption import Binding
from relay.protocol.end_mark import End
from relay.protocol.ids import new_stream_id
from relay.store import scripts
from relay.store.log import Page
from relay.store.scripts import GONE, MISMATCH, OK
from tests.store.benches import FIELDS, LONGEST, Bench, Play, just_below, log_key, meta_key, numbered

OWNED = Binding(FIELDS["owner"], FIELDS["api"])


class TestCreate:
    def test_a_new_stream(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            status = await bench.status(stream)
            assert (status.stream, status.top, status.outcome, status.kept) == (stream, 0, "", True)
            assert (status.api, status.owner, status.upstream, status.model) == ("chat", "o1", "up", "gpt-*")
            assert (status.fence, status.replica, status.usage, status.ended) == ("1", "r1", "", 0)
            assert just_below(1000 * status.lease_left, 10_000)
            assert status.born > 1_700_000_000
            assert just_below(await bench.raw(stream, "PTTL", meta_key(stream)), LONGEST)
            assert await bench.log.read(stream, 0) == Page([], None, False, False)

        play(story)

    def test_asked_twice_is_done_once(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=3)
            await bench.log.create(stream, FIELDS, "1")
            status = await bench.status(stream)
            assert status.top == 3
            assert await bench.append(stream, 3, numbered(4, 4)) == (OK, 4)

        play(story)

    def test_one_that_was_never_made_is_unknown(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = new_stream_id()
            assert await bench.log.get_status(stream) is None
            assert await bench.log.read(stream, 0) == Page([], None, True, False)
            assert await bench.log.frame(stream, 1) == b""

        play(story)


class TestLearn:
    def test_what_is_known_later_takes_the_place_of_what_was(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.log.learn(stream, {"upstream": "up2", "model": "*"}, "1", [(b"turn", b"t1")], OWNED)
            status = await bench.status(stream)
            assert (status.upstream, status.model, status.headers) == ("up2", "*", [(b"turn", b"t1")])
            assert (status.api, status.owner, status.top, status.fence) == ("chat", "o1", 2, "1")
            assert just_below(await bench.raw(stream, "PTTL", meta_key(stream)), LONGEST)

        play(story)

    def test_who_is_fenced_off_tells_nothing(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            await bench.log.learn(stream, {"upstream": "up2"}, "0", [], OWNED)
            assert (await bench.status(stream)).upstream == "up"

        play(story)

    def test_a_stream_that_is_gone_is_not_made(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = new_stream_id()
            await bench.log.learn(stream, {"upstream": "up2"}, "1", [], OWNED)
            assert await bench.log.get_status(stream) is None

        play(story)


class TestAppend:
    def test_in_order_under_consecutive_ids(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            assert await bench.append(stream, 0, numbered(1, 2)) == (OK, 2)
            assert await bench.append(stream, 2, numbered(3, 3)) == (OK, 3)
            expected = [(f"{n}-0", b"f", frame) for n, frame in enumerate(numbered(1, 3), 1)]
            assert await bench.entries(stream) == expected

        play(story)

    def test_frames_go_through_byte_for_byte(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            frames = [bytes(range(256)), b"\r\n\0\r\n", b" ", "€😀".encode(), b"1"]
            await bench.append(stream, 0, frames)
            assert (await bench.log.read(stream, 0)).frames == frames

        play(story)

    def test_of_nothing_is_a_question_for_the_top(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.append(stream, 2, []) == (OK, 2)
            assert await bench.append(stream, 1, []) == (MISMATCH, 2)
            assert len(await bench.entries(stream)) == 2

        play(story)

    def test_a_thousand_at_once(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            frames = numbered(1, 1000)
            assert await bench.append(stream, 0, frames, outcome="completed") == (OK, 1000)
            read: list[bytes] = []
            while (page := await bench.log.read(stream, len(read))).end is None:
                assert page.frames
                assert not page.gap
                read += page.frames
            assert read + page.frames == frames

        play(story)

    def test_of_several_streams_in_one_call(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            if bench.topology.sharded:
                return  # two streams' keys may not stand in one call
            one, two, unknown = await bench.made(), await bench.made(frames=1), new_stream_id()
            keys = [key(stream) for stream in (one, two, unknown) for key in (log_key, meta_key)]
            args: list[Any] = [1000, 1000, "1", 0, "", "", 2, b"a", b"b"]
            args += ["1", 0, "", "", 1, b"c"]
            args += ["1", 0, "completed", "", 0]
            link = bench.topology.node_of(b"").commit
            answers = await link.call("EVALSHA", scripts.APPEND.sha, 6, *keys, *args)
            assert answers == [[OK, 2], [MISMATCH, 1], [GONE, 0]]
            assert [content for *_, content in await bench.entries(one)] == [b"a", b"b"]

        play(story)

    def test_beyond_what_a_double_prints_short(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            top = 10**14 - 1
            await bench.raw(stream, "HSET", meta_key(stream), "top", top)
            assert await bench.append(stream, top, [b"a"], outcome="completed") == (OK, top + 1)
            assert [entry for entry, *_ in await bench.entries(stream)] == [f"{top + 1}-0", f"{top + 1}-1"]

        play(story)


class TestTheEnd:
    def test_the_end_mark_stands_behind_the_last_event(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.append(stream, 2, numbered(3, 3), outcome="completed", usage="5 7") == (OK, 3)
            assert (await bench.entries(stream))[-1] == ("3-1", b"end", b"completed")
            status = await bench.status(stream)
            assert (status.top, status.outcome, status.usage, status.kept) == (3, "completed", "5 7", True)
            assert 0 <= status.ended - status.born < 60
            assert await bench.log.frame(stream, 3) == numbered(3, 3)[0]

        play(story)

    def test_it_holds_what_its_producer_tells(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            end = End("max_duration", b"data: \xff\n\nid: x.2e\ndata: bye\n\n")
            args = ["1", 2, end.outcome, "", 1, end.encode()]
            assert await bench.append_raw(stream, args) == (OK, 2)
            assert await bench.log.read(stream, 0) == Page(numbered(1, 2), end, False, False)
            assert await bench.log.read(stream, 2) == Page([], end, False, False)
            status = await bench.status(stream)
            assert (status.top, status.outcome) == (2, "max_duration")

        play(story)

    @pytest.mark.parametrize("frames", [0, 3])
    def test_it_may_come_by_itself(self, play: Play, frames: int) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=frames)
            assert await bench.append(stream, frames, [], outcome="stopped") == (OK, frames)
            assert (await bench.entries(stream))[-1] == (f"{frames}-1", b"end", b"stopped")
            page = await bench.log.read(stream, 0)
            assert (page.frames, page.end, page.gap) == (numbered(1, frames), End("stopped"), False)
            left, remembered = await bench.pttl(stream)
            assert just_below(left, 30_000)
            assert just_below(remembered, 120_000)

        play(story)

    def test_nothing_goes_in_behind_it(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2, outcome="completed")
            before = await bench.entries(stream)
            await bench.append(stream, 2, numbered(3, 3))
            await bench.append(stream, 2, numbered(3, 3), outcome="shutdown")
            assert await bench.entries(stream) == before
            status = await bench.status(stream)
            assert (status.top, status.outcome) == (2, "completed")

        play(story)

    def test_a_producer_is_not_told_that_events_behind_it_were_taken(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2, outcome="completed")
            code, top = await bench.append(stream, 2, numbered(3, 4))
            assert (code, top) != (OK, 4)
            assert top == 2

        play(story)


class TestExpiry:
    def test_a_live_stream_outlives_the_longest_generation(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            for left in await bench.pttl(stream):
                assert just_below(left, LONGEST)
            await bench.append(stream, 2, numbered(3, 3))
            assert all(left > 0 for left in await bench.pttl(stream))

        play(story)

    def test_retention_runs_from_the_end_and_the_tombstone_from_there(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2, outcome="completed")
            left, remembered = await bench.pttl(stream)
            assert just_below(left, 30_000)
            assert just_below(remembered, 120_000)

        play(story)

    def test_of_a_stream_that_others_ended_too(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            for frames in (0, 2):
                stream = await bench.made(frames=frames)
                await bench.lapse(stream)
                assert await bench.log.force_end(stream, frames, "producer_lost") == (OK, frames)
                left, remembered = await bench.pttl(stream)
                assert just_below(left, 30_000)
                assert just_below(remembered, 120_000)

        play(story)

    def test_an_expired_stream_is_known_and_not_kept(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2, outcome="completed")
            await bench.raw(stream, "PEXPIRE", log_key(stream), 0)
            status = await bench.status(stream)
            assert (status.kept, status.top, status.outcome, status.owner) == (False, 2, "completed", "o1")
            assert await bench.log.read(stream, 0) == Page([], None, True, False)
            await bench.raw(stream, "PEXPIRE", meta_key(stream), 0)
            assert await bench.log.get_status(stream) is None

        play(story)

    def test_a_stream_that_ended_without_an_event_expires_as_well(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(outcome="stopped")
            status = await bench.status(stream)
            assert status.kept
            await bench.raw(stream, "PEXPIRE", log_key(stream), 0)
            status = await bench.status(stream)
            assert not status.kept

        play(story)

    def test_a_few_milliseconds_are_enough(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            assert await bench.append(stream, 1, [], outcome="completed") == (OK, 1)
            left, remembered = await bench.pttl(stream)
            assert left <= 25
            assert 0 < remembered <= 25 + 60_000
            while await bench.raw(stream, "EXISTS", log_key(stream)):  # by the store's own clock, some 25 ms
                pass
            status = await bench.status(stream)
            assert not status.kept

        play(story, StreamSettings(retention="25ms", tombstone="60s"))

    def test_no_tombstone_means_forgotten_with_its_events(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1, outcome="completed")
            left, remembered = await bench.pttl(stream)
            assert abs(left - remembered) < 1000

        play(story, StreamSettings(retention=30, tombstone=0))

    def test_reading_and_looking_prolong_nothing(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2, outcome="completed")
            await bench.raw(stream, "PEXPIRE", log_key(stream), 20_000)
            await bench.raw(stream, "PEXPIRE", meta_key(stream), 25_000)
            await bench.log.get_status(stream, read_at="r2", came=True)
            await bench.log.read(stream, 0)
            await bench.append(stream, 2, [], outcome="completed")
            left, remembered = await bench.pttl(stream)
            assert left <= 20_000
            assert remembered <= 25_000

        play(story)
