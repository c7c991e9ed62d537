"""An upstream's answer that sends elsewhere (RFC 9110, section 15.4)."""

from __future__ import annotations

import re

REDIRECTS = (301, 302, 303, 307, 308)
# RFC 3986, section 3: the scheme and the authority without a user in it, or the path where there is no host.
_LOCATION = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*:)?//(?:[^/?#@]*@)?((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]*)?)(?=[/?#]|$)"
    r"|(/[!-\"$->@-~]*)"
)


def redirect(status: int, location: str) -> str:
    """What an answer says that sends elsewhere, where nothing is sent, for a request has a credential and a prompt."""
    found = _LOCATION.match(location[:2000])
    where = "" if found is None else found[3] or f"{found[1] or ''}//{found[2]}"
    to = f" to {where[:200]}" if where else ""
    return f"{status}, a redirect{to}, which is not followed: set its base_url to where it leads"
