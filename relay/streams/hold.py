"""The clock of `store.hold` for a stream of which nothing is appended: there no reply can be late."""

from __future__ import annotations

import asyncio

from relay.streams.writer import LogWriter


class HoldWhileSilent:
    """Tells a writer that the store is away, when it has waited for `hold` seconds and the log holds no more of it."""

    def __init__(self, writer: LogWriter, hold: float) -> None:
        self._writer = writer
        self._hold = hold
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """From now on."""
        self.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._hold, self._over, self._writer.acked)

    def cancel(self) -> None:
        """The store answers, or nobody waits any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _over(self, acked: int) -> None:
        self._timer = None
        writer = self._writer
        if writer.held or (writer.queued and writer.acked == acked):
            writer.on_store_away()
        if writer.held:
            self.begin()
