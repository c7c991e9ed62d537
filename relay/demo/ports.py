"""Whose an address is that is wanted and taken: told before the demo starts anything."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

_LISTENS = "0A"
_LOOPBACK_HEX = {"0100007F", "00000000"}
_LOOPBACK6_HEX = {"0" * 32, "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


class PortTaken(RuntimeError):
    """The message says by what, and what to do."""


def require_free(first: int, count: int) -> None:
    """Raises PortTaken unless all of them can be listened on at 127.0.0.1."""
    for port in range(first, first + count):
        try:
            _listen(port)
        except PermissionError:
            raise PortTaken(f"port {port} is not for this user; {_another(count)}") from None
        except OverflowError:
            raise PortTaken(f"there is no port {port}; {_another(count)}") from None
        except OSError:
            raise PortTaken(f"port {port} is taken by {holder(port)}; end that, or {_another(count)}") from None


def _listen(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        probe.listen(1)


def _another(count: int) -> str:
    for first in range(18080, 28080, 100):
        try:
            for port in range(first, first + count):
                _listen(port)
        except OSError:
            continue
        return f"use others: relay demo --port {first}"
    return "use others: relay demo --port PORT"


def holder(port: int) -> str:
    """What listens on a port of loopback, as far as this user may see it."""
    inodes = _listeners(port)
    for folder in Path("/proc").glob("[0-9]*"):
        if _open(folder / "fd") & {f"socket:[{inode}]" for inode in inodes}:
            return f"process {folder.name} ({_command(folder)})"
    return "a process of another user" if inodes else "another process"


def _command(folder: Path) -> str:
    with suppress(OSError):
        return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:120]
    return "ended meanwhile"


def _open(folder: Path) -> set[str]:
    found = set()
    with suppress(OSError):  # another user's, or gone meanwhile
        for link in list(folder.iterdir()):
            with suppress(OSError):
                found.add(os.readlink(link))
    return found


def _listeners(port: int) -> set[str]:
    found = set()
    for name, addresses in (("tcp", _LOOPBACK_HEX), ("tcp6", _LOOPBACK6_HEX)):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except OSError:  # no Linux
            continue
        for line in lines:
            _, local, _, state, *rest = line.split()
            address, _, number = local.partition(":")
            if state == _LISTENS and int(number, 16) == port and address in addresses:
                found.add(rest[5])
    return found
