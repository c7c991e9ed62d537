"""An upstream's answer that sends elsewhere (RFC 9110, section 15.4)."""

from __future__ import annotations

from urllib.parse import urlsplit

REDIRECTS = (301, 302, 303, 307, 308)


def redirect(status: int, location: str) -> str:
    """What an answer says that sends elsewhere, where nothing is sent, for a request has a credential and a prompt."""
    try:
        parts = urlsplit(location[:2000])
        scheme = f"{parts.scheme}:" if parts.scheme else ""
        where = f"{scheme}//{parts.netloc.rpartition('@')[2]}" if parts.netloc else parts.path
    except ValueError:
        where = ""
    to = f" to {where[:200]}" if where and where.isascii() and where.isprintable() else ""
    return f"{status}, a redirect{to}, which is not followed: set its base_url to where it leads"
