"""The official MCP SDK, unmodified: `python mcp_run.py serve PORT [store]` is a server of it, with an event store where
that is said, and `python mcp_run.py call URL TOOL ARGUMENTS` a client, which prints what its user would see.

Nothing of the relay may be imported here: this file runs with the SDK on its path and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import anyio
import httpx2
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.streamable_http import EventMessage, EventStore

server = MCPServer("of-the-tests")
runs: list[str] = []


class Memory(EventStore):
    """Keeps every event, as the SDK's own example does. What its server is given to send while it replays, and until it
    has taken the further connection for its own, it sends to nobody: so here it is given nothing then."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.replays = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def over(self, turns: int = 100) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self.over, turns - 1)
        else:
            self.replays -= 1
            if not self.replays:
                self.idle.set()

    async def store_event(self, stream_id: str, message: Any) -> str:
        if message is not None:
            await self.idle.wait()
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str:
        self.replays += 1
        self.idle.clear()
        try:
            after = int(last_event_id)
            stream = self.events[after - 1][0]
            for number, (of, message) in enumerate(self.events[after:], after + 1):
                if of == stream and message is not None:
                    await send_callback(EventMessage(message, str(number)))
            return stream
        finally:
            self.over()


@server.tool()
async def count(to: int, ctx: Context) -> str:
    runs.append("count")
    for n in range(1, to + 1):
        await ctx.report_progress(n, to, f"step {n} é")
        await anyio.sleep(0.3)
    return f"counted to {to} in run {len(runs)}"


@server.tool()
async def polled(ctx: Context) -> str:
    """Closes its stream in the middle, for its client to come back."""
    await ctx.report_progress(1, 3, "before")
    await ctx.close_sse_stream()
    await anyio.sleep(0.3)
    await ctx.report_progress(2, 3, "while away")
    await anyio.sleep(0.3)
    await ctx.report_progress(3, 3, "after")
    return "polled"


async def call(url: str, tool: str, arguments: dict[str, Any]) -> None:
    seen: list[str] = []
    told: dict[str, Any] = {}

    async def progress(_: float, __: float | None, message: str | None) -> None:
        seen.append(message or "")

    async with (
        httpx2.AsyncClient(headers={"authorization": "Bearer me"}, timeout=httpx2.Timeout(30)) as http,
        streamable_http_client(url, http_client=http) as streams,
        ClientSession(streams[0], streams[1]) as session,
    ):
        await session.initialize()
        told["tools"] = [tool.name for tool in (await session.list_tools()).tools]
        try:
            with anyio.fail_after(40):
                result = await session.call_tool(tool, arguments, progress_callback=progress)
            told["result"] = result.content[0].text
        except Exception as error:
            told["error"] = str(error)
        told["progress"] = seen
        told["again"] = (await session.call_tool("count", {"to": 1})).content[0].text
    print(json.dumps(told))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        store = Memory() if "store" in sys.argv else None
        retry = 100 if store else None
        server.run("streamable-http", port=int(sys.argv[2]), event_store=store, retry_interval=retry)
    else:
        anyio.run(call, sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
