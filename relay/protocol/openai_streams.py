"""OpenAI's other event streams: images, transcripts, speech, and the completions of old."""

from __future__ import annotations

import re

import orjson

from relay.protocol.chat import Chat, ChatWatch
from relay.protocol.dialect import DONE, STOPPED, JsonObject, dump_json, openai_error
from relay.protocol.ends import END, FAILURE
from relay.protocol.event_format import EVENT, EventFormat, FormatWatch, loose_object
from relay.protocol.sse import Event
from relay.protocol.upstream_error import read_object

MEDIA = ("image_generation.", "image_edit.", "transcript.text.", "speech.audio.")
# OpenAI's own API writes the type first. Others write it behind what may be a megabyte of a picture.
_TYPE_FIRST = re.compile(rb'\{\s*"type"\s*:\s*"([^"\\]*)"')
_PARTS = (b".partial_image", b".delta", b".segment")
_ENDS = ("image_generation.completed", "image_edit.completed", "transcript.text.done", "speech.audio.done")


class MediaWatch(FormatWatch):
    """An answer of several images ends several times."""

    grammar = "ended events"

    def __init__(self) -> None:
        super().__init__()
        self.format = Media()

    def see(self, event: Event) -> int:
        """The bits of an event (`relay.protocol.ends`)."""
        first = _TYPE_FIRST.match(event.data)
        if first is not None and first[1].endswith(_PARTS) and event.type != b"error":
            return EVENT
        given = loose_object(event.data)
        if given.get("type") in _ENDS:
            return EVENT | END
        error = read_object(given, named=event.type == b"error")
        if error is not None:
            self.fail(error)
            return EVENT | FAILURE
        return EVENT

    def stop_events(self, request_id: str) -> list[Event]:
        """An error: half an image, and half a recording, are no answers."""
        return Media().error_events(STOPPED, "The stream was stopped by its owner.", None, request_id)


class Media(EventFormat):
    """Spells an error as an event of the type `error`."""

    def watch(self, *, hide_usage: bool = False, choices: int = 1) -> MediaWatch:
        """A watch for one stream."""
        return MediaWatch()

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
        error = openai_error(message, kind or "server_error", code)
        return [Event(b"error", orjson.dumps({"type": "error", "error": error}))]


class CompletionWatch(ChatWatch):
    """As a chat stream, but for the object in which it is cut short."""

    def stop_events(self, request_id: str) -> list[Event]:
        """A last chunk with `finish_reason: "length"`, then `[DONE]`."""
        chunk = {
            "id": self.response_id or f"cmpl-{request_id}",
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}],
            "relay": STOPPED,
        }
        return [Event(b"", dump_json(chunk)), Event(b"", DONE)]


class Completions(Chat):
    """Spells ends as the chat API does."""

    name = "sse"
    path = ""

    def watch(self, *, hide_usage: bool = False, choices: int = 1) -> CompletionWatch:
        """A watch for one stream."""
        return CompletionWatch(hide_usage, choices)
