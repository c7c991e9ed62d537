"""CPU and memory of processes: held against what the processes say of themselves, not against the clock."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.bench import procs
from relay.bench.procs import Group
from tests.support.processes import needs
from tests.support.stores import Server

_BURN = """
import sys, time
while time.process_time() < {seconds}: sum(range(1000))
print(time.process_time(), flush=True)
sys.stdin.read()
"""
_WITH_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {_BURN.format(seconds=0.6)!r}], stdin=subprocess.PIPE)
sys.stdin.read()
child.stdin.close()
child.wait()
"""
_ALLOCATE = """
import sys
print("ready", flush=True)
sys.stdin.readline()
block = b"x" * (64 << 20)
print("done", flush=True)
sys.stdin.read()
"""
# The kernel counts in ticks of 10 ms, and the interpreter's own start and last print come on top.
_SLACK = 0.15


@pytest.fixture(autouse=True)
def _linux() -> None:
    needs(procs.AVAILABLE, "/proc, that is Linux")


@contextmanager
def _child(code: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_cpu_is_what_the_process_has_used() -> None:
    with _child(_BURN.format(seconds=1.0)) as busy:
        own = float(_line(busy))
        used = Group([busy.pid]).cpu()
        assert own >= 1.0
        assert own - _SLACK <= used.cpu <= own + _SLACK
        assert used.store_cpu == 0.0


def test_cpu_of_children_counts() -> None:
    with _child(_WITH_CHILD) as parent:
        own = float(_line(parent))  # the child writes to the same pipe
        group = Group([parent.pid])
        assert len(group.pids) == 2
        assert group.cpu().cpu >= own - _SLACK


def test_memory_is_what_was_allocated() -> None:
    with _child(_ALLOCATE) as process:
        assert _line(process) == "ready\n"
        group = Group([process.pid])
        before = group.memory()
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert _line(process) == "done\n"
        assert abs((group.memory() - before).rss - (64 << 20)) < 4 << 20


def test_a_store_is_counted_apart(tmp_path: Path) -> None:
    server = Server(tmp_path, {}, unix_socket=tmp_path / "s")
    try:
        server.start()
        server.command("EVAL", "for i = 1, 20000000 do end", 0)
        group = Group([server.pid])
        used, memory = group.cpu(), group.memory()
        assert group.has_store()
        assert (used.cpu, memory.rss) == (0.0, 0)
        assert used.store_cpu > 0
        assert memory.store_rss > 1 << 20
    finally:
        server.close()


def test_a_process_that_does_not_run_is_named() -> None:
    with _child("") as process:
        process.wait(20)
        with pytest.raises(ProcessLookupError, match=str(process.pid)):
            Group([process.pid])


def test_connections_are_counted_by_who_has_taken_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        ends = []
        for _ in range(3):
            ends += [socket.create_connection(address), listener.accept()[0]]
        try:
            assert Group([os.getpid()]).connections(address[1])[0] == 3
        finally:
            for end in ends:
                end.close()


def test_the_machine_has_used_what_a_process_has() -> None:
    before = procs.machine()
    with _child(_BURN.format(seconds=1.0)) as busy:
        own = float(_line(busy))
    assert procs.machine() - before >= own - _SLACK
