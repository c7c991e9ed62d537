"""What becomes known of a stream once it is made: the upstream that it moved to, its answer's headers, how another
replica can go on with it, what its response is called.

Promises: what is known before the stream is made goes along with it, and needs no write of its own; what the store may
not have, or may have lost, it is told again with the leases.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from relay.store.directory import Directory
from relay.streams.context import ProducerContext
from relay.streams.producer import Producer

Later = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


def response_name(owner: str, response_id: str) -> str:
    """The name under which an owner's response finds its stream."""
    return f"response:{owner}:{response_id}"


class Learning:
    """One per replica. `producers` are those whose streams are made, by their ids."""

    def __init__(
        self, context: ProducerContext, directory: Directory, producers: Mapping[str, Producer], later: Later
    ) -> None:
        self._context = context
        self._directory = directory
        self._producers = producers
        self._later = later
        self._unnamed: set[Producer] = set()  # whose response's id the store may not know
        self._learnt: dict[Producer, bool | None] = {}  # has the store what was learnt since? None: nothing was

    def making(self, producer: Producer) -> None:
        """What is known by now goes along with its stream."""
        self._learnt[producer] = None

    def made(self, producer: Producer) -> None:
        if self._learnt.get(producer) is False:
            self.soon(producer)

    def soon(self, producer: Producer) -> None:
        """Something of it has become known."""
        if producer in self._learnt and producer.logged:
            self._learnt[producer] = False
            if producer.stream in self._producers:
                self._later(self._learn(producer))

    async def _learn(self, producer: Producer) -> None:
        told = producer.route, producer.kept_headers, producer.leg
        await self._context.learn(producer)
        if producer in self._learnt and told == (producer.route, producer.kept_headers, producer.leg):
            self._learnt[producer] = True

    def named(self, producer: Producer) -> asyncio.Task[None] | None:
        """Its response has an id. None where nobody asks for it by that."""
        if producer.logged and producer.dialect.name == "responses":
            self._unnamed.add(producer)
            return self._later(self._set_alias(producer))
        return None

    async def _set_alias(self, producer: Producer) -> None:
        assert producer.response_id is not None
        await self._directory.set_alias(response_name(producer.owner, producer.response_id), producer.stream)
        self._unnamed.discard(producer)

    def store_returned(self) -> None:
        """It may have lost all of that."""
        self._learnt = {p: None if told is None else False for p, told in self._learnt.items()}
        self._unnamed.update(p for p in self._producers.values() if p.response_id and p.dialect.name == "responses")

    def ended(self, producer: Producer) -> None:
        self._unnamed.discard(producer)
        if self._learnt.pop(producer, None) is False:
            self._later(self._learn(producer))

    async def renew(self) -> None:
        """Tell the store again what it may not have. Raises StoreUnavailable."""
        untold = [producer for producer, told in self._learnt.items() if told is False]
        await asyncio.gather(*map(self._set_alias, list(self._unnamed)), *map(self._learn, untold))
