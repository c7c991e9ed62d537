"""An answer that broke off, gone on with by another call: its text stands as the last message of the conversation, the
assistant's, and what the upstream generates behind it is the rest (`upstreams[].continue: prefill`).

    a request    → `carries`: is there nothing in it that such an answer would lose?
    its events   → `Partial.see`: what has come of the answer, and whether it is text alone
    the rest     → `continued`: the request for it
    its events   → `Partial.rewritten`: as events of the answer that broke off

Nothing here is guessed. A member of a request, or a part of an answer, that is not known to be carried is not; and what
the upstream is known to send once more (all of the text, or the white space at its end) has to come, and is dropped.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any, Literal

from relay.protocol.chat import ChatWatch
from relay.protocol.dialect import JsonObject, Watch, dump_json, parse_count, parse_object
from relay.protocol.ends import DONE_LINE, END, ERROR, FAILURE, FINISH, KEEP_ALIVE, USAGE
from relay.protocol.json_edit import edited
from relay.protocol.json_scan import Layout, Member
from relay.protocol.messages import MessagesWatch
from relay.protocol.outcomes import StreamFailure
from relay.protocol.sse import Event

Prefill = Literal["continue_final_message", "prefix", "prefix_echoed", "message"]
"""What tells an upstream of chat completions that the last message is to be gone on with."""

APIS = frozenset(("chat", "messages"))
LOCATED = ("messages", "max_tokens", "max_completion_tokens", "continue_final_message", "add_generation_prompt")
"""The members of a request that `continued` sets: its layout has to be a scan's for these."""

_LIMITS = ("max_tokens", "max_completion_tokens")
# What holds of the rest of an answer as it does of its beginning.
_CARRIED = frozenset(
    ("model", "messages", "system", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature",
     "top_p", "top_k", "min_p", "seed", "random_seed", "stop", "stop_sequences", "presence_penalty",
     "frequency_penalty", "repetition_penalty", "repeat_penalty", "logit_bias", "user", "metadata", "store",
     "service_tier", "safety_identifier", "prompt_cache_key", "cache_prompt", "cache_control", "safe_prompt", "tools",
     "functions", "parallel_tool_calls")
)  # fmt: skip
# … and what does where it says this.
_CARRIED_AS: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "tool_choice": ("auto", "none", {"type": "auto"}, {"type": "none"}),
    "function_call": ("auto", "none"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "thinking": ({"type": "disabled"},),
}
# Of a chunk, what its SDKs take for that of the whole answer.
_OF_THE_ANSWER = ("id", "created", "model", "system_fingerprint", "service_tier", "provider")
_SPACE = " \t\r\n\v\f"
_NO_PART = KEEP_ALIVE | DONE_LINE | ERROR
_OVER = FINISH | USAGE | END | DONE_LINE | FAILURE | ERROR


class Differs(Exception):
    """What has come does not go on where the answer broke off; the text says why, and quotes nothing."""


def carries(api: str, body: JsonObject) -> bool:
    """May an answer to this request be gone on with? A member that is null, false or empty asks for nothing."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if api not in APIS or not isinstance(last, dict) or last.get("role") in (None, "assistant", "model"):
        return False
    return all(not value or name in _CARRIED or value in _CARRIED_AS.get(name, ()) for name, value in body.items())


def continued(raw: bytes, layout: Layout, partial: Partial) -> bytes:
    """The request for the rest: these bytes, with the answer's text as the last message and with so many tokens less.
    `layout` is a scan's of them, for LOCATED. Raises Differs where they are no request that `carries` has seen."""
    where = {member.name: member for member in layout.members}
    messages = where.get("messages")
    at = raw.rfind(b"]", messages.start, messages.stop) if messages is not None else -1
    if at < 0 or layout.end < 0 or layout.repeated() is not None:
        raise Differs("Its request cannot be read.")
    message: JsonObject = {"role": "assistant", "content": partial.sent()}
    patch: JsonObject = {}
    if isinstance(partial, ChatPartial):
        if partial.prefill == "continue_final_message":
            patch |= {"continue_final_message": True, "add_generation_prompt": False}
        elif partial.prefill in ("prefix", "prefix_echoed"):
            message["prefix"] = True
    for name in _LIMITS:
        if name in where:
            limit = parse_count(_value(raw, where[name]))
            if limit is not None:
                if limit <= partial.tokens:
                    raise Differs("It has as many tokens as its request allows.")
                patch[name] = limit - partial.tokens_sent()
    added = b"," + dump_json(message)

    def moved(place: int) -> int:
        return place + len(added) if place > at else place

    members = [Member(member.name, moved(member.start), moved(member.stop)) for member in layout.members]
    whole = raw[:at] + added + raw[at:]
    return b"".join(edited(whole, Layout(members, moved(layout.end), empty=False), patch))


def _value(raw: bytes, member: Member) -> Any:
    try:
        return json.loads(raw[member.start : member.stop])
    except ValueError:
        return None


class Partial(ABC):
    """What has come of one answer.

    `tokens` is how many it has, as far as that is known: a piece of text has one at least. `over` says that an end has
    come, its own or an error's, or something behind the text that no other call can bring; `calls` counts the calls
    that have gone on with it.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.over = False
        self.calls = 0
        self._text: list[str] = []
        self._uncarried = ""
        self._expected = ""
        self._since = 0
        self._watch = self._new_watch()

    @property
    def obstacle(self) -> str:
        """Why it cannot be gone on with, empty where it can. A call that brought no text is followed by no other."""
        if self._uncarried:
            return self._uncarried
        if not self.sent():
            return "It has no text yet."
        if self.calls and len(self._text) == self._since:
            return "A call that went on with it has brought no text."
        try:
            self.text.encode()
        except UnicodeEncodeError:
            return "Its text has half a character."
        return self._obstacle()

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._text)

    def sent(self) -> str:
        """Its text as it is sent upstream: without white space at its end, which some refuse and some templates cut
        off, so that the model would write it a second time."""
        return self.text.rstrip(_SPACE)

    def tokens_sent(self) -> int:
        """How many tokens of it are in what is sent."""
        at_the_end = next((n for n, piece in enumerate(reversed(self._text)) if piece.strip(_SPACE)), 0)
        return max(self.tokens - at_the_end, 0)

    def begin(self) -> None:
        """From now on `rewritten` is given the events of the rest."""
        self.calls += 1
        self._since = len(self._text)
        self._expected = self._sent_again()
        self._watch = self._new_watch()
        self._begin()

    @abstractmethod
    def _begin(self) -> None:
        """The rest begins."""

    def _obstacle(self) -> str:
        return ""

    def _sent_again(self) -> str:
        """What the rest begins with, and the client has."""
        return self.text[len(self.sent()) :]

    def see(self, kind: bytes, data: bytes) -> None:
        """An event of the answer: its type and its data."""
        if self._uncarried or self.over:
            return
        try:
            bits = self._watch.see(Event(kind, data))
        except StreamFailure:
            self._uncarried = "It has events that are not of its API's format."
            return
        if not bits & _NO_PART:
            self._see(parse_object(data), kind)
        self.over = self.over or bool(bits & _OVER)

    def rewritten(self, kind: bytes, data: bytes) -> list[Event]:
        """What an event of the rest is to the client. Raises Differs."""
        try:
            bits = self._watch.see(Event(kind, data))
        except StreamFailure:
            raise Differs("The rest has events that are not of its API's format.") from None
        found = [Event(kind, data)]
        if not bits & _NO_PART:
            event = parse_object(data)
            found = [Event(kind, dump_json(event))] if self._rewrite(event, kind) else []
        if self._uncarried:
            raise Differs(self._uncarried)
        if bits & _OVER and not bits & ERROR:
            self._all_came()
        self.over = self.over or bool(bits & _OVER)
        return found

    def _new(self, text: str) -> str:
        """What is new of a piece of the rest's text. Raises Differs."""
        if self._expected:
            if not text.startswith(self._expected[: len(text)]):
                raise Differs("The rest does not begin where the text ends.")
            known = min(len(text), len(self._expected))
            text, self._expected = text[known:], self._expected[known:]
        return text

    def _all_came(self) -> None:
        """There is no more text. White space at its end need not come again. Raises Differs."""
        if self._expected.strip(_SPACE):
            raise Differs("The rest does not begin with the text that it was sent.")

    def _add(self, text: str) -> None:
        if text:
            self._text.append(text)
            self.tokens += 1

    @abstractmethod
    def _new_watch(self) -> Watch: ...

    @abstractmethod
    def _see(self, event: JsonObject, kind: bytes) -> None: ...

    @abstractmethod
    def _rewrite(self, event: JsonObject, kind: bytes) -> bool:
        """Make an event of the rest one of the answer's. Is there anything left of it?"""


class ChatPartial(Partial):
    """Of chat completions."""

    def __init__(self, prefill: Prefill) -> None:
        super().__init__()
        self.prefill = prefill
        self._first: JsonObject = {}
        self._before = 0

    def _begin(self) -> None:
        self._before = self.tokens

    def _new_watch(self) -> Watch:
        return ChatWatch(hide_usage=False, choices=1)

    def _sent_again(self) -> str:
        return self.text if self.prefill == "prefix_echoed" else super()._sent_again()

    def _see(self, event: JsonObject, kind: bytes) -> None:
        delta = self._delta(event)
        if delta is not None:
            self._first = self._first or event
            self._add(delta.get("content") or "")
            self._count(event)

    def _delta(self, event: JsonObject) -> JsonObject | None:
        """The one choice's, None where there is none; what cannot be carried is noted."""
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices:
            return None
        choice = choices[0]
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if len(choices) > 1 or not isinstance(delta, dict) or choice.get("index") not in (None, 0):
            self._uncarried = "It has more than one text."
            return None
        more = {name for name, value in delta.items() if value and name not in ("role", "content")}
        if self.calls and more == {"tool_calls"}:
            # It follows the text that was gone on with, and whatever breaks now would lose it.
            self._all_came()
            self.over = True
        elif more or choice.get("logprobs") or not isinstance(delta.get("content", ""), str | None):
            self._uncarried = "It has more than text."
            return None
        return delta

    def _count(self, event: JsonObject) -> None:
        """Some tell with each chunk how many tokens there are."""
        usage = event.get("usage")
        counted = parse_count(usage.get("completion_tokens")) if isinstance(usage, dict) else None
        if counted is not None:
            self.tokens = self._before + counted

    def _rewrite(self, event: JsonObject, kind: bytes) -> bool:
        delta = self._delta(event)
        event |= {name: self._first[name] for name in _OF_THE_ANSWER if name in event and name in self._first}
        if delta is None:
            return True
        delta.pop("role", None)
        if text := delta.get("content"):
            delta["content"] = self._new(text)
            self._add(delta["content"])
        self._count(event)
        return any(delta.values()) or bool(event["choices"][0].get("finish_reason")) or bool(event.get("usage"))


class MessagesPartial(Partial):
    """Of messages: one block of text, which is open."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks = 0
        self._closed = False

    def _obstacle(self) -> str:
        return "Its text is whole." if self._closed else ""

    def _begin(self) -> None:
        self._blocks = 0

    def _new_watch(self) -> Watch:
        return MessagesWatch()

    def _see(self, event: JsonObject, kind: bytes) -> None:
        self._add(self._text_of(event, _type(event, kind)))

    def _text_of(self, event: JsonObject, named: str) -> str:
        """The text of an event that belongs to the first block; what cannot be carried is noted."""
        if named == "content_block_start":
            self._blocks += 1
            block = event.get("content_block")
            only = isinstance(block, dict) and block.get("type") == "text" and not block.get("text")
            if self._blocks > 1 or event.get("index") != 0 or not only:
                self._uncarried = "It has more than one block of text."
        elif named == "content_block_delta":
            delta = event.get("delta")
            text = delta.get("text") if isinstance(delta, dict) and delta.get("type") == "text_delta" else None
            if event.get("index") == 0 and isinstance(text, str):
                return text
            self._uncarried = "It has more than one block of text."
        elif named == "content_block_stop":
            self._closed = True
        elif named == "message_delta":
            self.over = True
        return ""

    def _rewrite(self, event: JsonObject, kind: bytes) -> bool:
        """Only the first block of the rest is a part of one that the client has."""
        named = _type(event, kind)
        if named == "message_start":
            return False
        if self._closed:
            self.over = self.over or named == "message_delta"
            return True
        text = self._text_of(event, named)
        if self._closed or named == "message_delta":
            self._all_came()
        if named == "content_block_delta" and not self._uncarried:
            text = event["delta"]["text"] = self._new(text)
            self._add(text)
            return bool(text)
        return named != "content_block_start"


def _type(event: JsonObject, kind: bytes) -> str:
    return str(event.get("type") or kind.decode("utf-8", "replace"))
