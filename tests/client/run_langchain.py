"""LangChain's OpenAI chat model, with or without the resuming transport: what its user sees of a stream.

    python run_langchain.py BASE_URL '[["chat", "model-name", "raw"], …]' resuming|plain

A job is an API (chat, responses), a model and a mode: "raw" iterates `stream`, "async" `astream`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import httpx2
from langchain_openai import ChatOpenAI

from relay.client.httpx2 import AsyncResumingTransport, ResumingTransport
from relay.client.policy import Policy

BASE_URL = sys.argv[1]
HURRY = 50  # waits are real and in order, only shorter
# One long event may be cut more than ten times in a row by lines this bad.
STUBBORN = Policy(max_attempts=100)


def model_of(api: str, model: str) -> ChatOpenAI:
    swapped: dict[str, Any] = {}
    if sys.argv[3] == "resuming":
        swapped = {"http_client": httpx2.Client(transport=TRANSPORT), "http_async_client": ASYNC_CLIENT}
    return ChatOpenAI(
        model=model,
        base_url=f"{BASE_URL}/v1",
        api_key="sk-test",
        max_retries=0,
        timeout=30,
        stream_usage=True,
        use_responses_api=api == "responses",
        **swapped,
    )


TRANSPORT = ResumingTransport(policy=STUBBORN, sleep=lambda s: time.sleep(s / HURRY))
ASYNC_CLIENT = httpx2.AsyncClient(
    transport=AsyncResumingTransport(policy=STUBBORN, sleep=lambda s: asyncio.sleep(s / HURRY)),
)


def transcript(chunks: list[Any], error: Exception | None) -> dict[str, Any]:
    whole = sum(chunks[1:], chunks[0]) if chunks else None
    return {
        "error": None if error is None else {"class": type(error).__name__, "message": str(error)},
        "events": [{"content": chunk.content, "tools": chunk.tool_call_chunks} for chunk in chunks],
        "text": whole.text if whole is not None else "",
        "tools": whole.tool_calls if whole is not None else [],
        "usage": whole.usage_metadata if whole is not None else None,
    }


def blocking(api: str, model: str) -> dict[str, Any]:
    chunks: list[Any] = []
    try:
        chunks.extend(model_of(api, model).stream("Say hello."))
    except Exception as error:
        return transcript(chunks, error)
    return transcript(chunks, None)


async def awaiting(api: str, model: str) -> dict[str, Any]:
    chunks: list[Any] = []
    try:
        async for chunk in model_of(api, model).astream("Say hello."):
            chunks.append(chunk)  # noqa: PERF401 (those before an error are to be seen)
    except Exception as error:
        return transcript(chunks, error)
    return transcript(chunks, None)


async def all_awaiting(jobs: list[list[str]]) -> list[dict[str, Any]]:
    await awaiting("chat", "warm-up-chat")
    found = await asyncio.gather(*(awaiting(api, model) for api, model, _ in jobs))
    await ASYNC_CLIENT.aclose()
    return found


def main() -> None:
    jobs = json.loads(sys.argv[2])
    blocking("chat", "warm-up-chat")
    awaited = iter(asyncio.run(all_awaiting([job for job in jobs if job[2] == "async"])))
    json.dump([next(awaited) if mode == "async" else blocking(api, model) for api, model, mode in jobs], sys.stdout)


if __name__ == "__main__":
    main()
