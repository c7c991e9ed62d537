"""Telling the webhook of the settings that a detached generation has ended.

A stream is put into the outbox (`relay.store.outbox`) before its request is answered, and stays there until it has been
told or given up. Whichever replica finds it due looks at it: one that runs is looked at again, one that has ended is
told, with longer and longer pauses where the receiver does not take it. Nothing else is kept: what is told, the
message's id and the next pause follow from the stream itself, so any replica goes on where one died.

Promises: told at least once, for as long as the store keeps what it has acknowledged, and under one id; at most
`_AT_ONCE` attempts of a replica at once, each with an end; no address but the settings' is ever asked, and no redirect
followed; what the receiver answers is not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass

from relay.config import UpstreamSettings
from relay.config.webhook import WebhookSettings
from relay.metrics import Metrics
from relay.protocol import webhook
from relay.protocol.errors import ApiError, PositionUnknown, StoreUnavailable
from relay.protocol.usage_note import read_usage
from relay.store.log import Status
from relay.store.outbox import Note, Outbox
from relay.streams.registry import Registry
from relay.upstream.client import UpstreamClient, body_of

logger = logging.getLogger(__name__)

_AT_ONCE = 32
# A stream that runs is looked at so often, in leases: whoever runs it tells its end at once, unless that one dies. As
# long beside the attempt itself another replica waits until it takes a stream for left.
_LOOK_LEASES = 3
# The outbox is looked into so often, in leases.
_EVERY_LEASES = 0.5
# At this process's end, for how many seconds what is on its way is waited for.
_LAST = 5.0
_GONE = 410
# Statuses with which the receiver has taken it.
_TAKEN = range(200, 300)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """How one ended: with a status, or a word where there was none."""

    status: int | str
    retry_after: str | None = None


class Webhooks:
    """One per replica whose settings have a webhook."""

    def __init__(
        self, settings: WebhookSettings, registry: Registry, upstreams: UpstreamClient, metrics: Metrics
    ) -> None:
        streams = registry.settings.streams
        self._settings = settings
        self._secrets = settings.secrets()
        self._registry = registry
        self._upstreams = upstreams
        self._metrics = metrics
        self._outbox = Outbox(registry.log, streams.max_duration + 2 * streams.retention)
        self._look = _LOOK_LEASES * streams.lease
        self._every = _EVERY_LEASES * streams.lease
        # What of an upstream's settings its connections ask for: the way there, and whom to trust.
        self._way = UpstreamSettings(
            name="webhook", base_url="https://webhook", proxy=settings.proxy, ca_file=settings.ca_file
        )
        self._promised: dict[str, Note] = {}  # those that run here, or have ended while the store was away
        self._untold: set[str] = set()  # of these, those that the store may not know of
        self._sending: dict[asyncio.Task[None], str] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._more = False  # is there more that is due than there were places?
        self._loop: asyncio.Task[None] | None = None
        self._closing = False
        for result in ("delivered", "failed", "given_up"):
            metrics.webhooks.labels(result)
        registry.log.commands.on_returned.append(lambda _: self._untold.update(self._promised))

    def start(self) -> None:
        self._registry.webhooks = self
        self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Tell what is due and can be told in a moment; the rest is another replica's, or this one's next time."""
        self._closing = True
        self._wake.set()
        if self._loop is not None:  # what it is about to take would be nobody's for a while
            await asyncio.wait([self._loop], timeout=_LAST)
            self._loop.cancel()
        if self._ending:
            await asyncio.wait(self._ending, timeout=_LAST)
        with contextlib.suppress(StoreUnavailable):
            await self._take()
        if self._sending:
            await asyncio.wait(self._sending, timeout=_LAST)
        left = dict(self._sending)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable):
            await asyncio.gather(*(self._outbox.later(stream, 0) for stream in left.values()))

    # -- what the replica says ----------------------------------------------------------------------------------

    async def promise(self, stream: str, note: Note) -> None:
        """Its end is to be told. Where the store cannot be asked, it is as soon as it can be."""
        if runs := self._registry.runs(stream):
            self._promised[stream] = note
            self._untold.add(stream)
        try:
            if await self._outbox.promise(stream, note, self._look if runs else 0):
                self._untold.discard(stream)
        except StoreUnavailable:
            logger.warning("stream %s: the store cannot be told yet that its end is to be told", stream)
        if not runs:
            self._wake.set()

    async def renew(self) -> None:
        """Say again what the store may have lost. May raise StoreUnavailable."""
        await asyncio.gather(*map(self._say_again, list(self._untold)))

    async def _say_again(self, stream: str) -> None:
        runs = self._registry.runs(stream)
        known = await self._outbox.promise(stream, self._promised[stream], self._look if runs else 0)
        if known or not runs:
            self._untold.discard(stream)
        if not runs:
            self._promised.pop(stream, None)

    def ended(self, stream: str) -> None:
        """A stream that ran here is over."""
        if (note := self._promised.pop(stream, None)) is not None:
            task = self._registry.later(self._due(stream, note, untold=stream in self._untold))
            self._untold.discard(stream)
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _due(self, stream: str, note: Note, *, untold: bool) -> None:
        try:
            if untold:
                await self._outbox.promise(stream, note, 0)
            await self._outbox.later(stream, 0)
        except StoreUnavailable:
            self._promised[stream] = note
            self._untold.add(stream)
            raise
        self._wake.set()

    # -- what is due --------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self._closing:
            self._wake.clear()
            try:
                await self._take()
            except StoreUnavailable:
                logger.debug("the outbox cannot be looked into: the store is away")
            except Exception:
                logger.exception("a fault of the relay's own")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._wake.wait()

    async def _take(self) -> None:
        places = _AT_ONCE - len(self._sending)
        if places <= 0:
            return
        now, streams = await self._outbox.take(places, self._settings.timeout + self._look)
        self._more = len(streams) == places
        for stream in streams:
            task = asyncio.create_task(self._attend(stream, now))
            self._sending[task] = stream
            task.add_done_callback(self._attended)

    def _attended(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        if self._more:
            self._wake.set()

    async def _attend(self, stream: str, now: float) -> None:
        """Whatever goes wrong in here, the stream comes up again when its time here is over."""
        try:
            if self._registry.runs(stream):
                await self._outbox.later(stream, self._look)
                return
            try:
                status = await self._registry.lookup.fate(stream)
            except PositionUnknown:  # its end is not what a relay has put there
                status = None
            note = await self._outbox.note_of(stream)
            if status is None or note is None or not status.kept:
                self._metrics.webhooks.labels("given_up").inc()
                logger.error("stream %s: its end cannot be told: the store knows nothing of it any more", stream)
                await self._outbox.done(stream)
            elif not status.outcome:
                await self._outbox.later(stream, self._look)
            else:
                await self._tell(status, note, max(now - status.ended, 0.0))
        except StoreUnavailable as error:
            logger.debug("stream %s: left to the next look: %s", stream, error)
        except Exception:
            logger.exception("stream %s: a fault of the relay's own", stream)

    async def _tell(self, status: Status, note: Note, elapsed: float) -> None:
        stream, message = status.stream, webhook.id_of(status.stream)
        body = webhook.body_of(
            stream,
            name=note.name or None,
            api=status.api,
            model=note.model,
            outcome=status.outcome,
            events=status.top,
            ended=status.ended,
            usage=read_usage(status.usage),
        )
        began = time.monotonic()
        attempt = await self._post(message, body)
        elapsed += time.monotonic() - began
        line = {"stream": stream, "webhook_id": message, "status": attempt.status, "after_seconds": round(elapsed, 3)}
        if attempt.status in _TAKEN:
            self._metrics.webhooks.labels("delivered").inc()
            logger.info("webhook delivered", extra={"fields": line})
            await self._outbox.done(stream)
        elif attempt.status == _GONE or elapsed >= self._settings.retry_for:
            self._metrics.webhooks.labels("given_up").inc()
            logger.error("webhook given up", extra={"fields": line})
            await self._outbox.done(stream)
        else:
            pause = webhook.pause(elapsed, random.random(), attempt.retry_after)
            pause = min(pause, self._settings.retry_for - elapsed)
            self._metrics.webhooks.labels("failed").inc()
            logger.warning("webhook failed", extra={"fields": {**line, "again_in_seconds": round(pause, 3)}})
            await self._outbox.later(stream, pause)

    async def _post(self, message: str, body: bytes) -> _Attempt:
        url = self._settings.url
        assert url is not None
        headers = webhook.signed(self._secrets, message, int(time.time()), body)
        headers += [(b"content-length", b"%d" % len(body)), (b"user-agent", b"relay")]
        try:
            async with asyncio.timeout(self._settings.timeout):
                response = await self._upstreams.send(self._way, "POST", url, headers, body)
                await body_of(response).aclose()
        except TimeoutError:
            return _Attempt("timeout")
        except ApiError as error:
            return _Attempt(error.code.removeprefix("upstream_"))
        return _Attempt(response.status_code, response.headers.get("retry-after"))
