"""Retries that do not pay twice: a request that joins the generation of an earlier one.

An `Idempotency-Key` is claimed in the store before anything goes upstream, so of any number of requests with it, on any
replicas, one generates and the others read its stream from the start. Where that stream cannot be read, yet or at all,
while its generation may still run, they are told to come back: 409. With `attach_retries` an SDK's own retry
(`x-stainless-retry-count` above 0) joins for the same credential and body, as long as the generation is in flight.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto

from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.auth.owners import Use
from relay.protocol.errors import BadRequest, IdempotencyKeyInFlight, IdempotencyKeyReused, StoreUnavailable
from relay.protocol.outcomes import Cause, Ending
from relay.store.directory import Claim
from relay.streams.producer import Producer

LONGEST_KEY = 255
_POLL_INTERVAL = 0.1


def _retries(exchange: Exchange) -> int:
    count = exchange.header(b"x-stainless-retry-count") or "0"
    return int(count[:4]) if count.isascii() and count.isdigit() else 0


class _State(Enum):
    """Of a generation that has the key."""

    READABLE = auto()  # its stream is in the log, live or complete
    IN_FLIGHT = auto()  # it may run, and its stream cannot be read, yet or at all
    OVER = auto()  # it has failed, was stopped, or never came to be


class Joining:
    """One request's claim. After `join` has answered None, the request is to generate under `stream`, and `follow` or
    `release` says what became of that."""

    def __init__(self, services: Services, exchange: Exchange, stream: str, owner: str, body: bytes) -> None:
        """`body` is as the client request_digest, and is not kept."""
        self._registry = services.registry
        self._settings = services.settings.streams
        self._stream = stream
        self._owner = owner
        self._claimed: str | None = None
        self.expected = False
        """May another request come to this one's generation without knowing its stream's id?"""
        self._key = exchange.header(b"idempotency-key")
        self._retries = _retries(exchange)
        # Without the secret that the replicas share, no name is the same on another one.
        owners = self._registry.owners
        joins = owners.secret_known and (self._key is not None or self._settings.attach_retries)
        self._request_digest = owners.digest(Use.REQUEST, exchange.scope["path"].encode(), body) if joins else None

    @staticmethod
    def is_possible(services: Services, exchange: Exchange) -> bool:
        """May the request join one that is there, for all that its head says?"""
        return exchange.header(b"idempotency-key") is not None or (
            services.settings.streams.attach_retries and _retries(exchange) > 0
        )

    async def join(self) -> str | None:
        """The stream to join, None where this request is the first. Raises BadRequest, IdempotencyKeyReused,
        IdempotencyKeyInFlight, and StoreUnavailable where the key cannot be honoured."""
        if self._key is not None:
            if not 0 < len(self._key) <= LONGEST_KEY:
                raise BadRequest(f"Idempotency-Key must have 1 to {LONGEST_KEY} characters. Send a shorter one.")
            if self._request_digest is None:
                raise StoreUnavailable
            return await self._by_key(self._key, self._request_digest)
        if self._request_digest is not None:
            try:
                return await self._by_retry(self._request_digest)
            except StoreUnavailable:
                return None
        return None

    @property
    def claimed(self) -> bool:
        return self._claimed is not None

    def release(self) -> None:
        """Nothing went upstream: the next request with the key may generate."""
        if self._claimed is not None:
            self._registry.claims.ended(self._claimed, self._stream, None)

    async def follow(self, producer: Producer) -> None:
        """The claim's life is the generation's."""
        if self._claimed is None:
            return
        outcome = None
        try:
            if await asyncio.shield(producer.created) and not producer.logged:
                self._registry.claims.unlogged(self._claimed, self._stream)
            await producer.done()
            outcome = producer.outcome if producer.is_persisted else None
        finally:
            self._registry.claims.ended(self._claimed, self._stream, outcome)

    # -- by key ---------------------------------------------------------------------------------------------

    async def _by_key(self, key: str, request_digest: str) -> str | None:
        name = "key:" + self._registry.owners.digest(Use.KEY, self._owner.encode(), key.encode("latin-1"))
        loop = asyncio.get_running_loop()
        until = loop.time() + self._settings.patience + self._settings.lease
        while True:
            claim = await self._registry.claims.claim(
                name, self._stream, self._claim_digest(name, request_digest, self._stream)
            )
            if claim.stream == self._stream:
                self._claimed = name
                self.expected = True
                return None
            state = await self._state(name, claim)
            if state is _State.OVER:
                await self._registry.directory.release(name, claim.stream)
            elif claim.digest != self._claim_digest(name, request_digest, claim.stream):
                raise IdempotencyKeyReused
            elif state is _State.READABLE:
                return claim.stream
            else:
                await self._wait(name, claim, until)

    def _claim_digest(self, name: str, request_digest: str, stream: str) -> str:
        """That this request generates that stream under this name: who can write to the store cannot have it lead to
        another answer."""
        return self._registry.owners.digest(Use.CLAIM, name.encode(), request_digest.encode(), stream.encode())

    async def _state(self, name: str, claim: Claim) -> _State:
        if not claim.joinable:  # even where a late command has made its stream: nothing is written there
            return _State.OVER if await self._is_dead(name, claim) else _State.IN_FLIGHT
        status = await self._registry.log.get_status(claim.stream)
        if status is not None and status.outcome and status.outcome != Cause.PRODUCER_LOST:
            return _State.READABLE if status.outcome == Ending.COMPLETED and status.kept else _State.OVER
        if claim.over:  # it was complete, and the store has lost that: there is nothing left to run, or to read
            return _State.OVER
        live = status is not None and not status.outcome
        if status is not None and live and status.lease_left >= 0:
            return _State.READABLE
        # A producer that is given up may only be paused, and its call goes on when it wakes.
        if await self._is_dead(name, claim):
            return _State.OVER
        return _State.READABLE if live else _State.IN_FLIGHT

    async def _is_dead(self, name: str, claim: Claim) -> bool:
        """Does nothing run any more that could have made this claim? Of an earlier version's claim nobody can say."""
        if claim.replica == self._registry.replica_id:
            return self._registry.claims.local(name, claim.stream) is None
        return bool(claim.replica) and await self._registry.directory.replica_gone(claim.replica)

    async def _wait(self, name: str, claim: Claim, until: float) -> None:
        """Until the claim, or its stream, may stand otherwise. Raises IdempotencyKeyInFlight."""
        local = self._registry.claims.local(name, claim.stream) or claim
        producer = self._registry.local(claim.stream)
        now = asyncio.get_running_loop().time()
        if not local.joinable or now >= until or (producer is not None and not producer.logged):
            raise IdempotencyKeyInFlight
        if producer is not None and not producer.created.done():
            await asyncio.wait([producer.created], timeout=until - now)
        else:
            await asyncio.sleep(_POLL_INTERVAL)

    # -- by retry -------------------------------------------------------------------------------------------

    async def _by_retry(self, request_digest: str) -> str | None:
        name = "retry:" + self._registry.owners.digest(Use.RETRY, self._owner.encode(), request_digest.encode())
        if self._retries:
            stream = await self._registry.directory.resolve_alias(name)
            if stream is not None:
                # One that is still to come is in flight, however soon it ends then.
                status = await self._registry.log.get_status(stream)
                if (status is None or not status.outcome) and await self._wait_in_log(name, stream):
                    return stream
        await self._registry.directory.set_latest(name, self._stream)
        self.expected = True
        return None

    async def _wait_in_log(self, name: str, stream: str) -> bool:
        """Wait for the stream that has the name. It comes to be within its replica's patience, or never."""
        producer = self._registry.local(stream)
        if producer is not None:
            return await asyncio.shield(producer.created) and producer.logged
        try:
            async with asyncio.timeout(self._settings.patience + self._settings.lease):
                while await self._registry.log.get_status(stream) is None:
                    if await self._registry.directory.resolve_alias(name) != stream:
                        return False
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError:
            return False
        return True
