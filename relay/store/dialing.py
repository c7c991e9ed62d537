"""Dialling a store's servers: what a URL says of them, one connection, and several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlunsplit

import redis.exceptions
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)

_CONNECT_TIMEOUT = 2.0
# What a URL says of who is asking, and what only they need.
_IDENTITY = ("username", "password", "ssl_certfile", "ssl_keyfile", "ssl_password", "db")
FAULTS = (OSError, TimeoutError, EOFError, redis.exceptions.RedisError)

Address = tuple[str, int]
_Answer = TypeVar("_Answer")


async def open_connection(
    kind: type[AbstractConnection], kwargs: dict[str, Any], *, anonymous: bool = False
) -> AbstractConnection:
    reached = False

    async def greet(connection: AbstractConnection) -> None:
        nonlocal reached
        reached = True
        await connection.on_connect()
        # A server that wants a client's certificate, or TLS, says so only now, and only by hanging up.
        await connection.send_command("PING")
        try:
            await connection.read_response()
        except redis.exceptions.ResponseError as error:
            if not str(error).startswith("MISCONF"):  # its disk is full: it takes no writes, and can be read
                raise

    said = {name: value for name, value in kwargs.items() if not (anonymous and name in _IDENTITY)}
    # Time is bounded by the caller; replies stay bytes; RESP2 is what every supported server speaks alike. Without
    # driver_info there is no CLIENT SETINFO: a permission more, which Redis 7.0 has no name for.
    fixed = {"socket_timeout": None, "socket_connect_timeout": _CONNECT_TIMEOUT, "protocol": 2, "driver_info": None}
    connection = kind(**{**said, **fixed, "redis_connect_func": greet})
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except (redis.exceptions.AuthenticationError, redis.exceptions.BusyLoadingError):
        raise
    except redis.exceptions.ConnectionError as error:
        if not reached:
            raise
        raise redis.exceptions.ConnectionError(f"{error}{advice(kind, said)}") from None
    except asyncio.CancelledError:
        await connection.disconnect(nowait=True)
        raise
    return connection


def advice(kind: type[AbstractConnection], kwargs: dict[str, Any]) -> str:
    """What to try at a server that hangs up."""
    if not issubclass(kind, SSLConnection):
        return "" if issubclass(kind, UnixDomainSocketConnection) else "; if it wants TLS, write rediss in store.url"
    if "ssl_certfile" in kwargs:
        return "; does it trust the authority of the certificate in ssl_certfile?"
    return "; if it wants a client's certificate, name one in store.url: ?ssl_certfile=FILE&ssl_keyfile=FILE"


async def ask_all(asks: Sequence[Coroutine[Any, Any, _Answer]], timeout: float, grace: float) -> list[_Answer]:
    """All are asked at once: their answers, as far as they come within `grace` of the first one. Raises what the one
    asked first had raised, where nobody answers in time."""
    tasks = [asyncio.ensure_future(asyncio.wait_for(ask, timeout)) for ask in asks]
    answers: list[_Answer] = []
    pending = set(tasks)
    try:
        while pending and not answers:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            answers = [task.result() for task in done if task.exception() is None]
        if pending:
            done, pending = await asyncio.wait(pending, timeout=grace)
            answers += [task.result() for task in done if task.exception() is None]
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return answers or [tasks[0].result()]


def addresses(netloc: str, port: int) -> list[Address]:
    """The servers of a URL's "user:password@host:port,host:port"."""
    found = []
    for host in netloc.rpartition("@")[2].split(","):
        bare = host.rpartition(":") if not host.endswith("]") else ("", "", host)
        found.append(((bare[0] or bare[2]).strip("[]"), int(bare[2]) if bare[0] else port))
    return found


def connecting(parts: SplitResult) -> tuple[type[AbstractConnection], dict[str, Any]]:
    """How the servers of a URL with several hosts are dialled, but for the address."""
    credentials, at, _ = parts.netloc.rpartition("@")
    kwargs: dict[str, Any] = dict(parse_url(urlunsplit((parts.scheme, f"{credentials}{at}_", "", parts.query, ""))))
    kind: type[AbstractConnection] = kwargs.pop("connection_class", Connection)
    return kind, kwargs


def endpoint(host: Any, port: int, asked: Address | None) -> Address:
    """A server as another one names it: without a host it is the one that was asked (as the specification says)."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "?"):
        assert asked is not None
        name = asked[0]
    return name, int(port)
