"""What an answer begins with, without a server."""

from __future__ import annotations

import pytest

from relay.protocol.apis import DIALECTS
from relay.protocol.first_event import FirstEvent

BUSY = b'data: {"error":{"message":"Busy","code":429}}\n'
HI = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n'
DONE = b"data: [DONE]\n"


def first(*parts: bytes, ended: bool = False) -> FirstEvent:
    found = FirstEvent(DIALECTS["chat"], 1024)
    for part in parts:
        found.feed(part)
    if ended:
        found.end()
    return found


@pytest.mark.parametrize(
    "parts",
    [
        (BUSY + b"\n",),
        (BUSY[:9], BUSY[9:], b"\n"),
        (b": x\n\ndata: ping\n\n", BUSY + b"\n"),
        (BUSY + DONE + b"\n",),
        (b"data: ping\n" + BUSY + b"\n",),
    ],
)
def test_an_error(parts: tuple[bytes, ...]) -> None:
    found = first(*parts)
    assert found.refusal is not None
    assert (found.refusal.message, found.refusal.status) == ("Busy", 429)


@pytest.mark.parametrize("parts", [(BUSY,), (BUSY + DONE,), (BUSY + DONE[:5],)])
def test_an_error_without_its_blank_line(parts: tuple[bytes, ...]) -> None:
    found = first(*parts, ended=True)
    assert found.refusal is not None
    assert found.refusal.message == "Busy"


@pytest.mark.parametrize(
    "parts", [(HI + b"\n",), (HI + BUSY + b"\n",), (b"data: {torn\n\n",), (b"data: {\n" + BUSY + b"\n",)]
)
def test_no_error(parts: tuple[bytes, ...]) -> None:
    found = first(*parts)
    assert found.refusal is None
    assert not found.no_answer
    assert found.data


@pytest.mark.parametrize("parts", [(), (b": x\n\n",), (DONE,), (DONE + b"\n",)])
def test_no_answer(parts: tuple[bytes, ...]) -> None:
    assert first(*parts, ended=True).no_answer
