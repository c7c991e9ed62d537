"""Which streams an owner has, and what they are called: one list for each owner, in the order of their begin.

`relay:name:{streams:<owner>}` is a sorted set. Its entries: the stream's id, the replica that runs it, a digest of the
stream's name, the name itself (encrypted with `store.encryption_env`), and then a proof that a relay has put it there.
A list has a bounded number of entries, the newest ones, and none that is older than a stream can be.

Every call raises StoreUnavailable where the store cannot be reached.
"""

from __future__ import annotations

import base64
import logging
from dataclasses import dataclass
from typing import Any

from relay.config import LimitSettings, StreamSettings
from relay.encryption import Cipher, Tampered
from relay.protocol.errors import EncryptionKeyMissing
from relay.store import scripts
from relay.store.commands import Commands, Sent, millis
from relay.store.names import Names

logger = logging.getLogger(__name__)

_NONE = "-"
_SEALED = b"stream name"
_UNSEALED = b"p"


@dataclass(frozen=True, slots=True)
class Listed:
    """A stream in its owner's list: `digest` stands for its name, `at` is when it was put there, in µs since 1970 by
    the store's clock, 0 before that. `entry` is how it stands there."""

    stream: str
    replica: str
    digest: str
    entry: bytes
    at: int = 0


class Listings:
    """On a store."""

    def __init__(
        self, commands: Commands, names: Names, streams: StreamSettings, limits: LimitSettings, cipher: Cipher
    ) -> None:
        self._commands = commands
        self._names = names
        self._cipher = cipher
        self._longest = millis(streams.max_duration + streams.retention)
        self._most = limits.listed_streams

    def entry(self, owner: str, stream: str, replica: str, digest: str, name: str) -> Listed:
        """What is to be put into the list for a stream; `digest` and `name` are empty where it has none."""
        sealed = self._cipher.seal(_SEALED, name.encode()) if name else b""
        kept = sealed if self._cipher.encrypts else _UNSEALED + sealed
        text = base64.urlsafe_b64encode(kept).decode() if name else _NONE
        proof = self._cipher.proof(self._key(owner), stream, digest or _NONE) or _NONE
        entry = f"{stream} {replica} {digest or _NONE} {text} {proof}".encode()
        return Listed(stream, replica, digest, entry)

    def put(self, owner: str, listed: Listed) -> Sent:
        """Put it there, or assert that it is: on its way when this returns. The answer is its `at`."""
        key = self._key(owner)
        args = [listed.entry, listed.at, self._longest, self._most]
        return self._commands.send_script(key, scripts.ENLIST, [key], args)

    async def remove(self, owner: str, listed: Listed) -> None:
        key = self._key(owner)
        await self._commands.call(key, "ZREM", key, listed.entry)

    async def of(self, owner: str) -> list[Listed]:
        """An owner's streams, the newest first."""
        key = self._key(owner)
        entries: list[bytes] = await self._commands.call(key, "ZRANGEBYSCORE", key, "-inf", "+inf")
        return [found for entry in reversed(entries) if (found := self._read(key, entry)) is not None]

    def returned_for(self, owner: str) -> float:
        """Seconds since this replica reached the list's node again after a loss."""
        return self._commands.returned_for(self._key(owner))

    def _read(self, key: bytes, entry: bytes) -> Listed | None:
        """None for what no relay has put there."""
        parts = entry.decode("utf-8", "replace").split(" ")
        if len(parts) != 5:
            return None
        stream, replica, digest, _, proof = parts
        if not self._cipher.proves(proof, key, stream, digest):
            logger.error("stream %s: no relay has put it into the list in which it was found", stream)
            return None
        return Listed(stream, replica, "" if digest == _NONE else digest, entry)

    def name_of(self, listed: Listed) -> str | None:
        """The name that a stream was given; None where it has none, or where that cannot be read."""
        text: Any = listed.entry.split(b" ")[3]
        if text == _NONE.encode():
            return None
        kept = base64.urlsafe_b64decode(text)
        if kept.startswith(_UNSEALED):
            return kept[1:].decode("utf-8", "replace")
        try:
            return self._cipher.unseal(_SEALED, kept).decode("utf-8", "replace")
        except (Tampered, EncryptionKeyMissing):
            return None

    def _key(self, owner: str) -> bytes:
        return self._names.name_key(f"streams:{owner}")
