"""Streams without the ids in their frames, for parsers written by hand: many skip a block that does not begin with
`data: `, and show nothing, without an error.

The stream is logged all the same, and its ids are the same: event n of it is `<stream id>.<n>`, so a client that counts
what it gets comes back with `Relay-Stream-Id` and its count.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from relay.api.delivery import Events
from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.protocol.errors import BadRequest
from relay.protocol.sse import COMMENT_BLOCK, COMMENT_LINE

# The first event of a stream says beside its id how soon to come back.
_ID_LINES = re.compile(rb"^(?:id|retry): [^\n]*\n", re.MULTILINE)
WORDS = ("omit", "include")


def wanted(services: Services, exchange: Exchange) -> bool:
    """Are the ids to be in the frames of this answer? Raises BadRequest."""
    if b"relay-event-ids" in exchange.named:
        asked = exchange.header(b"relay-event-ids")
        if asked not in WORDS:
            raise BadRequest("`Relay-Event-Ids` must be omit or include. Send one of these, or no such header.")
        return asked == "include"
    # Who comes back with an id has read it in a frame, or counts; an EventSource reads nothing else.
    comes_back = b"last-event-id" in exchange.named or exchange.scope["path"].startswith("/streams/")
    return services.settings.streams.event_ids == "always" or comes_back


class WithoutIds:
    """A source whose frames have lost their ids."""

    def __init__(self, source: Events) -> None:
        self._source = source
        self.meter = source.meter

    @property
    def cursor(self) -> int:
        return self._source.cursor

    @property
    def heartbeat(self) -> bytes:
        """Without ids a comment is a block of its own."""
        beat = self._source.heartbeat
        return COMMENT_BLOCK if beat == COMMENT_LINE else beat

    @property
    def write_through(self) -> Callable[[bytes], bool] | None:
        return self._source.write_through

    @write_through.setter
    def write_through(self, write: Callable[[bytes], bool] | None) -> None:
        self._source.write_through = None if write is None else lambda frames: write(without_ids(frames))

    async def read(self) -> bytes | None:
        frames = await self._source.read()
        return without_ids(frames) if frames else frames

    def nudge(self) -> None:
        self._source.nudge()

    def hang_up(self) -> None:
        self._source.hang_up()

    def close(self) -> None:
        self._source.close()


def without_ids(frames: bytes) -> bytes:
    """Whole frames of the relay's, without what stands before an event."""
    return _ID_LINES.sub(b"", frames)
