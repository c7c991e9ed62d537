"""Waits and attempts that a `close` from another thread or task ends at once, synchronous and asynchronous.

What runs in `attempt` cannot be interrupted by a blocking thread, so there it runs in a thread of its own: whoever
closes goes on, and what the attempt brings after that is thrown away.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

import anyio

Sleep = Callable[[float], None]
AsyncSleep = Callable[[float], Awaitable[None]]

LONGEST_WAIT = 86_400.0
"""Seconds; a longer time makes a timer overflow on some platforms."""


class Cancelled(Exception):
    """The response was closed while something was still to be waited for."""


class AttemptTimedOut(Exception):
    """An attempt brought no answer in its time, however busy it was."""


class SyncCancellation:
    """`sleep` takes the place of waits, for tests."""

    def __init__(self, sleep: Sleep | None = None) -> None:
        self._sleep = sleep
        self._cancelled = threading.Event()
        self._attempt: Future[Any] | None = None

    @property
    def cancelled(self) -> bool:
        """Has `cancel` been called?"""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End a wait or an attempt that is under way, and every later one, from any thread."""
        self._cancelled.set()
        attempt = self._attempt
        if attempt is not None:
            _settle(attempt.set_exception, Cancelled())

    def wait(self, seconds: float) -> None:
        """Wait for so many seconds, at most `LONGEST_WAIT`.

        Raises Cancelled.
        """
        (self._sleep or self._cancelled.wait)(min(seconds, LONGEST_WAIT))
        self.check()

    def check(self) -> None:
        """Raises Cancelled."""
        if self.cancelled:
            raise Cancelled

    def last(self, work: Callable[[], Any], within: float) -> None:
        """Do what is left to do after the end. The request's own time-outs bound it."""
        work()

    def attempt(self, send: Callable[[], Any], discard: Callable[[Any], None], within: float | None) -> Any:
        """What `send` returns or raises.

        Args:
            send: runs in a thread of its own, with the caller's context.
            discard: gets what `send` returns too late.
            within: seconds, None for as long as it takes.

        Raises Cancelled, AttemptTimedOut, and what `send` raises.
        """
        attempt: Future[Any] = Future()

        def run() -> None:
            try:
                found = send()
            except BaseException as error:
                _settle(attempt.set_exception, error)
            else:
                if not _settle(attempt.set_result, found):
                    discard(found)

        self._attempt = attempt
        self.check()
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(run,), name="relay-client-resume", daemon=True).start()
        try:
            return attempt.result(None if within is None else min(within, LONGEST_WAIT))
        except BaseException as error:
            if isinstance(error, TimeoutError) and _settle(attempt.set_exception, Cancelled()):
                raise AttemptTimedOut from None
            if not _settle(attempt.set_exception, Cancelled()) and attempt.exception() is None:
                discard(attempt.result())  # an interrupt came just after the answer
            raise
        finally:
            self._attempt = None


class AsyncCancellation:
    """As `SyncCancellation`; cancelling the task that waits ends a wait or an attempt, too."""

    def __init__(self, sleep: AsyncSleep | None = None) -> None:
        self._sleep = sleep
        self._cancelled = anyio.Event()

    @property
    def cancelled(self) -> bool:
        """Has `cancel` been called?"""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End a wait or an attempt that is under way, and every later one, from the same event loop."""
        self._cancelled.set()

    async def wait(self, seconds: float) -> None:
        """Wait for so many seconds, at most `LONGEST_WAIT`.

        Raises Cancelled.
        """
        if self._sleep is not None:
            await self._sleep(seconds)
        else:
            with anyio.move_on_after(min(seconds, LONGEST_WAIT)):
                await self._cancelled.wait()
        self.check()

    def check(self) -> None:
        """Raises Cancelled."""
        if self.cancelled:
            raise Cancelled

    async def last(self, work: Callable[[], Awaitable[Any]], within: float) -> None:
        """Do what is left to do after the end, also where the caller has been cancelled."""
        with anyio.move_on_after(within, shield=True):
            await work()

    async def attempt(
        self, send: Callable[[], Awaitable[Any]], discard: Callable[[Any], Awaitable[None]], within: float | None
    ) -> Any:
        """What `send` returns or raises.

        Args:
            send: runs in a task of its own.
            discard: gets what `send` returns too late.
            within: seconds, None for as long as it takes.

        Raises Cancelled, AttemptTimedOut, and what `send` raises.
        """
        self.check()
        found: list[Any] = []
        failed: list[Exception] = []

        async def cancel() -> None:
            await self._cancelled.wait()
            group.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(cancel)
                try:
                    with anyio.move_on_after(within):
                        found.append(await send())
                except Exception as error:
                    failed.append(error)  # a group would wrap it
                group.cancel_scope.cancel()
            if failed:
                raise failed[0]
            self.check()
        except BaseException:
            with anyio.CancelScope(shield=True):
                for late in found:
                    await discard(late)
            raise
        if not found:
            raise AttemptTimedOut
        return found[0]


def _settle(how: Callable[[Any], None], value: Any) -> bool:
    try:
        how(value)
    except InvalidStateError:
        return False
    return True
