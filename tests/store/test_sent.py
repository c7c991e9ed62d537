"""Commands that were sent together and that the store has not done."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from relay.store.commands import Commands, all_of
from relay.store.link import StoreDown
from relay.store.node import Node


class _OutOnce:
    """A node that does nothing of what it is asked first."""

    read = None

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.query = self

    def call(self, *command: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if command[0] in self.asked:
            future.set_result(None)
        else:
            future.set_exception(StoreDown("it was away"))
        self.asked.append(command[0])
        return future


def test_they_are_sent_again_in_their_order() -> None:
    async def story() -> None:
        node = _OutOnce()

        async def refresh() -> None: ...

        topology = SimpleNamespace(node_of=lambda key: cast(Node, node), refresh=refresh)
        commands = Commands(cast(Any, topology))
        await all_of(*(commands.send(b"key", name) for name in (b"note it", b"make it", b"tell it")))
        assert node.asked == [b"note it", b"make it", b"tell it"] * 2

    asyncio.run(story())
