"""The producer: one task per generation, on the replica that got the POST.

It reads the upstream, gives every event its id, hands the frames to the group commit and ends the stream,
whatever happens, with exactly one end. It belongs to the relay and not to a connection: readers come and go.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

from relay.config import StreamSettings
from relay.protocol import sse
from relay.protocol.dialect import Dialect, Watch
from relay.protocol.errors import ApiError, StoreUnavailable, Unavailable, UpstreamSilent
from relay.protocol.headers import Headers, of_stream
from relay.protocol.ids import new_stream_id
from relay.protocol.lifecycle import MESSAGES, Cause, Ending, Outcome, StreamFailure
from relay.protocol.sse import Event
from relay.store import scripts
from relay.store.log import Log
from relay.streams.account import Account
from relay.streams.commit import Committer, LogWriter
from relay.streams.feed import Feed
from relay.streams.intake import LINGER_SECONDS, Intake
from relay.upstream import NO_EVENT_STREAM, Route, body_of, is_event_stream, refusal_text

logger = logging.getLogger(__name__)

_RETRY_MILLIS = (500, 2500)
# How much an unlogged stream may run ahead of its reader.
_UNLOGGED_AHEAD = 1 << 20
# How much a logged stream may run ahead of its log: seconds of what a model says. With more, upstreams that send as
# fast as they can would be read whole before any of it is shown.
_HELD_BACK = 256 << 10


@dataclass(frozen=True, slots=True)
class Opened:
    """The upstream streams: `headers` are those of its answer that a stream keeps."""

    headers: Headers


@dataclass(frozen=True, slots=True)
class Refused:
    """The upstream answered something that is no stream. The response is open; who takes it closes it."""

    response: httpx.Response


Answer = Opened | Refused | ApiError


class Producer:
    """One generation. `answer` is set once the upstream has answered or failed; `feed` is what readers read."""

    def __init__(
        self,
        stream: str,
        *,
        dialect: Dialect,
        route: Route,
        owner: str,
        account: Account,
        logged: bool,
        hide_usage: bool,
        settings: StreamSettings,
        log: Log,
        replica: str,
        committer: Committer,
        call: Callable[[], Awaitable[httpx.Response]],
        on_made: Callable[[Producer], None],
        on_named: Callable[[Producer, str], asyncio.Task[None] | None],
        on_orphaned: Callable[[Producer], None],
        on_gone: Callable[[Producer], None],
        on_end: Callable[[Producer], None],
    ) -> None:
        self.stream = stream
        self.dialect = dialect
        self.route = route
        self.owner = owner
        self.account = account
        self.logged = logged
        self.live_only = not logged  # its one reader is all it has; what that has taken is forgotten
        self.feed = Feed()
        self.watch: Watch = dialect.watch(hide_usage=hide_usage)
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Answer] = self._loop.create_future()
        self.made: asyncio.Future[bool] = self._loop.create_future()  # did a stream come to be?
        self.left = 0  # how often the last local reader has left
        self._seen_at = float("-inf")  # when a reader on another replica was last known to be there
        self.outcome: Outcome | None = None
        self._last_token: float | None = None
        self._ended_at = 0.0
        self._first_token_n = 0  # the event that carries the first token, until the log holds it
        self._fenced_off = False
        self._log_lost = False
        self._settings = settings
        self._log = log
        self._replica = replica
        self._committer = committer
        self._call = call
        self._on_made = on_made
        self._on_named = on_named
        self._on_orphaned = on_orphaned
        self._on_gone = on_gone
        self._on_end = on_end
        self._writer = LogWriter(stream, "1", self.feed, self, log)
        self._id = stream.encode() + b"."
        self._bytes = 0
        self._unacked = 0
        self._creating: asyncio.Future[None] | None = None
        self._response: httpx.Response | None = None
        self._stop: Outcome | None = None
        self._intake: Intake | None = None
        self._naming = False
        self._sealed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def stop(self, outcome: Outcome) -> None:
        """End the stream from this side: cancels the upstream call and writes the end."""
        if self._stop is None and self.outcome is None and self._task is not None:
            self._stop = outcome
            self._task.cancel()

    async def sealed(self) -> None:
        """Returns when the end is in the log, or there is none to be put there."""
        await self._sealed.wait()

    def note(self) -> str:
        usage = self.watch.usage
        return "" if usage is None else f"{usage.input or 0}/{usage.output or 0}"

    @property
    def acked(self) -> int:
        """The last event that the log is known to hold."""
        return self._writer.acked

    @property
    def fence(self) -> str:
        return self._writer.fence

    @property
    def renewable(self) -> bool:
        """Does the log still know this producer as its own?"""
        return self.logged and not self._sealed.is_set()

    async def done(self) -> None:
        """Returns when the end is in the log (or the stream has none)."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def become_stream(self) -> None:
        """Make the stream, before or after the upstream has answered: from here on whatever goes wrong goes
        in-band. Raises StoreUnavailable, and then the stream has not been made."""
        if self._creating is None:
            self._creating = asyncio.ensure_future(self._create())
        await asyncio.shield(self._creating)

    async def _run(self) -> None:
        try:
            outcome = await self._generate()
            if outcome is not None:
                await self._end(outcome)
                self._settle(outcome)
                if self._intake is not None and outcome in (Ending.COMPLETED, Cause.UPSTREAM_ERROR):
                    # A body that was read to its end leaves a connection that can serve the next call.
                    await asyncio.wait([self._intake.ended_upstream], timeout=LINGER_SECONDS)
        finally:
            self._sealed.set()
            if self._intake is not None:
                self._intake.close()
                self._intake = None  # they know each other, and a stream's memory must not wait for the collector
            if not self.answer.done():
                self.answer.cancel()
            if not self.made.done():
                self.made.set_result(False)
            if self._response is not None:
                await body_of(self._response).aclose()
            self._on_end(self)

    async def _generate(self) -> Outcome | None:
        """Read the upstream to its end and say how it ended; None where no stream came to be."""
        try:
            async with asyncio.timeout(self._settings.max_duration):
                response = await self._open()
                return None if response is None else await self._relay(response)
        except StreamFailure as failure:
            outcome: Outcome = failure.cause
            message = failure.message
        except TimeoutError:
            outcome = Cause.MAX_DURATION
            message = MESSAGES[outcome]
        except asyncio.CancelledError:
            outcome = self._stop or Cause.SHUTDOWN
            message = MESSAGES[outcome]
        except Exception:
            logger.exception("stream %s: a fault of the relay's own", self.stream)
            outcome = Cause.PRODUCER_LOST
            message = MESSAGES[outcome]
        if self._response is not None:  # first of all: what nobody will read is not to be generated
            await body_of(self._response).aclose()
        try:
            if self._creating is None:
                if not self.answer.done() and outcome is Cause.MAX_DURATION:
                    self.answer.set_result(UpstreamSilent(message))
                elif not self.answer.done() and outcome is Cause.SHUTDOWN:
                    self.answer.set_result(Unavailable(message, code="draining", headers={"retry-after": "1"}))
                return None
            await self._creating
        except StoreUnavailable:
            return None
        if self._intake is not None and self._intake.terminal is not None:
            return self._intake.terminal  # the upstream had ended its stream: there is no second end
        if outcome is Ending.STOPPED:
            self._add_last(self.watch.stop_events(self.account.request.id))
        else:
            self._add_last(
                self.dialect.error_events(outcome, message, self.watch.last_sequence, self.account.request.id)
            )
        return outcome

    # -- the upstream's answer ----------------------------------------------------------------------------

    async def _open(self) -> httpx.Response | None:
        """The upstream's stream, or None where it refused in time for the client to get the refusal itself."""
        try:
            response = await self._call()
        except ApiError as error:
            if self._creating is None:
                self.answer.set_result(error)
                return None
            cause = Cause.UPSTREAM_TIMEOUT if error.status == 504 else Cause.UPSTREAM_DISCONNECTED
            raise StreamFailure(cause, error.message) from None
        if response.status_code == 200 and is_event_stream(response):
            self._response = response
            try:
                await self.become_stream()
            except ApiError as error:
                self.answer.set_result(error)
                return None
            self.answer.set_result(Opened(of_stream(response.headers.raw)))
            return response
        if self._creating is None:
            self.answer.set_result(Refused(response))
            return None
        text = await refusal_text(response)
        await body_of(response).aclose()
        if response.status_code == 200:
            raise StreamFailure(Cause.UPSTREAM_MALFORMED, NO_EVENT_STREAM)
        raise StreamFailure(Cause.UPSTREAM_REFUSED, f"The upstream answered {response.status_code}: {text}")

    async def _create(self) -> None:
        if not self.logged:
            self.made.set_result(True)
            self._on_made(self)
            return
        fields = {
            "api": self.dialect.name,
            "owner": self.owner,
            "upstream": self.route.upstream.name,
            "model": self.route.label,
            "replica": self._replica,
        }
        try:
            # One flush: first that this replica runs it, then the stream itself, so that none is unaccounted for.
            await asyncio.gather(self._log.runs(self._replica, self.stream), self._log.create(self.stream, fields))
        except StoreUnavailable:
            if self._log.outage == "refuse":
                self._creating = None
                raise
            # No id that the log does not hold is ever sent: the stream goes on under an id that says so.
            self.logged = False
            self.live_only = True
            self.stream = new_stream_id(logged=False)
            self.account.meter.degraded()
        self.made.set_result(True)
        self._on_made(self)

    # -- events -------------------------------------------------------------------------------------------

    async def _relay(self, response: httpx.Response) -> Outcome:
        """Take the upstream's events as they arrive, until it has ended its stream."""
        self._intake = Intake(body_of(response), self.watch, self._settings, self, self._name)
        self._intake.start()
        return await self._intake.over

    def _name(self, response_id: str) -> None:
        """Who has seen the event with this id may ask any replica for it: first the store is told."""
        naming = self._on_named(self, response_id)
        if naming is not None:
            self._naming = True
            naming.add_done_callback(self._name_known)

    def _name_known(self, _: object) -> None:
        self._naming = False
        self.publish()

    def token(self) -> None:
        """The last event has a token."""
        now = time.monotonic()
        if self._last_token is None:
            self._first_token_n = self.feed.base + len(self.feed.frames)
        else:
            self.account.meter.gap(now - self._last_token)
        self._last_token = now

    def append(self, block: bytes) -> None:
        """The next event: its lines and its blank line. Raises StreamFailure."""
        feed = self.feed
        frames = feed.frames
        if not self.logged:
            frame = block
        elif frames:
            frame = b"id: %b%d\n%b" % (self._id, feed.base + len(frames) + 1, block)
        else:
            # Clients of a replica that dies come back spread out. Never in a block of its own: a lone retry
            # kills some clients.
            frame = b"id: %b%d\nretry: %d\n%b" % (self._id, feed.base + 1, random.randint(*_RETRY_MILLIS), block)
        size = len(frame)
        self._bytes += size
        self._unacked += size
        if self._bytes > self._settings.max_stream_bytes and not self.live_only:
            raise StreamFailure(Cause.STREAM_TOO_LARGE)
        frames.append(frame)

    def publish(self) -> None:
        """Hand what was added to the commit; without a log it is shown at once."""
        feed = self.feed
        if self.logged:
            if not self._naming and (len(feed.frames) + feed.base > self._writer.acked or self._writer.outcome):
                self._committer.submit(self._writer)
        else:
            self._show(feed.base + len(feed.frames))
        if self.live_only or self._unacked > _HELD_BACK:
            self._hold_or_go_on()

    def _hold_or_go_on(self) -> None:
        """What is held back for a slow store is bounded, and without a log nobody but the one reader wants the events:
        the upstream waits."""
        if self.live_only:
            ahead = sum(map(len, self.feed.frames)) > _UNLOGGED_AHEAD
        else:
            ahead = self.logged and self._unacked > _HELD_BACK
        if self._intake is not None:
            self._intake.hold(ahead)

    def consumed(self, upto: int) -> None:
        """A reader has taken events; what the one reader of a stream without a log has taken is forgotten."""
        if self.live_only:
            self.feed.forget(upto)
            if self._intake is not None and self._intake.held:
                self._hold_or_go_on()

    def renewed(self, unseen: float) -> None:
        """The lease runs on; `unseen` is how many seconds ago a reader elsewhere was seen."""
        self._seen_at = time.monotonic() - unseen

    def unseen(self) -> float:
        return time.monotonic() - self._seen_at

    def _show(self, upto: int) -> None:
        feed = self.feed
        if upto > feed.top:
            self.account.meter.events += upto - feed.top
            if self._first_token_n and upto >= self._first_token_n:
                self._first_token_n = 0
                self.account.first_token(self.stream)
            feed.advance(upto)

    # -- the end ------------------------------------------------------------------------------------------

    def _add_last(self, events: list[Event]) -> None:
        """The relay's own last words do not count against the bounds."""
        self._bytes = 0
        for event in events:
            self.append(sse.encode(event, None))

    async def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        if not self.logged:
            self.publish()
            self._finish(outcome)
            return
        self._writer.outcome = outcome
        self.publish()
        await self._sealed.wait()

    def _settle(self, outcome: Outcome) -> None:
        """Count the end, once for each stream: who fenced this producer off has counted it; a log that was lost
        ends as lost, whatever its readers got without it."""
        if not self._fenced_off:
            self.account.ended(
                self.stream,
                Cause.STORE_LOST if self._log_lost else outcome,
                self.feed.top,
                self.watch.usage,
                self._ended_at or time.monotonic(),
            )

    def _finish(self, outcome: Outcome) -> None:
        self._ended_at = time.monotonic()  # before any reader can know
        self.feed.finish(outcome)

    def taken(self, code: int, top: int, sent: int, ended: bool) -> bool:
        if not self.logged:
            return False  # the answer to a renewal that was on its way: the stream has gone on without its log
        feed = self.feed
        writer = self._writer
        if code == scripts.OK:
            first = writer.acked - feed.base
            if sent - writer.acked == 1:
                self._unacked -= len(feed.frames[first])
            else:
                self._unacked -= sum(map(len, feed.frames[first : sent - feed.base]))
            writer.acked = sent
            if self._intake is not None and self._intake.held:
                self._hold_or_go_on()
            self._show(sent)
            if ended and self.outcome is not None:
                self._finish(self.outcome)
                self._sealed.set()
                return False
        elif code == scripts.MISMATCH:
            # Higher: the reply to an earlier append was lost. Lower: the store lost entries; they go in again.
            writer.acked = min(top, feed.base + len(feed.frames))
            self._unacked = sum(map(len, feed.frames[writer.acked - feed.base :]))
            if self._intake is not None and self._intake.held:
                self._hold_or_go_on()
            self._show(writer.acked)
        elif code == scripts.FENCED:
            self._fenced()
            return False
        else:
            self._log_gone()
            return False
        return feed.base + len(feed.frames) > writer.acked or bool(writer.outcome)

    def _fenced(self) -> None:
        """Someone has sealed this stream: nothing more is emitted; local readers take the end from the log."""
        logger.warning("stream %s: fenced off", self.stream)
        self._fenced_off = True
        self.feed.detach()
        self._sealed.set()
        if self.outcome is None:
            self.stop(Cause.PRODUCER_LOST)

    def _log_gone(self) -> None:
        """The store came back empty: connected readers get the rest without ids, a resume answers 410."""
        if self.logged:
            logger.warning("stream %s: its log is gone; going on without", self.stream)
            self._on_gone(self)
            self._go_on_without_log()

    def store_lost(self) -> None:
        """The store has been away for too long. What of the log survives is ended when it is back."""
        if self.logged:
            logger.warning("stream %s: the store is away; going on without", self.stream)
            self._on_orphaned(self)
            self._go_on_without_log()

    def _go_on_without_log(self) -> None:
        """From here on events have no ids: an id that the log does not hold is never sent."""
        feed = self.feed
        self.logged = False
        self._log_lost = True
        self.account.meter.degraded()
        for i in range(self._writer.acked - feed.base, len(feed.frames)):
            _, _, feed.frames[i] = feed.frames[i].partition(b"\n")
        self.publish()
        self._hold_or_go_on()
        if self.outcome is not None:
            self._finish(self.outcome)
        self._sealed.set()
