"""The producer: one task per generation, on the replica that got the POST.

It makes the call, has the upstream's events read, and ends the stream with exactly one end. It belongs to the relay and
not to a connection: readers come and go. What the log holds of it is its writer's business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from relay import timers
from relay.encryption import Binding
from relay.flags import Flag
from relay.protocol import end_mark
from relay.protocol.dialect import Dialect, Watch
from relay.protocol.end_mark import End
from relay.protocol.errors import ApiError, StoreUnavailable
from relay.protocol.headers import Headers
from relay.protocol.ids import is_logged, new_stream_id
from relay.protocol.legs import Leg
from relay.protocol.outcomes import OUTCOMES, Cause, Outcome, StreamFailure, cause_of, refusal_of
from relay.store.log import Renewed
from relay.streams.account import StreamAccount
from relay.streams.answer import Answer, Call, Failed, Opened, Refused, headers_of, is_stream
from relay.streams.context import ProducerContext
from relay.streams.feed import Feed
from relay.streams.hold import HoldWhileSilent
from relay.streams.ingest import LINGER_SECONDS, UpstreamIngest
from relay.streams.refusal import begins_with_error, late_refusal, read_refusal, until_begun
from relay.streams.writer import ENDED, FENCED, UNLOGGED, LogWriter
from relay.upstream.client import Body, Response, body_of
from relay.upstream.resuming_body import follow, leg_of, let_go
from relay.upstream.routing import Route

logger = logging.getLogger(__name__)


class Producer:
    """One generation.

    It begins in these stages, each of them once. `start`: the call goes upstream. The stream is made in the log while
    the first event is waited for, or because the client's patience is over. `ensure_created`: the client is to be given
    it, for that event is no error, or the patience is over; from then on whatever goes wrong is told in-band. `created`
    is set then: True, or False where the client gets no stream. `answer` is what the client of the POST is owed.
    """

    # Of few: with more than 29 attributes of its own an instance takes 1.3 KiB more.
    _owed: Failed | None = None
    _stop: Outcome | None = None
    _remaking: asyncio.Task[None] | None = None
    _hold: HoldWhileSilent | None = None

    def __init__(
        self,
        stream: str,
        dialect: Dialect,
        route: Route,
        owner: str,
        account: StreamAccount,
        call: Call,
        context: ProducerContext,
        *,
        hide_usage: bool,
        choices: int = 1,
    ) -> None:
        self.first_stream = stream  # a store that was away makes it another
        self.dialect, self.route, self.owner = dialect, route, owner
        self.account = account
        self.watch: Watch = dialect.watch(hide_usage=hide_usage, choices=choices)
        self.writer = LogWriter(
            stream,
            context.log,
            self,
            submit=context.committer.submit,
            meter=account.meter,
            ahead=context.ahead,
            max_bytes=context.settings.max_stream_bytes,
            logged=is_logged(stream),
            binding=Binding(owner, dialect.name),
        )
        self.feed: Feed = self.writer.feed
        self.answer: asyncio.Future[Answer] = asyncio.Future()
        self.created: asyncio.Future[bool] = asyncio.Future()
        self.outcome: Outcome | None = None
        self.response_id: str | None = None
        self.kept_headers: Headers = []  # those of the upstream's that every answer with this stream has
        self.upstream_headers: Headers | None = None  # those that the first one has, once the upstream has answered
        self.leg: Leg | None = None  # how another replica can go on with it
        self._ended_at = self._asked = 0.0
        self._settings, self._context = context.settings, context
        self._call: Call | None = call
        self._making: asyncio.Future[Any] | None = None
        self._promised = False  # the client is to be given the stream
        self._reading: Body | None = None  # the response's body, which alone is kept of it
        self._ingest: UpstreamIngest | None = None
        self.persisted = Flag()  # the end is in the log, or there is none to be put there
        self._task: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------

    @property
    def stream(self) -> str:
        return self.writer.stream

    @property
    def logged(self) -> bool:
        return self.writer.state != UNLOGGED

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def stop(self, outcome: Outcome) -> None:
        """End the stream from this side: cancels the upstream call and writes the end."""
        if self._stop is None and self.outcome is None and self._task is not None:
            self._stop = outcome
            self._task.cancel()

    def _exceed(self) -> None:
        self.stop(Cause.MAX_DURATION)

    @property
    def renewable(self) -> bool:
        """Does the log still know this producer as its own?"""
        return self.logged and self.writer.state not in (ENDED, FENCED)

    def on_renewed(self, renewed: Renewed) -> None:
        self.writer.on_renewed(renewed.code, renewed.top)

    @property
    def is_persisted(self) -> bool:
        """Has the log taken this producer's end?"""
        return self.writer.state == ENDED

    async def done(self) -> None:
        """Returns when the end is in the log (or the stream has none)."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def ensure_created(self) -> None:
        """Make the stream unless it is made, and give it to the client, before or after the upstream has answered: from
        here on whatever goes wrong goes in-band. Raises StoreUnavailable, and then the stream has not been made."""
        self._promised = True
        await asyncio.shield(self.make())
        if not self.created.done():
            self.created.set_result(True)
            self._making = self.created  # as done as the task, which is let go

    def make(self) -> asyncio.Future[Any]:
        """The stream's making, which begins now unless it has begun."""
        if self._making is None:
            self._making = asyncio.ensure_future(self._create())
            self._making.add_done_callback(lambda made: made.cancelled() or made.exception())
        return self._making

    async def _run(self) -> None:
        try:
            end = await self._generate()
            if end is not None:
                await self._end(end)
                if self._ingest is not None and not end.sent_by_relay:
                    # A body that was read to its end leaves a connection that can serve the next call.
                    await self._ingest.ended_upstream.wait(LINGER_SECONDS)
        finally:
            self._close()
            if self._reading is not None:
                goes_on = self.created.result() and self.writer.state == FENCED  # the log has no end of this one's
                await let_go(self._reading, goes_on=goes_on)
                self._reading = None
            self._context.host.on_ended(self)

    def _close(self) -> None:
        """Let go of all that knows this producer: a stream's memory must not wait for the collector."""
        self.writer.close()
        self.persisted.set()
        if self.feed.live:
            self.feed.close()
        for waiting in (self._hold, self._remaking):
            if waiting is not None:
                waiting.cancel()
        if self._ingest is not None:
            self._ingest.close()
            self._ingest = None
        self._call = self._making = self._task = None
        self.answer.cancel()
        if not self.created.done():
            self.created.set_result(False)

    async def _generate(self) -> End | None:
        """Read the upstream to its end and say how it ended; None where no stream came to be."""
        message = ""
        limit = timers.call_later(self._settings.max_duration, self._exceed)
        try:
            ingest = await self._open()
            if ingest is None:
                return await self._refused()
            ingest.open()
            self.outcome = await self._read(ingest)
            return End(self.outcome.value)
        except StreamFailure as failure:
            outcome: Outcome = failure.cause
            message = failure.message
            self.watch.error = failure.error or self.watch.error
        except asyncio.CancelledError:
            outcome = self._stop or Cause.SHUTDOWN
        except Exception:
            logger.exception("stream %s: a fault of the relay's own", self.stream)
            outcome = Cause.PRODUCER_LOST
        finally:
            limit.cancel()
        message = message or OUTCOMES[outcome].message
        if self._reading is not None:  # first of all: what nobody will read is not to be generated
            await let_go(self._reading, goes_on=True)
        if not await self._wait_created(outcome, message):
            return None
        self.outcome = outcome
        if self._ingest is not None and self._ingest.terminal is not None:
            self.outcome = self._ingest.terminal  # the upstream had ended its stream: there is no second end
            return End(self.outcome.value)
        named = self.account.request.id, self.stream if self.logged else "", self.writer.last
        return end_mark.closing_end(self.dialect, self.watch, outcome, message, *named)

    async def _read(self, ingest: UpstreamIngest) -> Outcome:
        """How the upstream has ended its stream. Raises StreamFailure."""
        if self.leg is not None:
            follow(ingest.body, self.writer.know_offset)
        return await ingest.finished

    async def _refused(self) -> End | None:
        """Where the stream was made before the upstream's refusal, it ends: nobody was given it."""
        if self._making is None or (await asyncio.wait([self._making]) and self._making.exception()):
            return None
        self.outcome = Cause.UPSTREAM_REFUSED
        return End(self.outcome.value)

    async def _wait_created(self, outcome: Outcome, message: str) -> bool:
        """Is there a stream, to end in-band? An answer is owed: the failure, unless the stream has been promised."""
        owed = self._owed or refusal_of(outcome, message)
        if owed is not None and not self._promised and not self.answer.done():
            if self._making is not None:
                self.account.ended(self.stream, outcome, self.writer.last, self.watch)
            self.answer.set_result(owed)
        if self._making is None:
            return False
        try:
            await self._making
            if not self.answer.done():
                await self.ensure_created()
                self.answer.set_result(Opened(None))
        except StoreUnavailable as error:
            if not self.answer.done():
                self.answer.set_result(error)
            return False
        return True

    # -- the upstream's answer ----------------------------------------------------------------------------

    async def _open(self) -> UpstreamIngest | None:
        """The upstream's stream, or None where it refused in time for the client to get the refusal itself."""
        call, self._call = self._call, None
        assert call is not None
        try:
            response = await call(self._asking)
        except ApiError as error:
            if not self._promised:
                self.answer.set_result(error)
                return None
            raise StreamFailure(cause_of(error), error.message) from None
        finally:
            del call  # it holds the request, which the upstream has now
        if is_stream(response, self.dialect.name):
            return await self._begin_reading(response)
        if not self._promised:
            self.answer.set_result(Refused(response))
            return None
        raise late_refusal(response, await read_refusal(response))

    async def _begin_reading(self, response: Response) -> UpstreamIngest | None:
        """Give the stream to the client at its first event, unless that is an error or nothing comes; or earlier, where
        the client's patience is over. It is made meanwhile, so that no event waits for that."""
        self._reading, upstream = body_of(response), self.route.upstream
        self.leg = leg_of(self._reading, self.watch) if self.logged else None
        self.upstream_headers, self.kept_headers = headers_of(response, self.dialect.name, upstream)
        self.watch.begin(response.headers.raw)
        self._context.host.on_answered(self)
        ingest = self._ingest = UpstreamIngest(
            self._reading,
            self.dialect,
            self.watch,
            self._settings,
            upstream,
            self.writer,
            self._name,
            asked=self._asked,
            request_id=self.account.request.id,
        )
        ingest.start()
        try:
            await until_begun(ingest, self.make(), self.created, verbatim=self.watch.verbatim)
            if not (self._promised or self.watch.verbatim):
                self._owed = begins_with_error(response, ingest, upstream.headers)
                if self._owed is not None:
                    raise StreamFailure(Cause.UPSTREAM_ERROR, self._owed.error.describe(), self._owed.error)
                if ingest.finished.done():
                    await ingest.finished
            await self.ensure_created()
        except ApiError as error:
            self.answer.set_result(error)
            return None
        self.answer.set_result(Opened(self.upstream_headers))
        return ingest

    def _asking(self, route: Route, hide_usage: bool) -> None:
        self._asked = asyncio.get_running_loop().time()
        if route is not self.route:
            self.route = route
            self.watch = self.dialect.watch(hide_usage=hide_usage, choices=self.watch.choices)
            self._context.host.on_moved(self)

    async def _create(self) -> None:
        if self.logged and not await self._context.made(self):
            # Its first reader has not seen an id yet: the stream is one without a log, and says so.
            self.writer.go_unlogged(new_stream_id(logged=False), self._context.log)
            self.account.meter.degraded()
        self._context.host.on_created(self)

    def _name(self, response_id: str) -> None:
        """Who has seen the event with this id may ask any replica for it: first the store is told, if it answers within
        `store.hold`."""
        self.response_id = response_id
        naming = self._context.host.on_response_id(self)
        if naming is not None:
            self.writer.held = True
            self._begin_hold()
            naming.add_done_callback(lambda _: self.writer.release())

    def _begin_hold(self) -> HoldWhileSilent:
        self._hold = self._hold or HoldWhileSilent(self.writer, self._context.log.store.hold)
        self._hold.begin()
        return self._hold

    # -- what the writer says -----------------------------------------------------------------------------

    def usage_summary(self) -> str:
        return "" if (usage := self.watch.usage) is None else f"{usage.input or 0}/{usage.output or 0}"

    def on_first_token(self) -> None:
        self.account.first_token(self.stream)

    def on_pressure(self, wait: bool) -> None:
        if self._ingest is not None:
            self._ingest.pause(wait)

    def on_end_shown(self) -> None:
        self._ended_at = time.monotonic()

    def on_end_persisted(self) -> None:
        self.persisted.set()

    def on_fenced(self) -> None:
        """Another replica has ended it, or goes on with it: local readers take what follows from the log."""
        logger.warning("stream %s: fenced off", self.stream)
        self.persisted.set()
        if self.outcome is None:
            self.stop(Cause.PRODUCER_LOST)

    def on_log_gone(self) -> None:
        logger.warning("stream %s: the store has come back without it; making it again", self.stream)
        self._remaking = asyncio.create_task(self._context.put_again(self, self._begin_hold()))

    def on_fault(self, error: Exception) -> None:
        """One stream's fault is not another's: this one ends, or others end it."""
        logger.error("stream %s: a fault of the relay's own", self.stream, exc_info=error)
        if self.outcome is None:
            self.stop(Cause.PRODUCER_LOST)
        else:
            self.writer.close()
            self.persisted.set()
            self.feed.close()

    # -- the end ------------------------------------------------------------------------------------------

    async def _end(self, end: End) -> None:
        """Have the end shown and written, for as long as anybody may come back. Who fenced it off has counted it."""
        self.writer.finish(end)
        if self.logged:
            try:
                await self.persisted.wait(self._settings.retention)
            except asyncio.CancelledError:
                return  # the process ends: another replica ends the stream when its lease has lapsed
            if not self.persisted.is_set:
                logger.warning("stream %s: its end could not be written within streams.retention", self.stream)
                self.outcome = Cause.STORE_LOST
        if self.writer.state != FENCED and self.outcome is not None:
            self.account.ended(self.stream, self.outcome, self.writer.last, self.watch, self._ended_at)
