"""The parent of several workers, each a replica of its own on the one listening socket.

Promises:

- a worker that ends by itself is replaced;
- each signal reaches every worker exactly once, also one that was forked in that moment;
- workers end with their parent, however it dies: none serves on without the store that the parent owns, or keeps the
  address from the relay that is started next. They are killed, as a service manager kills what is left of a service.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from prometheus_client.multiprocess import mark_process_dead

from relay import signals

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
# A worker that ended sooner than this after its start is replaced so long after it: not to fork without a pause.
_SHORTEST_LIFE = 1.0


class Workers:
    """`serve` is what a worker does. The signals must be held (`relay.signals`), here and, as it begins, in `serve`."""

    def __init__(self, count: int, serve: Callable[[], None]) -> None:
        self._count = count
        self._serve = serve
        self._started: dict[int, float] = {}
        self._numbers: dict[int, int] = {}
        self.number = 0
        """Of the worker that is started, and in it its own; one that has ended leaves it to its replacement."""
        # Its writing end is open in the parent alone, so that reading from it ends when the parent has.
        self._alive, self._parent_holds = os.pipe()

    def run(self, on_ending: Callable[[], None]) -> None:
        """Return when they have ended after a signal. `on_ending` is called at the first, before it goes to them."""
        # Where a signal that is ignored by default is dropped although it is blocked, it needs a handler.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in range(self._count):
            self._start(number)
        ending = False
        while self._started:
            number = signals.wait()
            if number != signal.SIGCHLD:
                if not ending:
                    on_ending()
                ending = True
                for pid in self._started:
                    os.kill(pid, number)
            for pid in list(self._started):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self._ended(pid, os.waitstatus_to_exitcode(status), replace=not ending)

    def _ended(self, pid: int, status: int, *, replace: bool) -> None:
        lived = time.monotonic() - self._started.pop(pid)
        number = self._numbers.pop(pid)
        mark_process_dead(pid)  # type: ignore[no-untyped-call]  # its gauges end with it, its counters stay
        if replace:
            logger.error("worker %d ended with %d; starting another", pid, status)
            self._start(number, _SHORTEST_LIFE if lived < _SHORTEST_LIFE else 0.0)

    def _start(self, number: int, delay: float = 0.0) -> None:
        self.number = number
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._started[pid] = time.monotonic() + delay
            self._numbers[pid] = number
            return
        status = 1
        try:
            os.close(self._parent_holds)
            end_with_parent(parent, self._alive)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            time.sleep(delay)
            self._serve()
            status = 0
        except BaseException:
            logger.exception("worker %d failed", os.getpid())
        finally:
            logging.shutdown()
            os._exit(status)


def end_with_parent(parent: int, alive: int) -> None:
    """Have this forked process killed when `parent`, its parent, dies, or at once where it has died by now.

    `alive` is the reading end of a pipe whose writing end the parent alone has: that works everywhere. Linux's own way
    works on a process that is stopped, too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        os.read(alive, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
