"""The dialects by name, and those of the three APIs by path."""

from __future__ import annotations

from typing import Literal

from relay.protocol.application import Application
from relay.protocol.chat import Chat
from relay.protocol.dialect import Dialect
from relay.protocol.headers import Headers
from relay.protocol.messages import Messages
from relay.protocol.responses import Responses

ApiName = Literal["chat", "messages", "responses", "sse"]

APPLICATION = Application()
"""Of an answer of an application's of which no more is known."""
DIALECTS: dict[str, Dialect] = {d.name: d for d in (Chat(), Messages(), Responses(), APPLICATION)}
BY_PATH: dict[str, Dialect] = {d.path: d for d in DIALECTS.values() if d.path}


def spoken(api: str, headers: Headers) -> Dialect:
    """The dialect of a stream of this API whose answers have these headers."""
    dialect = DIALECTS[api]
    return dialect.of(headers) if isinstance(dialect, Application) else dialect


def of_path(path: str) -> Dialect:
    """The dialect in which an answer on that path is spelled: the longest of the three paths that it lies
    under; OpenAI's for every other."""
    if path in BY_PATH:
        return BY_PATH[path]
    for known, dialect in BY_PATH.items():
        if path.startswith(known + "/"):
            return dialect
    return DIALECTS["chat"]


def api_label(path: str) -> str:
    """The API of a path as metrics name it: `other` where it is none of the three."""
    return BY_PATH[path].name if path in BY_PATH else "other"
