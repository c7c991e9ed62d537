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
from typing import TYPE_CHECKING, Any

from relay import access
from relay.auth.owners import Owners
from relay.config import Settings
from relay.metrics import Metrics
from relay.protocol.dialect import Dialect
from relay.protocol.errors import StoreUnavailable, TooManyRequests, Unavailable
from relay.protocol.outcomes import Cause, Ending
from relay.store.listings import Listings
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
from relay.streams.learning import Learning
from relay.streams.leases import Leases
from relay.streams.listing import Listing
from relay.streams.lookup import Lookup
from relay.streams.orphans import Orphans
from relay.streams.producer import Producer
from relay.streams.successor import Successor
from relay.streams.tail import Tail
from relay.streams.takeover import Takeovers
from relay.streams.traced import go_on
from relay.tracing.spans import ReaderSpan, Tracing
from relay.upstream.routing import Route

if TYPE_CHECKING:
    from relay.streams.webhooks import Webhooks

logger = logging.getLogger(__name__)


class Registry:
    """One per replica. `open` and `close` frame its life; `lookup` finds streams, here and elsewhere."""

    def __init__(self, settings: Settings, log: Log, metrics: Metrics) -> None:
        self.settings = settings
        self.log = log
        self.directory = log.directory
        self.metrics = metrics
        self.producers: dict[str, Producer] = {}
        self.webhooks: Webhooks | None = None
        self._running: set[Producer] = set()
        self._began: set[str] = set()  # their ids, whether the streams are made yet or not
        self._streams_of: Counter[str] = Counter()
        self._background: set[asyncio.Task[None]] = set()
        self.replica_id = f"{socket.gethostname()}-{secrets.token_hex(8)}"
        self._committer = Committer(log, metrics)
        self.tracing = Tracing()
        self._stories = Stories(log.commands, log.names, settings.streams)
        self.chronicle = Chronicle(
            self.replica_id, self._stories, lambda stream: self.lookup.readers_of(stream), self._on_noted
        )
        self._context = ProducerContext(
            settings.streams, log, self.replica_id, self._committer, Ahead(settings.store.ahead), self
        )
        self.learning = Learning(self._context, log.directory, self.producers, self.later)
        self.takeovers = Takeovers(settings, log, self.replica_id, metrics, self, self._context)
        self._leases = Leases(
            log,
            self.replica_id,
            self,
            metrics,
            self.chronicle,
            lambda owner: self.owners.shown(owner),
            self.takeovers.goes_on,
        )
        self._tail = Tail(log, self.replica_id, self._leases.settle, self._on_message, self.later)
        self._abandonment = Abandonment(settings.streams, self._renew_one, self.later)
        self.claims = Claims(self.directory, self.replica_id, settings.streams)
        self.lookup = Lookup(
            self.replica_id,
            log,
            metrics,
            self._leases,
            self.takeovers,
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
        log.commands.on_returned.append(lambda _: self._on_store_returned())
        self.owners = Owners(self.directory, settings.auth.secret())
        listings = Listings(log.commands, log.names, settings.streams, settings.limits, log.cipher)
        self.listing = Listing(listings, self.replica_id, log, self.owners, self.lookup, self.local, self.later)
        for upstream in settings.upstreams:
            metrics.expect([api for api in upstream.apis if api != "sse"], upstream.name, upstream.models)
            if "sse" in upstream.apis:
                metrics.expect(["sse"], upstream.name, ["other"])

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
        """Leave what still runs here to other replicas, where they can go on with it, and end the rest with
        `shutdown`."""
        await self.takeovers.hand_over(self.producers.values())
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
        name: str | None = None,
    ) -> Producer:
        """Start a generation under a fresh stream id. `name` is what its owner calls it, "" where it has no name, None
        where its owner cannot be known again."""
        account = StreamAccount(route.meter(self.metrics, dialect.name), request)
        producer = Producer(
            stream, dialect, route, owner, account, call, self._context, hide_usage=hide_usage, choices=choices
        )
        if name is not None and producer.logged and self.owners.secret_known:
            self.listing.begin(producer, name)
        self._run(producer)
        return producer

    def _run(self, producer: Producer, said: float | None = None) -> None:
        self._running.add(producer)
        self._began.add(producer.first_stream)
        self._streams_of[producer.owner] += 1
        self._abandonment.watch(producer, said)
        producer.start()

    def succeed(self, successor: Successor, said: float | None, lost: str) -> None:
        """Go on with a stream that this replica has taken over from one that was lost; `said` is for how many seconds
        its readers want it to go on unread."""
        self.chronicle.note(successor.stream, "taken over", **{"from": lost}, events=successor.writer.last)
        if self.tracing.on:
            self.later(go_on(self.tracing, self._stories, successor))
        self.producers[successor.stream] = successor
        successor.account.meter.streams_active.inc()
        self._run(successor, said)

    def local(self, stream: str) -> Producer | None:
        """The producer of a stream that is, or is about to be, on this replica."""
        return self.producers.get(stream) or next((p for p in self._running if p.stream == stream), None)

    def run_detached(self, producer: Producer) -> None:
        """It runs without a reader for a while: its abandon clock starts when its first one leaves."""
        self._abandonment.run_detached(producer)

    # -- what producers say -------------------------------------------------------------------------------

    def on_making(self, producer: Producer) -> None:
        self.learning.making(producer)

    def on_created(self, producer: Producer) -> None:
        self.producers[producer.stream] = producer
        if not producer.logged:
            self.orphans.ended(producer.first_stream, None)
            self.listing.ended(producer)
        producer.account.meter.streams_active.inc()
        producer.account.began(producer.stream, self.owners.shown(producer.owner))
        self.learning.made(producer)

    def list(self, producer: Producer) -> asyncio.Future[Any] | None:
        return self.listing.put(producer)

    def on_moved(self, producer: Producer) -> None:
        account, route = producer.account, producer.route
        meter = route.meter(self.metrics, producer.dialect.name)
        if producer.stream in self.producers:
            account.meter.streams_active.dec()
            meter.streams_active.inc()
        producer.writer.meter = account.meter = meter
        account.request = replace(account.request, model=route.model)
        self.learning.soon(producer)

    def on_answered(self, producer: Producer) -> None:
        if producer.kept_headers or producer.leg is not None:
            self.learning.soon(producer)

    def on_continued(self, first_stream: str) -> None:
        """Another call goes on with the answer of the stream that began under this id: whoever comes later is told."""
        for producer in self._running:
            if producer.first_stream == first_stream:
                producer.watch.continued += 1
                told = (b"relay-continued", b"%d" % producer.watch.continued)
                producer.kept_headers = [*(item for item in producer.kept_headers if item[0] != told[0]), told]
                self.learning.soon(producer)

    def on_response_id(self, producer: Producer) -> asyncio.Task[None] | None:
        return self.learning.named(producer)

    def _on_store_returned(self) -> None:
        """It may have lost what responses are called, what was learnt of streams, which keys were given back, and who
        has gone."""
        self.claims.store_returned()
        self.orphans.store_returned()
        self.listing.store_returned()
        self.learning.store_returned()

    def on_ended(self, producer: Producer) -> None:
        account, shown = producer.account, self.owners.shown(producer.owner)
        self._running.discard(producer)
        if self.tracing.on:
            account.request.span.end(span_end(producer), shown)
        self._began.discard(producer.first_stream)
        self.learning.ended(producer)
        self._abandonment.forget(producer)
        self.listing.ended(producer)
        self.orphans.ended(producer.stream, producer.outcome if producer.is_persisted else None)
        if self.producers.pop(producer.stream, None) is not None:
            account.meter.streams_active.dec()
        account.close(producer.writer.visits, shown)
        if self.webhooks is not None:
            self.webhooks.ended(producer.stream)
        self._streams_of[producer.owner] -= 1
        if self._streams_of[producer.owner] <= 0:
            del self._streams_of[producer.owner]

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
        self.listing.renew()
        await asyncio.gather(self.owners.share_secret(), self.learning.renew())
        if self.webhooks is not None:
            await self.webhooks.renew()

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

    def reading_fields(self, producer: Producer) -> dict[str, str]:
        said = self._abandonment.said(producer)
        wanted = {} if said is None or said == float("inf") else {"abandon": str(round(said * 1000))}
        return self.orphans.fields(producer.stream) | wanted

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
