"""The query of a request's target, as upstreams may read it, and its parts as they were sent."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BETWEEN = re.compile(r"([&;])")
_ENCODED = re.compile(rb"%([0-9A-Fa-f]{2})")


def parts(query: str) -> Iterator[tuple[str, str, str]]:
    """What stands before a part (`&`, or `;`, which some servers take for it), the part as it was sent, its name."""
    before = ""
    for i, part in enumerate(_BETWEEN.split(query)):
        if i % 2:
            before = part
        else:
            yield before, part, part.partition("=")[0]


def decoded(text: str) -> bytes:
    """What stands for itself in a name or a value, in a query of visible ASCII."""
    raw = text.replace("+", " ").encode("latin-1")
    return _ENCODED.sub(lambda found: bytes((int(found[1], 16),)), raw) if b"%" in raw else raw


def name_of(text: str) -> str:
    """A name, decoded as often as the most eager server does, and without the index of a list (`ids[]`)."""
    for _ in range(3):
        text = decoded(text).decode("latin-1")
    return text.strip().partition("[")[0]
