"""Workers and their parent: however it dies, they end with it, and the next relay has all that they had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.oracle import check
from tests.support.processes import RelayProcess, children
from tests.support.replicas import paced, post, replicas, settings
from tests.support.scripted import ScriptedUpstream
from tests.support.stores import valkey_server
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
# A killed process is gone when the kernel has taken it down.
GONE = 5.0


def runs(pid: int) -> bool:
    """Is there such a process, and is it more than an entry that nobody has collected?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def relay_processes(relay: RelayProcess) -> list[int]:
    return [pid for pid in children(relay.pid) if b"\0serve\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("kind", ["embedded", "shared"])
def test_they_end_with_their_killed_parent_and_the_next_relay_starts_at_once(
    upstream: ScriptedUpstream, tmp_path: Path, kind: str, stopped: bool
) -> None:
    upstream.on("done", *paced(5, 0))
    upstream.on("long", *paced(20, 0, gate_after=10))
    with valkey_server(tmp_path / "store", unix=True) as store:
        config = settings(upstream, store if kind == "shared" else None, workers=2)
        with replicas(1, config) as (relay,):
            with post(relay, "done") as answer:
                done = answer.headers["relay-stream-id"]
                assert check(answer.events()) == (5, "done")
            with post(relay, "long") as cut:
                seen = cut.events(10)
                workers = relay_processes(relay)
                assert len(workers) == 2
                if stopped:
                    os.kill(workers[0], signal.SIGSTOP)
                relay.kill()
                began = time.monotonic()
                assert check(seen + cut.events()) == (10, None)
                assert cut.ended in ("fin", "reset")
            relay.start()
            assert not any(runs(pid) for pid in workers)
            assert time.monotonic() - began < 10
            with post(relay, "done", f"{done}.0") as replay:
                assert check(replay.events()) == (5, "done")
            # The stream that ran was the dead relay's; its log has every event, and its own end.
            with post(relay, "long", f"{cut.headers['relay-stream-id']}.0") as rest:
                assert check(rest.events()) == (10, "producer_lost")
            with post(relay, "done") as answer:
                assert answer.headers["relay-resumable"] == "true"


PARENT = """
import os, signal, sys, time
from relay import signals, workers
signals.hold()
{before}
workers.Workers(2, lambda: (os.write(1, b"%d\\n" % os.getpid()), signal.pause())).run(lambda: None)
"""


@contextmanager
def parent(program: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs the program, killed at the end whatever has become of it."""
    command = [sys.executable, "-c", program]
    started = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        assert started.stdout is not None
        started.stdout.close()


@pytest.mark.parametrize(
    "before",
    [
        "",
        "sys.platform = 'elsewhere'",
        "workers.end_with_parent.__globals__['threading'].Thread.start = lambda _: None",
    ],
    ids=["both", "the-pipe-alone", "the-kernel-alone"],
)
def test_each_way_of_seeing_the_parents_death_is_enough(before: str) -> None:
    with parent(PARENT.format(before=before)) as starter:
        assert starter.stdout is not None
        pids = [int(starter.stdout.readline()) for _ in range(2)]
        assert all(map(runs, pids))
        starter.kill()
        starter.wait()
        wait_until(lambda: not any(map(runs, pids)), GONE, "the workers' end")


@pytest.mark.parametrize("way", ["", "sys.platform = 'elsewhere'"], ids=["kernel", "pipe"])
def test_a_parent_that_dies_before_its_worker_is_set_up_is_seen(way: str) -> None:
    late = f"""
{way}
real = workers.end_with_parent
def set_up(parent, alive):
    os.write(1, b"%d\\n" % os.getpid())
    while os.getppid() == parent:
        time.sleep(0.01)
    real(parent, alive)
workers.end_with_parent = set_up
"""
    with parent(PARENT.format(before=late)) as starter:
        assert starter.stdout is not None
        pids = [int(starter.stdout.readline()) for _ in range(2)]
        starter.kill()
        starter.wait()
        wait_until(lambda: not any(map(runs, pids)), GONE, "the workers' end")
        assert starter.stdout.read() == "", "a worker without a parent has begun its work"


def test_one_that_cannot_live_is_not_forked_without_a_pause(tmp_path: Path) -> None:
    program = """
import os
from relay import signals, workers
signals.hold()
workers.Workers(1, lambda: (os.write(1, b"%d\\n" % os.getpid()), os._exit(3))).run(lambda: None)
"""
    with parent(program, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as starter:
        assert starter.stdout is not None
        starter.stdout.readline()
        began = time.monotonic()
        starter.stdout.readline()
        starter.stdout.readline()
        assert 1.5 < time.monotonic() - began < 10
        starter.terminate()
        assert starter.wait(10) == 0
