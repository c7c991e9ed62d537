"""Where a request carries a credential: which headers and which parameters of a query may hold one, and what it shows.

An upstream, or a gateway behind the relay, takes its callers' credentials from names that the relay does not know them
all by. So a name counts by what it says (`x-goog-api-key`, `cf-access-client-secret`, `?sig=`), not only where it is
listed. A name too many tells two clients apart who are one; a name too few lets one read the other's streams.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable

from relay.protocol import query as queries
from relay.protocol.name_cache import NameCache

HEADERS = frozenset((b"authorization", b"x-api-key", b"api-key"))
"""Those of the APIs themselves."""

# By the words of a name. Short ones count only where they stand alone (`x-goog-api-key`, and no `x-keyboard`).
_WORDS = re.compile(
    r".*(?:apikey|appkey|accesskey|secret|credential|passw|authori[sz]|authent|bearer|jwt|signature|token(?!s)|auth$|"
    r"(?:^|-)(?:key|keys|auth|oauth|sig|vk|pat|pwd|sas)(?:-|$)).*|x-portkey-config"
)
# Not who asks, but which request, page or part of a cache this is: another value may come with every request.
_OF_SOMETHING_ELSE = re.compile(
    r".*(?:idempotency|dedup|csrf|xsrf|websocket|cache-?key|sort-?key|partition-?key|routing-?key|affinity|"
    r"(?:page|paging|next|continuation|cursor|sync)-?token|token-(?:count|limit|budget|usage)).*"
)
_PARAMETERS = frozenset(("code",))  # Azure's functions
_LONGEST_NAME = 128


@functools.lru_cache(maxsize=1024)
def _says_so(name: str) -> bool:
    return _WORDS.fullmatch(name) is not None and _OF_SOMETHING_ELSE.fullmatch(name) is None


def is_header(name: bytes) -> bool:
    """May a header of this name, in lower case, hold a credential?"""
    return name in HEADERS or (len(name) <= _LONGEST_NAME and _says_so(name.decode("latin-1").replace("_", "-")))


@functools.cache  # what differs is the settings' to say
def _holders(further: frozenset[bytes], any_name: bool) -> NameCache[int]:
    """0 for a header that holds no credential, 2 for one in which a scheme may stand before it, else 1."""

    def kind(given: bytes) -> int:
        name = given.lower()
        if name in HEADERS or name in further or (any_name and is_header(name)):
            return 1 if name in (b"x-api-key", b"api-key") else 2
        return 0

    return NameCache(kind)


def is_parameter(name: str) -> bool:
    """May a parameter of a query hold one? `name` is as it stands there."""
    plain = queries.name_of(name).lower().replace("_", "-").replace(".", "-")
    return plain in _PARAMETERS or (len(plain) <= _LONGEST_NAME and _says_so(plain))


def without_credentials(query: str, key: bytes = b"") -> str:
    """A query as it goes upstream beside a key of the relay's own: without what may be a credential, and without the
    `key` that was shown, wherever that stands. What else is in it is as it was."""
    if not query:
        return query
    return "".join(
        before + part
        for before, part, name in queries.parts(query)
        if not is_parameter(name) and not (key and key in queries.decoded(part))
    ).lstrip("&;")


def shown(
    headers: Iterable[tuple[bytes, bytes]], further: Collection[bytes] = (), query: str = "", *, any_name: bool = True
) -> bytes:
    """The credential that a request carries, whichever header or parameter it came in; empty where there is none.

    Several different ones count together: sharing one of them does not make two clients one owner. `further` are names
    of headers that hold one, too, whatever they say; without `any_name` only those and the APIs' own count.
    """
    found: set[bytes] = set()
    kinds = _holders(frozenset(further), any_name)
    for name, v in headers:
        if kind := kinds[name]:
            whole = v.strip()
            scheme, _, token = whole.partition(b" ")
            found.add(token.strip() if kind == 2 and scheme.lower() == b"bearer" else whole)
    if query and any_name:
        # No header can hold a NUL, and what stands for owners of other kinds begins with one.
        found.update(
            queries.decoded(part.partition("=")[2]).strip().replace(b"\0", b"%00")
            for _, part, name in queries.parts(query)
            if is_parameter(name)
        )
    return b"\0".join(sorted(found - {b""}))
