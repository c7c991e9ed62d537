"""Credentials that a user makes anew for each request. Two twins, written by hand."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping

Headers = Callable[[], Mapping[str, str]]
AsyncHeaders = Callable[[], Mapping[str, str] | Awaitable[Mapping[str, str]]]


class SyncCredentials:
    """`headers` are called for each request of a stream; what they raise reaches the user as it is."""

    def __init__(self, headers: Headers | None) -> None:
        self._headers = headers

    def fresh(self) -> Mapping[str, str]:
        """The headers to put in the place of the request's own. Raises what the user's function raises."""
        return {} if self._headers is None else self._headers()


class AsyncCredentials:
    """As `SyncCredentials`; the function may be a coroutine's."""

    def __init__(self, headers: AsyncHeaders | None) -> None:
        self._headers = headers

    async def fresh(self) -> Mapping[str, str]:
        """The headers to put in the place of the request's own. Raises what the user's function raises."""
        found = {} if self._headers is None else self._headers()
        return await found if inspect.isawaitable(found) else found
