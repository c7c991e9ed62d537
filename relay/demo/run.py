"""`relay demo`: the embedded store, two replicas on it, and an upstream that really generates.

A replica that ends is started again, so that it can be killed at will. The model stands behind a relay of its own,
where a replica's successor can read on what the dead one was reading. Everything that the demo starts it stops, by its
id, and its data goes with it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from relay import processes, signals
from relay.demo.control import Control
from relay.demo.model import HEALTH, MODEL_NAME, ModelMissing, model_path
from relay.demo.ports import PortTaken, require_free
from relay.store.embedded import EmbeddedStore, EmbeddedStoreError

_READY_TIMEOUT = 60.0
_SOON = 5.0  # seconds: who ends sooner has not been killed but cannot start
_NAMES = ("one", "two")

_GUIDE = """
Two replicas share one store, and a real model (SmolLM2-135M-Instruct under llama.cpp) generates what they relay.

Try it in a browser: stream, cut the connection, kill the replica that the page reads from, reload, stop.

  {one}/

Kill them yourself: kill -9 {pids}. Each is started again.

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
    """Serve the demo until a signal that ends it (`relay.signals`). The exit status."""
    try:
        require_free(port, len(_NAMES))
        model_path()
        with ExitStack() as stack:
            _demo(port, stack)
    except (ModelMissing, PortTaken, EmbeddedStoreError, RuntimeError, TimeoutError) as error:
        print(f"relay demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


class _Served:
    """A process that answers HTTP on a port of its own, and can be started again."""

    def __init__(self, what: str, port: int, ready: str, *command: str, environment: dict[str, str]) -> None:
        self.what, self.port, self._ready = what, port, ready
        self._command = [sys.executable, "-m", *command]
        self._environment = processes.environment() | environment
        self.start()

    def start(self) -> None:
        self.began = time.monotonic()
        self.process: subprocess.Popen[bytes] = processes.start(
            self._command, stdin=subprocess.DEVNULL, env=self._environment
        )

    def wait_ready(self) -> None:
        try:
            processes.wait_ready(self.process, f"127.0.0.1:{self.port}", self._ready, _READY_TIMEOUT)
        except processes.ProcessEnded as error:
            raise RuntimeError(
                f"{self.what} ended with exit status {error.code} while starting; see the lines above"
            ) from None
        except TimeoutError:
            raise TimeoutError(
                f"{self.what} was not ready within {_READY_TIMEOUT:g} s; try again when the machine is less busy"
            ) from None

    def stop(self) -> None:
        processes.stop(self.process)


def _demo(port: int, stack: ExitStack) -> None:
    for number in signals.ENDING:
        signal.signal(number, _interrupt)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-demo-")))
    _say("the store: Valkey, on a socket of its own")
    store = EmbeddedStore(folder / "data")
    store.start()
    stack.callback(store.stop)

    def serve(what: str, port: int, ready: str, *command: str, environment: dict[str, str]) -> _Served:
        served = _Served(what, port, ready, *command, environment=environment)
        stack.callback(served.stop)
        return served

    def relay(what: str, port: int, upstream: int, environment: dict[str, str]) -> _Served:
        command = ("relay", "serve", "--store", store.url, "--upstream", f"http://127.0.0.1:{upstream}")
        addresses = ("--bind", f"127.0.0.1:{port}", "--metrics-bind", f"127.0.0.1:{processes.free_port()}")
        return serve(what, port, "/readyz", *command, *addresses, environment=_RELAY | environment)

    _say(f"the model: {MODEL_NAME}, whose weights take some seconds to load")
    inside = processes.free_port()
    model = serve("the model", inside, HEALTH, "relay.demo.model", "--port", str(inside), environment={})
    beside = relay("the model's own relay", processes.free_port(), inside, _BESIDE)
    addresses = {f"http://{host}:{port + i}": i for i in range(2) for host in ("127.0.0.1", "localhost")}
    replicas: list[_Served] = []
    control = Control(MODEL_NAME, addresses, lambda address: replicas[addresses[address]].process.kill())
    stack.enter_context(control)
    _say(f"two replicas, on ports {port} and {port + 1}")
    for i, name in enumerate(_NAMES):
        page = _playground(other=port + 1 - i, control=control.url)
        replicas.append(relay(f"replica {name}", port + i, beside.port, page))
    for process in (model, beside, *replicas):
        process.wait_ready()
    one, two = (f"http://127.0.0.1:{replica.port}" for replica in replicas)
    pids = " or ".join(str(replica.process.pid) for replica in replicas)
    print(_GUIDE.format(one=one, two=two, pids=pids, model=MODEL_NAME, body=json.dumps(_BODY)), flush=True)
    while True:
        signal.sigtimedwait((signal.SIGCHLD,), 0.5)
        _look_after(replicas)
        for process in (model, beside):
            if process.process.poll() is not None:
                raise RuntimeError(f"{process.what} has ended by itself; see the lines above")


def _look_after(replicas: list[_Served]) -> None:
    """Start those again that have ended, from the thread that lives as long as the demo."""
    for replica in replicas:
        if (status := replica.process.poll()) is None:
            continue
        if status >= 0 and time.monotonic() - replica.began < _SOON:
            raise RuntimeError(f"{replica.what} ends with exit status {status} whenever it starts; see the lines above")
        how = f"was killed by signal {-status}" if status < 0 else f"has ended with exit status {status}"
        replica.start()
        _say(f"{replica.what} {how}: started again as process {replica.process.pid}")


def _say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


_RELAY = {
    "RELAY_STREAMS__HEARTBEAT": "1s",
    "RELAY_STREAMS__LEASE": "2s",
    "RELAY_DRAIN__TIMEOUT": "0s",
    "RELAY_LOG__LEVEL": "error",
}


# What no replica reads on is given up soon: the model has two slots.
_BESIDE = {"RELAY_STORE__PREFIX": "model:", "RELAY_STREAMS__ABANDON_AFTER": "15s"}


def _playground(other: int, control: str) -> dict[str, str]:
    """The page of each replica may read from the other, by whichever name of this machine it was opened."""
    origins = [f"http://{host}:{other}" for host in ("127.0.0.1", "localhost")]
    return {
        "RELAY_PLAYGROUND": "true",
        "RELAY_PLAYGROUND_REPLICAS": json.dumps(origins[:1]),
        "RELAY_PLAYGROUND_CONTROL": control,
        "RELAY_CORS__ORIGINS": json.dumps(origins),
    }
