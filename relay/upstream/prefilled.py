"""An answer that another call goes on with once it broke off: what `relay.protocol.continuing` says of it, as a state
machine of `relay.client`. No I/O.

A call that may have been paid for is made once for each break, and a few times for an answer; one that was refused, or
never had a connection, is made again while there is time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from relay.client.events import Block
from relay.client.policy import Policy, retry_after
from relay.client.resumable_stream import Action, Reason, Reconnect, ResumableStream
from relay.protocol.continuing import LOCATED, ChatPartial, Differs, MessagesPartial, Partial, Prefill, continued
from relay.protocol.dialect import BEATS
from relay.protocol.errors import UpstreamUnreachable
from relay.protocol.json_scan import Scanner
from relay.protocol.sse import Event, encode
from relay.upstream.positions import OwnIdsStream

MOST_CALLS = 3
"""How many calls may go on with one answer."""
# With these an upstream says that it has not begun.
_NOT_BEGUN = (429, 503, 529)
_PIECE = 16 * 1024


class PrefilledStream(OwnIdsStream):
    """An answer of an upstream that has no positions, but goes on with a text (`upstreams[].continue: prefill`)."""

    def __init__(self, api: str, prefill: Prefill, policy: Policy) -> None:
        super().__init__(api, policy)
        self._partial: Partial = MessagesPartial() if api == "messages" else ChatPartial(prefill)
        self._out: bytes | None = None
        self._events = 0

    @property
    def last_event_id(self) -> str:
        return str(self._events)

    @property
    def unfinished(self) -> bytes:
        """Of the answer: an event of its rest goes to nobody as it is."""
        return b"" if self._partial.calls else super().unfinished

    @property
    def resumable(self) -> bool:
        return not self._partial.obstacle

    async def request(self, body: bytes) -> bytes:
        """The request for the rest: that of the answer, changed. Raises Unresumable."""
        scanner = Scanner(LOCATED)
        for at in range(0, len(body), _PIECE):
            scanner.feed(body[at : at + _PIECE])
            await asyncio.sleep(0)  # others' events come between two pieces
        try:
            return continued(body, scanner.finish(), self._partial)
        except Differs as why:
            raise self._unresumable(str(why), Reason.REFUSED) from None

    def on_disconnect(self, why: str | None) -> Reconnect | Action:
        if self._finished or self._partial.over:
            return Action.END
        if obstacle := self._partial.obstacle:
            raise self._unresumable(obstacle, Reason.REFUSED)
        if self._partial.calls >= MOST_CALLS:
            raise self._unresumable(f"{MOST_CALLS} calls have gone on with it.", Reason.GAVE_UP)
        return ResumableStream.on_disconnect(self, why)

    def on_request_failed(self, why: str) -> Reconnect:
        if why != UpstreamUnreachable.__name__:
            raise self._unresumable(f"The call for the rest has no answer ({why}).", Reason.REFUSED)
        return super().on_request_failed(why)

    def on_response(self, status: int, headers: Mapping[str, str], body: bytes) -> Reconnect | Action:
        if status in _NOT_BEGUN:
            return self._reconnect(retry_after(headers), str(status), status)
        if status == 200 and self._is_of_stream(status, headers):
            self._begin_connection("identity")
            self._partial.begin()
            return Action.READ_BODY
        raise self._unresumable(f"The call for the rest was answered {status}.", Reason.REFUSED, status)

    def _take(self, block: Block) -> bool:
        self._out = None
        if block.data is None or block.type in BEATS:
            return True
        self._budget.on_event()
        if self._partial.calls:
            try:
                events = self._partial.rewritten(block.type, block.data)
            except Differs as why:
                raise self._unresumable(str(why), Reason.WRONG_STREAM) from None
            self._out = b"".join(encode(Event(kind, data), None) for kind, data in events)
            self._events += bool(events)
        else:
            self._partial.see(block.type, block.data)
            self._events += 1
        return True

    def _shown(self, block: Block) -> bytes:
        return block.raw if self._out is None else self._out
