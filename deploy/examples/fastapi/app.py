"""The backend of a page that asks, and reads the answer as it comes: plain server-sent events.

It knows nothing of resuming.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel

PACE = float(os.environ.get("PACE", "0.2"))  # seconds between two words
TEXT = "High water is at nine, so the ferry leaves at half past."
PAGE = Path(__file__).with_name("page.html")

app = FastAPI()
runs: Counter[str] = Counter()  # how often the tool has run, for each question


class Question(BaseModel):
    id: str
    question: str


@app.get("/")
async def page(request: Request) -> FileResponse:
    response = FileResponse(PAGE)
    if "session" not in request.cookies:
        response.set_cookie("session", uuid.uuid4().hex, httponly=True, samesite="lax")
    return response


@app.post("/api/answers")
async def answer(question: Question) -> StreamingResponse:
    return StreamingResponse(events(question), media_type="text/event-stream")


async def events(question: Question) -> AsyncIterator[str]:
    """What a model, and the tool that it calls, would say."""
    await asyncio.sleep(5 * PACE)
    yield event("tool", {"name": "tides", "state": "running"})
    await asyncio.sleep(8 * PACE)
    runs[question.id] += 1
    yield event("tool", {"name": "tides", "state": "done", "run": runs[question.id]})
    await asyncio.sleep(5 * PACE)
    for word in TEXT.split():
        yield event("token", {"text": f"{word} "})
        await asyncio.sleep(PACE)
    yield event("done", {})


def event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
