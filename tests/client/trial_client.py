"""One client process of the trial: streams, one after the other in several lanes, each checked event by event.

    python -m tests.client.trial_client '{"url": …, "seconds": …, "way": "blocking" | "asyncio" | "trio"}'

Prints as JSON which models it asked for, what was wrong, its counters, and its descriptors and memory a while after the
start and at the end.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import re
import sys
import threading
import time
from typing import Any

import anyio
import httpx
import httpx2
import trio

import relay.client.httpx
import relay.client.httpx2
from relay.client.policy import Policy

EVENTS = 40
LANES = 4
PATH = "/v1/chat/completions"
POLICY = Policy(assume_relay=True, max_attempts=200, first_delay=0.05, longest_delay=1)
_ID = re.compile(rb"^id: st_[\w-]+\.(\d+)$", re.MULTILINE)
# Between the SDK's own tries.
PAUSE = 0.2


class Run:
    def __init__(self, way: str, seconds: float) -> None:
        self.way = way
        self.models: list[str] = []
        self.wrong: list[str] = []
        self.fds: list[int] = []
        self.rss: list[float] = []
        self._begun = time.monotonic()
        self._seconds = seconds
        self._names = itertools.count(1)
        self._measuring = threading.Lock()

    @property
    def over(self) -> bool:
        passed = time.monotonic() - self._begun
        with self._measuring:
            if not self.fds and passed > self._seconds / 4:
                self.measure()
        return passed > self._seconds

    def measure(self) -> None:
        gc.collect()
        self.fds.append(len(os.listdir("/proc/self/fd")))
        with open("/proc/self/statm", encoding="ascii") as statm:
            self.rss.append(round(int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1))

    def model(self) -> str:
        model = f"{self.way}-{next(self._names)}"
        self.models.append(model)
        return model

    def check(self, model: str, status: int, body: bytes) -> None:
        numbers = [int(n) for n in _ID.findall(body)]
        words = re.findall(rb'"content":"w(\d+) "', body)
        whole = numbers == list(range(1, EVENTS + 1)) and [int(n) for n in words] == numbers[:-1]
        if status != 200 or not whole or not body.endswith(b"data: [DONE]\n\n"):
            self.wrong.append(f"{model}: {status}, {len(numbers)} events, {body[-200:]!r}")


def request(model: str) -> dict[str, Any]:
    return {"json": {"model": model, "messages": [], "stream": True}, "headers": {"authorization": "Bearer sk-trial"}}


def blocking(url: str, run: Run, transport: Any) -> None:
    def lane() -> None:
        while not run.over:
            model = run.model()
            try:
                while True:
                    with client.stream("POST", url + PATH, **request(model)) as response:
                        refused = response.status_code == 503  # which may be cut, too
                        body = b"" if refused else b"".join(response.iter_raw())
                    if not refused:
                        break
                    time.sleep(PAUSE)
                run.check(model, response.status_code, body)
            except Exception as error:
                run.wrong.append(f"{model}: {error!r}")

    with httpx.Client(transport=transport, timeout=30) as client:
        lanes = [threading.Thread(target=lane) for _ in range(LANES)]
        for one in lanes:
            one.start()
        for one in lanes:
            one.join()


async def awaiting(url: str, run: Run, transport: Any, http: Any) -> None:
    async def lane() -> None:
        while not run.over:
            model = run.model()
            try:
                while True:
                    async with client.stream("POST", url + PATH, **request(model)) as response:
                        refused = response.status_code == 503
                        body = b"" if refused else b"".join([part async for part in response.aiter_raw()])
                    if not refused:
                        break
                    await anyio.sleep(PAUSE)
                run.check(model, response.status_code, body)
            except Exception as error:
                run.wrong.append(f"{model}: {error!r}")

    async with http.AsyncClient(transport=transport, timeout=30) as client, anyio.create_task_group() as group:
        for _ in range(LANES):
            group.start_soon(lane)


def main() -> None:
    argument = json.loads(sys.argv[1])
    run = Run(argument["way"], argument["seconds"])
    transport: Any
    if run.way == "blocking":
        transport = relay.client.httpx.ResumingTransport(policy=POLICY)
        blocking(argument["url"], run, transport)
    elif run.way == "asyncio":
        transport = relay.client.httpx2.AsyncResumingTransport(policy=POLICY)
        asyncio.run(awaiting(argument["url"], run, transport, httpx2))
    else:
        transport = relay.client.httpx.AsyncResumingTransport(policy=POLICY)
        trio.run(awaiting, argument["url"], run, transport, httpx)
    run.measure()
    counters = {name: value for name, value in vars(transport.counters).items() if not name.startswith("_")}
    found = {"models": run.models, "wrong": run.wrong, "counters": counters, "fds": run.fds, "rss_mib": run.rss}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
