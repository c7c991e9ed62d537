"""Retries that do not pay twice: a request that joins the generation of an earlier one.

An `Idempotency-Key` is claimed in the store before anything goes upstream, so of any number of requests with it, on any
replicas, one generates and the others read its stream from the start. Where that stream cannot be read, yet or at all,
while its generation may still run, they are told to come back: 409. Without a key, see `attaching`.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto

from relay.api.attaching import Attaching
from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.auth.owners import Use
from relay.protocol import agents
from relay.protocol.errors import BadRequest, IdempotencyKeyInFlight, IdempotencyKeyReused, StoreUnavailable
from relay.protocol.outcomes import Cause, Ending
from relay.store.directory import Claim
from relay.streams.lookup import Attached
from relay.streams.producer import Producer

LONGEST_KEY = 255
_POLL_INTERVAL = 0.1


class _State(Enum):
    """Of a generation that has the key."""

    READABLE = auto()  # its stream is in the log, live or complete
    IN_FLIGHT = auto()  # it may run, and its stream cannot be read, yet or at all
    OVER = auto()  # it has failed, was stopped, or never came to be


class Joining:
    """One request's way to an earlier one's generation. After `join` has answered None, the request is to generate
    under `stream`: `began` is to be called then, or `release` where it does not."""

    def __init__(
        self, services: Services, exchange: Exchange, stream: str, body: bytes, owner: str, attaching: Attaching
    ) -> None:
        """`body` is as the client sent it, and is not kept."""
        self._registry = services.registry
        self._settings = services.settings.streams
        self._stream = stream
        self._owner = owner
        self._attaching = attaching
        self._claimed: str | None = None
        self.may_join = self.is_possible(exchange, attaching)
        self._key = exchange.header(b"idempotency-key")
        self._told = exchange.named.get(agents.TIMEOUT)
        # Without the secret that the replicas share, no name is the same on another one.
        owners = self._registry.owners
        keyed = owners.secret_known and self._key is not None
        self._request_digest = owners.digest(Use.REQUEST, exchange.scope["path"].encode(), body) if keyed else None

    @staticmethod
    def is_possible(exchange: Exchange, attaching: Attaching) -> bool:
        """May the request join one that is there, for all that its head says?"""
        return b"idempotency-key" in exchange.named or attaching.is_possible

    @property
    def expected(self) -> bool:
        """May another request come to this one's generation without knowing its stream's id?"""
        return self._claimed is not None or self.attachable

    @property
    def attachable(self) -> bool:
        """And without a key?"""
        return self._attaching.noted

    async def join(self) -> str | Attached | None:
        """The stream to join, or a place in it; None where this request is the first. Raises BadRequest,
        IdempotencyKeyReused, IdempotencyKeyInFlight, StoreUnavailable where the key cannot be honoured, and what
        `Lookup.attach` does."""
        if self._key is None:
            return await self._attaching.join()
        if not 0 < len(self._key) <= LONGEST_KEY:
            raise BadRequest(f"Idempotency-Key must have 1 to {LONGEST_KEY} characters. Send a shorter one.")
        if self._request_digest is None:
            raise StoreUnavailable
        return await self._by_key(self._key, self._request_digest)

    def release(self) -> None:
        """Nothing went upstream: the next request with the key may generate."""
        if self._claimed is not None:
            self._registry.claims.ended(self._claimed, self._stream, None)

    def began(self, producer: Producer) -> None:
        """The generation runs: the claim's life is its own."""
        if self._claimed is not None:
            self._registry.later(self._follow(producer, self._claimed))
        elif self._key is None:
            self._attaching.began(self._stream)

    async def _follow(self, producer: Producer, name: str) -> None:
        outcome = None
        try:
            if await asyncio.shield(producer.created) and not producer.logged:
                self._registry.claims.unlogged(name, self._stream)
            await producer.done()
            outcome = producer.outcome if producer.is_persisted else None
            if outcome is None and await self._goes_on(producer):
                self._registry.claims.given_up(name, self._stream)
        finally:
            self._registry.claims.ended(name, self._stream, outcome)

    async def _goes_on(self, producer: Producer) -> bool:
        """Has another replica taken it over, or may it still do so? Who comes with the key looks for himself then."""
        if producer.leg is None or not producer.logged:
            return False
        try:
            status = await self._registry.log.get_status(producer.stream)
        except StoreUnavailable:
            return True
        return status is not None and not status.outcome

    async def _by_key(self, key: str, request_digest: str) -> str | None:
        name = "key:" + self._registry.owners.digest(Use.KEY, self._owner.encode(), key.encode("latin-1"))
        loop = asyncio.get_running_loop()
        streams = self._settings
        patience = agents.patience(streams.patience, streams.patience_limit, self._told)
        until = loop.time() + patience + streams.lease
        while True:
            claim = await self._registry.claims.claim(
                name, self._stream, self._claim_digest(name, request_digest, self._stream)
            )
            if claim.stream == self._stream:
                self._claimed = name
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
            # What a process writes that has just died comes to nothing, though its lease has not lapsed yet.
            return _State.READABLE if await self._is_heard(claim, status.replica) else _State.IN_FLIGHT
        if status is not None and self._registry.takeovers.possible(status):
            return _State.READABLE  # who reads it takes it over
        # A producer that is given up may only be paused, and its call goes on when it wakes.
        if await self._is_dead(name, claim):
            return _State.OVER
        return _State.READABLE if live else _State.IN_FLIGHT

    async def _is_heard(self, claim: Claim, replica: str) -> bool:
        """Is the process there that writes this claim's stream, be it paused? An earlier version's is not known."""
        if not claim.replica or self._registry.local(claim.stream) is not None:
            return True
        return await self._registry.directory.listens(replica)

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
