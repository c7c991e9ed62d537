"""Is the client of a request still there? Asked without a task where the server tells by a call (`relay.http`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Message, Receive

from relay import timers
from relay.http.contract import Client, ConnectionCut

_T = TypeVar("_T")


class Presence:
    """`gone`: the client has hung up, for all that is known. Nothing is to be asked before the body has been read."""

    def __init__(self, client: Client | None, receive: Receive) -> None:
        self.gone = False
        self._client = client
        self._receive = receive
        self._call: Callable[[], None] | None = None
        self._listening: asyncio.Task[None] | None = None

    def message(self) -> Message | None:
        """The next part of the body, where it is here."""
        return None if self._client is None else self._client.here()

    def when_gone(self, call: Callable[[], None] | None) -> None:
        """Have this called when the client hangs up, in place of what was to be called so far; or nothing. Where it has
        gone by now it is called at once."""
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
        self._call = call
        if call is None:
            if self._client is not None:
                self._client.when_gone(None)
        elif self.gone:
            call()
        elif self._client is not None:
            self._client.when_gone(self._hung_up)
        else:
            self._listening = asyncio.ensure_future(self._until_gone())

    def _hung_up(self) -> None:
        self.gone = True
        if (call := self._call) is not None:
            self._call = None
            call()

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._listening = None
        self._hung_up()

    async def wait_for(self, future: asyncio.Future[Any], seconds: float | None) -> None:
        """Returns when it is done, or the time is over. Raises ConnectionCut where the client has gone by then."""
        woken = asyncio.get_running_loop().create_future()

        def wake(_: object = None) -> None:
            if not woken.done():
                woken.set_result(None)

        timer = None if seconds is None else timers.call_later(seconds, wake)
        future.add_done_callback(wake)
        self.when_gone(wake)
        try:
            await woken
        finally:
            self.when_gone(None)
            future.remove_done_callback(wake)
            if timer is not None:
                timer.cancel()
        if self.gone:
            raise ConnectionCut

    async def unless_gone(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What `work` returns. Where the client hangs up first, it is cancelled. Raises ConnectionCut then.

        What `work` itself sends may be what shows that the client has gone: then `send` raises, and the cancellation
        would come in the midst of what `work` ends with, or after it.
        """
        task = asyncio.current_task()
        assert task is not None
        asked = task.cancelling()
        cut = running = cancelled = False

        def cancel() -> None:
            nonlocal cut, cancelled
            cut = True
            if running and asyncio.current_task() is not task:
                cancelled = task.cancel()

        self.when_gone(cancel)
        if cut:
            work.close()
            raise ConnectionCut
        running = True
        try:
            result = await work
        except BaseException as error:
            others = (task.uncancel() if cancelled else task.cancelling()) > asked
            # Whoever else has cancelled this task is not to be kept from it.
            if not cut or (others and isinstance(error, asyncio.CancelledError)):
                raise
            raise ConnectionCut from None
        finally:
            self.when_gone(None)
        if cut:
            if cancelled:
                task.uncancel()
            raise ConnectionCut
        return result
