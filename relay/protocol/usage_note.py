"""A stream's usage as its log notes it: tokens given, a slash, tokens made."""

from __future__ import annotations


def read_usage(note: str) -> dict[str, int] | None:
    """None where nothing is noted."""
    given, _, made = note.partition("/")
    return {"input_tokens": int(given), "output_tokens": int(made)} if made else None
