"""Answers of the three APIs that a test can hold in their middle."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support import streams
from tests.support.scripted import Gate, Step, stream

WORDS = [f"word-{n} " for n in range(1, 41)]
TEXT = "".join(WORDS)
FIRST_HALF = "".join(WORDS[:20])


def answer(api: streams.Api, gate: str, words: Sequence[str] = WORDS) -> tuple[Step, ...]:
    """The words as a stream that waits at the gate after half of them."""
    sent = streams.answer(api, words)
    half = len(words) // 2
    return stream(*sent.before, *sent.words[:half], Gate(gate), *sent.words[half:], *sent.after)
