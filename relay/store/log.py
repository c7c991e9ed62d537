"""The log of streams, in the relay's words: create, get the status, read, renew, end. Appending is `streams.commit`;
what is not one stream's is `store.directory`.

Layout, one hash tag per stream:

* `relay:{<stream id>}:log`  the Redis stream. Entry `<n>-0` holds event n as the field `f`, the frame as it
  goes to clients, or with `store.compact` what differs from an earlier one (`relay.protocol.compact`); entry `<n>-1` is
  the end mark after event n, its field `end` what `protocol.closing` makes of it.
  With `store.encryption_env` each content is encrypted (see `relay.encryption`), and what the hash says of owner, API,
  end and usage is believed only where the entries bear it out.
* `relay:{<stream id>}:meta` a hash: api, owner, upstream, model, replica, headers, fence, top, lease, born, seen,
  visits, ttl, `r:<replica>` for each replica with readers of it, and at the end `end` and `ended`. Where a further
  request can join it: `orphan` and `taken`, how often its producer's replica was left without a reader of its own, and
  up to which time one has come again; `delivered` once it was read to its end. Where another replica can go on with it:
  `leg` and `at`, how its upstream is come back to, and where that stood (`relay.protocol.legs`). It outlives the log by
  `streams.tombstone`. `abandon` is the longest time, in milliseconds, for which readers of other replicas have asked
  that it goes on unread. `webhook` is what `store.outbox` keeps there.
* the shard channel of the log's name says that something was appended.

`store.prefix` stands for `relay:`. All times are the store's own clock: no replica's clock matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from relay.config import StoreSettings, StreamSettings
from relay.encryption import UNBOUND, Binding, Tampered
from relay.protocol.end_mark import End
from relay.protocol.errors import EncryptionKeyMissing, StoreUnavailable
from relay.protocol.headers import Headers
from relay.store import scripts
from relay.store.commands import Commands, Sent, millis
from relay.store.directory import Directory
from relay.store.names import Names
from relay.store.node import Node
from relay.store.opening import EntryReader
from relay.store.records import Page as Page
from relay.store.records import Renewed as Renewed
from relay.store.records import Status as Status
from relay.store.records import Succeeded
from relay.store.restoring import Restorers
from relay.store.topology import Topology

logger = logging.getLogger(__name__)

# A page: enough for a reader that lags by seconds, little enough that no page delays another reader's.
_PAGE_EVENTS = 256
_PAGE_BYTES = 256 << 10
_RECENT_BYTES = 32 << 20  # of pages kept for readers who come together, as after a proxy's restart
_RENEWED_AT_ONCE = 500

# What stands in a stream's hash as it stands in its log: encrypted, and bound to the field.
HEADERS, LEG, AT = b"headers", b"leg", b"at"

_Place = tuple[str, int, Binding]


class Log:
    """The log on a topology. Every call raises StoreUnavailable where the store cannot be reached, and where it has
    just come back and does not know a stream: the stream's producer may be about to make it again."""

    def __init__(self, topology: Topology, streams: StreamSettings, store: StoreSettings) -> None:
        self.topology = topology
        self.settings = streams
        self.store = store
        self.names = Names(store.prefix)
        self.cipher = store.cipher()
        self.commands = Commands(topology)
        self.directory = Directory(self.commands, self.names, streams, self.cipher)
        self._entries = EntryReader(self.cipher)
        self._restorers = Restorers()
        self._recent: OrderedDict[_Place, Page] = OrderedDict()
        self._recent_bytes = 0
        self._pages: dict[_Place, asyncio.Future[Any]] = {}

    def create(
        self,
        stream: str,
        fields: dict[str, str],
        fence: str,
        headers: Headers = (),  # type: ignore[assignment]
        leg: bytes = b"",
    ) -> Sent:
        """Make a stream; no effect where it is there. It is on its way when this returns."""
        settings = self.settings
        longest = settings.max_duration + settings.retention + settings.tombstone
        binding = Binding(fields["owner"], fields["api"])
        flat = self._flat(stream, fields, headers, leg, binding)
        args = [millis(settings.lease), millis(longest), "fence", fence, *flat]
        return self.commands.send_script(self.names.meta(stream), scripts.CREATE, [self.names.meta(stream)], args)

    async def learn(
        self, stream: str, fields: dict[str, str], fence: str, headers: Headers, binding: Binding, leg: bytes = b""
    ) -> None:
        """Write what is known of a stream only after it was made; no effect where another replica has ended it."""
        args = [fence, *self._flat(stream, fields, headers, leg, binding)]
        await self.commands.send_script(self.names.meta(stream), scripts.LEARN, [self.names.meta(stream)], args)

    def _flat(self, stream: str, fields: dict[str, str], headers: Headers, leg: bytes, binding: Binding) -> list[Any]:
        found: dict[str, str | bytes] = {**fields}
        if headers:
            lines = b"\r\n".join(b"%b:%b" % item for item in headers)
            found["headers"] = self._at_rest(stream, HEADERS, lines, binding)
        if leg:
            found["leg"] = self._at_rest(stream, LEG, leg, binding)
        return [part for item in found.items() for part in item]

    async def get_status(
        self,
        stream: str,
        *,
        owner: str | None = None,
        read_at: str = "",
        came: bool = False,
        abandon_after: float | None = None,
    ) -> Status | None:
        """What a stream is, None where it is unknown, or not of the `owner` that is given. `read_at` tells a live
        stream's producer that this replica has readers of it, `came` that one has just come, `abandon_after` for how
        many seconds these have asked that it goes on unread."""
        key = self.names.log(stream)
        wanted = "" if abandon_after is None else str(round(abandon_after * 1000))
        args = [read_at, "1" if came else "0", wanted, *([] if owner is None else [owner])]
        asked_at = time.monotonic()
        reply = await self.commands.run(key, scripts.STATUS, [self.names.meta(stream), key], args)
        if reply is None:
            self._check_settled(key, asked_at)
            await self.commands.confirm(key)
            return None
        top, outcome, lease, kept, born, ended, *texts, headers, end_mark, orphan, leg, at, said = reply
        fence, api, owner, upstream, model, replica, usage = (t.decode("utf-8", "replace") for t in texts)
        return Status(
            stream=stream,
            top=top,
            outcome=outcome.decode("utf-8", "replace"),
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
            headers=self._headers_of(stream, headers, Binding(owner, api)),
            end_mark=end_mark,
            joinable=bool(orphan),
            leg=self._opened(stream, LEG, leg, Binding(owner, api)),
            at=self._opened(stream, AT, at, Binding(owner, api)),
            abandon_after=None if said < 0 else said / 1000,
        )

    def confirm_end(self, status: Status) -> Status:
        """A stream that has ended and is kept, with the outcome and the usage that its end mark tells: its hash says
        what anybody has written there who can write to the store. Raises EncryptionKeyMissing, and Tampered where the
        mark is not the one of that stream, owner and event."""
        if not self.cipher.names:
            return status
        entry = b"%d-1" % status.top
        end, usage = self._entries.open_end(status.stream, entry, status.top, status.end_mark, status.binding)
        return replace(status, outcome=end.outcome, usage=status.usage if usage is None else usage)

    async def adopt(self, stream: str, replica: str, dead: Sequence[str] = ()) -> tuple[str, str, list[str]]:
        """Take a generation over for a reader on a replica: what was found (see `adopt.lua`), the replica that produces
        it, and those that have readers of it. Raises StoreUnavailable also within a lease of the store's return: until
        then it may have lost who reads."""
        keys = [self.names.meta(stream), self.names.log(stream)]
        args = [replica, millis(self.settings.lease), millis(self.settings.attach_window), *dead]
        asked_at = time.monotonic()
        found, producer, *readers = await self.commands.run(keys[0], scripts.ADOPT, keys, args)
        self._check_settled(keys[0], asked_at)
        if found == b"taken":
            await self.commands.confirm(keys[0])
        return found.decode(), producer.decode(), [reader.decode() for reader in readers]

    async def orphaned(self, stream: str, gone: int, taken: int) -> None:
        """How often its replica was left without a reader, and up to which time one has come again; no effect where the
        stream is not there."""
        key = self.names.meta(stream)
        await self.commands.send_script(key, scripts.ORPHAN, [key], [gone, taken])

    async def mark(self, stream: str, fields: dict[str, str | bytes]) -> None:
        """Note something of a stream; no effect where it is not there."""
        flat: list[Any] = [part for item in fields.items() for part in item]
        await self.commands.run(self.names.meta(stream), scripts.MARK, [self.names.meta(stream)], flat)

    def _at_rest(self, stream: str, field: bytes, content: bytes, binding: Binding) -> bytes:
        encryptor = self.cipher.encryptor(stream, binding)
        return content if encryptor is None else encryptor.beside(field, content)

    def note_at_rest(self, stream: str, note: str, binding: Binding) -> bytes:
        """Where the upstream stands, as an append notes it."""
        return self._at_rest(stream, AT, note.encode(), binding)

    def _opened(self, stream: str, field: bytes, content: bytes, binding: Binding) -> bytes:
        """What cannot be had is missing: what the stream is and says does not depend on it."""
        if not content:
            return b""
        try:
            return self.cipher.decrypt(stream, 0, field, content, binding)
        except (EncryptionKeyMissing, Tampered):
            return b""

    def _headers_of(self, stream: str, content: bytes, binding: Binding) -> Headers:
        lines = self._opened(stream, HEADERS, content, binding)
        parted = (line.partition(b":") for line in lines.split(b"\r\n") if lines)
        return [(name, value) for name, _, value in parted]

    def _check_settled(self, key: bytes, asked_at: float) -> None:
        """Had the store been back for long enough when it was asked? The answer may have waited for this process."""
        if self.commands.returned_for(key) - (time.monotonic() - asked_at) < self.settings.lease:
            raise StoreUnavailable

    async def leave(self, stream: str, replica: str) -> None:
        """The last reader on a replica has left."""
        await self.commands.run(self.names.log(stream), scripts.LEAVE, [self.names.meta(stream)], [replica])

    async def remote_readers(self, stream: str) -> int:
        """How often a reader has come on a replica that does not produce the stream."""
        return int(await self.commands.call(self.names.meta(stream), "HGET", self.names.meta(stream), "visits") or 0)

    async def read(self, stream: str, after: int, binding: Binding = UNBOUND, *, shared: bool = True) -> Page:
        """The next events after a position. Readers at the same position share one call, and whoever comes to it soon
        after them their page, where it is a full one: what is in it does not change. Who must not miss what is there by
        now shares none. What is not bound to `binding` is none of the stream's."""
        if not shared:
            return await self._read(stream, after, binding)
        key = (stream, after, binding)
        if (recent := self._recent.get(key)) is not None:
            self._recent.move_to_end(key)
            return recent
        future = self._pages.get(key)
        joined = future is not None
        if future is None:
            future = asyncio.ensure_future(self._read(stream, after, binding))
            self._pages[key] = future
            future.add_done_callback(lambda _: self._pages.pop(key, None))
        page: Page = await asyncio.shield(future)
        if joined and not page.frames:
            return await self._read(stream, after, binding)  # it was asked for before there was anything
        if page.full and not page.gap and key not in self._recent:
            self._recent[key] = page
            self._recent_bytes += page.size
            while self._recent_bytes > _RECENT_BYTES:
                self._recent_bytes -= self._recent.popitem(last=False)[1].size
        return page

    async def _read(self, stream: str, after: int, binding: Binding) -> Page:
        log = self.names.log(stream)
        known = self._restorers.bases(stream, binding)
        keys = [log, self.names.meta(stream)]
        args = [after, _PAGE_EVENTS, _PAGE_BYTES, self.cipher.compact_heads, *known]
        asked_at = time.monotonic()
        top, ended, more, entries, bases = await self.commands.run(log, scripts.READ, keys, args, reads=True)
        if not entries:
            if top < 0:
                self._check_settled(log, asked_at)
            return Page([], None, top < 0 or bool(ended), False)
        contents, end, gap = self._entries.contents(stream, after, entries, binding)
        earlier = dict(self._entries.event(stream, entry, binding) for entry in bases)
        look_up = self._looked_up(stream, binding)
        frames, damaged = await self._restorers.restore(stream, binding, after, contents, earlier, look_up, _PAGE_BYTES)
        if damaged:
            n = after + len(frames) + 1
            logger.error("stream %s: event %d or its base is not what a relay has put there", stream, n)
            return Page(frames, None, True, False)
        if len(frames) < len(contents):
            return Page(frames, None, False, True)
        return Page(frames, end, gap, bool(more))

    async def frame(self, stream: str, n: int, binding: Binding = UNBOUND) -> bytes:
        """The frame of event n, empty where there is none that can be read."""
        with contextlib.suppress(EncryptionKeyMissing, Tampered):
            look_up = self._looked_up(stream, binding)
            if content := await look_up(n):
                frames, _ = await self._restorers.restore(stream, binding, n - 1, [content], {}, look_up, _PAGE_BYTES)
                return frames[0] if frames else b""
        return b""

    def _looked_up(self, stream: str, binding: Binding) -> Callable[[int], Awaitable[bytes]]:
        """What the entry of one event holds, empty where there is none, or none of the relay's."""
        log = self.names.log(stream)

        async def look_up(n: int) -> bytes:
            found = await self.commands.call(log, "XRANGE", log, b"%d-0" % n, b"%d-0" % n)
            return self._entries.event(stream, found[0], binding)[1] if found else b""

        return look_up

    def by_node(self, streams: Sequence[str]) -> dict[Node, list[str]]:
        """The streams that each server holds now."""
        found: dict[Node, list[str]] = {}
        for stream in streams:
            found.setdefault(self.topology.node_of(self.names.meta(stream)), []).append(stream)
        return found

    async def renew(self, streams: Sequence[tuple[str, str]], replica: str = "") -> list[Renewed]:
        """Renew leases (stream, fence) of a replica's, all on one server."""
        size = 1 if self.topology.sharded else _RENEWED_AT_ONCE
        batches = [streams[i : i + size] for i in range(0, len(streams), size)]
        replies = await asyncio.gather(*(self._renew(batch, replica) for batch in batches))
        return [
            Renewed(
                code,
                top,
                bool(elsewhere),
                float("inf") if ago < 0 else ago / 1000,
                None if said < 0 else said / 1000,
            )
            for reply in replies
            for code, top, elsewhere, ago, said in reply
        ]

    async def _renew(self, batch: Sequence[tuple[str, str]], replica: str) -> Any:
        keys = [self.names.meta(stream) for stream, _ in batch]
        args = [millis(self.settings.lease), replica, *(fence for _, fence in batch)]
        return await self.commands.run(keys[0], scripts.RENEW, keys, args)

    async def over_since(self, streams: Sequence[str]) -> list[float | None]:
        """When each of them has ended, in Unix seconds, where that was more than a lease after its last renewal; 0.0
        where it goes on, has only just ended, or its server does not answer; None where it is to be looked at by
        itself: it is not there, or its producer is lost."""
        size = 1 if self.topology.sharded else _RENEWED_AT_ONCE
        batches = [streams[i : i + size] for i in range(0, len(streams), size)]
        replies = await asyncio.gather(*map(self._over_since, batches))
        return [None if ms < 0 else ms / 1000 for reply in replies for ms in reply]

    async def _over_since(self, batch: Sequence[str]) -> list[int]:
        keys = [self.names.meta(stream) for stream in batch]
        try:
            found: list[int] = await self.commands.run(keys[0], scripts.OVER, keys, [millis(self.settings.lease)])
        except StoreUnavailable:
            return [0] * len(batch)
        return found

    async def force_end(
        self, stream: str, expected_top: int, outcome: str, binding: Binding = UNBOUND
    ) -> tuple[int, int]:
        """End a stream whose producer's lease has lapsed. Answers (code, top), codes as in `force_end.lua`."""
        content = End(outcome).encode()
        if (encryptor := self.cipher.encryptor(stream, binding)) is not None:
            content = encryptor.end(expected_top, content)
        args = [expected_top, outcome, millis(self.settings.retention), millis(self.settings.tombstone), content]
        keys = [self.names.log(stream), self.names.meta(stream)]
        code, top = await self.commands.run(keys[0], scripts.FORCE_END, keys, args)
        return code, top

    async def succeed(self, stream: str, fence: str, expected_top: int, replica: str) -> Succeeded:
        """Take over a stream whose producer's lease has lapsed; codes as in `succeed.lua`."""
        key = self.names.meta(stream)
        args = [fence, expected_top, replica, millis(self.settings.lease)]
        code, top, age, lapsed = await self.commands.run(key, scripts.SUCCEED, [key], args)
        return Succeeded(code, top, age / 1000, lapsed / 1000)

    async def lapse(self, stream: str, fence: str) -> bool:
        """Leave a stream to another replica, from now on. False where it has ended, or is another's."""
        key = self.names.meta(stream)
        return bool(await self.commands.run(key, scripts.LAPSE, [key], [fence]))

    def healthy_for(self, stream: str) -> float:
        """For how many seconds the stream's server has been in reach and, for all that is known here, has taken writes:
        while it took none, no lease could be renewed."""
        return self.commands.healthy_for(self.names.log(stream))
