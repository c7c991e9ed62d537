"""Clients with a connection pool, as SDKs have one: each uses its connection for request after request, opens the next
where that has been closed, and goes to the next address where it is refused. None tries a request again."""

from __future__ import annotations

import http.client
import json
import select
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.support.clients import TOKEN
from tests.support.oracle import PATH

_BODY = json.dumps({"model": "m", "messages": [], "stream": True})
_HEADERS = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}


class Pooled:
    """So many clients at work, each with its connection. Use it as a context manager, which waits for their ends."""

    def __init__(self, urls: Sequence[str], count: int) -> None:
        self._addresses = [(parts.hostname or "", parts.port or 80) for parts in map(urlsplit, urls)]
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(at,)) for at in range(count)]
        self.seen: Counter[str] = Counter()
        """How often each thing has happened: `whole` answers, other statuses, `cut` and `dropped` ones."""
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _count(self, what: str) -> None:
        with self._lock:
            self.seen[what] += 1

    def _work(self, at: int) -> None:
        # Half of them ask again as soon as they can, the others leave their connection idle for a little.
        pause = 0.003 * (at % 2)
        connection = self._connection(at)
        while not self._over.wait(pause):
            if connection.sock is None or select.select([connection.sock], [], [], 0)[0]:
                connection.close()
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    at += 1
                    connection = self._connection(at)
                    continue
            self._count(_ask(connection))
        connection.close()

    def _connection(self, at: int) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self._addresses[at % len(self._addresses)], timeout=20)


def _ask(connection: http.client.HTTPConnection) -> str:
    try:
        connection.request("POST", PATH, _BODY, _HEADERS)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return f"dropped: {type(error).__name__}"
    if answer.status != 200:
        return f"{answer.status}: {body[:300]!r}"
    return "whole" if body.endswith(b"data: [DONE]\n\n") else "cut"
