"""Frames of HTTP/2 as they arrive: how large a head may be before it is whole, and how often a peer may send what
costs the server work and brings nothing.

Every frame is counted where its bytes are read, whatever its type: PING, SETTINGS, PRIORITY, RST_STREAM, WINDOW_UPDATE,
one that nobody knows, DATA of next to nothing, and what follows the first frame of a head. Requests, and frames of
answers that the peer takes, earn as many as any client needs for them. Who sends more is told ENHANCE_YOUR_CALM, and
its connection is closed.
"""

from __future__ import annotations

import time
from typing import Any

from h2.errors import ErrorCodes
from h2.exceptions import FrameTooLargeError, ProtocolError
from h2.frame_buffer import FrameBuffer
from hyperframe.frame import DataFrame, Frame, HeadersFrame, SettingsFrame

# At once, and so many more each second. (nghttp2 has 1000 and 33.)
_BURST = 4000
_PER_SECOND = 400
# For each request, and each frame of an answer. (Envoy has ten WINDOW_UPDATE for each frame of an answer, and nothing
# for the PING with which gRPC measures the line.)
_EARNED = 10
# A smaller frame of DATA is one of those that are counted, or earns nothing.
SMALL = 64
# How many frames SETTINGS count for: h2 goes through all streams for them.
_SETTINGS = 20
# So much is read before others have their turn: a request is worth eight frames that bring nothing, of which one takes
# 10 to 20 microseconds.
_TURN = 64
_REQUEST = 8
# Of a head as it is on the wire: with a frame that is not whole yet it is 64 KiB.
_MAX_HEAD = 48 * 1024


class Flood(ProtocolError):
    """Too many frames."""

    error_code = ErrorCodes.ENHANCE_YOUR_CALM


class Frames(FrameBuffer):
    """h2's buffer of what has arrived, with bounds that it lacks: it waits for the end of a frame of 16 MiB before it
    says that this is too long, and a head may have 64 frames of any size."""

    def __init__(self) -> None:
        super().__init__(server=True)
        self._left = float(_BURST)
        self._counted = time.monotonic()
        self._head = 0
        self._newest = 0
        self._turn = 0

    @property
    def is_over_turn(self) -> bool:
        """Has no more been read for now, though there may be more?"""
        return self._turn <= 0

    def add_data(self, data: Any) -> None:
        self._turn = _TURN
        super().add_data(data)

    def earn(self) -> None:
        if self._left < _BURST:
            self._left += _EARNED

    def __next__(self) -> Frame:
        if self.is_over_turn:
            raise StopIteration
        if len(self._data) >= 3:
            self._validate_frame_length(int.from_bytes(self._data[:3]))
        return super().__next__()

    def _validate_frame_length(self, length: int) -> None:
        if length > self.max_frame_size:
            raise FrameTooLargeError(f"a frame of {length} bytes")

    def _update_header_buffer(self, frame: Frame | None) -> Frame | None:
        if frame is not None:
            self._count(frame)
        whole = super()._update_header_buffer(frame)
        if self._headers_buffer:
            self._head += 0 if frame is None else frame.body_len
            if self._head > _MAX_HEAD:
                raise ProtocolError(f"a head of more than {_MAX_HEAD} bytes")
        else:
            self._head = 0
        return whole

    def _count(self, frame: Frame) -> None:
        self._turn -= 1
        if isinstance(frame, DataFrame) and len(frame.data) >= SMALL:
            return
        if isinstance(frame, HeadersFrame) and frame.stream_id > self._newest:
            self._newest = frame.stream_id
            self._turn -= _REQUEST - 1
            self.earn()
            return
        self._left -= _SETTINGS if isinstance(frame, SettingsFrame) else 1
        if self._left < 0:
            now = time.monotonic()
            self._left = min(_BURST, self._left + (now - self._counted) * _PER_SECOND)
            self._counted = now
            if self._left < 0:
                raise Flood("too many frames that bring nothing")
