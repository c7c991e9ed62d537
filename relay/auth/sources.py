"""Who asks an application of one's own: what `upstreams[].owner` names, in the head of a request.

Promise: no identity here is that of a credential or of a relay's key, nor that of other sources with the same value.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.auth.owners import NOBODY
from relay.protocol.headers import Headers


def identity(sources: Sequence[str], headers: Headers) -> bytes:
    """What the owner of a stream is derived from: all that a request has of these sources, together. NOBODY where it
    has none of them."""
    found: list[bytes] = []
    for source in sources:
        kind, _, name = source.partition(":")
        if kind == "cookie":
            values = _cookies(headers, name.encode())
        else:
            wanted = (name or kind).lower().encode()
            values = [value.strip() for header, value in headers if header == wanted]
        for value in filter(None, values):
            found += [source.encode(), value]
    if not found:
        return NOBODY
    return b"\0app\0" + b"".join(len(part).to_bytes(4) + part for part in found)


def _cookies(headers: Headers, name: bytes) -> list[bytes]:
    """The values of a cookie (RFC 6265, section 4.2.1)."""
    pairs = (pair.partition(b"=") for header, value in headers if header == b"cookie" for pair in value.split(b";"))
    return [value.strip() for key, _, value in pairs if key.strip() == name]
