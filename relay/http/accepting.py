"""A listener whose connections are taken a few at a time.

uvloop takes all that wait, up to its backlog, in one turn of the loop: with a thousand of them that is a third of a
second, in which no event of any stream passes and none of the thousand is answered. Here a few are taken in each turn;
the others wait in the kernel, which has accepted them already, and another worker may take them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import suppress

from relay.http.sharing import ALONE, Share

logger = logging.getLogger("relay.http")

# In one turn of the loop: as many as cost as much as a stream's beginning.
_AT_ONCE = 4
# So long a connection is left to the workers that have fewer: more than it takes one that is idle to take it.
_LEFT_TO_OTHERS = 0.002
# Until the next try where this process has no room for one more.
_PAUSE = 1.0
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Accepting:
    """On `listener`, which `stop` closes. `protocol` makes what a connection is handed to; `share` is this worker's,
    where others have the same listener."""

    def __init__(
        self,
        listener: socket.socket,
        backlog: int,
        protocol: Callable[[], asyncio.BaseProtocol],
        share: Share = ALONE,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._protocol = protocol
        self._share = share
        self._pausing: asyncio.TimerHandle | None = None
        self._taking: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        listener.listen(backlog)
        self._loop.add_reader(listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            if self._share.is_ahead():
                self._loop.remove_reader(self._listener)
                self._pausing = self._loop.call_later(_LEFT_TO_OTHERS, self._after_others)
                return
            if not self._accept_one():
                return

    def _after_others(self) -> None:
        self._loop.add_reader(self._listener, self._accept)
        for _ in range(_AT_ONCE):
            if not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """False where there is none, or no room for it."""
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._pause(error)
            return False  # or there is none, or its client has gone
        self._take(connection)
        return True

    def _take(self, connection: socket.socket) -> None:
        self._share.takes_one()
        task = self._loop.create_task(self._connect(connection))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _connect(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with suppress(OSError):  # its client has gone
            await self._loop.connect_accepted_socket(self._protocol, connection)

    def _pause(self, error: OSError) -> None:
        logger.error("no connection can be taken just now (%s); raise the limit of open files", error.strerror)
        self._loop.remove_reader(self._listener)
        self._pausing = self._loop.call_later(_PAUSE, self._loop.add_reader, self._listener, self._accept)

    async def stop(self) -> None:
        """Close the listener. Connections that the kernel has accepted are taken first: it would reset them, with
        requests that their clients may have sent."""
        if self._pausing is not None:
            self._pausing.cancel()
        self._loop.remove_reader(self._listener)
        with suppress(OSError):
            while True:
                self._take(self._listener.accept()[0])
        self._listener.close()
        if self._taking:
            await asyncio.wait(self._taking)
