"""The log of streams, in the relay's words: make, look, read, renew, seal. Appending is `streams.commit`.

Layout, one hash tag per stream:

* `relay:{<stream id>}:log`  the Redis stream. Entry `<n>-0` holds event n as the field `f`, the frame as it
  goes to clients; entry `<n>-1` is the end mark behind event n, its field `end` the outcome. What a seal adds
  has the fields `s`, `t` and `sealed` instead (see `seal.lua`). With `store.encryption_env` each content is
  sealed (see `cipher`).
* `relay:{<stream id>}:meta` a hash: api, owner, upstream, model, fence, top, lease, born, seen, visits,
  ttl, and at the end `end` and `ended`. It outlives the log by `streams.tombstone`.
* the shard channel of the log's name rings when something was appended.

Beside the streams: `relay:name:{…}` gives a stream a further name (an idempotency key, a response's id),
`relay:replicas` and `relay:replica:{…}` say which replica runs which streams, for the sweep; the shard channel
of the latter's name carries stream ids that the replica is to stop. `store.prefix` stands for `relay:`.

All times are the store's own clock: no replica's clock matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import redis.exceptions

from relay.config import StoreSettings, StreamSettings
from relay.protocol.errors import KeyMissing, StoreUnavailable
from relay.store import scripts
from relay.store.cipher import SEALED, Tampered
from relay.store.link import REROUTE, StoreDown
from relay.store.names import Names
from relay.store.scripts import Script
from relay.store.topology import Topology

logger = logging.getLogger(__name__)

_ATTEMPTS = 2
_PAGE = 256
_RECENT_BYTES = 32 << 20  # of pages kept for readers who come together, as after a proxy's restart
_RENEWED_AT_ONCE = 500
_NO_WRITES = ("MISCONF", "NOREPLICAS")  # as a server says that can neither save nor find its replicas


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
    replica: str
    usage: str


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive events: `frames` are those after the position asked for, `outcome` is the end mark or "".
    `gap` is True where the log no longer holds the next one."""

    frames: list[bytes]
    outcome: str
    gap: bool
    full: bool

    @property
    def size(self) -> int:
        return sum(map(len, self.frames))


def _plain(entries: list[Any], after: int) -> list[bytes]:
    """The frames, where entries are the next events and nothing else, none of them sealed; else none. Ids only rise, so
    the first and the last of them say that all are there."""
    if not entries or entries[0][0] != b"%d-0" % (after + 1) or entries[-1][0] != b"%d-0" % (after + len(entries)):
        return []
    frames = [content for _, (field, content) in entries if field == b"f"]
    return frames if len(frames) == len(entries) and SEALED not in {frame[:1] for frame in frames} else []


class Log:
    """The log on a topology. Every call raises StoreUnavailable where the store cannot be reached."""

    def __init__(self, topology: Topology, streams: StreamSettings, store: StoreSettings) -> None:
        self.topology = topology
        self.settings = streams
        self.outage = store.outage
        self.names = Names(store.prefix)
        self.cipher = store.cipher()
        self._refused_at = float("-inf")  # when the store last took no writes
        self._recent: OrderedDict[tuple[str, int], Page] = OrderedDict()
        self._recent_bytes = 0
        self._pages: dict[tuple[str, int], asyncio.Future[Any]] = {}

    async def create(self, stream: str, fields: dict[str, str]) -> None:
        settings = self.settings
        longest = settings.max_duration + settings.retention + settings.tombstone
        flat = [part for item in fields.items() for part in item]
        await self._run(
            self.names.meta(stream),
            scripts.CREATE,
            [self.names.meta(stream)],
            [millis(settings.lease), millis(longest), "fence", "1", *flat],
        )

    async def look(self, stream: str, *, attached: bool = False, owner: str | None = None) -> Status | None:
        """What a stream is, None where it is unknown, or not of the `owner` that is given. `attached` tells its
        producer of a reader here."""
        args = ["1" if attached else "0", *([] if owner is None else [owner])]
        reply = await self._run(
            self.names.log(stream), scripts.LOOK, [self.names.meta(stream), self.names.log(stream)], args
        )
        if reply is None:
            return None
        top, outcome, lease, kept, born, ended, *texts = reply
        fence, api, owner, upstream, model, replica, usage = (t.decode() for t in texts)
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
            replica=replica,
            usage=usage,
        )

    async def visit(self, stream: str) -> None:
        """A reader has come to a stream that another replica produces."""
        await self._run(self.names.log(stream), scripts.LOOK, [self.names.meta(stream), self.names.log(stream)], ["2"])

    async def visits(self, stream: str) -> int:
        """How many such there were."""
        return int(await self._call(self.names.meta(stream), "HGET", self.names.meta(stream), "visits") or 0)

    async def read(self, stream: str, after: int) -> Page:
        """The next events after a position. Readers at the same position share one call, and whoever comes to it soon
        after them their page, where it is a full one: what is in it does not change."""
        key = (stream, after)
        if (recent := self._recent.get(key)) is not None:
            self._recent.move_to_end(key)
            return recent
        future = self._pages.get(key)
        if future is None:
            future = asyncio.ensure_future(self._read(stream, after))
            self._pages[key] = future
            future.add_done_callback(lambda _: self._pages.pop(key, None))
        page: Page = await asyncio.shield(future)
        if page.full and not page.gap and key not in self._recent:
            self._recent[key] = page
            self._recent_bytes += page.size
            while self._recent_bytes > _RECENT_BYTES:
                self._recent_bytes -= self._recent.popitem(last=False)[1].size
        return page

    async def _read(self, stream: str, after: int) -> Page:
        key = self.names.log(stream)
        entries = await self._call(key, "XRANGE", key, f"({after}-0", "+", "COUNT", _PAGE)
        if not self.cipher.names and (plain := _plain(entries, after)):
            return Page(plain, "", False, len(entries) == _PAGE)
        frames: list[bytes] = []
        outcome = ""
        gap = False
        seal = 0  # how many of the frames are a seal's
        for entry_id, (field, content) in entries:
            if not frames and field in (b"t", b"sealed"):
                gap = True  # the position is one of an event that the store lost, not of this seal
                break
            n = int(entry_id.partition(b"-")[0])
            try:
                content = self._open(stream, entry_id, n, field, content)
            except Tampered:
                gap = True
                break
            if field in (b"end", b"sealed"):
                outcome = content.decode()
                break
            if n != after + len(frames) + 1:
                gap = True
                break
            frames.append(content)
            seal += field in (b"s", b"t")
        if seal and not outcome and not gap:
            del frames[-seal:]  # a page never ends inside a seal
        if outcome and int(entries[-1][0].partition(b"-")[0]) != after + len(frames):
            outcome, gap = "", True
        return Page(frames, outcome, gap, len(entries) == _PAGE)

    def _open(self, stream: str, entry_id: bytes, n: int, field: bytes, content: bytes) -> bytes:
        try:
            return self.cipher.open(stream, n, field, content)
        except KeyMissing as error:
            logger.error(
                "stream %s: entry %s was sealed under key %s; give this replica that key, too (store.encryption_env)",
                stream,
                entry_id.decode(),
                error.key,
            )
            raise
        except Tampered:
            logger.error("stream %s: entry %s is not what a relay has put there", stream, entry_id.decode())
            raise

    async def last_frame(self, stream: str) -> bytes:
        """The last event's frame, empty where there is none that can be read."""
        key = self.names.log(stream)
        for entry_id, (field, content) in await self._call(key, "XREVRANGE", key, "+", "-", "COUNT", 2):
            if field not in (b"end", b"sealed"):
                with contextlib.suppress(KeyMissing, Tampered):
                    return self._open(stream, entry_id, int(entry_id.partition(b"-")[0]), field, content)
        return b""

    async def renew(self, streams: list[tuple[str, str]]) -> list[tuple[int, float]]:
        """Renew leases (stream, fence): for each its code and the seconds since a reader elsewhere was seen."""
        size = 1 if self.topology.sharded else _RENEWED_AT_ONCE
        batches = [streams[i : i + size] for i in range(0, len(streams), size)]
        replies = await asyncio.gather(*(self._renew(batch) for batch in batches))
        return [(code, ago / 1000) for reply in replies for code, ago in reply]

    async def _renew(self, batch: list[tuple[str, str]]) -> Any:
        keys = [self.names.meta(stream) for stream, _ in batch]
        args = [millis(self.settings.lease), *(fence for _, fence in batch)]
        return await self._run(keys[0], scripts.RENEW, keys, args)

    async def seal(
        self, stream: str, expected_top: int, outcome: str, frames: list[bytes], *, force: bool = False
    ) -> tuple[int, int]:
        """End a stream whose producer is lost (`force`: even if it is not). Answers (code, top)."""
        first = expected_top + 1
        end: bytes | str = outcome
        if (sealer := self.cipher.sealer(stream)) is not None:
            frames = [sealer.event(n, b"s" if n == first else b"t", frame) for n, frame in enumerate(frames, first)]
            end = sealer.end(expected_top + len(frames), b"sealed", outcome)
        args: list[Any] = [expected_top, outcome, millis(self.settings.retention), millis(self.settings.tombstone)]
        args += ["1" if force else "0", end, *frames]
        keys = [self.names.log(stream), self.names.meta(stream)]
        code, top = await self._run(keys[0], scripts.SEAL, keys, args)
        return code, top

    async def secret(self, fresh: bytes) -> bytes:
        """The deployment's secret: the first replica's `fresh` bytes, the same for all that share the store."""
        key = self.names.secret
        await self._call(key, "SET", key, fresh, "NX")
        kept: bytes = await self._call(key, "GET", key)
        return kept

    # -- further names of a stream --------------------------------------------------------------------------

    async def claim(self, name: str, stream: str, digest: str) -> tuple[str, str]:
        """Give a name to a stream, once: (stream, digest) of the one that has it, this or an earlier one."""
        key = self.names.further(name)
        longest = self.settings.max_duration + self.settings.retention
        reply = await self._run(key, scripts.CLAIM, [key], [stream, digest, millis(longest)])
        return reply[0].decode(), reply[1].decode()

    async def rename(self, name: str, stream: str) -> None:
        """Give a name to a stream, whichever had it before."""
        key = self.names.further(name)
        longest = self.settings.max_duration + self.settings.retention
        await self._call(key, "HSET", key, "stream", stream, "digest", "")
        await self._call(key, "PEXPIRE", key, millis(longest))

    async def release(self, name: str, stream: str) -> None:
        """Take a name back from a stream that never came to be."""
        key = self.names.further(name)
        await self._run(key, scripts.RELEASE, [key], [stream])

    async def named(self, name: str) -> str | None:
        """The stream that has a name."""
        key = self.names.further(name)
        found = await self._call(key, "HGET", key, "stream")
        return None if found is None else found.decode()

    # -- replicas -------------------------------------------------------------------------------------------

    async def sign(self, replica: str, lost_after: float) -> list[str]:
        """A replica's sign of life; the replicas that have given none for so many seconds."""
        lost = await self._run(self.names.replicas, scripts.SIGN, [self.names.replicas], [replica, millis(lost_after)])
        return [name.decode() for name in lost]

    async def runs(self, replica: str, stream: str) -> None:
        """Note that a replica runs a stream, before the stream is made: a lost replica's streams can be found."""
        key = self.names.replica(replica)
        await self._call(key, "SADD", key, stream)

    async def ran(self, replica: str, stream: str) -> None:
        key = self.names.replica(replica)
        await self._call(key, "SREM", key, stream)

    async def streams_of(self, replica: str) -> list[str]:
        key = self.names.replica(replica)
        return [stream.decode() for stream in await self._call(key, "SMEMBERS", key)]

    async def forget(self, replica: str) -> None:
        await self._call(self.names.replicas, "ZREM", self.names.replicas, replica)

    async def tell_to_stop(self, replica: str, stream: str) -> None:
        """Tell a replica to stop a stream that it runs."""
        key = self.names.replica(replica)
        await self._call(key, "SPUBLISH", key, stream)

    def up_for(self, stream: str) -> float:
        """For how many seconds the stream's server has been in reach and, for all that is known here, has taken writes:
        while it took none, no lease could be renewed."""
        since = self.topology.node_of(self.names.log(stream)).query.up_since
        return 0.0 if since is None else time.monotonic() - max(since, self._refused_at)

    async def _run(self, key: bytes, script: Script, keys: list[bytes], args: list[Any]) -> Any:
        return await self._call(key, "EVALSHA", script.sha, len(keys), *keys, *args)

    async def _call(self, key: bytes, *command: Any) -> Any:
        """One command on the node of a key. All of them may be repeated, so a lost reply is asked for again."""
        for attempt in range(_ATTEMPTS):
            try:
                if attempt:
                    await self.topology.refresh()
                return await self.topology.node_of(key).query.call(*command)
            except (StoreDown, *REROUTE):
                continue
            except redis.exceptions.ResponseError as error:
                if isinstance(error, redis.exceptions.OutOfMemoryError) or str(error).startswith(_NO_WRITES):
                    self._refused_at = time.monotonic()
                raise StoreUnavailable() from error
        raise StoreUnavailable()
