"""What is said of a header by its name alone. Clients and upstreams send the same few names with every request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

LONGEST_NAME = 256
"""No name of any API is longer."""
_MOST = 1024


class NameCache(dict[bytes, _T]):
    """Looked into as a dict: for a known name that is no call. It is bounded, for strangers choose the names."""

    def __init__(self, say: Callable[[bytes], _T]) -> None:
        self._say = say

    def __missing__(self, name: bytes) -> _T:
        said = self._say(name)
        if len(name) <= LONGEST_NAME:
            if len(self) >= _MOST:
                self.clear()
            self[name] = said
        return said
