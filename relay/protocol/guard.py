"""Which browsers' requests are a page's of somebody else, where no credential says who asks.

A page that its user merely looks at can send requests to every address that its browser reaches, a machine's own
loopback among them. It cannot read the answers without CORS, but a request that spends money has done so by then. And
with a name of its own that it lets point to that address (DNS rebinding) it is of the same origin, and reads them too.
So the name under which a server is asked has to be one of its own, and the page's origin, too, or one that CORS allows.

What browsers say of themselves (`Origin`, `Sec-Fetch-Site`, `Host`) no page can change. Programs that are no browsers
say what they like: against them this is no defence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from relay.protocol.errors import HostNotAllowed, OriginNotAllowed, UnsupportedMediaType
from relay.protocol.headers import Headers, value

READS = ("host", "origin", "sec-fetch-site", "sec-fetch-mode")
"""The headers that say what it needs to know."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_PORT = re.compile(r":[0-9]*$")
# Fetch standard, "CORS-safelisted request-header": a page sends these without asking first. No kind at all is one, too.
_UNASKED = ("", "text/plain", "application/x-www-form-urlencoded")


def is_loopback(address: str) -> bool:
    """Is `host:port` one that only this machine reaches?"""
    host = _host(address.strip().lower())
    return host in LOOPBACK or host in ("::1", "[::1]") or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None


def hosts_of(address: str, named: Sequence[str]) -> tuple[str, ...]:
    """The patterns of a server's names: those that were set, else on loopback its own and the usual ones. Elsewhere a
    proxy in front may give it any, so it is any."""
    if named:
        return tuple(pattern.lower() for pattern in named)
    return (_host(address.lower()), *LOOPBACK) if is_loopback(address) else ("*",)


class Guard:
    """`hosts` are patterns of names, with a port or for every port."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = tuple(pattern.replace("[", "[[]") for pattern in hosts)  # an address, no set of characters

    def check(self, headers: Headers, *, allowed: bool = False, navigates: bool = False) -> None:
        """Raises HostNotAllowed, OriginNotAllowed.

        Args:
            headers: the request's; names are lower-case.
            allowed: CORS allows the page's origin.
            navigates: whoever follows a link comes in, too: no page reads what is answered.
        """
        host = (value(headers, b"host") or b"").decode("latin-1").lower()
        if not any(fnmatchcase(host, each) or fnmatchcase(_host(host), each) for each in self._hosts):
            raise HostNotAllowed
        if allowed:
            return
        site = value(headers, b"sec-fetch-site")
        followed = navigates and value(headers, b"sec-fetch-mode") == b"navigate"
        if site is not None and site.strip().lower() not in (b"same-origin", b"none") and not followed:
            raise OriginNotAllowed
        origin = value(headers, b"origin")
        if origin is not None and site is None and not _is_same(origin.decode("latin-1").lower(), host):
            raise OriginNotAllowed


def check_kind(kind: str, *, json: bool) -> None:
    """A body's `Content-Type`; `json` where the path takes nothing else. Raises UnsupportedMediaType for one that a
    page may send without asking first."""
    kind = kind.partition(";")[0].strip().lower()
    if kind != "application/json" if json else kind in _UNASKED:
        raise UnsupportedMediaType


def _host(authority: str) -> str:
    return _PORT.sub("", authority)


def _is_same(origin: str, host: str) -> bool:
    """Is an origin that of the server at `host`? A proxy in front may speak the other scheme."""
    scheme, _, authority = origin.partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme)
    return port is not None and authority.removesuffix(port) == host.removesuffix(port)
