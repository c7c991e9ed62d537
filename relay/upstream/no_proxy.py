"""Which hosts the environment's `NO_PROXY` keeps from its proxy: names with all below them, addresses, and, as programs
in Go and Java read it, ranges of addresses (`10.0.0.0/8`) and names with `*.` in front.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from yarl import URL


def is_direct(url: URL, proxies: Mapping[str, str]) -> bool:
    """Does the environment's `NO_PROXY` (`no` in `proxies`) name the host of this URL?"""
    if proxy_bypass_environment(f"{url.host}:{url.port}", proxies):
        return True
    host = (url.host or "").rstrip(".").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for word in proxies.get("no", "").split(","):
        given = word.strip().lower()
        if address is not None and _holds(given, address):
            return True
        if given.startswith("*.") and host.endswith(given[1:].rstrip(".")):
            return True
        if given.endswith(".") and given.strip(".") and f".{host}".endswith(f".{given.strip('.')}"):
            return True
    return False


def _holds(given: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(given.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return False
