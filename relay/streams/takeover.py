"""Streams of lost producers, gone on with here: exactly one replica takes each over, or it is ended.

A stream can be taken over where its upstream can be come back to (`relay.protocol.legs`): with the upstream's own key
at once, with its client's credentials as soon as a reader of its owner's is here, whose are used then and kept nowhere
else. Until then it waits, for as long as a generation may go on unread.

Promises: all that the log has is read before anything is taken, so that what is taken goes on; a producer that wakes up
finds itself fenced off.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from relay import access
from relay.config import Settings, UpstreamSettings
from relay.metrics import Meter, Metrics
from relay.protocol import headers as rules
from relay.protocol.apis import DIALECTS
from relay.protocol.end_mark import outcome_from_log
from relay.protocol.errors import ApiError, EncryptionKeyMissing, StoreUnavailable
from relay.protocol.headers import Headers
from relay.protocol.legs import RELAY, Leg, Shown, decode_leg, position_at
from relay.protocol.outcomes import Cause
from relay.store import scripts
from relay.store.log import Log, Status
from relay.store.records import Succeeded
from relay.streams.account import Request, StreamAccount
from relay.streams.context import ProducerContext
from relay.streams.producer import Producer
from relay.streams.successor import Inheritance, Return, Successor
from relay.upstream.client import Response, UpstreamClient
from relay.upstream.resuming import StreamRequest
from relay.upstream.resuming_body import ResumingBody
from relay.upstream.routing import Route

logger = logging.getLogger(__name__)

# Each is in memory while it is read, and one that another replica is faster with for nothing.
_READ_AT_ONCE = 8
_TRIES = 5


class Taker(Protocol):
    """The replica, as its takeovers know it."""

    def check_room(self, owner: str) -> None:
        """Raises TooManyRequests, Unavailable where it takes no further stream of that owner."""

    def runs(self, stream: str) -> bool:
        """Is it produced here, or about to be?"""

    def succeed(self, successor: Successor, said: float | None, lost: str) -> None:
        """Go on with a stream of the replica that was lost."""

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work that nobody waits for."""


@dataclass(frozen=True, slots=True)
class _Way:
    """How a stream's upstream is come back to; `needs_owner`: with its client's credentials alone."""

    leg: Leg
    upstream: UpstreamSettings
    needs_owner: bool


class Takeovers:
    """One per replica. `upstreams` is None where it has no way to them."""

    def __init__(
        self, settings: Settings, log: Log, replica: str, metrics: Metrics, taker: Taker, context: ProducerContext
    ) -> None:
        self._context = context
        self.upstreams: UpstreamClient | None = None
        self._settings = settings
        self._log = log
        self._replica = replica
        self._metrics = metrics
        self._taker = taker
        self._upstreams = {upstream.name: upstream for upstream in settings.upstreams}
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._hopeless: set[str] = set()  # whose log does not have what it takes
        self._reading = asyncio.Semaphore(_READ_AT_ONCE)

    def possible(self, status: Status) -> bool:
        """May a stream whose producer is lost go on, here or on another replica?"""
        return not status.outcome and self._way(status) is not None and not self._waited_long(status)

    async def goes_on(self, status: Status, shown: Shown | None) -> bool:
        """Is a stream whose lease has lapsed not to be ended? Then it is being taken over here, or waits for who can
        do so. Raises StoreUnavailable."""
        way = self._way(status)
        if way is None or status.stream in self._hopeless or await self._has_ended(status):
            self._hopeless.discard(status.stream)
            return False
        if status.stream in self._taking or self._taker.runs(status.stream):
            return True
        if self._waited_long(status):
            return False
        if (shown is not None or not way.needs_owner) and self._has_room(status):
            self._begin(status, way, shown)
        return True

    async def take(self, status: Status, shown: Shown | None) -> bool:
        """Take a stream over whose lease has lapsed, even where nobody is here with whose credentials its upstream
        could be come back to: to end it as its producer would. Is it here now? Raises StoreUnavailable."""
        way = self._way(status)
        if way is None or await self._has_ended(status):
            return False
        if status.stream not in self._taking:
            self._begin(status, way, shown)
        await asyncio.wait([self._taking[status.stream]])
        return self._taker.runs(status.stream)

    async def hand_over(self, producers: Iterable[Producer]) -> None:
        """This replica ends: leave streams of its to others, where there are some that can go on with them."""
        able = [p for p in producers if p.leg is not None and p.renewable and p.outcome is None and _is_given(p)]
        try:
            if able and await self._log.directory.others_listen(self._replica):
                left = await asyncio.gather(*map(self._leave, able), return_exceptions=True)
                logger.info("%d streams are left to other replicas", left.count(True))
        except StoreUnavailable:
            logger.debug("streams cannot be left to other replicas for want of a store")

    async def _leave(self, producer: Producer) -> bool:
        left = await self._log.lapse(producer.stream, producer.writer.fence)
        if left:
            producer.writer.on_renewed(scripts.FENCED, 0)
        return left

    def _begin(self, status: Status, way: _Way, shown: Shown | None) -> None:
        task = self._taking[status.stream] = self._taker.later(self._take(status, way, shown))
        task.add_done_callback(lambda _: self._taking.pop(status.stream))

    # -- may it go on? ------------------------------------------------------------------------------------

    def _way(self, status: Status) -> _Way | None:
        leg, upstream = decode_leg(status.leg), self._upstreams.get(status.upstream)
        if leg is None or upstream is None or self.upstreams is None or not _has_path(status.api):
            return None
        if leg.upstream != status.upstream:
            return None
        if leg.how == RELAY and position_at(status.at.decode("latin-1"), status.top) is None:
            return None
        way = _Way(leg, upstream, needs_owner=upstream.api_key_env is None)
        request = self._request(status, way, None, lambda _: None)
        return way if request.mode == leg.how and request.timeouts.upstream_resume > 0 else None

    async def _has_ended(self, status: Status) -> bool:
        """Has its upstream ended it, as far as the log tells?"""
        last = await self._log.frame(status.stream, status.top, status.binding)
        return outcome_from_log(DIALECTS[status.api], last) is not Cause.PRODUCER_LOST

    def _waited_long(self, status: Status) -> bool:
        streams = self._settings.streams
        if time.time() - status.born > streams.max_duration:
            return True
        return -status.lease_left > max(streams.abandon_after, status.abandon_after or 0.0)

    def _has_room(self, status: Status) -> bool:
        try:
            self._taker.check_room(status.owner)
        except ApiError:
            return False
        return True

    # -- taking it ----------------------------------------------------------------------------------------

    async def _take(self, status: Status, way: _Way, shown: Shown | None) -> None:
        async with self._reading:
            frames: list[bytes] = []
            for _ in range(_TRIES):
                if not await self._read(status, frames):
                    return
                returned = self._return(self._meter(status))
                position = position_at(status.at.decode("latin-1"), len(frames))
                request = self._request(status, way, shown, returned.hear)
                body = request.taken_over(way.leg, frames, position)
                if body is None:
                    logger.info("stream %s: its log does not say where its upstream stands", status.stream)
                    self._hopeless.add(status.stream)
                    return
                if not self._has_room(status):
                    return
                # First that this replica runs it, so that none is unaccounted for.
                await self._log.directory.add_stream(self._replica, status.stream)
                succeeded = await self._log.succeed(status.stream, status.fence, len(frames), self._replica)
                if succeeded.code == scripts.OK:
                    self._go_on(Inheritance(status, way.leg, frames, position), succeeded, way, body, returned)
                    return
                if succeeded.code != scripts.MISMATCH or succeeded.top < len(frames):
                    return  # another replica was first, or its producer lives
                found = await self._log.get_status(status.stream)
                if found is None or found.fence != status.fence:
                    return
                status = found

    async def _read(self, status: Status, frames: list[bytes]) -> bool:
        """Read what the log has beyond the frames. False where it does not have all that it should."""
        while len(frames) < status.top:
            try:
                page = await self._log.read(status.stream, len(frames), status.binding, shared=False)
            except EncryptionKeyMissing:
                return False
            if page.gap or page.end is not None or not page.frames:
                if page.gap:
                    self._hopeless.add(status.stream)
                return False
            frames += page.frames
        # What came since the status was asked for is not what that says where the upstream stands at.
        del frames[status.top :]
        return True

    @staticmethod
    def _return(meter: Meter) -> Return:
        return Return(lambda resumed: meter.upstream_resumed(resumed and "taken_over"), meter.upstream_resumed)

    def _go_on(
        self, inherited: Inheritance, succeeded: Succeeded, way: _Way, body: ResumingBody, returned: Return
    ) -> None:
        status = inherited.status
        received = time.monotonic() - succeeded.age
        request = Request(_request_id(), received, status.model, None)
        account = StreamAccount(self._meter(status), request)
        route = Route(way.upstream, status.model, status.model)
        successor = Successor(inherited, succeeded, route, account, body, returned, self._context)
        fields = {
            "stream": status.stream,
            "api": status.api,
            "upstream": status.upstream,
            "producer": status.replica,
            "events": len(inherited.frames),
            "lapsed_seconds": round(succeeded.lapsed, 3),
        }
        access.of_stream("stream taken over", fields)
        self._taker.succeed(successor, status.abandon_after, status.replica)

    def _meter(self, status: Status) -> Meter:
        return self._metrics.meter(status.api, status.upstream, self._metrics.models.of_another(status.model))

    def _request(self, status: Status, way: _Way, shown: Shown | None, on_result: Any) -> StreamRequest:
        """What its upstream is asked again and again, with the credentials of who has shown some."""
        upstream, streams, client = way.upstream, self._settings.streams, self.upstreams
        assert client is not None
        timeouts = upstream.timeouts(streams)
        shown = shown if way.needs_owner else None
        headers = rules.to_upstream(
            [] if shown is None else shown.headers,
            api_key=upstream.api_key(),
            identity=True,
            length=None,
            request_id=_request_id(),
            more=upstream.headers,
            incremental=True,
        )
        query = way.leg.query_for(shown)
        target = DIALECTS[status.api].path + (f"?{query}" if query else "")

        async def send(method: str, url: str, headers: Headers, body: bytes) -> Response:
            answer = ("upstream_answer_timeout", timeouts.upstream_answer_timeout)
            idle = timeouts.upstream_idle_timeout
            return await client.send(upstream, method, url, headers, body, answer=answer, idle=idle)

        return StreamRequest(
            upstream,
            timeouts,
            status.api,
            Route(upstream, status.model, status.model).url(target),
            headers,
            send,
            f"relay-{status.stream}",
            on_result,
            background=True,
            max_event_bytes=streams.max_event_bytes,
            abandon_after=max(timeouts.upstream_resume, min(streams.abandon_after, streams.abandon_limit)),
        )


def _has_path(api: str) -> bool:
    """Is it one of the three APIs? Where an application was asked, and how, the log does not say."""
    return api in DIALECTS and bool(DIALECTS[api].path)


def _is_given(producer: Producer) -> bool:
    """Has a client been given the stream?"""
    return producer.created.done() and producer.created.result()


def _request_id() -> str:
    return f"req_{secrets.token_hex(12)}"
