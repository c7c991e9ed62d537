"""`relay demo`: the embedded store, two replicas on it, and an upstream that really generates.

Everything it starts it stops, by its id, and its data goes with it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from relay import processes
from relay.demo.model import HEALTH, MODEL_NAME, ModelMissing, model_path
from relay.store.embedded import EmbeddedStore, EmbeddedStoreError

_READY_TIMEOUT = 60.0

_GUIDE = """
Two replicas share one store, and a real model (SmolLM2-135M-Instruct under llama.cpp) generates what they relay.

Try it in a browser: stream, cut the connection, go on at the other replica, reload, stop.

  {one}/playground?model={model}

Or by hand. Stream from replica one. This line hangs up by itself after 30 events, in the middle of the answer:

  curl -sN {one}/v1/chat/completions -H 'Authorization: Bearer demo' \\
    -d '{body}' \\
    | tee relay-demo.txt | head -n 90

Go on where it broke off, on replica two: the same request, with the id of the last event that arrived whole.

  curl -sN {two}/v1/chat/completions -X POST -H 'Authorization: Bearer demo' \\
    -H "Last-Event-ID: $(awk '/^id: /{{id=$2}} /^$/{{last=id}} END{{print last}}' relay-demo.txt)"

Point an SDK at it: OPENAI_BASE_URL={one}/v1 OPENAI_API_KEY=demo, or ANTHROPIC_BASE_URL={one} (model {model}).
Ctrl-C ends the demo.
"""
_BODY = {
    "model": MODEL_NAME,
    "stream": True,
    "max_tokens": 700,
    "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse keeper and a storm."}],
}


def run(port: int) -> int:
    """Serve the demo until SIGINT or SIGTERM. The exit status."""
    try:
        model_path()
        with ExitStack() as stack:
            _demo(port, stack)
    except (ModelMissing, EmbeddedStoreError, RuntimeError, TimeoutError) as error:
        print(f"relay demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def _demo(port: int, stack: ExitStack) -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-demo-")))
    print("starting the model, the store and two replicas …", flush=True)
    store = EmbeddedStore(folder / "data")
    store.start()
    stack.callback(store.stop)
    model_port = processes.free_port()
    model_url = f"http://127.0.0.1:{model_port}"
    model = _start(stack, "relay.demo.model", "--port", str(model_port))
    replicas = [
        _start(
            stack,
            *("relay", "serve", "--store", store.url, "--upstream", model_url),
            *("--bind", f"127.0.0.1:{port + i}", "--metrics-bind", f"127.0.0.1:{processes.free_port()}"),
            environment=_playground(other=port + 1 - i),
        )
        for i in range(2)
    ]
    _wait_ready("the model", model, model_port, HEALTH)
    for i, replica in enumerate(replicas):
        _wait_ready("the replica", replica, port + i, "/readyz")
    one, two = (f"http://127.0.0.1:{port + i}" for i in range(2))
    print(_GUIDE.format(one=one, two=two, model=MODEL_NAME, body=json.dumps(_BODY)), flush=True)
    for process in (model, *replicas):
        process.poll()
    while all(process.poll() is None for process in (model, *replicas)):
        signal.sigtimedwait((signal.SIGCHLD,), 1.0)
    raise RuntimeError("a process of the demo has ended by itself; see the lines above")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _playground(other: int) -> dict[str, str]:
    """The page of each replica may read from the other, by whichever name of this machine it was opened."""
    origins = [f"http://{host}:{other}" for host in ("127.0.0.1", "localhost")]
    return {
        "RELAY_PLAYGROUND": "true",
        "RELAY_PLAYGROUND_REPLICAS": json.dumps(origins[:1]),
        "RELAY_CORS__ORIGINS": json.dumps(origins),
        "RELAY_STREAMS__HEARTBEAT": "1s",
        "RELAY_DRAIN__TIMEOUT": "0s",
        "RELAY_LOG__LEVEL": "warning",
    }


def _start(
    stack: ExitStack, module: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    process = processes.start(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        env={**processes.environment(), **(environment or {})},
    )
    stack.callback(processes.stop, process)
    return process


def _wait_ready(what: str, process: subprocess.Popen[bytes], port: int, path: str) -> None:
    try:
        processes.wait_ready(process, f"127.0.0.1:{port}", path, _READY_TIMEOUT)
    except processes.ProcessEnded as error:
        raise RuntimeError(
            f"{what} on port {port} ended with exit status {error.code} while starting; is the port taken? Try --port"
        ) from None
    except TimeoutError:
        raise TimeoutError(f"{what} on port {port} was not ready within {_READY_TIMEOUT:g} s") from None
