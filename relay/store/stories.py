"""What an operator can be told of streams: which there are, and what has happened to each.

* `relay:{<stream id>}:meta` has, beside what the log needs, `about` (see there), `story` (a JSON object a line: `at` in
  milliseconds since 1970, `what`, and more) and `n:<replica>`, how many readers a replica had when it last told
  something; without it the producer's has one. `trace` is the `traceparent` of its span, where there are traces.
* `relay:recent` the streams that ended last. Those that run are in the lists of their replicas (`store.directory`).

Nothing here is a promise: what a store, or a replica that was killed, has lost of it stays lost. Nothing is asked of
the store for an event, and for a stream that begins and ends with one reader nothing at all. `store.prefix` stands
for `relay:`. Every call but `tell` raises StoreUnavailable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from relay.config import StreamSettings
from relay.protocol.errors import StoreUnavailable
from relay.store import scripts
from relay.store.commands import Commands, millis
from relay.store.names import Names

STOP_BY_OPERATOR = "operator-stop"
"""The message to a stream's replica with which an operator stops it. Replicas of an earlier version do not know it."""

# Of one stream; the oldest lines go. Some forty lines.
_STORY_BYTES = 4096
_RECENT = 10_000
_TOLD_AT_ONCE = 100
_STATIC = ("api", "owner", "upstream", "model", "about", "replica", "born")
_MOVING = ("top", "end", "ended", "lease", "usage", "visits")


@dataclass(frozen=True, slots=True)
class Line:
    """Something that has happened to a stream; `at` is monotonic, of this process."""

    at: float
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """News of one stream; `readers` is how many it has on the replica that tells, None where that is not said."""

    stream: str
    readers: int | None
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class Sight:
    """A stream as an operator sees it, at the time `seen`. Times are Unix seconds by the store's clock; `lease_left`
    below 0: its producer has not been heard of for so long; `readers` are those of each replica that has some, None
    where it has not said how many."""

    stream: str
    api: str
    owner: str
    upstream: str
    pattern: str
    request: str
    key: str
    asked: str
    replica: str
    born: float
    events: int
    outcome: str
    ended: float
    lease_left: float
    usage: str
    visits: int
    seen: float
    readers: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """`live`, `lost` where nobody has heard of its producer, or how it ended."""
        return self.outcome or ("live" if self.lease_left >= 0 else "lost")

    @property
    def model(self) -> str:
        return self.asked or self.pattern


class Stories:
    """On a store. `streams` are the replica's settings."""

    def __init__(self, commands: Commands, names: Names, streams: StreamSettings) -> None:
        self._commands = commands
        self._names = names
        self._lease = streams.lease
        self._kept = millis(streams.retention)

    # -- telling --------------------------------------------------------------------------------------------

    async def tell(self, replica: str, news: Sequence[Told]) -> list[Told]:
        """Add lines to streams' stories; no effect on those that are not there. What the store would not take."""
        size = 1 if self._commands.topology.sharded else _TOLD_AT_ONCE
        batches = [news[i : i + size] for i in range(0, len(news), size)]
        taken = await asyncio.gather(*(self._tell(replica, batch) for batch in batches))
        return [told for batch, done in zip(batches, taken, strict=True) if not done for told in batch]

    async def _tell(self, replica: str, batch: Sequence[Told]) -> bool:
        keys = [self._names.meta(told.stream) for told in batch]
        now = time.monotonic()
        args: list[Any] = [_STORY_BYTES, replica]
        for told in batch:
            args += ["" if told.readers is None else told.readers, len(told.lines)]
            for line in told.lines:
                args += [millis(now - line.at), orjson.dumps(dict(line.fields))[1:]]
        try:
            await self._commands.run(keys[0], scripts.TELL, keys, args)
        except StoreUnavailable:
            return False
        return True

    async def note_ended(self, ended: Sequence[tuple[str, float]]) -> None:
        """Streams that have ended, and when, in Unix seconds: to be found for as long as they are kept."""
        if ended:
            key = self._names.recent
            flat = [part for stream, at in ended for part in (stream, millis(at))]
            await self._commands.run(key, scripts.RECENT, [key], [self._kept, _RECENT, *flat])

    # -- asking ---------------------------------------------------------------------------------------------

    async def now(self) -> float:
        """The store's clock, in Unix seconds."""
        seconds, micros = await self._commands.call(self._names.replicas, "TIME")
        return int(seconds) + int(micros) / 1e6

    async def replicas(self) -> dict[str, float]:
        """When each was last heard of, in Unix seconds; those that have gone stay while they may have streams."""
        key = self._names.replicas
        reply = await self._commands.call(key, "ZRANGEBYSCORE", key, "-inf", "+inf", "WITHSCORES")
        flat = [part for item in reply for part in item] if reply and isinstance(reply[0], list) else reply
        return {name.decode(): float(at) / 1000 for name, at in zip(flat[::2], flat[1::2], strict=True)}

    async def running(self, replicas: Iterable[str]) -> list[str]:
        """The streams that replicas run, and some that have only just ended."""
        keys = [self._names.replica(replica) for replica in replicas]
        found = await asyncio.gather(*(self._commands.call(key, "SMEMBERS", key) for key in keys))
        return list(dict.fromkeys(stream.decode() for streams in found for stream in streams))

    async def recent(self, since: float) -> list[str]:
        """Streams that have ended since, the latest first; one that has only just ended may not be there yet."""
        key = self._names.recent
        found = await self._commands.call(key, "ZRANGEBYSCORE", key, millis(since), "+inf")
        return [stream.decode() for stream in reversed(found)]

    async def look(self, streams: Sequence[str], replicas: Sequence[str], now: float) -> list[Sight]:
        """What streams are; those that are not there are left out. Readers are told of the `replicas` given."""
        fields = [*_STATIC, *_MOVING]
        of_replicas = [f"{kind}:{replica}" for replica in replicas for kind in ("r", "n")]
        keys = [self._names.meta(stream) for stream in streams]
        replies = await asyncio.gather(*(self._commands.call(key, "HMGET", key, *fields, *of_replicas) for key in keys))
        return [
            self._sight(stream, reply, replicas, now)
            for stream, reply in zip(streams, replies, strict=True)
            if reply[len(_STATIC)] is not None
        ]

    def _sight(self, stream: str, reply: Sequence[bytes | None], replicas: Sequence[str], now: float) -> Sight:
        api, owner, upstream, pattern, request, replica, born, top, end, ended, lease, usage, visits = (
            (part or b"").decode("utf-8", "replace") for part in reply[: len(_STATIC) + len(_MOVING)]
        )
        heard = reply[len(_STATIC) + len(_MOVING) :: 2]
        counts = reply[len(_STATIC) + len(_MOVING) + 1 :: 2]
        readers: dict[str, int | None] = {}
        for name, at, count in zip(replicas, heard, counts, strict=True):
            number = _number(count) if count is not None else 1 if name == replica else None
            if not end and (name == replica or (at is not None and now - _number(at) / 1000 < self._lease)):
                readers[name] = number
        return Sight(
            stream,
            api,
            owner,
            upstream,
            pattern,
            *_about(request),
            replica,
            _number(born) / 1000,
            _number(top),
            end,
            _number(ended) / 1000,
            _number(lease) / 1000 - now,
            usage,
            _number(visits),
            now,
            {name: number for name, number in readers.items() if number != 0},
        )

    async def traceparent(self, stream: str) -> str:
        """That of a stream's span, empty where it has none."""
        key = self._names.meta(stream)
        return (await self._commands.call(key, "HGET", key, "trace") or b"").decode("ascii", "replace")

    async def story(self, stream: str) -> list[dict[str, Any]]:
        """What has happened to a stream, in order: `at` in Unix seconds, `what`, and more. What was told twice, for
        want of the store's reply, is there once."""
        key = self._names.meta(stream)
        text: bytes | None = await self._commands.call(key, "HGET", key, "story")
        once = {(line.get("on"), line.get("n"), line["what"]): line for line in _lines(text or b"")}
        return sorted(once.values(), key=lambda line: float(line["at"]))


def about(request: str, key: str, model: str) -> str:
    """A request in one field of its stream's hash: each costs the store a microsecond and a hundred bytes. Its id, the
    name of the relay's key that it came with, and the model that it named."""
    return orjson.dumps([request, key, model[:200]]).decode()


def _about(text: str) -> tuple[str, str, str]:
    try:
        request, key, model = orjson.loads(text)
    except (ValueError, TypeError):  # of an earlier version, or of no relay
        return "", "", ""
    return str(request), str(key), str(model)


def _number(text: bytes | str) -> int:
    """0 for what is none: anybody may have written it who can write to the store."""
    try:
        return int(text)
    except ValueError:
        return 0


def _lines(text: bytes) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines():
        try:
            fields = orjson.loads(line)
            found.append({**fields, "at": fields["at"] / 1000, "what": str(fields["what"])})
        except (ValueError, TypeError, LookupError):
            continue  # no relay has written this
    return found
