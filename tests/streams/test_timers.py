"""Timers of which thousands share one of the loop's."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from relay import timers
from relay.timers import Timer

TIMEOUT = 10.0


def run(
    scene: Callable[[], Awaitable[None]], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT):
            await scene()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(bounded())


def held() -> int:
    return len(timers._of_running_loop()._heap)


@pytest.mark.parametrize("factory", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_they_are_called_in_the_order_in_which_they_are_due_and_not_before(factory: Any) -> None:
    async def scene() -> None:
        loop, called, over = asyncio.get_running_loop(), [], asyncio.Event()
        dues = [loop.time() + n / 500 for n in range(40)]

        def call(n: int) -> None:
            called.append(n)
            assert loop.time() >= dues[n] - 0.002
            if len(called) == len(dues):
                over.set()

        for n in random.Random(7).sample(range(40), 40):
            timers.call_at(dues[n], lambda n=n: call(n))  # type: ignore[misc]
        await over.wait()
        assert called == list(range(40))

    run(scene, factory)


def test_one_that_is_set_later_and_due_earlier_is_not_kept_waiting() -> None:
    async def scene() -> None:
        over = asyncio.Event()
        late = timers.call_later(3600.0, over.set)
        timers.call_later(0.01, over.set)
        await over.wait()
        late.cancel()

    run(scene)


def test_a_cancelled_one_is_not_called_and_holds_nothing() -> None:
    class Owner:
        def call(self) -> None:
            raise AssertionError

    async def scene() -> None:
        owner = Owner()
        there = weakref.ref(owner)
        timer = timers.call_later(0.01, owner.call)
        timer.cancel()
        timer.cancel()
        gc.disable()
        try:
            del owner
            assert there() is None
        finally:
            gc.enable()
        passed = asyncio.Event()
        timers.call_later(0.03, passed.set)
        await passed.wait()

    run(scene)


def test_thousands_that_are_cancelled_long_before_they_are_due_are_not_held() -> None:
    async def scene() -> None:
        kept = [timers.call_later(3600.0, int) for _ in range(100)]
        for _ in range(20):
            for timer in [timers.call_later(3600.0, int) for _ in range(500)]:
                timer.cancel()
        assert held() < 1000
        for timer in kept:
            timer.cancel()

    run(scene)


def test_one_may_cancel_another_that_is_due_with_it_and_set_itself_again() -> None:
    async def scene() -> None:
        loop, called, over = asyncio.get_running_loop(), [], asyncio.Event()
        now = loop.time()
        second: list[Timer] = []

        def first() -> None:
            called.append("first")
            second[0].cancel()
            if len(called) < 3:
                timers.call_at(loop.time(), first)
            else:
                over.set()

        timers.call_at(now, first)
        second.append(timers.call_at(now, lambda: called.append("second")))
        await over.wait()
        assert called == ["first"] * 3

    run(scene)


def test_one_that_fails_is_told_of_and_the_others_are_called() -> None:
    async def scene() -> None:
        loop, told, over = asyncio.get_running_loop(), [], asyncio.Event()
        loop.set_exception_handler(lambda _, context: told.append(type(context["exception"])))
        now = loop.time()
        timers.call_at(now, lambda: 1 // 0)
        timers.call_at(now, over.set)
        await over.wait()
        assert told == [ZeroDivisionError]

    run(scene)
