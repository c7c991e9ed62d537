"""Retries without a key: a request that is the same as an earlier one joins its generation, where its reader has gone.

What makes two requests the same: owner, path, the header of their session, and their bodies but for the order of their
members (`relay.protocol.identity`). Agents say no more than that when they come back after a cut; an SDK counts.

A retry may come before anybody has seen that the connection before it is gone. So where it finds a generation that is
being read it waits for a moment, and generates by itself where nothing has changed by then: requests that are the same
and at work at the same time stay apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import orjson

from relay.api.exchange import Exchange
from relay.api.json_body import READ_WHOLE
from relay.api.services import Services
from relay.auth.owners import Use
from relay.protocol import agents
from relay.protocol.dialect import JsonObject
from relay.protocol.errors import ApiError, StoreUnavailable
from relay.protocol.identity import body_digest, messages_of, prefix_digests
from relay.store.directory import Noted
from relay.streams.lookup import Attached
from relay.streams.orphans import RULES, Came, Found, Verdict, how_it_came

# For so long a generation that is being read is looked at again. A proxy in between passes a cut on within some
# milliseconds, and agents come back after 200 ms and more.
_SEEN_WITHIN = 1.0
_LOOK_EVERY = 0.05
# A larger body is digested in a thread: at 2 ms for each 256 KiB.
_DIGESTED_HERE = 256 << 10
_TURNS_HERE = 200


def _turns_of(raw: bytes) -> list[str]:
    try:
        return prefix_digests(messages_of(orjson.loads(raw)))
    except orjson.JSONDecodeError:  # NaN and the like: nobody is found to go on from it
        return []


class Attaching:
    """One request's. It is made as soon as the head is there: what the store knows of the session is asked for while
    the body arrives."""

    def __init__(self, services: Services, exchange: Exchange, abandon_after: float | None) -> None:
        self._exchange = exchange
        self._abandon_after = abandon_after
        self._registry = services.registry
        self._settings = services.settings.streams
        self._path: str = exchange.scope["path"]
        self._api = exchange.dialect.name
        named = exchange.named
        self._session = next(filter(None, map(named.get, self._settings.session_names)), None)
        count = named.get(b"x-stainless-retry-count")
        self._counts = count is not None
        retries = int(count[:4]) if count is not None and count.isdigit() else 0
        attach = self._settings.attach_retries
        self._came = how_it_came(attach, self._session, retries)
        if attach == "marked":
            self._session = None
        # What nobody shows a credential for is nobody's: it would be anybody's. And without the secret that the
        # replicas share, no name is the same on another one.
        self.takes_part = (
            attach != "off"
            and (self._session is not None or self._counts)
            and exchange.caller.can_come_back
            and b"idempotency-key" not in named
            and b"respond-async" not in named.get(b"prefer", b"")
            and self._registry.owners.secret_known
        )
        self._owner = self._registry.owners.owner(exchange.caller.identity) if self.takes_part else ""
        self._name = ""
        self._request = ""
        self._turns: list[str] = []
        self._others: list[Noted] = []
        self._asking: asyncio.Task[list[Noted]] | None = None
        self.noted = False
        """Can another request come to this one's generation?"""
        if self.takes_part and self._session is not None:
            self._name = "session:" + self._digest(self._path.encode(), self._session)

    @property
    def is_possible(self) -> bool:
        """May it join a generation that is there, for all that its head says?"""
        return self.takes_part and self._came is not Came.PLAIN

    def ask(self) -> None:
        """Ask the store what it knows of the session, while the body arrives."""
        if self.takes_part and self._session is not None:
            self._asking = asyncio.create_task(self._ask())

    def _digest(self, *parts: bytes) -> str:
        return self._registry.owners.digest(Use.RETRY, self._owner.encode(), *parts)

    async def _ask(self) -> list[Noted]:
        with contextlib.suppress(StoreUnavailable):
            return await self._registry.directory.noted(self._name)
        return []

    async def read(self, raw: bytes, body: JsonObject) -> None:
        """The body is there. To be called where it `takes_part`."""
        here = len(raw) <= _DIGESTED_HERE
        digest = body_digest(raw) if here else await asyncio.to_thread(body_digest, raw)
        self._request = self._digest(self._path.encode(), digest)[:32]
        if self._session is None:
            pass
        elif len(raw) > READ_WHOLE:
            self._turns = await asyncio.to_thread(_turns_of, raw)
        else:
            messages = messages_of(body)
            here = here and len(messages) <= _TURNS_HERE
            self._turns = prefix_digests(messages) if here else await asyncio.to_thread(prefix_digests, messages)
        if not self._name:
            self._name = "again:" + self._request

    def drop(self) -> None:
        """The request asks for no stream, or for one that is not logged."""
        self.takes_part = False
        self._turns = []

    def began(self, stream: str) -> None:
        """A generation of this request begins."""
        if self.takes_part:
            self.noted = True
            self._registry.orphans.begin(
                stream, self._name, self._request, self._turns, self._others, always=self._session is not None
            )

    async def join(self) -> str | Attached | None:
        """A place in the generation of an earlier request, or the stream of one that whoever reads it has taken over;
        None where there is none to join. Raises what `Lookup.attach` does."""
        if not self.takes_part or self._came is Came.PLAIN:
            return None
        self._others = await (self._asking or self._ask())
        until = asyncio.get_running_loop().time() + _SEEN_WITHIN
        over: set[str] = set()
        asked: set[str] = set()
        while True:
            known = {noted.stream: noted for noted in (*self._others, *self._registry.orphans.of(self._name))}
            same = [noted for noted in known.values() if noted.request == self._request and noted.stream not in over]
            waits = False
            for noted in reversed(same):
                try:
                    found, attached = await self._registry.adoption.adopt(
                        noted,
                        self._owner,
                        self._api,
                        again=noted.stream in asked,
                        abandon_after=self._abandon_after,
                    )
                    asked.add(noted.stream)
                    if found is Found.LOST and await self._can_go_on(noted.stream):
                        self.drop()
                        return noted.stream
                except StoreUnavailable:
                    return None
                except ApiError:  # it has expired, or is full
                    found, attached = Found.OVER, None
                if attached is not None:
                    begun = await self._exchange.unless_gone(self._begun(noted.stream, attached))
                    if begun is not None:
                        self.drop()
                        return begun
                    found = Found.OVER
                if RULES[self._came, found] is Verdict.WAIT:
                    waits = True
                    continue
                over.add(noted.stream)
                if found is Found.LOST:  # whoever has noted it does not take it back
                    self._registry.later(self._registry.directory.forget(self._name, noted.stream))
            if not waits or asyncio.get_running_loop().time() >= until:
                return None
            await asyncio.sleep(_LOOK_EVERY)

    async def _can_go_on(self, stream: str) -> bool:
        """Is it lost with its producer alone, and read by nobody?"""
        status = await self._registry.log.get_status(stream, owner=self._owner)
        if status is None or not self._registry.takeovers.possible(status):
            return False
        return not await self._registry.log.remote_readers(stream)

    async def _begun(self, stream: str, attached: Attached) -> Attached | None:
        """The place, once the first event is there, as its own client waits for it: what is refused before that is no
        answer, and this request asks for itself. After `patience` it is one."""
        assert attached.reader is not None
        if attached.backlog:
            return attached
        until = asyncio.get_running_loop().time() + agents.patience(
            self._settings.patience, self._settings.patience_limit, self._exchange.named.get(agents.TIMEOUT)
        )
        begun = None
        try:
            while begun is None:
                status = await self._registry.log.get_status(stream)
                if status is None or (not status.top and status.outcome):
                    return None
                if status.top > 0 or asyncio.get_running_loop().time() >= until:
                    begun = dataclasses.replace(attached, headers=status.headers)
                else:
                    await asyncio.sleep(_LOOK_EVERY)
            return begun
        except StoreUnavailable:
            return None
        finally:
            if begun is None:
                attached.reader.close()
                self._registry.adoption.left(stream, delivered=False, joinable=True)
