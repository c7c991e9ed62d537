"""The streams whose end somebody is still to be told: who tells it, and who goes on where that one dies.

`relay:webhooks` is a sorted set of streams by the time at which each is to be looked at. Whoever takes one puts that
time off for as long as telling may take, so a replica that dies meanwhile leaves it to the others. What is to be told
stands in the stream's own hash, as `webhook`: its names (see `Note`), sealed where events are encrypted, so that nobody
but a relay can have a stream told of. `store.prefix` stands for `relay:`.

All times are the store's own clock. Every call raises StoreUnavailable where the store cannot be reached.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import orjson

from relay.encryption import ENCRYPTED, Tampered
from relay.store import scripts
from relay.store.commands import millis
from relay.store.log import Log


@dataclass(frozen=True, slots=True)
class Note:
    """What nothing else in the store says of a stream: the name that its owner gave it, empty where it has none, and
    the model that was asked for."""

    name: str = ""
    model: str = ""


class Outbox:
    """On the store of a log."""

    def __init__(self, log: Log, keeps: float) -> None:
        """`keeps` is for how many seconds at most a stream may be in it."""
        self._log = log
        self._commands = log.commands
        self._cipher = log.cipher
        self._key = log.names.webhooks
        self._keeps = millis(keeps)

    async def promise(self, stream: str, note: Note, within: float) -> bool:
        """Put a stream in, to be looked at within so many seconds; no effect on when, where it is there. False where
        the store does not know the stream, which may be about to be made again."""
        key = self._log.names.meta(stream)
        noted = ["webhook", self._cipher.seal(key, orjson.dumps([note.name, note.model]))]
        known, _ = await asyncio.gather(
            self._commands.run(key, scripts.MARK, [key], noted), self._remind(stream, within, "NX")
        )
        return bool(known)

    async def take(self, most: int, seconds: float) -> tuple[float, list[str]]:
        """The store's time in Unix seconds, and streams that are due, for so many seconds this replica's to look at."""
        now, *due = await self._commands.run(self._key, scripts.TAKE, [self._key], [most, millis(seconds)])
        return int(now) / 1000, [stream.decode("utf-8", "replace") for stream in due]

    async def later(self, stream: str, seconds: float) -> None:
        """Look at it again in so many seconds; no effect where it is out."""
        await self._remind(stream, seconds, "XX")

    async def _remind(self, stream: str, seconds: float, how: str) -> None:
        args = [stream, millis(seconds), how, self._keeps]
        await self._commands.run(self._key, scripts.REMIND, [self._key], args)

    async def done(self, stream: str) -> None:
        """It has been told, or is given up."""
        await self._commands.call(self._key, "ZREM", self._key, stream)

    async def note_of(self, stream: str) -> Note | None:
        """What the stream was promised with; None where no relay has promised it. Raises EncryptionKeyMissing."""
        key = self._log.names.meta(stream)
        held: bytes | None = await self._commands.call(key, "HGET", key, "webhook")
        cipher = self._cipher
        if held is None or (not held.startswith(ENCRYPTED) and cipher.names and not cipher.reads_plain):
            return None
        try:
            name, model = orjson.loads(cipher.unseal(key, held) if held.startswith(ENCRYPTED) else held)
        except (Tampered, ValueError, TypeError):
            return None
        return Note(str(name), str(model))
