"""A producer that goes on with what another replica's has begun.

The log is what it begins with: its watch sees every event of it, so that the first token, the usage and the end are
those of the whole stream, and its upstream is asked for what follows after the last one. Readers see a pause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay.protocol.apis import DIALECTS
from relay.protocol.legs import Leg, Offsets
from relay.protocol.outcomes import Cause, Outcome, StreamFailure
from relay.store.log import Status
from relay.store.records import Succeeded
from relay.streams.account import StreamAccount
from relay.streams.answer import Asking, Opened
from relay.streams.context import ProducerContext
from relay.streams.ingest import UpstreamIngest
from relay.streams.producer import Producer
from relay.upstream.client import Response
from relay.upstream.resuming_body import ResumingBody
from relay.upstream.routing import Route


@dataclass(slots=True)
class Return:
    """Whether a successor's upstream has gone on: None while that is not known. `on_known` hears of it, `on_later` of
    what becomes of each later loss."""

    on_known: Callable[[bool], None]
    on_later: Callable[[bool], None]
    known: bool | None = None

    def hear(self, resumed: bool) -> None:
        if self.known is None:
            self.known = resumed
            self.on_known(resumed)
        else:
            self.on_later(resumed)


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What the log has of a stream: `frames` are its events, `position` is the number that a relay upstream has given
    to the last of them."""

    status: Status
    leg: Leg
    frames: Sequence[bytes]
    position: int | None


async def _asked_already(asking: Asking) -> Response:
    raise AssertionError("what another replica has asked for is not asked for again")


class Successor(Producer):
    """`body` brings what follows, `returned` says whether it does."""

    def __init__(
        self,
        inherited: Inheritance,
        succeeded: Succeeded,
        route: Route,
        account: StreamAccount,
        body: ResumingBody,
        returned: Return,
        context: ProducerContext,
    ) -> None:
        status, leg, frames = inherited.status, inherited.leg, inherited.frames
        super().__init__(
            status.stream,
            DIALECTS[status.api],
            route,
            status.owner,
            account,
            _asked_already,
            context,
            hide_usage=leg.hides_usage,
            choices=leg.choices,
        )
        self.leg = leg
        self.kept_headers = status.headers
        offsets = Offsets(len(frames), len(frames) if inherited.position is None else inherited.position)
        self.writer.take_over(str(int(status.fence) + 1), list(frames), offsets)
        self._body = body
        self._returned = returned
        left = max(self._settings.max_duration - succeeded.age, 0.0)
        self._settings = self._settings.model_copy(update={"max_duration": left})
        self._promised = True
        self._making = self.created
        self.created.set_result(True)
        self.answer.set_result(Opened(None))

    async def _open(self) -> UpstreamIngest | None:
        self._reading = self._body
        ingest = self._ingest = UpstreamIngest(
            self._body,
            self.dialect,
            self.watch,
            self._settings,
            self.route.upstream,
            self.writer,
            self._name,
            asked=asyncio.get_running_loop().time(),
            request_id=self.account.request.id,
        )
        ingest.replay(self.feed.frames)
        if ingest.has_token:
            self.writer.had_token()
        if not ingest.finished.done():
            ingest.start()
        return ingest

    async def _read(self, ingest: UpstreamIngest) -> Outcome:
        """As its upstream ends it; where that does not go on, the stream is lost with its first producer."""
        try:
            return await super()._read(ingest)
        except StreamFailure as failure:
            if self._returned.known is not False:
                raise
            raise StreamFailure(Cause.PRODUCER_LOST) from failure
