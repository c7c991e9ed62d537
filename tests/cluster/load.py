"""Clients under which everything is done: each asks for streams, one after the other, and compares every byte of them.

Half of them have a pool of connections, the one that SDKs have, and use one for request after request; the others open
one for each request. Whoever is cut comes back by Last-Event-ID. What event n of a stream must carry is the oracle's of
every fault (tests/support/oracle.py).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.support.oracle import DONE, PATH, frame
from tests.support.threaded import LoopThread

_PAUSE = 0.5
_SILENCE = 60.0
_LONGEST = 300.0


class Wrong(Exception):
    """What no client may see."""


@dataclass
class Seen:
    """Of one stream, over all its connections."""

    stream: str | None = None
    last: int = 0
    end: str | None = None
    """`done`, or the code of the error that told its end."""
    resumes: int = 0
    logged: bool = True
    """Without its store the relay begins streams that it does not log: they have no ids, and cannot be resumed."""

    @property
    def position(self) -> str:
        return f"{self.stream}.{self.last}"

    def take(self, block: bytes, events: int) -> None:
        """One event as it came, with its blank line. Raises Wrong."""
        lines = block.splitlines(keepends=True)
        ids = [line[4:].strip().decode() for line in lines if line.startswith(b"id: ")]
        # The first event of an answer also says how soon to come back.
        rest = b"".join(line for line in lines if not re.fullmatch(rb"id: .*\n|retry: \d+\n", line))
        error = _error(rest)
        if self.end is None and error is not None:
            self.end = error  # the relay tells the end itself, which takes no number
            return
        if self.end not in (None, "done") and rest == DONE and ids == ([f"{self.position}e"] if self.logged else []):
            return
        if self.end is not None:
            raise Wrong(f"after the end of {self.position}: {block!r}")
        if bool(ids) != self.logged:
            raise Wrong(f"an event with{'' if ids else 'out'} an id after {self.position}: {block!r}")
        if ids:
            self._check(ids[0])
        self.last += 1
        wanted = frame(self.last) if self.last <= events else DONE
        if rest != wanted:
            raise Wrong(f"event {self.position} is {rest!r} instead of {wanted!r}")
        if wanted == DONE:
            self.end = "done"

    def _check(self, identifier: str) -> None:
        stream, _, number = identifier.rpartition(".")
        if self.stream is None:
            self.stream = stream
        if stream != self.stream:
            raise Wrong(f"{identifier} in the stream {self.stream}")
        if int(number) != self.last + 1:
            raise Wrong(f"{'doubled' if int(number) <= self.last else 'lost'}: {identifier} after {self.last}")


def _error(data: bytes) -> str | None:
    if b'"error"' not in data:
        return None
    text = data.partition(b"data: ")[2]
    return str(json.loads(text)["error"]["code"])


@dataclass
class Load:
    """What its clients have seen."""

    url: str
    at_once: int = 40
    events: int = 100
    millis: int = 100
    streams: list[Seen] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    refused: dict[bool, list[str]] = field(default_factory=lambda: {True: [], False: []})
    """By whether the client has a pool: requests that were answered with another status than 200, or not at all."""
    _over: bool = False

    @property
    def begun(self) -> int:
        return len(self.streams)

    @property
    def running(self) -> int:
        return sum(seen.end is None and seen.last > 0 for seen in self.streams)

    @property
    def ends(self) -> Counter[str]:
        return Counter(seen.end or "none" for seen in self.streams)

    @property
    def all_refused(self) -> list[str]:
        return [*self.refused[True], *self.refused[False]]

    def stop(self) -> None:
        """No new streams; those that run go on to their ends."""
        self._over = True

    async def run(self) -> None:
        timeout = httpx.Timeout(_SILENCE, connect=20)
        kept, single = httpx.Limits(keepalive_expiry=60), httpx.Limits(max_keepalive_connections=0)
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=timeout, limits=kept, trust_env=False) as pool,
            httpx.AsyncClient(base_url=self.url, timeout=timeout, limits=single, trust_env=False) as without,
        ):
            await asyncio.gather(*(self._client(pool if at % 2 else without, at) for at in range(self.at_once)))

    async def _client(self, client: httpx.AsyncClient, at: int) -> None:
        await asyncio.sleep(at * self.events * self.millis / 1000 / self.at_once)
        while not self._over:
            seen = Seen()
            self.streams.append(seen)
            deadline = time.monotonic() + _LONGEST
            try:
                while seen.end is None and time.monotonic() < deadline:
                    await self._visit(client, seen, at)
            except Wrong as wrong:
                self.wrong.append(str(wrong))
                await asyncio.sleep(_PAUSE)

    async def _visit(self, client: httpx.AsyncClient, seen: Seen, at: int) -> None:
        """One request, and its answer up to its end or the next cut."""
        asked = "resume" if seen.stream else "new"
        refused = self.refused[bool(at % 2)]
        headers = {"authorization": f"Bearer sk-{at}"} | ({"last-event-id": seen.position} if seen.stream else {})
        body = {"model": f"count-{self.events}-{self.millis}", "stream": True, "messages": []}
        try:
            async with client.stream("POST", PATH, json=body, headers=headers) as answer:
                if answer.status_code == 200:
                    seen.resumes += asked == "resume"
                    asked = ""
                    seen.stream = seen.stream or answer.headers["relay-stream-id"]
                    seen.logged = answer.headers["relay-resumable"] == "true"
                    await self._read(answer, seen)
                else:
                    refused.append(f"{asked}: {answer.status_code} {(await answer.aread()).decode()[:200]}")
        except httpx.TransportError as error:
            if asked:
                refused.append(f"{asked}: {error!r}")
        if seen.end is None and not seen.logged:
            seen.end = "cut without a log"
        if seen.end is None:
            await asyncio.sleep(_PAUSE)

    async def _read(self, answer: httpx.Response, seen: Seen) -> None:
        unread = b""
        async for data in answer.aiter_raw():
            unread += data
            while unread:
                if unread.startswith(b":"):  # a heartbeat
                    _, found, rest = unread.partition(b"\n")
                    if found:
                        unread = rest.removeprefix(b"\n")
                        continue
                    break
                block, found, rest = unread.partition(b"\n\n")
                if not found:
                    break
                unread = rest
                seen.take(block + b"\n\n", self.events)
        if seen.end is None:
            raise Wrong(f"a clean end without a terminal event after {seen.position}")


@contextmanager
def load(url: str, at_once: int = 40, events: int = 100, millis: int = 100) -> Iterator[Load]:
    """On a loop of its own. At the end of the block no new streams are begun, and those that run are waited for."""
    with LoopThread() as thread:
        found = Load(url, at_once, events, millis)
        running = thread.submit(found.run())
        try:
            yield found
        finally:
            found.stop()
            running.result(_LONGEST + 60)
