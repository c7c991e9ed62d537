"""How the paths, the owners and the names of an application's streams are written (`apis: [sse]`)."""

from __future__ import annotations

import fnmatch
import re
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import AfterValidator, Field

_PATH = r"^/[^?#\s]*$"
_SOURCE = r"^(authorization|cookie:[A-Za-z0-9!#$%&'*+.^_`|~-]+|header:[A-Za-z0-9!#$%&'*+.^_`|~-]+)$"
_NAME = r"^\$(\.[A-Za-z_][A-Za-z0-9_-]*|\[[0-9]{1,4}\])+$"
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_-]*)|\[([0-9]{1,4})\]")
RESUME = r"^/[^?#\s{}]*\{name\}[^?#\s{}]*$"
LONGEST_NAME = 128


def _path(text: str) -> str:
    segments = text.split("/")[1:]
    if "**" in segments[:-1]:
        raise ValueError("write ** as the last segment alone, such as /api/**")
    return text


Path = Annotated[str, Field(pattern=_PATH), AfterValidator(_path)]
"""A path; `*` stands for a segment or a part of one, a last `**` for all that is below."""
Source = Annotated[str, Field(pattern=_SOURCE)]
"""Where a request shows whose it is."""
NamePath = Annotated[str, Field(pattern=_NAME)]
"""Where a JSON body has a stream's name: a subset of JSONPath (RFC 9535), members and indexes."""


def matches(pattern: str, path: str) -> bool:
    """`path` as it was sent, without its query. What a segment spells with `%` is what it means."""
    wanted = pattern.split("/")
    given = path.split("/")
    if wanted[-1] == "**":
        wanted.pop()
        if len(given) <= len(wanted):
            return False
        given = given[: len(wanted)]
    return len(given) == len(wanted) and all(
        fnmatch.fnmatchcase(unquote(segment), part) for segment, part in zip(given, wanted, strict=True)
    )


def name_in_path(pattern: str, path: str) -> str | None:
    """What stands for `{name}`, None where the path does not fit."""
    before, _, after = pattern.partition("{name}")
    found = re.fullmatch(re.escape(before) + "([^/]+)" + re.escape(after), path)
    return None if found is None else unquote(found[1])


def name_in_body(path: str, body: Any) -> str | None:
    """The name that a body holds; None where there is none that can be one."""
    for member, index in _STEP.findall(path):
        if member:
            body = body.get(member) if isinstance(body, dict) else None
        else:
            body = body[int(index)] if isinstance(body, list) and int(index) < len(body) else None
    if isinstance(body, int) and not isinstance(body, bool):
        body = str(body)
    return body if isinstance(body, str) and is_name(body) else None


def is_name(name: str) -> bool:
    """Text of 1 to 128 characters that can be shown."""
    return 0 < len(name) <= LONGEST_NAME and name.isprintable() and not any("\ud800" <= c <= "\udfff" for c in name)
