"""The event streams of an application of one's own (`apis: [sse]`): in any format, which its answer tells.

The AI SDK's is known by its header; another one by the first event that has data. What is none that is known is plain.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.protocol import ag_ui, ui_messages
from relay.protocol.chat import Chat
from relay.protocol.dialect import Dialect, JsonObject, Watch
from relay.protocol.ends import KEEP_ALIVE, PART, TOKEN
from relay.protocol.event_format import EVENT, EventFormat, FormatWatch, loose_object
from relay.protocol.headers import Headers, value
from relay.protocol.json_rpc import Id, JsonRpc
from relay.protocol.messages import Messages
from relay.protocol.openai_streams import MEDIA, Completions, Media
from relay.protocol.outcomes import StreamFailure
from relay.protocol.plain_events import PlainEvents
from relay.protocol.responses import Responses
from relay.protocol.sse import Event

_OBJECTS: dict[str, Dialect] = {"chat.completion.chunk": Chat(), "text_completion": Completions()}
_COPIED = ("usage", "response", "last_sequence", "error")


class Application(EventFormat):
    """The dialect of one request's answer. `end` is the type or the data of the event with which a plain stream has to
    end, `requests` are the ids of the JSON-RPC requests that it answers."""

    name = "sse"

    def __init__(self, end: bytes = b"", requests: Sequence[Id] = ()) -> None:
        self.end = end
        self.requests = requests

    def of(self, headers: Headers) -> EventFormat:
        """What spells the relay's own ends to readers of an answer with these headers."""
        return _UI_MESSAGES if value(headers, ui_messages.HEADER) is not None else self

    def watch(self, *, hide_usage: bool = False, choices: int = 1) -> ApplicationWatch:
        """A watch for one stream."""
        return ApplicationWatch(self)

    def recognise(self, event: Event) -> Dialect:
        """The format of a stream that begins with this event."""
        given = loose_object(event.data)
        kind = given.get("type")
        if given.get("jsonrpc") == "2.0":
            return JsonRpc(self.requests)
        if isinstance(kind, str):
            if kind in ag_ui.EVENTS:
                return ag_ui.AgUi()
            if kind == "message_start":
                return Messages()
            if kind == "response.created":
                return Responses()
            if kind.startswith(MEDIA):
                return Media()
        found = given.get("object")
        if isinstance(found, str) and found in _OBJECTS and isinstance(given.get("choices"), list):
            return _OBJECTS[found]
        return PlainEvents(self.end)

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
        """Of a stream that has not said what it is."""
        spelled = JsonRpc(self.requests) if self.requests else PlainEvents(self.end)
        return spelled.error_events(code, message, sequence, request_id, kind=kind, response=response)


_UI_MESSAGES = ui_messages.UiMessages()


class ApplicationWatch(FormatWatch):
    """Follows a stream as the watch of its format does, once that is known; until then it is plain. Its first event is
    its first token, and its error goes on as it is."""

    def __init__(self, dialect: Application) -> None:
        super().__init__()
        self._dialect = dialect
        self._inner: Watch | None = None
        self._plain = PlainEvents(dialect.end).watch()
        self._begun = False
        self.grammar = self._plain.grammar
        if dialect.requests:  # what answers JSON-RPC is JSON-RPC
            self._follow(JsonRpc(dialect.requests))

    def begin(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """The head of the answer is there."""
        spoken = self._dialect.of(list(headers))
        if spoken is not self._dialect:
            self._follow(spoken)

    def _follow(self, spoken: Dialect) -> Watch:
        inner = self._inner = spoken.watch()
        self.format = inner.format or spoken
        self.grammar = inner.grammar
        self.stateless_deltas = inner.stateless_deltas
        return inner

    def see(self, event: Event) -> int:
        """The bits of an event (`relay.protocol.ends`)."""
        inner = self._inner
        if inner is None:
            if not event.data:  # an event that only says where the stream stands
                return EVENT
            inner = self._follow(self._dialect.recognise(event))
        try:
            bits = inner.see(event)
        except StreamFailure:  # beside what is of its format an application may send what it likes
            bits = EVENT
        if bits & KEEP_ALIVE:
            bits = EVENT
        if not self._begun:
            self._begun = True
            bits |= TOKEN
        if bits | PART != TOKEN | PART:
            for name in _COPIED:
                setattr(self, name, getattr(inner, name))
        return bits

    def left_out(self, request_id: str) -> list[Event]:
        """As of `Watch`."""
        return [] if self._inner is None else self._inner.left_out(request_id)

    def stop_events(self, request_id: str) -> list[Event]:
        """As of `Watch`."""
        return (self._inner or self._plain).stop_events(request_id)
