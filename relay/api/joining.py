"""Retries that do not pay twice: a request that joins the generation of an earlier one.

An `Idempotency-Key` is claimed in the store before anything goes upstream, so of any number of requests with
it, on any replicas, one generates and the others read its stream from the start. With `attach_retries` an
SDK's own retry (`x-stainless-retry-count` above 0) does the same for the same credential and body, as long
as the generation is in flight.
"""

from __future__ import annotations

import asyncio

from relay.api.exchange import Exchange
from relay.api.replica import Replica
from relay.protocol.errors import BadRequest, IdempotencyMismatch, StoreUnavailable

_LONGEST_KEY = 255
_LOOK_EVERY = 0.1


class Joining:
    """One request's claim. After `join` has answered None, the request is to generate under `stream`."""

    def __init__(self, replica: Replica, exchange: Exchange, stream: str, owner: str, body: bytes) -> None:
        self._replica = replica
        self._registry = replica.registry
        self._log = replica.registry.log
        self._stream = stream
        self._owner = owner
        self._asked = (exchange.scope["path"].encode(), body)
        self._name: str | None = None
        self._key = exchange.header(b"idempotency-key")
        count = exchange.header(b"x-stainless-retry-count") or "0"
        self._retries = int(count[:4]) if count.isascii() and count.isdigit() else 0

    async def join(self) -> str | None:
        """The stream to join, None where this request is the first. Raises BadRequest, IdempotencyMismatch,
        and StoreUnavailable where the key cannot be honoured."""
        if self._key is not None:
            return await self._by_key(self._key)
        if self._replica.settings.streams.attach_retries:
            try:
                return await self._by_retry()
            except StoreUnavailable:
                return None
        return None

    @property
    def expected(self) -> bool:
        """May another request come to this one's generation without knowing its stream's id?"""
        return self._name is not None

    async def release(self) -> None:
        """No stream came to be: the next request with the key may generate."""
        if self._name is not None:
            try:
                await self._log.release(self._name, self._stream)
            except StoreUnavailable:
                pass

    async def _by_key(self, key: str) -> str | None:
        if not 0 < len(key) <= _LONGEST_KEY:
            raise BadRequest(f"Idempotency-Key must have 1 to {_LONGEST_KEY} characters. Send a shorter one.")
        name = "key:" + self._registry.digest(self._owner.encode(), key.encode("latin-1"))
        asked = self._registry.digest(*self._asked)
        while True:
            stream, digest = await self._log.claim(name, self._stream, asked)
            if digest != asked:
                raise IdempotencyMismatch
            if stream == self._stream:
                self._name = name
                return None
            if await self._came_to_be(name, stream):
                return stream
            await self._log.release(name, stream)

    async def _by_retry(self) -> str | None:
        name = "retry:" + self._registry.digest(self._owner.encode(), *self._asked)
        if self._retries:
            stream = await self._log.named(name)
            if stream is not None:
                # One that is still to come is in flight, however soon it ends then.
                status = await self._log.look(stream)
                if (status is None or not status.outcome) and await self._came_to_be(name, stream):
                    return stream
        await self._log.rename(name, self._stream)
        self._name = name
        return None

    async def _came_to_be(self, name: str, stream: str) -> bool:
        """Wait for the stream that has the name. It comes to be within its replica's patience, or never."""
        producer = self._registry.local(stream)
        if producer is not None:
            return await asyncio.shield(producer.made) and producer.logged
        settings = self._replica.settings.streams
        try:
            async with asyncio.timeout(settings.patience + settings.lease):
                while await self._log.look(stream) is None:
                    if await self._log.named(name) != stream:
                        return False
                    await asyncio.sleep(_LOOK_EVERY)
        except TimeoutError:
            return False
        return True
