"""Real clients at two real relays behind a load balancer that cuts, while the replicas roll and a hop compresses.

    python -m tests.client.trial SECONDS [SEED]

Every stream must be exact, from one upstream call, and the clients' descriptors and memory flat. It prints what it saw,
as JSON, and fails where that is not so; `test_trial.py` runs it for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from tests.client.trial_client import EVENTS
from tests.support.cutting_http import Cut, CuttingBalancer
from tests.support.http import chunk, read_body, read_chunk, read_head
from tests.support.processes import RelayProcess
from tests.support.scripted import Call, Pause, ScriptedUpstream, Step, stream
from tests.support.stores import valkey_server
from tests.support.threaded import ServerThread

ROOT = Path(__file__).resolve().parents[2]
JS = ROOT / "tests" / "client_js" / "node" / "trial.mjs"
PACE = 0.05
WAYS = ("blocking", "asyncio", "trio", "js")


class AnyModel(ScriptedUpstream):
    """Every model is answered: numbered words, one each `PACE` seconds."""

    def _script(self, call: Call) -> tuple[Step, ...]:
        steps: list[str | bytes | Step] = []
        for n in range(1, EVENTS):
            steps += [f'data: {{"choices":[{{"index":0,"delta":{{"content":"w{n} "}}}}]}}\n\n', Pause(PACE)]
        return stream(*steps, "data: [DONE]\n\n")


class GzipHop(ServerThread):
    """A hop that compresses what asks for it, and some of what does not. One request for each connection."""

    def __init__(self, target: int, seed: int) -> None:
        super().__init__()
        self.compressed = 0
        self._target = target
        self._dice = random.Random(seed)

    async def serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        server: asyncio.StreamWriter | None = None
        ended = False
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await read_head(reader)
            body = await read_body(head, reader)
            lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
            answers, server = await asyncio.open_connection("127.0.0.1", self._target)
            server.write(b"\r\n".join([*lines, b"connection: close", b"", body]))
            asks = any(line.lower().startswith(b"accept-encoding:") and b"gzip" in line for line in lines)
            ended = await self._answer(answers, client, compress=asks or self._dice.random() < 0.3)
        if server is not None:
            server.transport.abort()
        if ended:
            client.close()
        else:
            client.transport.abort()

    async def _answer(self, answers: asyncio.StreamReader, client: asyncio.StreamWriter, *, compress: bool) -> bool:
        head = await read_head(answers)
        if not (compress and b"text/event-stream" in head and b"chunked" in head):
            client.write(head)
            while data := await answers.read(65536):
                client.write(data)
                await client.drain()
            return True
        self.compressed += 1
        client.write(head[:-2] + b"content-encoding: gzip\r\n\r\n")
        pack = zlib.compressobj(wbits=31)
        while data := await read_chunk(answers):
            client.write(chunk(pack.compress(data) + pack.flush(zlib.Z_SYNC_FLUSH)))
            await client.drain()
        client.write(chunk(pack.flush()) + chunk(b""))
        await client.drain()
        return True


def at_random(seed: int) -> Any:
    """Half of the answers are cut somewhere, some before their head."""
    dice = random.Random(seed)

    def draw() -> Cut:
        how: Any = dice.choice(("fin", "rst", "clean"))
        return Cut(0 if dice.random() < 0.1 else dice.randrange(1, 4000) if dice.random() < 0.5 else 1 << 40, how)

    return draw


def roll(relays: list[RelayProcess], until: threading.Event, rolled: list[int]) -> None:
    """One replica after the other is told to leave, drains, and comes back."""
    while not until.wait(4):
        relay = relays[len(rolled) % len(relays)]
        relay.signal(signal.SIGTERM)
        rolled.append(relay.wait(60))
        for _ in range(9):  # a machine may be too busy to start one in time
            with contextlib.suppress(AssertionError):
                relay.start()
                break


def clients(url: str, seconds: float, ways: tuple[str, ...]) -> dict[str, subprocess.Popen[str]]:
    found = {}
    for way in ways:
        command = ["node", str(JS)] if way == "js" else [sys.executable, "-m", "tests.client.trial_client"]
        argument = json.dumps({"url": url, "seconds": seconds, "way": way})
        env = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
        found[way] = subprocess.Popen(
            [*command, argument], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    return found


def trial(seconds: float, seed: int, ways: tuple[str, ...] = WAYS) -> dict[str, Any]:
    config: dict[str, Any] = {"streams": {"heartbeat": "1s"}, "drain": {"timeout": "40s"}}
    over, rolled = threading.Event(), list[int]()
    with AnyModel() as upstream, tempfile.TemporaryDirectory() as folder, valkey_server(Path(folder)) as store:
        config |= {"upstreams": [{"name": "any", "base_url": upstream.url}], "store": {"url": store.url}}
        with RelayProcess(config) as first, RelayProcess(config) as second:
            ports = [int(relay.url.rpartition(":")[2]) for relay in (first, second)]
            with CuttingBalancer(*ports, plan=at_random(seed)) as balancer, GzipHop(balancer.port, seed) as hop:
                rolling = threading.Thread(target=roll, args=([first, second], over, rolled))
                rolling.start()
                begun = time.monotonic()
                running = clients(f"http://127.0.0.1:{hop.port}", seconds, ways)
                try:
                    seen = {way: _finish(process, seconds + 90) for way, process in running.items()}
                finally:
                    for process in running.values():
                        process.kill()
                        process.wait()
                    over.set()
                    rolling.join(120)
                took = time.monotonic() - begun
        calls = Counter(json.loads(call.body)["model"] for call in upstream.calls)
    models = [model for one in seen.values() for model in one["models"]]
    return {
        "seconds": round(took),
        "seed": seed,
        "streams": len(models),
        "wrong": [wrong for one in seen.values() for wrong in one["wrong"]],
        "upstream_calls_not_one": {model: calls[model] for model in models if calls[model] != 1},
        "cuts": dict(balancer.cuts),
        "rolled": len(rolled),
        "compressed": hop.compressed,
        "clients": {way: {name: one[name] for name in ("counters", "fds", "rss_mib")} for way, one in seen.items()},
    }


def _finish(process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
    out, errors = process.communicate(timeout=timeout)
    if process.returncode != 0:
        raise RuntimeError(errors[-4000:])
    found: dict[str, Any] = json.loads(out)
    return found


def faults(found: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    wrong = [f"{name}: {found[name]}" for name in ("wrong", "upstream_calls_not_one") if found[name]]
    for way, one in found["clients"].items():
        for name, slack in (("fds", 12), ("rss_mib", 25)):
            early, late = one[name]
            if late - early > slack:
                wrong.append(f"{way}: {name} grew from {early} to {late}")
    return wrong


def main() -> int:
    seconds = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
    found = trial(seconds, seed, WAYS if shutil.which("node") else WAYS[:3])
    print(json.dumps(found, indent=1))
    for fault in faults(found):
        print(fault, file=sys.stderr)
    return int(bool(faults(found)))


if __name__ == "__main__":
    sys.exit(main())
