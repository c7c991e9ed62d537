"""The relay under another ASGI server, for measuring only.

    python deploy/bench/asgi.py uvicorn|granian serve [flags of relay serve]

Everything but the HTTP server is the relay's own. It is no way to serve: these servers end a response in their own
ways where the relay cuts a connection, know nothing of its bounds on slow clients, and end without its drain.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from relay import cli
from relay.http import server as http_server


class _Undrained:
    """In the place of `http_server.Server`."""

    async def drain(self, *, listening: bool) -> None:
        pass

    async def answered(self) -> None:
        pass


_Until = Callable[[_Undrained], Awaitable[None]]


async def _uvicorn(app: Any, listener: socket.socket, until: _Until, _limits: Any, _share: Any) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        def install_signal_handlers(self) -> None:
            """The relay has its own."""

    config = uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, server_header=False, backlog=4096, loop="none"
    )
    server = Server(config)
    await _until(server.serve(sockets=[listener]), until, lambda: setattr(server, "should_exit", True))


async def _granian(app: Any, listener: socket.socket, until: _Until, _limits: Any, _share: Any) -> None:
    from granian.server.embed import Server  # type: ignore[import-not-found]

    host, port = listener.getsockname()[:2]
    listener.close()  # granian opens its own
    server = Server(app, address=host, port=port, interface="asginl", backlog=4096, log_enabled=False)
    await _until(server.serve(), until, server.stop)


async def _until(serving: Awaitable[None], until: _Until, stop: Callable[[], object]) -> None:
    running = asyncio.ensure_future(serving)
    ending = asyncio.ensure_future(until(_Undrained()))
    await asyncio.wait((running, ending), return_when=asyncio.FIRST_COMPLETED)
    stop()
    await asyncio.wait((running,), timeout=3)
    ending.cancel()


_SERVERS = {"uvicorn": _uvicorn, "granian": _granian}


def main() -> int:
    name, *arguments = sys.argv[1:]
    http_server.serve = _SERVERS[name]
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
