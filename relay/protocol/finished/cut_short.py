"""JSON that was cut short: what can be read of it."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

# What says where a value ends, and whole strings, in which the same signs say nothing.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{},]', re.S)
_CLOSING = {"{": "}", "[": "]"}
# Signs that are gone through, one by one: so many take some tens of milliseconds.
_MOST = 100_000


def read_cut_short(text: str) -> Any:
    """The value that a beginning of JSON is as far as it goes: a string or a name that is cut is left out, a number
    counts as it stands, as for the parsers of the SDKs. `{}` where nothing can be read."""
    opened: list[str] = []
    end = 0
    for n, token in enumerate(_TOKENS.finditer(text)):
        if n > _MOST:
            return {}
        word = token[0]
        if word in _CLOSING:
            opened.append(word)
        elif word in ("]", "}") and opened:
            opened.pop()
        elif word != ",":
            continue
        end = token.start() if word == "," else token.end()
    closing = "".join(_CLOSING[word] for word in reversed(opened))
    for beginning in (text, text[:end]):
        try:
            return _load(beginning + closing)
        except (ValueError, RecursionError):
            continue
    return {}


def _load(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)
