"""Where an upstream's answer stands, and what follows it exactly: the state machine of `relay.client` for upstreams.

Another relay is one to this relay as to any client of it. Two kinds of upstream more say what stands where in an
answer: those with ids of their own (`id:` lines, `upstreams[].resume: last-event-id`), and those that run a response of
the responses API in the background, whose events are numbered. No I/O.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from relay.client.events import Block, is_terminal
from relay.client.policy import STEADY_CONNECTION, Policy
from relay.client.resumable_stream import Action, Reason, Reconnect, ResumableStream
from relay.protocol.dialect import BEATS
from relay.protocol.upstream_error import is_keep_alive

_ID_LINE = re.compile(rb"^id: ?(.*)$", re.MULTILINE)
_BEGINNINGS = ("message_start", "response.created")
_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})")


class RelayStream(ResumableStream):
    """An answer of another relay. What is handed out has no ids and no `retry:`: they are that relay's own."""

    def _shown(self, block: Block) -> bytes:
        raw = block.raw
        while raw[:4] == b"id: " or raw[:7] == b"retry: ":
            raw = raw[raw.index(b"\n") + 1 :]
        return raw


class OwnIdsStream(ResumableStream):
    """An answer whose events have ids of its upstream's own, pings perhaps among them. One without an id, or with one
    that does not follow the last, is not gone on with, and neither is what begins another answer, whatever its id."""

    def __init__(self, api: str, policy: Policy) -> None:
        super().__init__(api, "", policy)
        self._position = ""
        self._after_cr = False
        self._compares = False  # has this connection still to show that it follows?
        self._resumed = False
        self._recent: deque[bytes] = deque(maxlen=2)

    @property
    def last_event_id(self) -> str:
        return self._position

    @property
    def resumable(self) -> bool:
        """Has it said where it stands?"""
        return bool(self._position)

    def feed(self, data: bytes) -> bytes:
        """Lines may end at CR and CRLF, too (WHATWG HTML, section 9.2.5)."""
        if self._after_cr and data[:1] == b"\n":
            data = data[1:]
        if data:
            self._after_cr = data[-1:] == b"\r"
        return super().feed(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data)

    def on_disconnect(self, why: str | None) -> Reconnect | Action:
        if not self._finished and not self.resumable:
            raise self._unresumable("It has not said where it stands.", Reason.WITHOUT_IDS)
        return super().on_disconnect(why)

    def _begin_connection(self, encoding: str) -> None:
        super()._begin_connection(encoding)
        self._after_cr = False
        self._compares = self._resumed = bool(getattr(self, "_position", ""))

    def _is_of_stream(self, status: int, headers: Mapping[str, str]) -> bool:
        return status == 200 and headers.get("content-type", "").startswith("text/event-stream")

    def _take(self, block: Block) -> bool:
        if block.data is None or block.type in BEATS or is_keep_alive(block.data):
            if self._policy.clock() - self._since >= STEADY_CONNECTION:
                self._budget.on_sign_of_life()
            found = "" if block.data is None else self._position_of(block)
            if found and self._follows(found, self._position):
                self._position = found
            return True
        found = self._position_of(block)
        if self._compares:
            if not (found and self._follows(found, self._position)):
                raise self._wrong_stream(f"Event {found or 'without an id'} came after {self._position}.")
            if self._begins_another(block.data):
                raise self._wrong_stream("The first event of another answer came.")
        self._compares = False
        self._recent.append(block.data)
        if found:
            self._position = found
            self._budget.on_event()
        if block.retry is not None:
            self._reconnection_time = block.retry / 1000
        self._finished = self._finished or block.type == b"error" or is_terminal(self._api, block)
        return True

    def _position_of(self, block: Block) -> str:
        lines = _ID_LINE.findall(block.raw)
        return lines[-1].decode("latin-1") if lines and b"\0" not in lines[-1] else ""

    def _begins_another(self, data: bytes) -> bool:
        """Is this the beginning of another answer, by what it says of itself? Some upstreams name each chunk anew."""
        said, before = _object(data), [_object(known).get("id") for known in self._recent]
        if said.get("type") in _BEGINNINGS:
            return bool(before)
        same = bool(before) and before.count(before[0]) == len(before)
        return self._api == "chat" and same and bool(said.get("id") and before[0]) and said["id"] != before[0]

    @staticmethod
    def _follows(found: str, last: str) -> bool:
        """Of ids of any form another one, and where both are the same text and then a number, the next number."""
        numbers = [_NUMBERED.fullmatch(one) for one in (found, last)]
        if numbers[0] is not None and numbers[1] is not None and numbers[0][1] == numbers[1][1]:
            return int(numbers[0][2]) == int(numbers[1][2]) + 1
        return found != last


class NumberedStream(OwnIdsStream):
    """An answer of the responses API that runs in the background: `response_id` is its response's, None until it is
    known."""

    def __init__(self, policy: Policy) -> None:
        super().__init__("responses", policy)
        self.response_id: str | None = None

    def skip(self, frames: Iterable[bytes]) -> None:
        """These events of it are there."""
        for frame in frames:
            self.feed(frame)
        self._reconnection_time = 0.0  # that of the relay's own readers

    @property
    def resumable(self) -> bool:
        return self.response_id is not None and super().resumable

    def _position_of(self, block: Block) -> str:
        event = _object(block.data or b"")
        number, response = event.get("sequence_number"), event.get("response")
        if isinstance(response, dict) and isinstance(response.get("id"), str):
            if self.response_id is None:
                self.response_id = response["id"]
            elif self._resumed and self.response_id != response["id"]:
                raise self._wrong_stream("An event of another response came.")
        return str(number) if isinstance(number, int) and not isinstance(number, bool) else ""


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object of an event, an empty one for anything else."""
    try:
        found: Any = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
