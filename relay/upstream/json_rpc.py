"""The answer to JSON-RPC requests of a server with ids of its own (MCP, "Resumability and Redelivery"): what follows an
event is asked for with GET. A server may close the connection of a request at any time, and means that. No I/O.

The position is that of the last message. What a server says at the beginning of a further connection may stand behind
messages that it has sent to nobody: the official SDK's does, of those that come while it replays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relay.client.events import Block
from relay.client.policy import Policy
from relay.client.resumable_stream import Action, Reason, Reconnect
from relay.protocol.json_rpc import Id, JsonRpcWatch
from relay.protocol.sse import Event
from relay.upstream.positions import OwnIdsStream

_PASSING = (408, 425, 429)


class RpcStream(OwnIdsStream):
    """`requests` are the ids of the requests that it answers."""

    def __init__(self, requests: Sequence[Id], policy: Policy) -> None:
        super().__init__("sse", policy)
        self._watch = JsonRpcWatch(requests)

    def on_response(self, status: int, headers: Mapping[str, str], body: bytes) -> Reconnect | Action:
        """As of `ResumableStream`. Raises Unresumable: a server that keeps no events refuses."""
        if 400 <= status < 500 and status not in _PASSING:
            raise self._unresumable(f"Answered {status}.", Reason.REFUSED, status)
        return super().on_response(status, headers, body)

    def _take(self, block: Block) -> bool:
        if block.retry is not None:
            self._reconnection_time = block.retry / 1000
        if block.data is None:
            return True
        again, found = bool(self._position), self._position_of(block)
        if found and (block.data or not again):
            self._position = found
        if not block.data:  # it only says where the stream stands: once is enough
            return not again
        self._budget.on_event()
        self._watch.see(Event(block.type, block.data))
        self._finished = not self._watch.pending
        return True
