"""Keeps the embedded store running: where it has ended by itself it is started again, on what its file holds.

Promises: why it does not come back is logged once for each reason, in the server's own words and with what to do; tries
come less and less often; and every process of the relay can see that its store is lost, to say so to probes.
"""

from __future__ import annotations

import logging
import mmap
import threading
import time

from relay.store.embedded import EmbeddedStore, EmbeddedStoreError, StartGivenUp

logger = logging.getLogger(__name__)

_CHECK = 0.5
_RETRY_INITIAL = 0.5
_RETRY_MAX = 30.0
# A store that ends again within this time of its start has not come back.
_STEADY = 60.0
# Of a server without a sign of life. Longer ones make it later that the reason is told.
_START_TIMEOUT = 10.0


class StoreSupervisor:
    """Watches a store that runs, in a thread of the process that started it. Processes forked later share `lost`."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self._lost = mmap.mmap(-1, 1)  # anonymous memory, the same in forked processes
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="store-supervisor", daemon=True)
        self._pause = 0.0
        self._started = time.monotonic()
        self._told: set[str] = set()

    @property
    def lost(self) -> bool:
        """The store has ended and could not be started again, by now."""
        return self._lost[0] != 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return when nothing starts the store any more."""
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(_CHECK):
            if self._store.pid is None:
                status = self._store.exit_status
                logger.error("the embedded store has ended by itself (exit status %s); starting it again", status)
                if time.monotonic() - self._started > _STEADY:
                    self._pause = 0.0
                    self._told.clear()
                self._bring_back()

    def _bring_back(self) -> None:
        self._lost[0] = self._pause > 0
        while not self._stopping.wait(self._pause):
            self._pause = min(max(2 * self._pause, _RETRY_INITIAL), _RETRY_MAX)
            try:
                self._store.start(_START_TIMEOUT, self._stopping.is_set)
            except StartGivenUp:
                return
            except EmbeddedStoreError as error:
                self._lost[0] = True
                self._tell(str(error))
            else:
                logger.info("the embedded store runs again")
                self._lost[0] = False
                self._started = time.monotonic()
                return

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            told = reason.replace("\n", " | ")
            logger.error("the embedded store does not come back, tried again within %g s: %s", _RETRY_MAX, told)
