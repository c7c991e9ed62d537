"""One replica process, from its sockets to the end of its drain.

A drain goes like this. At the first signal the listener is closed: who comes now is refused by the kernel and takes
its next address, which is safe, because nothing of its request was sent. (A 503 would have to be read and obeyed; nginx
must not try again after one, which may be the LLM API's own, and does after a refusal.) A probe is told the same by it
as by the 503 of `/readyz`. Idle connections are closed, those with requests end after them (`Server.drain`), and what
was on its way is served. Then the readers of other replicas' streams are sent there, and own streams run on with their
readers. Who loses the connection to one of these comes back to it on another replica, through the log.

With the embedded store there may be no other replica that has these streams. Then the relay goes on listening, for
readers that come back, and answers 503 to new streams and on `/readyz`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import uvloop

from relay import __version__, garbage, logs, metrics, signals
from relay.api.app import create_app
from relay.api.bodies import Bodies
from relay.api.services import Services
from relay.auth.gate import Gate
from relay.auth.keyring import Keyring
from relay.config import Settings
from relay.http import server as http_server
from relay.http.sharing import ALONE, Share, Shares
from relay.metrics import Metrics
from relay.model_labels import ModelLabels
from relay.protocol import guard
from relay.store import memory
from relay.store.embedded import EmbeddedStore, StartGivenUp
from relay.store.health import Health
from relay.store.log import Log
from relay.store.supervisor import StoreSupervisor
from relay.store.topology import connect
from relay.streams.registry import Registry
from relay.streams.webhooks import Webhooks
from relay.tracing import setup as traces
from relay.tracing.spans import Tracing
from relay.upstream import resuming_body
from relay.upstream.client import UpstreamClient
from relay.workers import Workers

logger = logging.getLogger(__name__)

# Counts taken per event reach Prometheus' counters this often.
_FLUSH_EVERY = 1.0
# What a collector that does not answer is waited for at the end.
_TRACES_TIMEOUT = 5.0


Alongside = Callable[[UpstreamClient], Coroutine[Any, Any, None]]
"""Runs beside a replica as soon as it serves, with its connections to upstreams."""


@dataclass(frozen=True)
class _Setup:
    """What the processes of a relay share."""

    settings: Settings
    keyring: Keyring | None
    listener: socket.socket
    store_url: str
    supervisor: StoreSupervisor | None
    """Of the embedded store, None where the store is somebody else's."""
    alongside: Alongside | None

    def store_lost(self) -> bool:
        return self.supervisor is not None and self.supervisor.lost


def run(settings: Settings, keyring: Keyring | None = None, alongside: Alongside | None = None) -> int:
    """Serve until a signal that ends it (`relay.signals`). The exit status. Raises EmbeddedStoreError, OSError."""
    signals.hold()
    _warn(settings)
    _take_descriptors()
    with ExitStack() as stack:
        listener = _listen(settings)
        stack.callback(listener.close)
        # Before all others, and so closed after them: the end of a drain can still be scraped.
        counted = _metrics(settings) if settings.workers == 1 else None
        stack.callback(
            metrics.serve(
                settings.metrics_bind, metrics.of_workers() if counted is None else counted.registry, settings.hosts
            )
        )
        url, store, supervisor = settings.store.url, None, None
        if url == "embedded":
            store = EmbeddedStore(settings.store.data_dir, memory.of_store(settings.store.max_memory))
            try:
                store.start(given_up=signals.pending)
            except StartGivenUp:
                return 0
            stack.callback(store.stop)
            url, supervisor = store.url, StoreSupervisor(store)
            supervisor.start()
            stack.callback(supervisor.stop)
        setup = _Setup(settings, keyring, listener, url, supervisor, alongside)
        if counted is not None:
            _run_replica(setup, counted)
            return 0

        def work() -> None:
            if store is not None:
                store.disown()
            _run_replica(setup, _metrics(settings), shares.of(workers.number))

        shares, workers = Shares(settings.workers), Workers(settings.workers, work)
        workers.run(on_ending=listener.close if store is None else lambda: None)
    return 0


def _metrics(settings: Settings) -> Metrics:
    most = settings.metrics.most_names if settings.metrics.models == "names" else 0
    return Metrics(ModelLabels(most, (pattern for upstream in settings.upstreams for pattern in upstream.models)))


def _told(settings: Settings) -> dict[str, str]:
    """What somebody who has just started a relay wants to see of it; a store's URL may hold a password."""
    url = settings.store.url
    store = f"{url} in {settings.store.data_dir}" if url == "embedded" else url.partition("://")[0]
    found = {
        "version": __version__,
        "store": store,
        "upstreams": ",".join(upstream.name for upstream in settings.upstreams),
        "auth": settings.auth.mode,
        "api": f"http://{settings.bind}/v1",
        "metrics": f"http://{settings.metrics_bind}/metrics",
    }
    return found | ({"playground": f"http://{settings.bind}/playground"} if settings.playground else {})


def _warn(settings: Settings) -> None:
    if not settings.lent:
        return
    if guard.is_loopback(settings.bind):
        who = f"every program on this machine that reaches {settings.bind}"
    else:
        who = f"whoever reaches {settings.bind}"
    pages = "" if settings.hosts or guard.is_loopback(settings.bind) else ", and `hosts` to keep pages' own names out"
    logger.warning(
        "%s spends the keys of the upstreams %s; set auth.mode: keys, unless only those who may can reach it%s",
        who,
        ", ".join(settings.lent),
        pages,
    )


def _take_descriptors() -> None:
    """All that this process may have: a stream takes two, and what a shell or an engine sets is often 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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


def _run_replica(setup: _Setup, counted: Metrics, share: Share = ALONE) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(setup, counted, share))


async def _serve(setup: _Setup, counted: Metrics, share: Share) -> None:
    settings, keyring = setup.settings, setup.keyring
    loop = asyncio.get_running_loop()
    logs.watch_loop(loop)
    ending = asyncio.Event()
    at_once = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        # The shell and the kernel both tell that a terminal is gone: that is no second signal.
        (at_once if ending.is_set() and number != signal.SIGHUP else ending).set()

    for number in signals.ENDING:
        loop.add_signal_handler(number, on_signal, number)
    signals.release()

    log = Log(connect(setup.store_url), settings.streams, settings.store)
    registry = Registry(settings, log, counted)
    registry.tracing = traces.from_environment(os.environ, registry.replica_id)
    upstreams = registry.takeovers.upstreams = UpstreamClient()

    async def finish(server: http_server.Server) -> None:
        """Own streams, and answers that are no streams, to their ends or to that of the time that they have."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.drain.timeout):
                await asyncio.gather(registry.drain(settings.drain.timeout), server.answered())

    async def until_drained(server: http_server.Server) -> None:
        await ending.wait()
        logger.info(
            "draining: no new streams, %d run on, for %g s at most; a second signal ends it at once",
            len(registry.producers),
            settings.drain.timeout,
        )
        await _unless(at_once, server.drain(listening=setup.supervisor is not None))
        await _unless(at_once, finish(server))
        await registry.end_all()

    health = Health(
        log.topology, counted, lambda: log.directory.announce_replica(registry.replica_id, settings.streams.lease)
    )
    watching: list[asyncio.Task[None]] = []
    try:
        await _unless(ending, registry.open())
        if ending.is_set():
            return
        watching += [
            asyncio.create_task(health.watch()),
            asyncio.create_task(_flush_forever(counted, registry)),
        ]
        if keyring is not None:
            registry.owners.names = lambda: keyring.owners
            watching.append(asyncio.create_task(keyring.watch()))
        if settings.webhook.url is not None:
            Webhooks(settings.webhook, registry, upstreams, counted).start()
        if setup.alongside is not None:
            watching.append(asyncio.create_task(setup.alongside(upstreams)))
        garbage.spare_what_lives()
        logger.info("serving on %s", settings.bind, extra={"fields": _told(settings)})
        gate = Gate(
            settings.limits,
            keyring,
            credential_headers=settings.auth.credential_headers,
            applications=settings.upstreams,
        )
        services = Services(
            settings,
            registry,
            upstreams,
            counted,
            gate,
            Bodies(settings.limits),
            setup.store_lost,
            store_fault=lambda: health.fault,
        )
        await http_server.serve(create_app(services), setup.listener, until_drained, settings.limits, share)
    finally:
        for task in watching:
            task.cancel()
        if registry.webhooks is not None:
            await registry.webhooks.close()
        # Only now: requests that came in up to the listener's end need the store for their answers.
        await registry.close()
        await _hand_over(registry.tracing)
        await resuming_body.stopped()
        await upstreams.close()
        # The loop's handlers end with it, and the store has yet to be stopped.
        signals.hold()


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do it until it is done or the event is set."""
    doing, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((doing, waiting), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
    finally:
        for task in (doing, waiting):
            task.cancel()
        await asyncio.gather(doing, waiting, return_exceptions=True)


async def _hand_over(tracing: Tracing) -> None:
    """A collector that does not answer holds nothing up for long: the thread ends with the process."""
    if tracing.on:
        done, loop = asyncio.Event(), asyncio.get_running_loop()

        def close() -> None:
            tracing.close()
            with contextlib.suppress(RuntimeError):  # the loop has not waited for it
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=close, name="traces", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TRACES_TIMEOUT):
                await done.wait()


async def _flush_forever(counted: Metrics, registry: Registry) -> None:
    while True:
        await asyncio.sleep(_FLUSH_EVERY)
        counted.flush()
        if not registry.producers:
            garbage.collect_while_idle()
