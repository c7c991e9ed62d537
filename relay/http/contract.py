"""What the server offers the application beyond ASGI, and how the application cuts a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.types import Message

# In the scope's state: a `Connection`. Missing under a server that is not the relay's own.
CONNECTION = "relay.connection"
# In the scope's state: a `Client`. Missing where the server does not say.
CLIENT = "relay.client"


class Client(Protocol):
    """The client of one request, without a task that waits for it."""

    def here(self) -> Message | None:
        """What ASGI's `receive` would return at once; None where it would wait."""

    def when_gone(self, call: Callable[[], None] | None) -> None:
        """Have this called once, and this alone, when the client hangs up before its answer's end, at once where it
        has; or nothing."""


class DirectWriter(Protocol):
    """The body of the response that this connection is in, as chunks (RFC 9112, section 7.1), after its head and before
    its end, which are the server's."""

    def write(self, data: bytes) -> bool:
        """Write one chunk. False where the client has not taken what came before: use `send` next."""

    async def send(self, data: bytes) -> None:
        """Write it, slice by slice, and wait until the client has taken most of each. Raises ConnectionCut where the
        client has gone, or has taken nothing for `limits.write_timeout`."""


class Connection(Protocol):
    """What a request came on. Over HTTP/2, whose requests share it, only `read_timeout`, `given_up` and `unheard` are
    of use."""

    given_up: bool
    """Has the server ended it because its client took nothing?"""
    probe: Callable[[], None] | None
    """A client that has closed its sending side waits for its answer, or has gone. Only what is sent to it tells, and
    is answered by a reset where it has gone. To be set once its answer has begun, to what sends something that the
    client does not mind."""

    @property
    def read_timeout(self) -> float:
        """`limits.read_timeout`, in seconds."""

    @property
    def direct(self) -> DirectWriter:
        """What writes chunks of the response past the server."""

    def abort(self) -> None:
        """End it at once, whatever it still holds for its peer."""

    def has_taken(self) -> bool | None:
        """From an answer's end on: has the peer's kernel all that was written? None as long as that cannot be said.
        What it has not said so much of when it resets the connection, its client never got. Where the connection ends
        with the answer nobody can be asked: then only who had closed its side before may have gone."""

    def unheard(self) -> float:
        """For how many seconds the peer's machine has acknowledged nothing of what was sent to it; 0 where it owes
        nothing, or where that is not known."""


class ConnectionCut(Exception):
    """Raised out of the application to abort a response body: the connection dies without the zero chunk, so
    that no client can take what it has for a complete answer."""
