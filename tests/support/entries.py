"""A stream's log as it stands in the store, beside every relay: as bytes, and what was compact in full."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis

from relay.protocol.compact import COMPACT, Restorer

Entry = tuple[str, dict[str, bytes]]


def raw_entries(client: redis.Redis, stream: str, *, newest: bool = False) -> list[Entry]:
    """As bytes, also where the client decodes what it is given; or the newest alone."""
    words = ("XREVRANGE", "+", "-", "COUNT", 1) if newest else ("XRANGE", "-", "+")
    command = (words[0], f"relay:{{{stream}}}:log", *words[1:])
    found: Any = client.execute_command(*command, NEVER_DECODE=True)  # type: ignore[no-untyped-call]
    return [(entry.decode(), {key.decode(): value for key, value in dict(fields).items()}) for entry, fields in found]


def in_full(stream: str, contents: Iterable[bytes]) -> list[bytes]:
    """The frames of a log's first events, of what their entries hold."""
    restorer, frames = Restorer(stream), [b""]
    for n, content in enumerate(contents, 1):
        compact = content.startswith(COMPACT)
        frames.append(restorer.restore(n, content, frames.__getitem__) if compact else content)
    return frames[1:]


def entries_in_full(client: redis.Redis, stream: str, *, newest: bool = False) -> list[Entry]:
    """All of a log; of its newest entry alone not what it holds."""
    entries = raw_entries(client, stream, newest=newest)
    if newest:
        return [(entry, dict.fromkeys(fields, b"")) for entry, fields in entries]
    frames = iter(in_full(stream, (fields["f"] for _, fields in entries if "f" in fields)))
    return [(entry, {"f": next(frames)} if "f" in fields else fields) for entry, fields in entries]
