"""One connection to a real server: order, whose error is whose, and every way in which a server can go away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions

from relay.store import scripts
from relay.store.link import Command, Link, StoreDown
from relay.store.topology import connect
from tests.support.stores import Server, valkey_server

TIMEOUT = 5.0
SHORT = 0.3
SOON = 3.0  # what a loaded machine may add to a short time-out


class CountingLink(Link):
    """A link that remembers what went out together."""

    flushes: list[int]

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        self.flushes = [*getattr(self, "flushes", []), len(commands)]
        return await super().exchange(commands)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with valkey_server(tmp_path_factory.mktemp("valkey")) as store:
        yield store.servers[0]


@pytest.fixture
def server(shared: Server) -> Server:
    """The one server, running and empty."""
    shared.resume()
    if not shared.client().ping():
        shared.restart()
    shared.client().flushall()
    return shared


def play(server: Server, story: Callable[[CountingLink], Awaitable[None]], timeout: float = TIMEOUT) -> None:
    async def scene() -> None:
        link = CountingLink(connect(server.url).node_of(b"").dial, timeout)
        try:
            await story(link)
        finally:
            await link.close()

    asyncio.run(scene())


async def in_flight(link: CountingLink, flushes: int = 1) -> None:
    """Returns when so many flushes have begun."""
    while len(getattr(link, "flushes", [])) < flushes:  # noqa: ASYNC110
        await asyncio.sleep(0)  # one turn of the loop, at most a few


async def answer(future: Awaitable[Any]) -> Any:
    """The reply or the exception, so that it can be compared."""
    try:
        return await future
    except Exception as error:
        return error


class TestRoundTrips:
    def test_replies_come_in_the_order_of_their_commands(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            replies = await asyncio.gather(*(link.call("ECHO", n) for n in range(500)))
            assert replies == [b"%d" % n for n in range(500)]
            assert link.flushes == [500]

        play(server, story)

    def test_commands_are_done_in_the_order_of_their_calls(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            assert await asyncio.gather(*(link.call("INCR", "n") for _ in range(200))) == list(range(1, 201))

        play(server, story)

    def test_what_arrives_during_a_flush_is_the_next(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            first = link.call("INCR", "n")
            await in_flight(link)
            rest = [link.call("INCR", "n") for _ in range(50)]
            assert [await first, *await asyncio.gather(*rest)] == list(range(1, 52))
            assert link.flushes == [1, 50]

        play(server, story)

    def test_replies_stay_bytes_and_of_every_kind(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            binary = bytes(range(256)) + b"\r\n$-1\r\n"
            calls = [("SET", b"k\xff", binary), ("GET", b"k\xff"), ("GET", "none"), ("INCR", "n"), ("KEYS", "none")]
            assert await asyncio.gather(*(link.call(*call) for call in calls)) == [b"OK", binary, None, 1, []]

        play(server, story)

    def test_a_large_reply_and_a_large_command(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            large = b"x" * (8 << 20)
            assert await link.call("SET", "k", large) == b"OK"
            assert await link.call("GET", "k") == large

        play(server, story)

    def test_up_since(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            assert link.up_since is None
            before = time.monotonic()
            await link.call("PING")
            opened = link.up_since
            assert opened is not None
            assert before <= opened <= time.monotonic()
            await link.call("PING")
            assert link.up_since == opened
            await link.drop()
            assert link.up_since is None
            assert await link.call("PING") == b"PONG"

        play(server, story)


class TestErrorsOfTheServer:
    def test_one_is_the_value_of_its_own_command_only(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            calls: list[Command] = [
                ("SET", "k", "x"),
                ("INCR", "k"),
                ("GET", "k"),
                ("NOSUCH",),
                ("LPOP", "k"),
                ("PING",),
            ]
            replies = await asyncio.gather(*(answer(link.call(*call)) for call in calls))
            kinds = [type(reply) for reply in replies]
            wrong = redis.exceptions.ResponseError
            assert kinds == [bytes, wrong, bytes, wrong, wrong, bytes]
            assert link.flushes == [6]
            assert link.up_since is not None

        play(server, story)

    def test_in_an_exchange_it_stands_in_its_place(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            replies = await link.exchange([("SET", "k", "x"), ("INCR", "k"), ("GET", "k")])
            assert isinstance(replies[1], redis.exceptions.ResponseError)
            assert [replies[0], replies[2]] == [b"OK", b"x"]

        play(server, story)

    def test_a_script_that_fails_is_its_callers_business(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            wrong = link.call("EVALSHA", scripts.CREATE.sha, 1, "k")
            right = link.call("PING")
            assert isinstance(await answer(wrong), redis.exceptions.ResponseError)
            assert await right == b"PONG"

        play(server, story)


class TestScripts:
    def test_all_are_there_from_the_first_command_on(self, server: Server) -> None:
        server.client().script_flush()

        async def story(link: CountingLink) -> None:
            assert await link.call("SCRIPT", "EXISTS", *(s.sha for s in scripts.SCRIPTS)) == [1] * len(scripts.SCRIPTS)

        play(server, story)

    def test_a_flush_of_them_is_healed_and_the_rest_done_once(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            await link.call("PING")
            server.client().script_flush()
            create: Command = ("EVALSHA", scripts.CREATE.sha, 1, "m", 1000, 60_000)
            look: Command = ("EVALSHA", scripts.STATUS.sha, 2, "none", "none", "", "0")
            calls: list[Command] = [("INCR", "n"), create, ("INCR", "n"), look, ("INCR", "n")]
            replies = await asyncio.gather(*(link.call(*call) for call in calls))
            assert replies == [1, 1, 2, None, 3]
            assert await link.call("GET", "n") == b"3"

        play(server, story)

    def test_a_script_that_nobody_knows_stays_an_error(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            unknown = link.call("EVALSHA", "0" * 40, 0)
            right = link.call("PING")
            assert isinstance(await answer(unknown), redis.exceptions.NoScriptError)
            assert await right == b"PONG"

        play(server, story)


class TestAServerThatGoesAway:
    def test_killed_it_is_down_and_restarted_it_is_up(self, tmp_path: Path) -> None:
        async def story(link: CountingLink) -> None:
            await link.call("PING")
            own.kill()
            for _ in range(3):
                before = time.monotonic()
                assert isinstance(await answer(link.call("PING")), StoreDown)
                assert time.monotonic() - before < SOON
                assert link.up_since is None
            await asyncio.to_thread(own.restart)
            assert await link.call("PING") == b"PONG"
            assert await link.call("EVALSHA", scripts.CREATE.sha, 1, "m", 1000, 60_000) == 1
            assert link.up_since is not None

        with valkey_server(tmp_path) as store:
            (own,) = store.servers
            play(own, story)

    def test_killed_with_commands_in_flight_all_are_told(self, tmp_path: Path) -> None:
        async def story(link: CountingLink) -> None:
            await link.call("PING")
            own.pause()
            calls = [link.call("INCR", "n") for _ in range(20)]
            await in_flight(link, 2)
            own.kill()
            assert [type(await answer(call)) for call in calls] == [StoreDown] * 20
            await asyncio.to_thread(own.restart)
            assert await link.call("PING") == b"PONG"

        with valkey_server(tmp_path) as store:
            (own,) = store.servers
            play(own, story)

    def test_it_never_was_there(self, tmp_path: Path) -> None:
        async def story(link: CountingLink) -> None:
            assert isinstance(await answer(link.call("PING")), StoreDown)
            with pytest.raises(StoreDown):
                await link.exchange([("PING",)])

        with valkey_server(tmp_path) as store:
            (own,) = store.servers
            own.kill()
            play(own, story)

    @staticmethod
    async def falls_silent(server: Server, link: CountingLink) -> None:
        """It is down once the time-out is over, neither before nor long after."""
        server.pause()
        before = time.monotonic()
        assert isinstance(await answer(link.call("PING")), StoreDown)
        assert SHORT * 0.9 <= time.monotonic() - before < SHORT + SOON
        server.resume()

    def test_silent_it_is_down_within_the_time_out(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            await link.call("PING")
            await self.falls_silent(server, link)
            assert await link.call("PING") == b"PONG"

        play(server, story, SHORT)

    def test_silent_after_an_answer_it_has_the_whole_time_out(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            await link.call("PING")
            await asyncio.sleep(SHORT / 6)  # so that the checks set for the answer come before those for the silence
            await link.drop()
            await link.call("PING")
            await self.falls_silent(server, link)

        play(server, story, SHORT)

    def test_silent_from_the_start_too(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            server.pause()  # the kernel accepts the connection, nobody answers on it
            before = time.monotonic()
            assert isinstance(await answer(link.call("PING")), StoreDown)
            assert time.monotonic() - before < SHORT + SOON
            server.resume()
            assert await link.call("PING") == b"PONG"

        play(server, story, SHORT)

    def test_whoever_comes_while_it_is_silent_waits_no_longer_than_two_time_outs(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            await link.call("PING")
            server.pause()
            before = time.monotonic()
            first = link.call("PING")
            await in_flight(link, 2)
            rest = [link.call("PING") for _ in range(10)]
            assert all([isinstance(await answer(call), StoreDown) for call in (first, *rest)])
            assert time.monotonic() - before < 2 * SHORT + SOON
            server.resume()
            assert await link.call("PING") == b"PONG"

        play(server, story, SHORT)

    def test_a_late_reply_answers_nobody_else(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            await link.call("PING")
            server.pause()
            assert isinstance(await answer(link.call("ECHO", "late")), StoreDown)
            server.resume()
            for n in range(5):
                assert await link.call("ECHO", n) == b"%d" % n

        play(server, story, SHORT)

    def test_back_again_it_serves_all_who_come_at_once(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            await link.call("PING")
            server.pause()
            assert isinstance(await answer(link.call("PING")), StoreDown)
            server.resume()
            first = link.call("ECHO", 0)
            await in_flight(link, 3)
            rest = [link.call("ECHO", n) for n in range(1, 5)]
            assert [await answer(call) for call in (first, *rest)] == [b"%d" % n for n in range(5)]

        play(server, story, SHORT)

    def test_a_connection_closed_by_the_server_is_opened_anew(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            await link.call("PING")
            server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            # What was sent may have been done, so this one is not repeated unasked.
            assert isinstance(await answer(link.call("PING")), (StoreDown, bytes))
            assert await link.call("PING") == b"PONG"

        play(server, story)


class TestCallersThatLeave:
    def test_before_the_flush(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            calls = [link.call("ECHO", n) for n in range(5)]
            calls[2].cancel()
            replies = await asyncio.gather(*(calls[n] for n in (0, 1, 3, 4)))
            assert replies == [b"0", b"1", b"3", b"4"]
            assert calls[2].cancelled()

        play(server, story)

    def test_during_the_flush(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            await link.call("PING")
            server.pause()
            tasks = [asyncio.ensure_future(answer(link.call("ECHO", n))) for n in range(5)]
            await in_flight(link, 2)
            tasks[0].cancel()
            tasks[4].cancel()
            server.resume()
            replies = await asyncio.gather(*tasks, return_exceptions=True)
            assert replies[1:4] == [b"1", b"2", b"3"]
            assert [type(replies[n]) for n in (0, 4)] == [asyncio.CancelledError] * 2
            assert await link.call("ECHO", "next") == b"next"
            assert link.flushes == [1, 5, 1]

        play(server, story)

    def test_all_of_them(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            await link.call("PING")
            server.pause()
            tasks = [asyncio.ensure_future(answer(link.call("INCR", "n"))) for _ in range(3)]
            await in_flight(link, 2)
            for task in tasks:
                task.cancel()
            server.resume()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert await link.call("INCR", "n") == 4

        play(server, story)

    def test_an_exchange_that_is_cancelled_leaves_no_reply_behind(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            await link.exchange([("PING",)])
            server.pause()
            exchange = asyncio.ensure_future(link.exchange([("ECHO", "old")] * 3))
            await in_flight(link, 2)
            await asyncio.sleep(0)
            exchange.cancel()
            with pytest.raises(asyncio.CancelledError):
                await exchange
            server.resume()
            assert await link.exchange([("ECHO", "new")]) == [b"new"]

        play(server, story)


class TestClose:
    def test_nobody_is_left_waiting(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            await link.call("PING")
            server.pause()
            flying = [link.call("PING") for _ in range(2)]
            await in_flight(link, 2)
            queued = [link.call("PING") for _ in range(2)]
            await link.close()
            done, waiting = await asyncio.wait([*flying, *queued], timeout=1)
            server.resume()
            assert not waiting
            assert all(call.cancelled() or isinstance(call.exception(), StoreDown) for call in done)

        play(server, story)

    def test_twice_and_unopened(self, server: Server) -> None:
        async def story(link: CountingLink) -> None:
            await link.close()
            await link.close()

        play(server, story)

    def test_the_connection_is_closed(self, server: Server) -> None:
        def connected() -> int:
            return sum(1 for client in server.client().client_list(_type="normal") if client["name"] == "the-link")

        async def story(link: CountingLink) -> None:
            await link.call("CLIENT", "SETNAME", "the-link")
            assert connected() == 1
            await link.close()
            for _ in range(1000):
                if not connected():
                    break
                await asyncio.sleep(0)
            assert connected() == 0

        play(server, story)
