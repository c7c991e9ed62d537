"""Workers on one listening socket: who has more connections leaves the next to those with fewer, for a moment."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine

import pytest

from relay.http import accepting
from relay.http.accepting import Accepting
from relay.http.sharing import ALONE, Share, Shares
from tests.support.waiting import until

TIMEOUT = 10.0


class _Worker:
    """A worker in this process: what it takes counts until the end."""

    def __init__(self, listener: socket.socket, share: Share) -> None:
        self.taken = 0
        self._share = share
        self.accepting = Accepting(listener.dup(), 128, self._protocol, share)

    def _protocol(self) -> asyncio.Protocol:
        self.taken += 1
        return asyncio.Protocol()


def _run(scene: Callable[[socket.socket, Shares], Coroutine[None, None, None]]) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener, asyncio.Runner() as runner:
        runner.run(scene(listener, Shares(2)))


@pytest.mark.parametrize(
    ("counts", "ahead"),
    [
        ((0, 0), False),
        ((1, 0), False),
        ((2, 0), True),
        ((2, 1), False),
        ((100, 101), False),
        ((5, 9, 0), True),
        ((5, 9, 9), False),
        ((500,), False),
    ],
)
def test_who_is_ahead(counts: tuple[int, ...], ahead: bool) -> None:
    shares = Shares(len(counts))
    workers = [shares.of(number) for number in range(len(counts))]
    for worker, count in zip(workers, counts, strict=True):
        worker.holds(count)
    assert workers[0].is_ahead() is ahead


def test_one_that_was_taken_counts_at_once() -> None:
    shares = Shares(2)
    mine, _ = shares.of(0), shares.of(1)
    for _ in range(2):
        assert not mine.is_ahead()
        mine.takes_one()
    assert mine.is_ahead()


def test_one_that_replaces_another_begins_with_none() -> None:
    shares = Shares(2)
    shares.of(0).holds(7)
    other = shares.of(1)
    other.holds(20)
    assert other.is_ahead()
    shares.of(0).holds(19)
    assert not other.is_ahead()
    shares.of(0)
    assert other.is_ahead()


def test_workers_see_each_others_counts_across_the_fork() -> None:
    shares = Shares(2)
    mine = shares.of(0)
    mine.holds(10)
    child = os.fork()
    if not child:
        shares.of(1).holds(10)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not mine.is_ahead()


def test_who_is_alone_is_never_ahead() -> None:
    ALONE.holds(1000)
    assert not ALONE.is_ahead()
    ALONE.holds(0)


def _full(listener: socket.socket, shares: Shares) -> _Worker:
    worker = _Worker(listener, shares.of(0))
    worker.taken = 50
    shares.of(0).holds(50)
    return worker


@pytest.mark.parametrize("first", ["full", "empty"])
def test_connections_go_to_the_worker_that_has_fewer(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of them the kernel tells first."""
    monkeypatch.setattr(accepting, "_LEFT_TO_OTHERS", TIMEOUT)  # so that no pause of this process makes it give up

    async def scene(listener: socket.socket, shares: Shares) -> None:
        if first == "full":
            full, empty = _full(listener, shares), _Worker(listener, shares.of(1))
        else:
            empty, full = _Worker(listener, shares.of(1)), _full(listener, shares)
        clients = [await asyncio.open_connection(*listener.getsockname()) for _ in range(20)]
        await until(lambda: full.taken + empty.taken == 70, TIMEOUT, "all connections")
        assert (full.taken, empty.taken) == (50, 20)
        await full.accepting.stop()
        await empty.accepting.stop()
        for _, writer in clients:
            writer.close()

    _run(scene)


def test_nobody_waits_for_a_worker_that_is_stopped() -> None:
    async def scene(listener: socket.socket, shares: Shares) -> None:
        full = _full(listener, shares)
        shares.of(1)  # takes none, ever
        clients = [await asyncio.open_connection(*listener.getsockname()) for _ in range(20)]
        await until(lambda: full.taken == 70, TIMEOUT, "all connections")
        await full.accepting.stop()
        for _, writer in clients:
            writer.close()

    _run(scene)


def test_what_was_left_to_others_is_taken_before_the_listener_is_closed() -> None:
    """The kernel would reset it."""

    async def scene(listener: socket.socket, shares: Shares) -> None:
        full = _full(listener, shares)
        shares.of(1)
        _, writer = await asyncio.open_connection(*listener.getsockname())
        await full.accepting.stop()
        assert full.taken == 51
        writer.close()

    _run(scene)
