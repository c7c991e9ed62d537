"""What an application's own event stream may be, beside the streams of the three APIs: the common part of its formats.

An application may send anything, so nothing of it is malformed and every event is forwarded: a `Watch` here never
raises, and says only what an event means for the stream's end.
"""

from __future__ import annotations

from abc import abstractmethod

import orjson

from relay.protocol.dialect import JsonObject, OpenAIErrors, Watch
from relay.protocol.ends import PART, TOKEN
from relay.protocol.sse import COMMENT_LINE, Event
from relay.protocol.upstream_error import UpstreamError, read_object

EVENT = TOKEN | PART
"""Any event of an application: the first one is the stream's first token."""


class FormatWatch(Watch):
    """Follows a stream in one of these formats; its events may be empty, and half of one looks like a whole one."""

    grammar = "events"
    verbatim = True

    def fail(self, error: UpstreamError) -> None:
        """Keep the application's own error, which its clients read as it is."""
        self.error = error
        self.readable = True


class EventFormat(OpenAIErrors):
    """Spells the relay's own ends in one format. Its refusals are those of the relay's own paths."""

    name = "sse"
    path = ""
    event_heartbeat = COMMENT_LINE

    @abstractmethod
    def watch(self, *, hide_usage: bool = False, choices: int = 1) -> Watch:
        """A watch for one stream."""

    @abstractmethod
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

    def asked_for_usage(self, body: JsonObject) -> bool:
        """No application is asked for usage."""
        return False

    def ask_for_usage(self, body: JsonObject) -> JsonObject | None:
        """None: as above."""
        return None


def loose_object(data: bytes) -> JsonObject:
    """The JSON object that an event's data holds, an empty one for anything else."""
    if data[:1] != b"{":
        return {}
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def own_error(data: bytes) -> UpstreamError:
    """What the data of an event says that is known to tell an error."""
    found = read_object(loose_object(data), named=True) if data[:1] == b"{" else None
    text = data.decode("utf-8", "replace").strip()[:2000]
    return found or UpstreamError(text or "The application has told an error without words.")
