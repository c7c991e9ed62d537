"""JSON-RPC over server-sent events, as MCP has it (Model Context Protocol, "Streamable HTTP").

The answer to a POST ends with the responses to its requests; what a GET opens has no end of its own, and a server may
close it at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from relay.protocol.dialect import JsonObject
from relay.protocol.ends import END
from relay.protocol.event_format import EVENT, EventFormat, FormatWatch
from relay.protocol.sse import Event

Id = str | int
_SERVER_ERROR = -32000


def requests_of(body: bytes) -> tuple[Id, ...]:
    """The ids of the requests in a JSON-RPC body; none where it is none."""
    if b'"jsonrpc"' not in body:
        return ()
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ()
    messages = parsed if isinstance(parsed, list) else [parsed]
    return tuple(m["id"] for m in messages if isinstance(m, dict) and "method" in m and _is_id(m.get("id")))


def _is_id(given: object) -> bool:
    return isinstance(given, str | int) and not isinstance(given, bool)


class JsonRpcWatch(FormatWatch):
    """`pending` are the ids of the requests that are not answered yet."""

    stateless_deltas = False  # each has an id

    def __init__(self, pending: Sequence[Id]) -> None:
        super().__init__()
        self.grammar = "ended events" if pending else "events"
        self.pending = list(pending)
        self._rpc = JsonRpc(self.pending)
        self.format = self._rpc

    def see(self, event: Event) -> int:
        """The bits of an event (`relay.protocol.ends`)."""
        if not self.pending or not (b'"result"' in event.data or b'"error"' in event.data):
            return EVENT
        try:
            parsed = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            return EVENT
        for message in parsed if isinstance(parsed, list) else [parsed]:
            if isinstance(message, dict) and "method" not in message and message.get("id") in self.pending:
                self.pending.remove(message["id"])
        return EVENT | (0 if self.pending else END)

    def stop_events(self, request_id: str) -> list[Event]:
        """An error for each request: there is no other answer that is no whole one."""
        return self._rpc.error_events("stopped", "The stream was stopped by its owner.", None, request_id)


class JsonRpc(EventFormat):
    """Spells an error as the response to each request that is not answered; where there is none, as a message for the
    client's log."""

    def __init__(self, pending: Sequence[Id] = ()) -> None:
        self._pending = pending

    def watch(self, *, hide_usage: bool = False, choices: int = 1) -> JsonRpcWatch:
        """A watch for one stream."""
        return JsonRpcWatch(self._pending)

    def error_events(
        self,
        code: str,
        message: str,
        sequence: int | None,
        request_id: str,
        *,
        kind: str = "",
        response: JsonObject | None = None,
    ) -> list[Event]:
        """As of `Dialect`."""
        error = {"code": _SERVER_ERROR, "message": message, "data": {"relay": code}}
        told: list[JsonObject] = [{"jsonrpc": "2.0", "id": each, "error": error} for each in self._pending]
        said = {"level": "error", "logger": "relay", "data": {"message": message, "code": code}}
        log = {"jsonrpc": "2.0", "method": "notifications/message", "params": said}
        return [Event(b"message", orjson.dumps(body)) for body in told or [log]]
