"""All that runs on this replica: admission, beginning, naming, draining.

Promises: a lease is renewed well before it lapses; what a stream leaves in the store is taken back, at once or later.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any

from relay import access
from relay.auth.owners import Owners
from relay.config import Settings
from relay.metrics import Metrics
from relay.protocol.dialect import Dialect
from relay.protocol.errors import StoreUnavailable, TooManyRequests, Unavailable
from relay.protocol.outcomes import Cause, Ending
from relay.store.log import Log, Renewed
from relay.store.stories import STOP_BY_OPERATOR, Stories
from relay.streams.abandonment import Abandonment
from relay.streams.account import Request, StreamAccount, span_end
from relay.streams.adoption import Adoption
from relay.streams.ahead import Ahead
from relay.streams.answer import Call
from relay.streams.chronicle import SPAN_EVENTS, Chronicle
from relay.streams.claims import Claims
from relay.streams.commit import Committer
from relay.streams.context import ProducerContext
from relay.streams.leases import Leases
from relay.streams.lookup import Lookup
from relay.streams.orphans import Orphans
from relay.streams.producer import Producer
from relay.streams.tail import Tail
from relay.tracing.spans import ReaderSpan, Tracing
from relay.upstream.routing import Route

logger = logging.getLogger(__name__)


def response_name(owner: str, response_id: str) -> str:
    """The name under which an owner's response finds its stream."""
    return f"response:{owner}:{response_id}"


class Registry:
    """One per replica. `open` and `close` frame its life; `lookup` finds streams, here and elsewhere."""

    def __init__(self, settings: Settings, log: Log, metrics: Metrics) -> None:
        self.settings = settings
        self.log = log
        self.directory = log.directory
        self.metrics = metrics
        self.producers: dict[str, Producer] = {}
        self._running: set[Producer] = set()
        self._began: set[str] = set()  # their ids, whether the streams are made yet or not
        self._streams_of: Counter[str] = Counter()
        self._unnamed: set[Producer] = set()  # whose response's id the store may not know
        self._learnt: dict[Producer, bool | None] = {}  # has the store what was learnt since? None: nothing was
        self._background: set[asyncio.Task[None]] = set()
        self.replica_id = f"{socket.gethostname()}-{secrets.token_hex(8)}"
        self._committer = Committer(log, metrics)
        self.tracing = Tracing()
        self._stories = Stories(log.commands, log.names, settings.streams)
        self.chronicle = Chronicle(
            self.replica_id, self._stories, lambda stream: self.lookup.readers_of(stream), self._on_noted
        )
        self._leases = Leases(
            log, self.replica_id, self, metrics, self.chronicle, lambda owner: self.owners.shown(owner)
        )
        self._tail = Tail(log, self.replica_id, self._leases.force_end, self._on_message, self.later)
        self._abandonment = Abandonment(settings.streams, self._renew_one, self.later)
        self.claims = Claims(self.directory, self.replica_id, settings.streams)
        self.lookup = Lookup(
            self.replica_id,
            log,
            metrics,
            self._leases,
            self._tail,
            self._abandonment,
            self.producers,
            settings.limits.readers_per_stream,
        )
        self.orphans = Orphans(
            log, self.replica_id, settings.streams, self.lookup.readers_of, self._gone_beyond, self.later
        )
        self.lookup.on_came = self.orphans.came
        self.adoption = Adoption(self.replica_id, log, self.lookup, self.orphans, self._tail, self.later)
        self._context = ProducerContext(
            settings.streams, log, self.replica_id, self._committer, Ahead(settings.store.ahead), self
        )
        log.commands.on_returned.append(lambda _: self._on_store_returned())
        self.owners = Owners(self.directory, settings.auth.secret())
        for upstream in settings.upstreams:
            metrics.expect(upstream.apis, upstream.name, upstream.models)

    async def open(self) -> None:
        self._leases.start()
        self._tail.listen()
        try:
            await self.owners.share_secret()
        except StoreUnavailable:
            logger.warning("the store cannot be reached; new streams are relayed by store.outage until it can")

    async def close(self) -> None:
        """End what still runs here with `shutdown`, and let go of the store."""
        await self.end_all()
        await self.chronicle.close()
        await self._leases.close()
        if self._background:
            await asyncio.wait(self._background, timeout=2)
        await asyncio.gather(self.claims.close(), self.orphans.close())
        await self._tail.close()
        await self._committer.close()
        await self.log.topology.close()

    @property
    def draining(self) -> bool:
        return self.lookup.draining

    async def drain(self, timeout: float) -> None:
        """Take no new streams, send the readers of other replicas' streams there, and return when the streams
        that run here have ended or the time is up."""
        self.lookup.send_readers_away()
        self.metrics.draining.set(1)
        running = [asyncio.ensure_future(p.done()) for p in self._running]
        if running:
            await asyncio.wait(running, timeout=timeout)

    async def end_all(self) -> None:
        """End what still runs here with `shutdown`."""
        for producer in list(self._running):
            producer.stop(Cause.SHUTDOWN)
        endings = [asyncio.ensure_future(p.done()) for p in self._running]
        if endings:
            await asyncio.wait(endings, timeout=5)

    # -- producers ----------------------------------------------------------------------------------------

    async def check_store(self) -> None:
        """With `outage: refuse`, before anything goes upstream and is paid for, on every retry of a client anew:
        does the store take writes? Raises StoreUnavailable."""
        if self.settings.store.outage == "refuse":
            await self.directory.announce_replica(self.replica_id, self.settings.streams.lease)

    def check_room(self, owner: str) -> None:
        """Raises TooManyRequests, Unavailable where this replica takes no further stream of that owner."""
        limits = self.settings.limits
        retry = {"retry-after": "1"}
        if self.draining:
            raise Unavailable("This relay is shutting down. Try again.", code="draining", headers=retry)
        if len(self._running) >= limits.streams:
            raise Unavailable(
                "This relay holds as many streams as limits.streams allows. Try again later.", headers=retry
            )
        if self._streams_of[owner] >= limits.streams_per_owner:
            raise TooManyRequests(
                "This credential holds as many streams as limits.streams_per_owner allows. "
                "Wait for one to end, or stop one.",
                headers=retry,
            )

    def begin(
        self,
        stream: str,
        dialect: Dialect,
        route: Route,
        *,
        owner: str,
        request: Request,
        hide_usage: bool,
        call: Call,
        choices: int = 1,
    ) -> Producer:
        """Start a generation under a fresh stream id."""
        account = StreamAccount(route.meter(self.metrics, dialect.name), request)
        producer = Producer(
            stream, dialect, route, owner, account, call, self._context, hide_usage=hide_usage, choices=choices
        )
        self._running.add(producer)
        self._began.add(stream)
        self._streams_of[owner] += 1
        self._abandonment.watch(producer)
        producer.start()
        return producer

    def local(self, stream: str) -> Producer | None:
        """The producer of a stream that is, or is about to be, on this replica."""
        return self.producers.get(stream) or next((p for p in self._running if p.stream == stream), None)

    def run_detached(self, producer: Producer) -> None:
        """It runs without a reader for a while: its abandon clock starts when its first one leaves."""
        self._abandonment.run_detached(producer)

    # -- what producers say -------------------------------------------------------------------------------

    def on_making(self, producer: Producer) -> None:
        self._learnt[producer] = None

    def on_created(self, producer: Producer) -> None:
        self.producers[producer.stream] = producer
        if not producer.logged:
            self.orphans.ended(producer.first_stream, None)
        producer.account.meter.streams_active.inc()
        producer.account.began(producer.stream, self.owners.shown(producer.owner))
        if self._learnt.get(producer) is False:
            self._learn_soon(producer)

    def on_moved(self, producer: Producer) -> None:
        account, route = producer.account, producer.route
        meter = route.meter(self.metrics, producer.dialect.name)
        if producer.stream in self.producers:
            account.meter.streams_active.dec()
            meter.streams_active.inc()
        producer.writer.meter = account.meter = meter
        account.request = replace(account.request, model=route.model)
        self._learn_soon(producer)

    def on_answered(self, producer: Producer) -> None:
        if producer.kept_headers:
            self._learn_soon(producer)

    def _learn_soon(self, producer: Producer) -> None:
        """What is known before the stream is made goes along with it, and needs no write of its own."""
        if producer in self._learnt and producer.logged:
            self._learnt[producer] = False
            if producer.stream in self.producers:
                self.later(self._learn(producer))

    async def _learn(self, producer: Producer) -> None:
        told = producer.route, producer.kept_headers
        await self._context.learn(producer)
        if producer in self._learnt and told == (producer.route, producer.kept_headers):
            self._learnt[producer] = True

    def on_response_id(self, producer: Producer) -> asyncio.Task[None] | None:
        if producer.logged and producer.dialect.name == "responses":
            self._unnamed.add(producer)
            return self.later(self._set_alias(producer))
        return None

    async def _set_alias(self, producer: Producer) -> None:
        assert producer.response_id is not None
        await self.directory.set_alias(response_name(producer.owner, producer.response_id), producer.stream)
        self._unnamed.discard(producer)

    def _on_store_returned(self) -> None:
        """It may have lost what responses are called, what was learnt of streams, which keys were given back, and who
        has gone."""
        self.claims.store_returned()
        self.orphans.store_returned()
        self._learnt = {p: None if told is None else False for p, told in self._learnt.items()}
        self._unnamed.update(p for p in self.producers.values() if p.response_id and p.dialect.name == "responses")

    def on_ended(self, producer: Producer) -> None:
        self._running.discard(producer)
        producer.account.request.span.end(span_end(producer), self.owners.shown(producer.owner))
        self._began.discard(producer.first_stream)
        self._unnamed.discard(producer)
        if self._learnt.pop(producer, None) is False:
            self.later(self._learn(producer))
        self._abandonment.forget(producer)
        self.orphans.ended(producer.stream, producer.outcome if producer.is_persisted else None)
        if self.producers.pop(producer.stream, None) is not None:
            producer.account.meter.streams_active.dec()
        self.later(self._close_books(producer))
        self._streams_of[producer.owner] -= 1
        if self._streams_of[producer.owner] <= 0:
            del self._streams_of[producer.owner]

    async def _close_books(self, producer: Producer) -> None:
        readers = 0
        try:
            if producer.logged:
                readers = await self.log.remote_readers(producer.stream)
        finally:
            producer.account.close(readers, self.owners.shown(producer.owner))

    # -- leases -------------------------------------------------------------------------------------------

    def producers_to_renew(self) -> Iterable[Producer]:
        return [producer for producer in self.producers.values() if producer.renewable]

    def runs(self, stream: str) -> bool:
        return stream in self._began or stream in self.producers

    def on_renewed(self, producer: Producer, answer: Renewed) -> None:
        producer.on_renewed(answer)
        self._abandonment.renewed(producer, answer)

    async def renew_names(self) -> None:
        self.claims.renew()
        self.orphans.renew()
        untold = [producer for producer, told in self._learnt.items() if told is False]
        await asyncio.gather(
            self.owners.share_secret(), *map(self._set_alias, list(self._unnamed)), *map(self._learn, untold)
        )

    async def _renew_one(self, producer: Producer) -> None:
        if producer.renewable:
            await self._leases.renew([producer])

    def _on_message(self, verb: str, stream: str) -> None:
        """What another replica tells this one."""
        if verb == "probe":
            self.adoption.probe(stream)
        producer = self.producers.get(stream)
        if producer is None:
            return
        if verb == STOP_BY_OPERATOR:
            self._stop_for_operator(producer)
        elif verb == "stop":
            producer.stop(Ending.STOPPED)
        elif verb == "left":
            self._abandonment.ask(producer)
        elif verb == "beyond":
            self._abandonment.gone_beyond(producer)

    def _stop_for_operator(self, producer: Producer) -> None:
        if producer.outcome is None:
            access.of_stream("stop asked for", {"stream": producer.stream, "by": "operator"})
            self.chronicle.note(producer.stream, "stop asked for", by="operator")
            producer.stop(Ending.STOPPED)

    def _on_noted(self, stream: str, what: str, fields: Mapping[str, Any]) -> None:
        producer = self.producers.get(stream)
        if producer is not None:
            name = what if fields.get("why") == "finished" else SPAN_EVENTS.get(what, what)
            producer.account.request.span.event(name, **fields)

    async def link(self, reader: ReaderSpan, stream: str) -> None:
        """Say which stream a reader's span is about. Raises StoreUnavailable."""
        producer = self.producers.get(stream)
        if producer is not None:
            reader.link(producer.account.request.span.traceparent)
        elif found := await self._stories.traceparent(stream):
            reader.link(found)

    def _gone_beyond(self, stream: str) -> None:
        self._on_message("beyond", stream)

    def joining_fields(self, producer: Producer) -> dict[str, str]:
        return self.orphans.fields(producer.stream)

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work for the store that nobody waits for and that need not succeed; where it cannot be done, the next check
        or its time to live does it."""

        async def attempt() -> None:
            try:
                await work
            except StoreUnavailable:
                logger.debug("left undone for want of a store: %s", work)
            except Exception:
                logger.exception("a fault of the relay's own")

        task = asyncio.create_task(attempt())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task
