"""The driver of the SDK tests (tests/sdk/driver.py), with or without the resuming transport in its clients.

    python run_sdk.py BASE_URL '[["chat", "model-name", "raw"], …]' resuming|plain

A third mode, "async", iterates `create(stream=True)` of the asynchronous client. Before its jobs it makes one stream
for each client, as a program that has run for a while would have. Only the transport differs between the two variants.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import anthropic
import openai

from relay.client.policy import Policy
from tests.sdk import driver

try:
    import httpx2 as http

    from relay.client.httpx2 import AsyncResumingTransport, ResumingTransport
except ModuleNotFoundError:
    import httpx as http

    from relay.client.httpx import AsyncResumingTransport, ResumingTransport

BASE_URL = sys.argv[1]
HURRY = 50  # waits are real and in order, only shorter
# One long event may be cut more than ten times in a row by lines this bad.
STUBBORN = Policy(max_attempts=100)
OPENAI = {"base_url": f"{BASE_URL}/v1", "api_key": "sk-test", "max_retries": 0, "timeout": 30}
ANTHROPIC = {"base_url": BASE_URL, "api_key": "sk-ant-test", "max_retries": 0, "timeout": 30}


def swapped() -> dict[str, Any]:
    if sys.argv[3] == "plain":
        return {}
    return {
        "http_client": http.Client(transport=ResumingTransport(policy=STUBBORN, sleep=lambda s: time.sleep(s / HURRY)))
    }


def swapped_async() -> dict[str, Any]:
    if sys.argv[3] == "plain":
        return {}
    transport = AsyncResumingTransport(policy=STUBBORN, sleep=lambda s: asyncio.sleep(s / HURRY))
    return {"http_client": http.AsyncClient(transport=transport)}


async def in_async(jobs: list[tuple[str, str]]) -> list[Any]:
    ai = openai.AsyncOpenAI(**OPENAI, **swapped_async())
    claude = anthropic.AsyncAnthropic(**ANTHROPIC, **swapped_async())
    prompt: Any = driver.PROMPT

    def create(api: str, model: str) -> Any:
        if api == "chat":
            options = {"include_usage": True}
            return ai.chat.completions.create(model=model, messages=prompt, stream=True, stream_options=options)
        if api == "messages":
            return claude.messages.create(model=model, messages=prompt, max_tokens=64, stream=True)
        return ai.responses.create(model=model, input="Say hello.", stream=True)

    async def run(api: str, model: str) -> Any:
        seen: dict[str, Any] = {"events": [], "headers": {}, "final": None, "error": None}
        try:
            async for event in await create(api, model):
                seen["events"].append(driver.dump(event))
        except Exception as error:
            seen["error"] = driver.describe(error)
        return {**seen, **driver.ASSEMBLERS[api](seen["events"])}

    await asyncio.gather(run("chat", "warm-up-chat"), run("messages", "warm-up-messages"))
    found = await asyncio.gather(*(run(*job) for job in jobs))
    await asyncio.gather(ai.close(), claude.close())
    return found


def main() -> None:
    jobs = json.loads(sys.argv[2])
    driver.openai_client = cache(lambda: openai.OpenAI(**OPENAI, **swapped()))
    driver.anthropic_client = cache(lambda: anthropic.Anthropic(**ANTHROPIC, **swapped()))
    for api in ("chat", "messages"):
        driver.run(api, f"warm-up-{api}", "raw")
    waiting = [(api, model) for api, model, mode in jobs if mode == "async"]
    with ThreadPoolExecutor(len(jobs) + 1) as pool:
        in_loop = pool.submit(asyncio.run, in_async(waiting)) if waiting else None
        found = [None if mode == "async" else pool.submit(driver.run, api, model, mode) for api, model, mode in jobs]
        awaited = iter(in_loop.result() if in_loop else [])
        transcripts = [next(awaited) if future is None else future.result() for future in found]
    json.dump(transcripts, sys.stdout)


if __name__ == "__main__":
    main()
