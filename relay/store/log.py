"""The log of streams, in the relay's words: make, look, read, renew, seal. Appending is `streams.commit`.

Layout, one hash tag per stream:

* `relay:{<stream id>}:log`  the Redis stream. Entry `<n>-0` holds event n as the field `f`, the frame as it
  goes to clients; entry `<n>-1` is the end mark behind event n, its field `end` the outcome.
* `relay:{<stream id>}:meta` a hash: api, owner, upstream, model, fence, top, lease, born, seen, ttl, and at
  the end `end` and `ended`. It outlives the log by `streams.tombstone`.
* the shard channel of the log's name rings when something was appended.

All times are the store's own clock: no replica's clock matters.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import redis.exceptions

from relay.config import StreamSettings
from relay.protocol.errors import StoreUnavailable
from relay.store import scripts
from relay.store.link import REROUTE, StoreDown
from relay.store.scripts import Script
from relay.store.topology import Topology

_ATTEMPTS = 3
_PAGE = 256
_RENEWED_AT_ONCE = 500
SECRET_KEY = "relay:secret"


def log_key(stream: str) -> bytes:
    return b"relay:{%b}:log" % stream.encode()


def meta_key(stream: str) -> bytes:
    return b"relay:{%b}:meta" % stream.encode()


def millis(seconds: float) -> int:
    return int(seconds * 1000)


@dataclass(frozen=True, slots=True)
class Status:
    """What a stream is: `top` its last event, `outcome` how it ended or "", `lease_left` in seconds (below 0:
    its producer is lost), `kept` False where its events have expired, `born` and `ended` Unix seconds."""

    stream: str
    top: int
    outcome: str
    lease_left: float
    kept: bool
    born: float
    ended: float
    fence: str
    api: str
    owner: str
    upstream: str
    model: str
    response_id: str


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive events: `frames` are those after the position asked for, `outcome` is the end mark or "".
    `gap` is True where the log no longer holds the next one."""

    frames: list[bytes]
    outcome: str
    gap: bool
    full: bool


class Log:
    """The log on a topology. Every call raises StoreUnavailable where the store cannot be reached."""

    def __init__(self, topology: Topology, streams: StreamSettings, outage: str) -> None:
        self.topology = topology
        self.settings = streams
        self.outage = outage
        self._pages: dict[tuple[str, int], asyncio.Future[Any]] = {}

    async def create(self, stream: str, fields: dict[str, str]) -> None:
        settings = self.settings
        longest = settings.max_duration + settings.retention + settings.tombstone
        flat = [part for item in fields.items() for part in item]
        await self._run(
            stream,
            scripts.CREATE,
            [meta_key(stream)],
            [millis(settings.lease), millis(longest), "fence", "1", *flat],
        )

    async def look(self, stream: str, *, attached: bool = False) -> Status | None:
        """What a stream is, None where it is unknown. `attached` tells its producer of a reader here."""
        reply = await self._run(stream, scripts.LOOK, [meta_key(stream), log_key(stream)], ["1" if attached else "0"])
        if reply is None:
            return None
        top, outcome, lease, kept, born, ended, *texts = reply
        fence, api, owner, upstream, model, response = (t.decode() for t in texts)
        return Status(
            stream=stream,
            top=top,
            outcome=outcome.decode(),
            lease_left=lease / 1000,
            kept=bool(kept),
            born=born / 1000,
            ended=ended / 1000,
            fence=fence,
            api=api,
            owner=owner,
            upstream=upstream,
            model=model,
            response_id=response,
        )

    async def read(self, stream: str, after: int) -> Page:
        """The next events after a position. Readers at the same position share one call."""
        key = (stream, after)
        future = self._pages.get(key)
        if future is None:
            future = asyncio.ensure_future(self._read(stream, after))
            self._pages[key] = future
            future.add_done_callback(lambda _: self._pages.pop(key, None))
        page: Page = await asyncio.shield(future)
        return page

    async def _read(self, stream: str, after: int) -> Page:
        entries = await self._call(stream, "XRANGE", log_key(stream), f"({after}-0", "+", "COUNT", _PAGE)
        frames: list[bytes] = []
        outcome = ""
        gap = False
        for entry_id, (field, content) in entries:
            if field == b"end":
                outcome = content.decode()
                break
            if int(entry_id.partition(b"-")[0]) != after + len(frames) + 1:
                gap = True
                break
            frames.append(content)
        if outcome and int(entries[-1][0].partition(b"-")[0]) != after + len(frames):
            outcome, gap = "", True
        return Page(frames, outcome, gap, len(entries) == _PAGE)

    async def last_frame(self, stream: str) -> bytes:
        """The last event's frame, empty where there is none."""
        for _, (field, content) in await self._call(stream, "XREVRANGE", log_key(stream), "+", "-", "COUNT", 2):
            if field == b"f":
                return bytes(content)
        return b""

    async def renew(self, streams: list[tuple[str, str]]) -> list[tuple[int, float]]:
        """Renew leases (stream, fence): for each its code and the seconds since a reader elsewhere was seen."""
        size = 1 if self.topology.sharded else _RENEWED_AT_ONCE
        batches = [streams[i : i + size] for i in range(0, len(streams), size)]
        replies = await asyncio.gather(*(self._renew(batch) for batch in batches))
        return [(code, ago / 1000) for reply in replies for code, ago in reply]

    async def _renew(self, batch: list[tuple[str, str]]) -> Any:
        keys = [meta_key(stream) for stream, _ in batch]
        args = [millis(self.settings.lease), *(fence for _, fence in batch)]
        return await self._run(batch[0][0], scripts.RENEW, keys, args)

    async def seal(
        self, stream: str, expected_top: int, outcome: str, frames: list[bytes], *, force: bool = False
    ) -> tuple[int, int]:
        """End a stream whose producer is lost (`force`: even if it is not). Answers (code, top)."""
        code, top = await self._run(
            stream,
            scripts.SEAL,
            [log_key(stream), meta_key(stream)],
            [
                expected_top,
                outcome,
                millis(self.settings.retention),
                millis(self.settings.tombstone),
                "1" if force else "0",
                *frames,
            ],
        )
        return code, top

    async def secret(self, fresh: bytes) -> bytes:
        """The deployment's secret: the first replica's `fresh` bytes, the same for all that share the store."""
        await self._call(SECRET_KEY, "SET", SECRET_KEY, fresh, "NX", raw_key=True)
        kept: bytes = await self._call(SECRET_KEY, "GET", SECRET_KEY, raw_key=True)
        return kept

    def up_for(self, stream: str) -> float:
        """For how many seconds the stream's server has been in reach."""
        since = self.topology.node_of(log_key(stream)).query.up_since
        return 0.0 if since is None else time.monotonic() - since

    async def _run(self, stream: str, script: Script, keys: list[bytes], args: list[Any]) -> Any:
        return await self._call(stream, "EVALSHA", script.sha, len(keys), *keys, *args)

    async def _call(self, stream: str, *command: Any, raw_key: bool = False) -> Any:
        """One command on the node of a stream. All of them may be repeated, so a lost reply is asked for again."""
        key = stream.encode() if raw_key else log_key(stream)
        for attempt in range(_ATTEMPTS):
            try:
                if attempt:
                    await self.topology.refresh()
                return await self.topology.node_of(key).query.call(*command)
            except (StoreDown, *REROUTE):
                continue
            except redis.exceptions.ResponseError as error:
                raise StoreUnavailable() from error
        raise StoreUnavailable()
