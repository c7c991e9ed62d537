"""What the server offers the application beyond ASGI, and how the application cuts a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.types import Message

# In the scope's state: a `HalfClose`.
HALF_CLOSE = "relay.half_close"
# In the scope's state, where the server lets the relay write chunks of an HTTP/1.1 response past it: a `DirectWriter`.
DIRECT = "relay.direct"
# In the scope's state: `limits.read_timeout`, in seconds.
READ_TIMEOUT = "relay.read_timeout"
# In the scope's state: ends the connection at once, whatever it still holds for its peer.
ABORT = "relay.abort"
# In the scope's state: to be called at an answer's end, gives what tells whether its client has got all of it: True,
# False, None as long as that cannot be said. Missing where the server cannot tell.
TAKEN = "relay.taken"
# In the scope's state: tells for how many seconds the peer's machine has acknowledged nothing of what was sent to it; 0
# where it owes nothing. Missing where the server cannot tell.
UNHEARD = "relay.unheard"


# In the scope's state: tells whether the server has ended the connection because its client took nothing.
GIVEN_UP = "relay.given_up"


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


class HalfClose:
    """A client has closed its sending side: it waits for its answer, or has gone. Only what is sent to it tells, and is
    answered by a reset where it has gone. `probe` sends something that its client does not mind, where the answer has
    begun and the application knows of such a thing; `amid` is True once it has done so amid an answer."""

    amid = False
    probe: Callable[[], None] | None = None


class ConnectionCut(Exception):
    """Raised out of the application to abort a response body: the connection dies without the zero chunk, so
    that no client can take what it has for a complete answer."""
