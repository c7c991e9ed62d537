"""When two requests are one: their bodies as canonical JSON, and what it means that a conversation has gone on.

* Members are sorted at every depth: some clients shuffle them from one attempt to the next.
* A number is one by its exact value, or by its spelling: two that a double cannot tell apart are two.
* A member that stands twice is kept twice: which of the two an upstream reads is its own choice.

A conversation goes on where its list of messages begins with the whole of an earlier one's. Clients move their marks
for the upstream's cache, and write a text as a string or as a list of one part: neither makes it another message.

Pure; a large body takes some milliseconds for each MiB, and is left to a thread, in which nothing holds the
interpreter for long.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import orjson

# A decimal of no more characters is told from every other one by its double.
_EXACT_CHARS = 15
_SORTED = orjson.OPT_SORT_KEYS
# Inside a string its quotes would be escaped: neither can match there.
_CACHE_MARK = re.compile(rb'(?<=\{)"cache_control":(?:\{[^{}]*\}|null),?|,"cache_control":(?:\{[^{}]*\}|null)')
_ONE_TEXT = re.compile(rb'"content":\[\{"text":("(?:[^"\\]++|\\.)*+"),"type":"(?:input_)?text"\}\]')


def body_digest(raw: bytes) -> bytes:
    """What stands for a JSON body, of 32 bytes, the same for every spelling of it. One that cannot be read stands for
    itself."""
    try:
        return _digest(json.loads(raw, object_pairs_hook=_members, parse_int=_whole, parse_float=_decimal))
    except (ValueError, TypeError, RecursionError):
        return hashlib.sha256(b"bytes:" + raw).digest()


def _digest(body: Any) -> bytes:
    """Raises TypeError for what the standard library reads and orjson does not write (half of a surrogate pair)."""
    found = hashlib.sha256(b"json:")
    if not isinstance(body, dict):
        found.update(orjson.dumps(body, option=_SORTED))
        return found.digest()
    # In parts: what is large are lists, and one call would hold the interpreter for all of them.
    for name in sorted(body):
        found.update(orjson.dumps(name) + b":")
        value = body[name]
        if isinstance(value, list):
            for item in value:
                found.update(b"-" + orjson.dumps(item, option=_SORTED) + b",")
            found.update(b"]")
        else:
            found.update(orjson.dumps(value, option=_SORTED) + b";")
    return found.digest()


def _members(pairs: list[tuple[str, Any]]) -> Any:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    pairs.sort(key=lambda pair: pair[0])
    spelled = (orjson.dumps(name) + b":" + orjson.dumps(value, option=_SORTED) for name, value in pairs)
    return orjson.Fragment(b"{" + b",".join(spelled) + b"}")


def _whole(text: str) -> Any:
    return int(text) if len(text) <= _EXACT_CHARS else orjson.Fragment(text.encode())


def _decimal(text: str) -> Any:
    exact = len(text) <= _EXACT_CHARS and "e" not in text and "E" not in text
    return float(text) if exact else orjson.Fragment(text.encode())


def messages_of(body: dict[str, Any]) -> list[Any]:
    """The conversation of a request of any of the APIs, empty where it has none that could go on."""
    found = body.get("messages", body.get("input"))
    return found if isinstance(found, list) else []


def prefix_digests(messages: Sequence[Any]) -> list[str]:
    """What stands for the first message, the first two, and so on to all of them; nothing where one of them cannot be
    spelled (see `_digest`): nobody is found to go on from it."""
    digests = []
    so_far = b""
    for message in messages:
        try:
            spelled = orjson.dumps(message, option=_SORTED)
        except TypeError:
            return []
        if b'"cache_control":' in spelled:
            spelled = _CACHE_MARK.sub(b"", spelled)
        if b'"content":[{"text":' in spelled:
            spelled = _ONE_TEXT.sub(rb'"content":\1', spelled)
        so_far = hashlib.sha256(so_far + spelled).digest()
        digests.append(so_far[:12].hex())
    return digests
