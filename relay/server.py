"""One replica process, from its sockets to the end of its drain; and the parent of several.

Hypercorn (uvloop) serves the application. Its lifespan shutdown comes after its own grace of 3 s, so the
drain runs in `shutdown_trigger`, before Hypercorn knows that anything is ending.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

import uvloop
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config

from relay.api.app import public
from relay.api.exchange import ConnectionCut
from relay.api.replica import Replica
from relay.config import Settings
from relay.protocol.headers import MAX_HEADER_BYTES
from relay.store.embedded import EmbeddedStore
from relay.store.log import Log
from relay.store.topology import connect
from relay.streams.registry import Registry
from relay.upstream import UpstreamClient

logger = logging.getLogger(__name__)

# Hypercorn's own backlog of 100 drops SYNs under a burst, which come back after a second and more.
_BACKLOG = 4096
_KEEP_ALIVE = 75.0


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. The exit status."""
    listener = _listen(settings)
    store: EmbeddedStore | None = None
    try:
        if settings.store.url == "embedded":
            store = EmbeddedStore(settings.store.data_dir)
            store.start()
            url = store.url
        else:
            url = settings.store.url
        if settings.workers == 1:
            _replica(settings, url, listener)
            return 0
        return _supervise(settings, url, listener)
    finally:
        listener.close()
        if store is not None:
            store.stop()


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
        await registry.close()

    try:
        await hypercorn_serve(
            public(Replica(settings, registry, upstreams)),  # type: ignore[arg-type]
            _hypercorn_config(listener),
            shutdown_trigger=until_drained,
        )
    finally:
        await upstreams.close()


def _hypercorn_config(listener: socket.socket) -> Config:
    config = Config()
    config.bind = [f"fd://{os.dup(listener.fileno())}"]
    config.backlog = _BACKLOG
    config.keep_alive_timeout = _KEEP_ALIVE
    config.include_server_header = False
    # Heads up to this size reach the application, which answers in the API's own error shape.
    config.h11_max_incomplete_size = 8 * MAX_HEADER_BYTES
    config.h2_max_header_list_size = 8 * MAX_HEADER_BYTES
    config.h2_max_inbound_frame_size = 2**16
    config.accesslog = None
    config.errorlog = logging.getLogger("relay.http")
    return config


class _NoCuts(logging.Filter):
    """Cutting a connection is an answer, not an error of the application."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, ConnectionCut)


def configure_logging(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log.level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
        force=True,
    )
    logging.getLogger("relay.http").addFilter(_NoCuts())
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
