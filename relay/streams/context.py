"""What the producers of a replica share, and what they tell it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from relay.config import StreamSettings
from relay.encryption import Binding
from relay.protocol.errors import StoreUnavailable
from relay.store.commands import all_of
from relay.store.log import Log
from relay.store.stories import about
from relay.streams.ahead import Ahead
from relay.streams.commit import Committer
from relay.streams.hold import HoldWhileSilent

if TYPE_CHECKING:
    from relay.streams.producer import Producer

_PAUSE = 0.25


class Host(Protocol):
    """The replica, as its producers know it."""

    def on_making(self, producer: Producer) -> None:
        """Its stream is about to be made in the store, with all that is known by now."""

    def list(self, producer: Producer) -> asyncio.Future[Any] | None:
        """Put it into the list of its owner's streams: done when it is there, or the store does not answer."""

    def on_created(self, producer: Producer) -> None:
        """The stream has come to be."""

    def on_response_id(self, producer: Producer) -> asyncio.Task[None] | None:
        """The upstream has named its answer. Where that makes a name of the stream's: done when the store has it."""

    def on_moved(self, producer: Producer) -> None:
        """Its request goes to another upstream than before."""

    def on_answered(self, producer: Producer) -> None:
        """Its upstream has answered with a stream."""

    def reading_fields(self, producer: Producer) -> dict[str, str]:
        """What is kept with its stream of its readers: of those who went, where a further request can join it, and how
        long they want it to go on unread."""

    def on_ended(self, producer: Producer) -> None:
        """The producer is done, and there will be nothing more of it."""


@dataclass(frozen=True, slots=True)
class ProducerContext:
    """What all producers of a replica share."""

    settings: StreamSettings
    log: Log
    replica: str
    committer: Committer
    ahead: Ahead
    host: Host

    async def put_into_store(self, producer: Producer) -> None:
        """One flush, and no task: first that this replica runs it, then the stream itself, so that none is unaccounted
        for."""
        self.host.on_making(producer)
        fields = {
            "api": producer.dialect.name,
            "owner": producer.owner,
            "replica": self.replica,
            **({} if producer.feed.readers == 1 else {f"n:{self.replica}": str(producer.feed.readers)}),
            **self.host.reading_fields(producer),
            **({"trace": span.traceparent} if (span := producer.account.request.span).traceparent else {}),
        }
        directory = self.log.directory
        noted = directory.note_stream(self.replica, producer.stream)
        made = self.log.create(
            producer.stream, fields | _upstream(producer), producer.writer.fence, producer.kept_headers, _leg(producer)
        )
        listed = self.host.list(producer)
        await all_of(noted, made)
        await directory.say_alive(self.replica)
        if listed is not None and not listed.done():
            await asyncio.wait((listed,))

    async def learn(self, producer: Producer) -> None:
        """Tell the store what has come of the request since the stream was made."""
        binding = Binding(producer.owner, producer.dialect.name)
        await self.log.learn(
            producer.stream, _upstream(producer), producer.writer.fence, producer.kept_headers, binding, _leg(producer)
        )

    async def made(self, producer: Producer) -> bool:
        """Is the stream in the store? False where it is not, and may be one without a log. Raises StoreUnavailable."""
        try:
            await self.put_into_store(producer)
        except StoreUnavailable:
            if self.log.store.outage == "refuse":
                raise
            return False
        return True

    async def put_again(self, producer: Producer, hold: HoldWhileSilent) -> None:
        """The store has come back without the stream, or not yet."""
        while True:
            try:
                await self.put_into_store(producer)
                break
            except StoreUnavailable:
                await asyncio.sleep(_PAUSE)
        hold.cancel()
        producer.writer.made_again()


def _leg(producer: Producer) -> bytes:
    return b"" if producer.leg is None else producer.leg.encode()


def _upstream(producer: Producer) -> dict[str, str]:
    account = producer.account
    request = about(account.request.id, account.request.key, account.request.model)
    return {"upstream": producer.route.upstream.name, "model": account.meter.model, "about": request}
