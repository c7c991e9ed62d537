"""One replica process, from its sockets to the end of its drain; and the parent of several.

The drain runs before the HTTP server knows that anything is ending: own streams run on, their readers stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

import uvloop
from prometheus_client.multiprocess import mark_process_dead

from relay import http_server, logs, metrics
from relay.api.app import public
from relay.api.replica import Replica
from relay.auth.gate import Gate
from relay.auth.keyring import Keyring
from relay.config import Settings
from relay.metrics import Metrics
from relay.store.embedded import EmbeddedStore, EmbeddedStoreError
from relay.store.health import Health
from relay.store.log import Log
from relay.store.topology import connect
from relay.streams.registry import Registry
from relay.upstream import UpstreamClient

logger = logging.getLogger(__name__)

_STORE_CHECK = 0.5
# Counts taken per event reach Prometheus' counters this often.
_FLUSH_EVERY = 1.0
# Collections of garbage, by new objects. Python's own 700 has one begin with every third stream.
_COLLECT_AFTER = (10_000, 5, 5)


def run(settings: Settings, keyring: Keyring | None = None) -> int:
    """Serve until SIGTERM or SIGINT. The exit status."""
    _warn(settings)
    with ExitStack() as stack:
        listener = _listen(settings)
        stack.callback(listener.close)
        url = settings.store.url
        if url == "embedded":
            store = EmbeddedStore(settings.store.data_dir)
            store.start()
            stack.callback(store.stop)
            url = store.url
            stopping = threading.Event()
            stack.callback(stopping.set)
            threading.Thread(target=_keep_running, args=(store, stopping), daemon=True).start()
        if settings.workers == 1:
            counted = Metrics()
            stack.callback(metrics.serve(settings.metrics_bind, counted.registry))
            _replica(settings, keyring, url, listener, counted)
            return 0
        stack.callback(metrics.serve(settings.metrics_bind, metrics.of_workers()))
        return _supervise(settings, keyring, url, listener)


def _warn(settings: Settings) -> None:
    host = settings.bind.rpartition(":")[0].strip("[]")
    lent = [upstream.name for upstream in settings.upstreams if upstream.api_key_env]
    if settings.auth.mode == "passthrough" and lent and host not in ("127.0.0.1", "::1", "localhost"):
        logger.warning(
            "whoever reaches %s spends the keys of the upstreams %s; set auth.mode: keys, unless only those who may "
            "can reach it",
            settings.bind,
            ", ".join(lent),
        )


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
    try:
        listener.bind((host, int(port)))
    except OSError as error:
        raise OSError(f"bind {settings.bind}: {error.strerror}; free the address or set another") from None
    listener.set_inheritable(True)
    return listener


def _replica(
    settings: Settings, keyring: Keyring | None, store_url: str, listener: socket.socket, counted: Metrics
) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, keyring, store_url, listener, counted))


async def _serve(
    settings: Settings, keyring: Keyring | None, store_url: str, listener: socket.socket, counted: Metrics
) -> None:
    loop = asyncio.get_running_loop()
    logs.watch_loop(loop)
    log = Log(connect(store_url), settings.streams, settings.store)
    registry = Registry(settings, log, counted)
    upstreams = UpstreamClient(settings.streams.upstream_idle_timeout)
    await registry.open()
    watching = [
        asyncio.create_task(Health(log.topology, counted).watch()),
        asyncio.create_task(_flush_forever(counted)),
    ]
    if keyring is not None:
        watching.append(asyncio.create_task(keyring.watch()))
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

    # What lives as long as the process need not be looked through again and again for what could be freed.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    try:
        logger.info("serving on %s", settings.bind)
        app = public(Replica(settings, registry, upstreams, counted, Gate(settings.limits, keyring)))
        await http_server.serve(app, listener, until_drained, settings.limits)
    finally:
        for task in watching:
            task.cancel()
        # Only now: requests that came in up to the listener's end need the store for their answers.
        await registry.close()
        await upstreams.close()


async def _flush_forever(counted: Metrics) -> None:
    while True:
        await asyncio.sleep(_FLUSH_EVERY)
        counted.flush()


# -- several workers --------------------------------------------------------------------------------------


def _supervise(settings: Settings, keyring: Keyring | None, store_url: str, listener: socket.socket) -> int:
    """Fork the workers, each a replica of its own on the shared socket; start a dead one anew."""
    workers: set[int] = set()
    ending = False

    def spawn() -> None:
        pid = os.fork()
        if pid == 0:
            _in_worker(lambda: _replica(settings, keyring, store_url, listener, Metrics()))
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
        mark_process_dead(pid)  # type: ignore[no-untyped-call]  # its gauges end with it, its counters stay
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
