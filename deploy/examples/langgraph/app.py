"""The backend of an agent: a run streams what its graph says, as LangGraph's own server names it.

It knows nothing of resuming.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from agent import agent
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, StreamingResponse
from langchain_core.messages import BaseMessage
from pydantic import BaseModel

PAGE = Path(__file__).with_name("page.html")
app = FastAPI()


class Run(BaseModel):
    question: str


@app.get("/")
async def page(request: Request) -> FileResponse:
    response = FileResponse(PAGE)
    if "session" not in request.cookies:
        response.set_cookie("session", uuid.uuid4().hex, httponly=True, samesite="lax")
    return response


@app.post("/threads/{thread}/runs/stream")
async def stream(thread: str, run: Run) -> StreamingResponse:
    return StreamingResponse(events(thread, run), media_type="text/event-stream")


async def events(thread: str, run: Run) -> AsyncIterator[str]:
    yield event("metadata", {"run_id": str(uuid.uuid4())})
    config = {"configurable": {"thread": thread}}
    given = {"messages": [("user", run.question)]}
    async for mode, said in agent.astream(given, config, stream_mode=["messages", "updates"]):
        yield event(mode, said)
    yield event("end", None)


def event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data, default=BaseMessage.model_dump)}\n\n"
