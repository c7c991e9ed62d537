"""What the replicas of one deployment tell each other, beside the logs of their streams.

* `relay:name:{…}` a hash. A claim: `stream`, `digest`, `replica`, `joinable`, `over`, `at` (an Idempotency-Key,
  from before its POST to the end of its generation). An alias: `stream`, and `ambiguous` where two streams were given
  it (a response's id). Generations that a further request can join: for each stream what is noted of it (a session's,
  or a request's).
* `relay:replicas` when each replica was last heard of; `relay:replica:{…}` the streams that it runs, for the sweep.
* the shard channel of a replica's name carries messages to it: a verb, a space, a stream id. Whoever is subscribed to
  it lives, if only as a process that is stopped: the server ends a dead one's subscription, not a paused one's.
* `relay:secret` the deployment's secret. With `store.encryption_env` it is `relay:secret:sealed`, encrypted, and an
  alias has a `proof` that a relay has given it. `store.prefix` stands for `relay:`.

All times are the store's own clock. Every call raises StoreUnavailable where the store cannot be reached.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from relay.config import StreamSettings
from relay.encryption import Cipher, Tampered
from relay.protocol.errors import EncryptionKeyMissing, ResponseIdAmbiguous, StoreUnavailable
from relay.store import scripts
from relay.store.commands import Sent, millis
from relay.store.names import Names
from relay.store.scripts import Script

logger = logging.getLogger(__name__)

# Within so many seconds of a store's return each replica has redialled it and said again what it knows.
_SAID_AGAIN = 2.0
# A sign of life is given every half of a lease. Of a lease.
_SILENT_FOR = 0.75


class Commands(Protocol):
    """What this needs of the store: one command, or one script, at the node of a key. What a stream needs as it begins
    and ends is sent, along with appends where that can be."""

    def send(self, key: bytes, *command: Any) -> Sent: ...

    def send_script(self, key: bytes, script: Script, keys: list[bytes], args: list[Any]) -> Awaitable[Any]: ...

    async def call(self, key: bytes, *command: Any) -> Any: ...

    async def run(self, key: bytes, script: Script, keys: list[bytes], args: list[Any]) -> Any: ...

    def returned_for(self, key: bytes) -> float:
        """Seconds since the key's node was reached again after a loss; infinite where it never was lost."""

    async def confirm(self, key: bytes) -> None:
        """Raises StoreUnavailable where another server holds the key by now than the one that has answered."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The stream that a name was claimed for, `digest` of its request, and the replica that generates it. `joinable`:
    others can read that stream, now or once it is made; `over`: its generation was complete, whatever a store has lost
    of it since; `at`: when it was claimed, by the store's clock in milliseconds since 1970, 0 before that."""

    stream: str
    digest: str
    replica: str
    joinable: bool = True
    over: bool = False
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Noted:
    """A generation that a further request may join, or go beyond: a digest of its `request`, how many messages that has
    (`turns`, 0 where it has none), a digest of these, and the replica that produces it."""

    stream: str
    request: str
    turns: int
    messages: str
    replica: str


class Directory:
    """Claims, aliases, replicas and the secret, on a store."""

    def __init__(self, commands: Commands, names: Names, streams: StreamSettings, cipher: Cipher | None = None) -> None:
        self._commands = commands
        self._names = names
        self._cipher = cipher or Cipher()
        self._lease = streams.lease
        self._began = time.monotonic()
        self._announced_at = float("-inf")
        self._longest = millis(streams.max_duration + streams.retention)
        self._retention = millis(streams.retention)
        self._joinable = millis(streams.max_duration + streams.attach_window)

    # -- claims ---------------------------------------------------------------------------------------------

    async def claim(self, name: str, claim: Claim, *, completed: bool = False) -> Claim:
        """Claim a name, or assert the claim again: the one that holds, this or an earlier one.

        Asserted again, with its `at`, it takes the place of one that had been given back before it. A claim of a
        `completed` stream lives as long as the log that its name leads to.
        """
        key = self._names.name_key(name)
        lives = self._retention if completed else self._longest
        args = [
            claim.stream,
            claim.digest,
            claim.replica,
            "1" if claim.joinable else "0",
            lives,
            "1" if completed else "0",
            claim.at,
        ]
        found = _claim(await self._commands.send_script(key, scripts.CLAIM, [key], args))
        if not claim.at and found.stream == claim.stream:  # claimed anew: was it there where others look for it?
            await self._commands.confirm(key)
        return found

    async def claim_of(self, name: str) -> Claim | None:
        """The claim that holds, None where there is none."""
        key = self._names.name_key(name)
        found = await self._commands.call(key, "HMGET", key, "stream", "digest", "replica", "joinable", "over", "at")
        return None if found[0] is None else _claim(found)

    async def release(self, name: str, stream: str) -> None:
        """Give a name back, where it is this stream's."""
        key = self._names.name_key(name)
        await self._commands.send_script(key, scripts.RELEASE, [key], [stream])

    def returned_for(self, name: str) -> float:
        """Seconds since this replica reached the name's node again after a loss: what is not there may be about to be
        asserted again by whoever had it."""
        return self._commands.returned_for(self._names.name_key(name))

    # -- aliases --------------------------------------------------------------------------------------------

    async def set_alias(self, name: str, stream: str) -> None:
        """Give a stream a name of its own; a name that a second stream is given leads nowhere."""
        key = self._names.name_key(name)
        proof = self._cipher.proof(key, stream)
        await self._commands.send_script(key, scripts.ALIAS, [key], [stream, self._longest, proof])

    async def resolve_alias(self, name: str) -> str | None:
        """The stream that has the name; none where no relay has given it that name, but whoever else can write to the
        store. Raises ResponseIdAmbiguous, and StoreUnavailable where the store has just come
        back and does not know the name: the stream's producer may be about to say it again, or another server of the
        store may know it."""
        key = self._names.name_key(name)
        stream, ambiguous, proof = await self._commands.call(key, "HMGET", key, "stream", "ambiguous", "proof")
        if stream is None:
            if self._commands.returned_for(key) < self._lease:
                raise StoreUnavailable
            await self._commands.confirm(key)
            return None
        found = str(stream.decode("utf-8", "replace"))
        if not self._cipher.proves((proof or b"").decode("utf-8", "replace"), key, found):
            logger.error("stream %s: no relay has given it the name under which it was looked for", found)
            return None
        if ambiguous is not None:  # only now: who asks may go on from a response of his own, be it which of two
            raise ResponseIdAmbiguous
        return found

    # -- generations that can be joined -----------------------------------------------------------------------

    async def note(self, name: str, noted: Noted) -> None:
        """Note a generation under a name, beside others."""
        key = self._names.name_key(name)
        text = f"{noted.request} {noted.turns} {noted.messages or '-'} {noted.replica}"
        await self._commands.send_script(key, scripts.NOTE, [key], [noted.stream, text, self._joinable])

    async def forget(self, name: str, stream: str) -> None:
        """What is noted of a generation under a name."""
        key = self._names.name_key(name)
        await self._commands.send(key, "HDEL", key, stream)

    async def noted(self, name: str) -> list[Noted]:
        """The generations that are noted under a name."""
        key = self._names.name_key(name)
        reply = await self._commands.call(key, "HGETALL", key)
        pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        found = []
        for stream, text in pairs:
            request, turns, messages, replica = text.decode().split(" ")
            found.append(Noted(stream.decode(), request, int(turns), messages, replica))
        return found

    async def listens(self, replica: str) -> bool:
        """Is its process there, be it paused? See `replica_gone`."""
        return await self._publish(replica, b"")

    # -- replicas -------------------------------------------------------------------------------------------

    async def announce_replica(self, replica: str, lost_after: float) -> list[str]:
        """A replica's sign of life; the replicas that have given none for so many seconds."""
        key = self._names.replicas
        self._announced_at = time.monotonic()
        lost = await self._commands.run(key, scripts.SIGN, [key], [replica, millis(lost_after)])
        return [name.decode() for name in lost]

    async def remove_replica(self, replica: str) -> None:
        await self._commands.call(self._names.replicas, "ZREM", self._names.replicas, replica)

    def note_stream(self, replica: str, stream: str) -> Sent:
        """Note that a replica runs a stream, before the stream is made: a lost replica's streams can be found. It is on
        its way when this returns, and followed by `say_alive`."""
        key = self._names.replica(replica)
        return self._commands.send(key, "SADD", key, stream)

    async def add_stream(self, replica: str, stream: str) -> None:
        """Both, one after the other."""
        await self.note_stream(replica, stream)
        await self.say_alive(replica)

    async def say_alive(self, replica: str) -> None:
        """A replica that has been silent for long, as a paused process is, says that it lives: others may have struck
        it off, and nobody would look for its streams."""
        if time.monotonic() > self._announced_at + _SILENT_FOR * self._lease:
            await self.announce_replica(replica, self._lease)

    async def remove_streams(self, replica: str, streams: Sequence[str]) -> None:
        key = self._names.replica(replica)
        await self._commands.call(key, "SREM", key, *streams)

    async def streams_of(self, replica: str) -> list[str]:
        key = self._names.replica(replica)
        return [stream.decode() for stream in await self._commands.call(key, "SMEMBERS", key)]

    async def replica_gone(self, replica: str) -> bool:
        """Is its process dead? It has given no sign of life for a lease, and nobody listens on its channel: a process
        that is paused, or whose store answers slowly, gives no sign either, but goes on when it wakes."""
        key, channel = self._names.replicas, self._names.replica(replica)
        if replica in await self._heard() or await self._publish(replica, b""):
            return False
        # Whoever has only just come to this store, or come back to it, cannot say who was there before.
        known_for = min(time.monotonic() - self._began, *map(self._commands.returned_for, (key, channel)))
        return known_for >= self._lease

    async def _heard(self) -> list[str]:
        """The replicas that have given a sign of life within a lease."""
        key = self._names.replicas
        seconds, micros = await self._commands.call(key, "TIME")
        since = int(seconds) * 1000 + int(micros) // 1000 - millis(self._lease)
        return [name.decode() for name in await self._commands.call(key, "ZRANGEBYSCORE", key, since, "+inf")]

    async def others_listen(self, replica: str) -> bool:
        """Is there another replica than this one?"""
        others = [name for name in await self._heard() if name != replica]
        return any(await asyncio.gather(*map(self.listens, others)))

    async def tell(self, replica: str, verb: str, stream: str) -> bool:
        """Send a replica a message. False where nobody listens."""
        return await self._publish(replica, f"{verb} {stream}".encode())

    async def _publish(self, replica: str, message: bytes) -> bool:
        channel = self._names.replica(replica)
        return bool(await self._commands.call(channel, "SPUBLISH", channel, message))

    # -- the secret -----------------------------------------------------------------------------------------

    async def share_secret(self, mine: bytes, *, shared: bool) -> bytes:
        """The deployment's secret: the oldest that a replica of it has made (see `new_secret`). `shared` says that
        `mine` was it already.

        A store may come back without it, and a replica that nobody has told of it yet may come first: such a one offers
        its own only where those who know the secret have had the time to say it again, and theirs is set over a newer
        one, from which nobody could tell the owners of what runs. Raises StoreUnavailable in that time.
        """
        cipher = self._cipher
        key = self._names.sealed_secret if cipher.encrypts else self._names.secret
        stored: bytes | None = await self._commands.call(key, "GET", key)
        held = self._opened_secret(stored)
        if held is None:
            if not shared and self._commands.returned_for(key) < min(self._lease, _SAID_AGAIN):
                raise StoreUnavailable
            mine = (None if shared else await self._secret_of_other_form()) or mine
            await self._commands.call(key, "SET", key, self._sealed_secret(mine), *(["NX"] if stored is None else []))
            stored = await self._commands.call(key, "GET", key)
            held = self._opened_secret(stored)
            if held is None:
                raise StoreUnavailable
        if not shared and not cipher.reads_plain:
            await self._commands.call(self._names.secret, "DEL", self._names.secret)  # of before anything was encrypted
        older = shared and _made_at(mine) < _made_at(held)
        if older or (cipher.encrypts and stored is not None and not cipher.is_current(stored)):
            held = mine if older else held
            await self._commands.call(key, "SET", key, self._sealed_secret(held))
        return held

    async def known_secret(self) -> bytes:
        """The deployment's secret, where there is one: nothing is written. Raises StoreUnavailable, LookupError."""
        key = self._names.sealed_secret if self._cipher.encrypts else self._names.secret
        held = self._opened_secret(await self._commands.call(key, "GET", key))
        if held is None:
            raise LookupError
        return held

    async def _secret_of_other_form(self) -> bytes | None:
        """From before events were encrypted, or no longer were: the owners of what runs are derived from it. It is only
        believed where what is not encrypted is."""
        cipher = self._cipher
        if not cipher.names or not cipher.reads_plain:
            return None
        key = self._names.secret if cipher.encrypts else self._names.sealed_secret
        stored: bytes | None = await self._commands.call(key, "GET", key)
        if stored is None or cipher.encrypts:
            return stored
        return self._unsealed_secret(stored)

    def _sealed_secret(self, secret: bytes) -> bytes:
        return self._cipher.seal(self._names.sealed_secret, secret)

    def _opened_secret(self, stored: bytes | None) -> bytes | None:
        return stored if stored is None or not self._cipher.encrypts else self._unsealed_secret(stored)

    def _unsealed_secret(self, stored: bytes) -> bytes | None:
        """None where no relay has put it there. Raises EncryptionKeyMissing."""
        key = self._names.sealed_secret
        try:
            return self._cipher.unseal(key, stored)
        except EncryptionKeyMissing as error:
            logger.error(
                "the deployment's secret is encrypted under key %s; give this replica that key, too "
                "(store.encryption_env), or delete %s from the store, with which all owners and tickets end",
                error.key,
                key.decode(),
            )
            raise
        except Tampered:
            logger.error("the deployment's secret in the store is not what a relay has put there")
            return None


def new_secret() -> bytes:
    """A secret of 192 bits, after 64 bits for the time at which it was made, in milliseconds since 1970."""
    return int(time.time() * 1000).to_bytes(8, "big") + secrets.token_bytes(24)


def _made_at(secret: bytes) -> int:
    """In milliseconds since 1970; 0 for one that an earlier version has made, of random bytes alone."""
    return int.from_bytes(secret[:8], "big") if secret[:2] == b"\0\0" else 0


def _claim(reply: list[bytes | None]) -> Claim:
    # One that an earlier version has written names no replica.
    stream, digest, replica, joinable, over, at = ((part or b"").decode() for part in reply)
    return Claim(stream, digest, replica, joinable != "0", over == "1", int(at or 0))
