"""A flag that tasks may wait for."""

from __future__ import annotations

import asyncio

from relay.flags import Flag


def test_a_flag_wakes_all_who_wait_and_nobody_waits_for_one_that_is_set() -> None:
    async def play() -> None:
        flag = Flag()
        waiting = [asyncio.create_task(flag.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        flag.set()
        await asyncio.gather(*waiting)
        assert flag.is_set
        await flag.wait()

    asyncio.run(play())


def test_who_waits_and_is_cancelled_takes_nobody_along() -> None:
    async def play() -> None:
        flag = Flag()
        first, second = asyncio.create_task(flag.wait()), asyncio.create_task(flag.wait())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert not second.done()
        flag.set()
        await second

    asyncio.run(play())


def test_who_waits_for_so_long_only_is_not_kept_and_leaves_the_others_waiting() -> None:
    async def play() -> None:
        flag = Flag()
        other = asyncio.create_task(flag.wait())
        await flag.wait(0.01)
        assert not flag.is_set
        assert len(flag._waiting) == 1
        assert not other.done()
        flag.set()
        await other
        await flag.wait(0.0)

    asyncio.run(play())
