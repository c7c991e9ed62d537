"""What the peer's machine has acknowledged of what was sent to it, as the kernel tells."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import sys
import termios


def unheard(connection: socket.socket) -> float:
    """As the kernel tells it (`tcp_info`): packets that are not acknowledged, and the time since the last that was."""
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
    except (OSError, AttributeError):
        return 0.0
    unacknowledged, last = int.from_bytes(told[24:28], sys.byteorder), int.from_bytes(told[56:60], sys.byteorder)
    return last / 1000 if unacknowledged else 0.0


def queued(connection: socket.socket) -> int:
    """How many bytes the kernel holds for the peer; 0 where it does not say."""
    found = bytearray(4)
    with contextlib.suppress(OSError):
        fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, found)
    return int.from_bytes(found, sys.byteorder)
