"""SIGTERM, SIGINT and SIGHUP, from the process's first moment to its last.

Promises:

- one that comes while the relay starts is not lost: it stays pending until somebody asks (`pending`, `wait`) or the
  event loop has its handlers (`release`);
- the same for PID 1 of a container, for which the kernel drops a signal that has no handler, unless it is blocked.

Imports nothing but `signal`: whoever calls `hold` first must not need half a second to get here.
"""

import signal

_OUTLIVES_ITS_TERMINAL = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # started so, as by nohup
ENDING = (signal.SIGTERM, signal.SIGINT, *(() if _OUTLIVES_ITS_TERMINAL else (signal.SIGHUP,)))
"""A terminal's end is one to what was started in it, unless that was started to outlive it."""


def hold() -> None:
    """Keep them pending, and word of ended children too: in this thread, in those that it starts from now on, and in
    the children that it forks. What it executes inherits that as well and has to undo it (as the store's launcher)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, signal.SIGCHLD})


def release() -> None:
    """Have them delivered, what is pending at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ENDING, signal.SIGCHLD})


def pending() -> bool:
    """Has somebody asked this process to end, while they are held?"""
    return not signal.sigpending().isdisjoint(ENDING)


def wait() -> int:
    """The next of them or SIGCHLD, while they are held."""
    return signal.sigwait({*ENDING, signal.SIGCHLD})
