"""Leases, the readers on other replicas, and ends that others force."""

from __future__ import annotations

import asyncio

import pytest

from relay.encryption import UNBOUND, Binding
from relay.metrics import Metrics
from relay.protocol.end_mark import End
from relay.protocol.ids import new_stream_id
from relay.store.log import Page, Renewed
from relay.store.scripts import ALIVE, ENDED, FENCED, GONE, MISMATCH, OK
from relay.store.stories import Stories
from relay.streams.chronicle import Chronicle
from relay.streams.leases import Leases
from tests.store.benches import FIELDS, LONGEST, NEVER, SETTINGS, Bench, Play, just_below, log_key, meta_key, numbered


class TestLeases:
    def test_a_renewal_begins_the_lease_anew(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            one, two = await bench.made(), await bench.made()
            await bench.lapse(one)
            answers = await bench.log.renew([(one, "1"), (two, "1")])
            assert [answer.code for answer in answers] == [OK, OK]
            for stream in (one, two):
                status = await bench.status(stream)
                assert just_below(1000 * status.lease_left, 10_000)

        play(story)

    def test_each_gets_its_own_answer_in_order(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            live, ended, unknown = await bench.made(), await bench.made(), new_stream_id()
            await bench.lapse(ended)
            await bench.log.force_end(ended, 0, "producer_lost")
            answers = await bench.log.renew([(unknown, "1"), (live, "1"), (ended, "1")])
            assert [answer.code for answer in answers] == [GONE, OK, FENCED]

        play(story)

    def test_of_none(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            assert await bench.log.renew([]) == []

        play(story)

    def test_of_more_than_go_into_one_call(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            answers = await bench.log.renew([(stream, "1")] * 1200)
            assert [answer.code for answer in answers] == [OK] * 1200

        play(story)

    def test_a_lapsed_lease_is_seen(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            await bench.lapse(stream)
            status = await bench.status(stream)
            assert status.lease_left < 0
            assert not status.outcome

        play(story)

    def test_a_renewal_says_what_the_log_holds(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=3)
            assert await bench.renew(stream) == Renewed(OK, 3, False, NEVER)
            kept = {key: await bench.raw(stream, "DUMP", key) for key in (log_key(stream), meta_key(stream))}
            assert await bench.append(stream, 3, numbered(4, 6)) == (OK, 6)
            assert (await bench.renew(stream)).top == 6
            for key, dump in kept.items():  # a replica that had not got them yet has become the primary
                await bench.raw(stream, "RESTORE", key, LONGEST, dump, "REPLACE")
            assert (await bench.renew(stream)).top == 3

        play(story)


class TestReadersElsewhere:
    """What a producer is told with each renewal."""

    def test_of_none_that_ever_came(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            await bench.status(stream)  # a look by itself is no reader
            answer = await bench.renew(stream)
            assert (answer.read_elsewhere, answer.unseen) == (False, NEVER)

        play(story)

    def test_while_there_are_some(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            await bench.log.get_status(stream, read_at="r2", came=True)
            answer = await bench.renew(stream)
            assert answer.read_elsewhere
            assert answer.unseen < 30
            await bench.log.get_status(stream, read_at="r3")
            await bench.log.leave(stream, "r2")
            assert (await bench.renew(stream)).read_elsewhere
            await bench.log.leave(stream, "r3")
            answer = await bench.renew(stream)
            assert not answer.read_elsewhere
            assert answer.unseen < 30

        play(story)

    def test_a_replica_that_says_nothing_for_a_lease_is_lost_and_its_readers_with_it(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            await bench.log.get_status(stream, read_at="r2")
            for field in ("seen", "r:r2"):
                said = int(await bench.raw(stream, "HGET", meta_key(stream), field))
                await bench.raw(stream, "HSET", meta_key(stream), field, said - 60_000)
            answer = await bench.renew(stream)
            assert not answer.read_elsewhere
            assert 60 <= answer.unseen < 90
            await bench.log.get_status(stream, read_at="r3")
            await bench.log.leave(stream, "r3")  # another one's readers do not bring it back
            assert not (await bench.renew(stream)).read_elsewhere

        play(story)

    def test_until_they_leave_they_were_there(self, play: Play) -> None:
        """The clock of a generation that nobody reads begins with the departure, and not with the last check before."""

        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            await bench.log.get_status(stream, read_at="r2")
            said = int(await bench.raw(stream, "HGET", meta_key(stream), "seen"))
            await bench.raw(stream, "HSET", meta_key(stream), "seen", said - 60_000)
            await bench.log.leave(stream, "r2")
            assert (await bench.renew(stream)).unseen < 30

        play(story)

    def test_leaving_twice_or_without_having_come_changes_nothing(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            await bench.log.leave(stream, "r2")
            assert (await bench.renew(stream)).unseen == NEVER
            await bench.log.leave(new_stream_id(), "r2")

        play(story)

    def test_visits_are_counted_and_looks_are_not(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            await bench.log.get_status(stream, read_at="r2", came=True)
            await bench.log.get_status(stream, read_at="r2")
            await bench.log.get_status(stream, read_at="r3", came=True)
            assert await bench.append(stream, 1, numbered(2, 2)) == (OK, 2)
            assert await bench.append(stream, 1, [], outcome="completed") == (MISMATCH, 2)
            for _ in range(2):  # its answer may be lost
                assert await bench.append(stream, 2, [], outcome="completed") == (OK, 2, 2)

        play(story)

    @pytest.mark.parametrize("of", [1, 3])
    def test_what_is_over_is_told_of_many_at_once(self, play: Play, of: int) -> None:
        """And of all that is not so simple, that it is to be looked at by itself."""

        async def story(bench: Bench) -> None:
            lease = SETTINGS.lease
            rows: list[tuple[str, float | None]] = []
            for outcome, age, wanted in (
                ("", 0.5 * lease, 0.0),
                ("", -0.5 * lease, 0.0),
                ("", 1.5 * lease, None),  # its producer is lost
                ("completed", 0.5 * lease, 0.0),
                ("completed", 2.5 * lease, 1.0),
                ("stopped", 1.5 * lease, 0.0),
            ):
                stream = await bench.made(frames=1, outcome=outcome)
                seconds, micros = await bench.raw(stream, "TIME")
                now = int(seconds) + int(micros) / 1e6
                await bench.raw(stream, "HSET", meta_key(stream), "lease", int((now + lease - age) * 1000))
                rows.append((stream, wanted))
            rows.append((new_stream_id(), None))
            streams = [stream for stream, _ in rows] * of
            for found, (stream, wanted) in zip(await bench.log.over_since(streams), rows * of, strict=True):
                if wanted:
                    ended = int(await bench.raw(stream, "HGET", meta_key(stream), "ended"))
                    assert found == ended / 1000 > 1e9
                else:
                    assert found == wanted
            assert await bench.log.over_since([]) == []

        play(story)

    def test_an_end_without_visits_tells_of_none(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            await bench.log.get_status(stream, read_at="r2")
            assert await bench.append(stream, 1, [], outcome="completed") == (OK, 1)

        play(story)

    @pytest.mark.parametrize("said", [(90.0, 1.5, None), (1.5, None, 90.0), (None, 90.0, 90.0, 0.0)])
    def test_the_longest_time_that_readers_elsewhere_want_is_told(
        self, play: Play, said: tuple[float | None, ...]
    ) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            assert (await bench.renew(stream)).abandon_after is None
            for number, time in enumerate(said):
                await bench.log.get_status(stream, owner="o1", read_at=f"r{number}", came=True, abandon_after=time)
            assert (await bench.renew(stream)).abandon_after == 90.0
            assert (await bench.renew(stream)).abandon_after == 90.0

        play(story)

    def test_at_once_is_a_time_too(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            await bench.log.get_status(stream, read_at="r2", came=True, abandon_after=0.0)
            assert (await bench.renew(stream)).abandon_after == 0.0
            await bench.log.get_status(stream, abandon_after=90.0)  # nobody reads it there
            assert (await bench.renew(stream)).abandon_after == 0.0

        play(story)

    def test_of_an_ended_stream_nothing_is_noted(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1, outcome="completed")
            before = await bench.raw(stream, "HGETALL", meta_key(stream))
            await bench.log.get_status(stream, read_at="r2", came=True, abandon_after=90.0)
            assert await bench.raw(stream, "HGETALL", meta_key(stream)) == before

        play(story)

    def test_another_owner_is_told_nothing_and_leaves_no_trace(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            before = await bench.raw(stream, "HGETALL", meta_key(stream))
            assert await bench.log.get_status(stream, owner="o2", read_at="r2", came=True, abandon_after=9.0) is None
            assert await bench.raw(stream, "HGETALL", meta_key(stream)) == before
            assert await bench.log.get_status(stream, owner="o1") is not None

        play(story)


class TestForcedEnd:
    def test_ends_a_stream_whose_lease_lapsed_and_takes_no_number(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.lapse(stream)
            assert await bench.log.force_end(stream, 2, "producer_lost") == (OK, 2)
            assert (await bench.entries(stream))[-1] == ("2-1", b"end", b"producer_lost")
            assert await bench.log.read(stream, 0) == Page(numbered(1, 2), End("producer_lost"), False, False)
            status = await bench.status(stream)
            assert (status.top, status.outcome, status.fence) == (2, "producer_lost", "2")
            assert status.ended >= status.born

        play(story)

    def test_exactly_once_whoever_comes(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.lapse(stream)
            ending = (bench.log.force_end(stream, 2, "producer_lost") for _ in range(8))
            assert sorted(await asyncio.gather(*ending)) == [(OK, 2), *[(ENDED, 2)] * 7]
            assert [entry for entry, *_ in await bench.entries(stream)] == ["1-0", "2-0", "2-1"]

        play(story)

    def test_is_refused_while_the_lease_runs(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.log.force_end(stream, 2, "producer_lost") == (ALIVE, 2)
            await bench.lapse(stream)
            await bench.log.renew([(stream, "1")])
            assert await bench.log.force_end(stream, 2, "producer_lost") == (ALIVE, 2)
            assert await bench.append(stream, 2, numbered(3, 3)) == (OK, 3)

        play(story)

    def test_with_an_event_in_between_it_must_be_said_anew(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.append(stream, 2, numbered(3, 3)) == (OK, 3)
            await bench.lapse(stream)
            assert await bench.log.force_end(stream, 2, "producer_lost") == (MISMATCH, 3)
            assert await bench.log.force_end(stream, 4, "producer_lost") == (MISMATCH, 3)
            assert len(await bench.entries(stream)) == 3
            assert await bench.log.force_end(stream, 3, "producer_lost") == (OK, 3)

        play(story)

    def test_fences_the_producer_off(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.lapse(stream)
            await bench.log.force_end(stream, 2, "producer_lost")
            ended = await bench.entries(stream)
            for expected in (1, 2):
                assert await bench.append(stream, expected, numbered(expected + 1, 5)) == (FENCED, 2)
                assert await bench.append(stream, expected, [], outcome="completed") == (FENCED, 2)
            assert (await bench.renew(stream)).code == FENCED
            await bench.log.create(stream, FIELDS, "1")  # nor is it made again
            assert await bench.append(stream, 2, numbered(3, 3)) == (FENCED, 2)
            assert await bench.entries(stream) == ended

        play(story)

    def test_an_ended_stream_stays_as_it_ended(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2, outcome="completed")
            await bench.lapse(stream)
            before = await bench.entries(stream)
            assert await bench.log.force_end(stream, 2, "producer_lost") == (ENDED, 2)
            assert await bench.entries(stream) == before
            assert (await bench.status(stream)).fence == "1"

        play(story)

    def test_that_the_store_loses_leaves_its_number_to_the_producers_next_event(self, play: Play) -> None:
        """Whoever was told the end has an id that no event ever bears."""

        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            kept = {key: await bench.raw(stream, "DUMP", key) for key in (log_key(stream), meta_key(stream))}
            await bench.lapse(stream)
            assert await bench.log.force_end(stream, 2, "producer_lost") == (OK, 2)
            for key, dump in kept.items():
                await bench.raw(stream, "RESTORE", key, LONGEST, dump, "REPLACE")
            assert (await bench.renew(stream)).code == OK
            assert await bench.append(stream, 2, numbered(3, 4), outcome="completed") == (OK, 4)
            assert await bench.log.read(stream, 2) == Page(numbered(3, 4), End("completed"), False, False)

        play(story)

    def test_of_an_unknown_name(self, play: Play) -> None:
        """A newer replica may end streams in ways that this one has no name for."""

        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            await bench.lapse(stream)
            assert await bench.log.force_end(stream, 1, "swallowed_whole") == (OK, 1)
            page = await bench.log.read(stream, 1)
            assert page.end == End("swallowed_whole")
            assert page.end.sent_by_relay
            assert (await bench.status(stream)).outcome == "swallowed_whole"

        play(story)


@pytest.mark.parametrize("shortened", ["before", "after"])
def test_only_the_event_at_its_place_makes_a_forced_end_a_good_one(play: Play, shortened: str) -> None:
    """Events are taken away, and the hash's top with them, before or after it is asked what the log ends with."""

    async def story(bench: Bench) -> None:
        stream = await bench.made()
        frames = [*numbered(1, 2), b"data: [DONE]\n\n"]
        assert await bench.append(stream, 0, frames) == (OK, 3)
        await bench.lapse(stream)
        await bench.raw(stream, "HSET", meta_key(stream), "top", 1)
        look = bench.log.frame

        async def shorten() -> None:
            await bench.raw(stream, "DEL", log_key(stream))
            await bench.raw(stream, "XADD", log_key(stream), "1-0", "f", frames[0])

        async def look_and_shorten(stream: str, n: int, binding: Binding = UNBOUND) -> bytes:
            found = await look(stream, n, binding)
            await shorten()
            return found

        if shortened == "before":
            await shorten()
        else:
            bench.log.frame = look_and_shorten  # type: ignore[method-assign]
        chronicle = Chronicle("r", Stories(bench.log.commands, bench.log.names, bench.log.settings), lambda _: 0)
        leases = Leases(bench.log, "r", None, Metrics(), chronicle)  # type: ignore[arg-type]
        assert await leases.force_end(await bench.status(stream))
        assert await bench.log.read(stream, 0) == Page(frames[:1], End("producer_lost"), False, False)
        await chronicle.close()

    play(story, SETTINGS.model_copy(update={"lease": 0.0}))  # a store that has just been reached is trusted at once
