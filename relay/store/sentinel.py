"""The primary that Sentinel names: all sentinels are asked at once, and the most recent knowledge wins."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlsplit

import redis.exceptions
from redis.asyncio.connection import AbstractConnection

from relay.store.dialing import FAULTS, Address, addresses, advice, ask_all, connecting, open_connection
from relay.store.node import Node
from relay.store.servers import ASK_TIMEOUT, GRACE, Servers

logger = logging.getLogger(__name__)


class Sentinel(Servers):
    """The primary is asked for anew at every opening, so a dropped link is a followed failover."""

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(timeout)
        parts = urlsplit(url)
        self._service = parts.path.strip("/")
        if not self._service:
            raise ValueError("store.url: name the primary's service, as in redis+sentinel://host:26379/mymaster")
        self._sentinels = addresses(parts.netloc, 26379)
        self._kind, self._kwargs = connecting(parts)
        # The credentials and the query are the servers'; sentinels are asked with their own, and what TLS needs.
        own = {name: self._kwargs.pop(f"sentinel_{name}", None) for name in ("username", "password")}
        self._asking = {name: value for name, value in self._kwargs.items() if name.startswith("ssl_")}
        self._asking |= {name: value for name, value in own.items() if value}
        self._node = Node(self._dial, timeout, self)
        self._moved = asyncio.Event()  # set, and replaced, when another server becomes the primary

    async def _dial(self, *, anonymous: bool = False) -> AbstractConnection:
        while True:
            await self.refresh()
            assert self._node.address is not None
            host, port = self._node.address
            moved = asyncio.ensure_future(self._moved.wait())
            opening = asyncio.ensure_future(
                open_connection(self._kind, {**self._kwargs, "host": host, "port": port}, anonymous=anonymous)
            )
            try:
                await asyncio.wait([opening, moved], return_when=asyncio.FIRST_COMPLETED)
                if opening.done():
                    return opening.result()
            finally:
                moved.cancel()
                opening.cancel()

    async def _refresh(self) -> None:
        try:
            answers = await ask_all([self._ask(sentinel) for sentinel in self._sentinels], ASK_TIMEOUT, GRACE)
        except FAULTS:
            how = "with sentinel_password" if "password" in self._asking else "without a password"
            message = f"no sentinel, asked {how}, names a primary {self._service!r}"
            raise redis.exceptions.ConnectionError(message + advice(self._kind, self._kwargs)) from None
        _, address = max(answers)
        before, self._node.address = self._node.address, address
        if before not in (None, address):
            logger.warning("store: the primary is %s:%d now", *address)
            self._moved.set()
            self._moved = asyncio.Event()
            await self._node.drop()
            self._notify_change()

    async def _ask(self, sentinel: Address) -> tuple[int, Address]:
        """The primary that a sentinel names and can reach, and how recent that knowledge is."""
        host, port = sentinel
        connection = await open_connection(self._kind, {**self._asking, "host": host, "port": port})
        try:
            await connection.send_command("SENTINEL", "MASTER", self._service)
            reply: list[bytes] = await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)
        said = {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}
        flags = said["flags"].split(",")
        if "master" not in flags or "s_down" in flags or "o_down" in flags:
            raise redis.exceptions.ConnectionError(f"{host}:{port} says that {self._service!r} is {said['flags']}")
        return int(said["config-epoch"]), (said["ip"], int(said["port"]))

    def node_of(self, key: bytes) -> Node:
        return self._node

    def nodes(self) -> list[Node]:
        return [self._node]
