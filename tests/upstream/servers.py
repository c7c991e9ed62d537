"""Three upstreams that this project did not write, each a real server in a process of its own on a free port.

- llama.cpp with SmolLM2, as `relay demo` runs it: a model that really generates.
- aimock (npm) and llmock (PyPI): scripted answers, and faults on demand.

Each is a context manager that yields an `Upstream`, is ready when it does, and is ended by its pid. Where a
server is not installed the test is skipped with what to install.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.demo.model import HEALTH, MODEL_NAME, ModelMissing, model_path
from relay.processes import wait_ready
from tests.support.processes import free_port, needs
from tests.support.streams import APIS, PATHS, Api

START_TIMEOUT = 60.0

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_AIMOCK = _ROOT / "tests/sdk/node/node_modules/@copilotkit/aimock/dist/cli.js"
_LLMOCK = _ROOT / ".sdk/llmock"


@dataclass(frozen=True)
class Upstream:
    """A running server. `prompts` are the requests that it answers with a whole stream."""

    name: str
    model: str
    url: str
    prompts: tuple[str, ...] = ("say hello",)
    messages_prefix: str = ""

    def base_url(self, api: Api) -> str:
        return self.url + (self.messages_prefix if api == "messages" else "")

    def endpoint(self, api: Api) -> str:
        return self.base_url(api) + PATHS[api]

    def settings(self) -> list[dict[str, Any]]:
        """The relay's `upstreams`: one for each base URL."""
        return [
            {"name": f"{self.name}-{api}", "base_url": self.base_url(api), "apis": [api], "malformed": "end"}
            for api in APIS
        ]


@contextmanager
def llama_cpp(folder: Path) -> Iterator[Upstream]:
    needs(importlib.util.find_spec("xllamacpp"), "the llama.cpp server: pip install xllamacpp")
    try:
        weights = model_path()
    except ModelMissing as missing:
        needs(False, str(missing))
        raise
    port = free_port()
    command = [sys.executable, "-m", "relay.demo.model", "--port", str(port), "--model-path", str(weights)]
    with _process(command, folder / "llama.log") as process:
        upstream = Upstream("llama.cpp", MODEL_NAME, f"http://127.0.0.1:{port}")
        wait_ready(process, upstream.url.removeprefix("http://"), HEALTH, START_TIMEOUT)
        yield upstream


@contextmanager
def aimock(folder: Path) -> Iterator[Upstream]:
    node = shutil.which("node")
    needs(node and _AIMOCK.exists(), "Node and @copilotkit/aimock: python tests/sdk/install.py")
    port = free_port()
    answers = str(_HERE / "aimock.json")
    command = [str(node), str(_AIMOCK), "--port", str(port), "--fixtures", answers, "--log-level", "warn"]
    with _process(command, folder / "aimock.log") as process:
        _wait_connect(port, process)
        prompts = ("say hello", "the weather", "think first")
        yield Upstream("aimock", "aimock", f"http://127.0.0.1:{port}", prompts)


@contextmanager
def llmock(folder: Path) -> Iterator[Upstream]:
    """Kept in a folder of its own, on this process's path only: its dependencies are not the relay's."""
    program = _LLMOCK / "bin/llmock"
    needs(program.exists(), "llmock: pip install --target .sdk/llmock llmock==0.2.2")
    port = free_port()
    command = [sys.executable, str(program), "serve", "--port", str(port)]
    with _process(command, folder / "llmock.log", PYTHONPATH=str(_LLMOCK)) as process:
        _wait_connect(port, process)
        yield Upstream("llmock", "gpt-4o", f"http://127.0.0.1:{port}", messages_prefix="/anthropic")


START: dict[str, Callable[[Path], AbstractContextManager[Upstream]]] = {
    "llama.cpp": llama_cpp,
    "aimock": aimock,
    "llmock": llmock,
}


@contextmanager
def _process(command: Sequence[str], log_path: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=_ROOT, env=os.environ | env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield process
    except (RuntimeError, TimeoutError) as error:
        error.add_note(log_path.read_text(errors="replace")[-2000:])
        raise
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_connect(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            pass
        try:
            code = process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        raise RuntimeError(f"the upstream ended with exit code {code} before it was ready")
    raise TimeoutError(f"the upstream was not ready within {START_TIMEOUT:g} s")
