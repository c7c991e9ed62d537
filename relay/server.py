"""One replica process, from its sockets to the end of its drain; and the parent of several.

The drain runs before the HTTP server knows that anything is ending: own streams run on, their readers stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import uvloop

from relay import http_server
from relay.api.app import public
from relay.api.replica import Replica
from relay.config import Settings
from relay.store.embedded import EmbeddedStore, EmbeddedStoreError
from relay.store.log import Log
from relay.store.topology import connect
from relay.streams.registry import Registry
from relay.upstream import UpstreamClient

logger = logging.getLogger(__name__)

_STORE_CHECK = 0.5


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. The exit status."""
    listener = _listen(settings)
    store: EmbeddedStore | None = None
    stopping = threading.Event()
    try:
        if settings.store.url == "embedded":
            store = EmbeddedStore(settings.store.data_dir)
            store.start()
            url = store.url
            threading.Thread(target=_keep_running, args=(store, stopping), daemon=True).start()
        else:
            url = settings.store.url
        if settings.workers == 1:
            _replica(settings, url, listener)
            return 0
        return _supervise(settings, url, listener)
    finally:
        listener.close()
        stopping.set()
        if store is not None:
            store.stop()


def _keep_running(store: EmbeddedStore, stopping: threading.Event) -> None:
    """Start the embedded store again where it has died: its append-only file has what it held."""
    while not stopping.wait(_STORE_CHECK):
        if store.pid is None:
            logger.error("the embedded store has ended by itself; starting it again")
            with contextlib.suppress(EmbeddedStoreError):
                store.start()


def _listen(settings: Settings) -> socket.socket:
    host, _, port = settings.bind.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Accepted connections inherit it: the kernel aborts one whose peer takes nothing for so long, be it
        # gone without a word or reading nothing. No timer of ours per write could free its descriptor.
        millis = int(settings.limits.write_timeout * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, millis)
    listener.bind((host, int(port)))
    listener.set_inheritable(True)
    return listener


def _replica(settings: Settings, store_url: str, listener: socket.socket) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, store_url, listener))


async def _serve(settings: Settings, store_url: str, listener: socket.socket) -> None:
    log = Log(connect(store_url), settings.streams, settings.store.outage)
    registry = Registry(settings, log)
    upstreams = UpstreamClient(settings.streams.upstream_idle_timeout)
    await registry.open()
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    at_once = asyncio.Event()

    def on_signal() -> None:
        (at_once if ending.is_set() else ending).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)

    async def until_drained() -> None:
        await ending.wait()
        logger.info("draining: no new streams, %d run on", len(registry.producers))
        drain = asyncio.ensure_future(registry.drain(settings.drain.timeout))
        second = asyncio.ensure_future(at_once.wait())
        await asyncio.wait((drain, second), return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, second):
            task.cancel()
        await registry.end_all()

    try:
        logger.info("serving on %s", settings.bind)
        await http_server.serve(public(Replica(settings, registry, upstreams)), listener, until_drained)
    finally:
        # Only now: requests that came in up to the listener's end need the store for their answers.
        await registry.close()
        await upstreams.close()


class _JsonLines(logging.Formatter):
    """One JSON object a line: time (Unix seconds), level, logger, message, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if settings.log.format == "json":
        handler.setFormatter(_JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=settings.log.level.upper(), handlers=[handler], force=True)
    for chatty in ("asyncio", "httpx", "hpack"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


# -- several workers --------------------------------------------------------------------------------------


def _supervise(settings: Settings, store_url: str, listener: socket.socket) -> int:
    """Fork the workers, each a replica of its own on the shared socket; start a dead one anew."""
    workers: set[int] = set()
    ending = False

    def spawn() -> None:
        pid = os.fork()
        if pid == 0:
            _in_worker(lambda: _replica(settings, store_url, listener))
        workers.add(pid)

    def forward(number: int, _: object) -> None:
        nonlocal ending
        ending = True
        for pid in workers:
            os.kill(pid, number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    for _ in range(settings.workers):
        spawn()
    while workers:
        pid, status = os.wait()
        if pid not in workers:  # the embedded store's
            continue
        workers.discard(pid)
        if not ending:
            logger.error("worker %d ended with %d; starting another", pid, os.waitstatus_to_exitcode(status))
            spawn()
    return 0


def _in_worker(body: Callable[[], None]) -> None:
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        body()
        status = 0
    except BaseException:
        logger.exception("worker %d failed", os.getpid())
    finally:
        os._exit(status)
