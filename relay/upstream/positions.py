"""Where an upstream's answer stands, and what follows it exactly: the state machine of `relay.client` for upstreams.

Another relay is one to this relay as to any client of it. Two kinds of upstream more say what stands where in an
answer: those with ids of their own (`id:` lines, `upstreams[].resume: last-event-id`), and those that run a response of
the responses API in the background, whose events are numbered. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from relay.client.events import Block, is_terminal
from relay.client.policy import STEADY_CONNECTION, Policy
from relay.client.resumable_stream import Action, Reason, Reconnect, ResumableStream
from relay.protocol.dialect import BEATS
from relay.protocol.upstream_error import is_keep_alive

_ID_LINE = re.compile(rb"^id: ?(.*)$", re.MULTILINE)
_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})")


class RelayStream(ResumableStream):
    """An answer of another relay. What is handed out has no ids and no `retry:`: they are that relay's own."""

    def _shown(self, block: Block) -> bytes:
        raw = block.raw
        while raw[:4] == b"id: " or raw[:7] == b"retry: ":
            raw = raw[raw.index(b"\n") + 1 :]
        return raw


class OwnIdsStream(ResumableStream):
    """An answer whose events have ids of its upstream's own. One without an id, or with one that does not follow the
    last, is not gone on with."""

    def __init__(self, api: str, policy: Policy) -> None:
        super().__init__(api, "", policy)
        self._position = ""
        self._after_cr = False
        self._compares = False

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
        self._compares = bool(getattr(self, "_position", ""))

    def _is_of_stream(self, status: int, headers: Mapping[str, str]) -> bool:
        return status == 200 and headers.get("content-type", "").startswith("text/event-stream")

    def _take(self, block: Block) -> bool:
        if block.data is None or block.type in BEATS or is_keep_alive(block.data):
            if self._policy.clock() - self._since >= STEADY_CONNECTION:
                self._budget.on_sign_of_life()
            return True
        found = self._position_of(block)
        if self._compares and not (found and self._follows(found, self._position)):
            raise self._wrong_stream(f"Event {found or 'without an id'} came after {self._position}.")
        self._compares = False
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
        try:
            event: Any = orjson.loads(block.data or b"")
            number = event["sequence_number"]
        except (orjson.JSONDecodeError, TypeError, KeyError):
            return ""
        response = event.get("response")
        if self.response_id is None and isinstance(response, dict) and isinstance(response.get("id"), str):
            self.response_id = response["id"]
        return str(number) if isinstance(number, int) and not isinstance(number, bool) else ""
