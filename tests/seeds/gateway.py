"""A gateway that behaves as its document says, and a real relay in front of it.

`frames/` holds what the documents show on the wire, one folder for each document: their JSON to the byte, in
proper SSE lines (the documents run some together), `{...` filled in so that every data line is valid JSON.
A test compares what a client got with these bytes: the relay adds an `id:` line to every event, a `retry:` line to
the first, and changes nothing else.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.sdk.install import NODE, is_installed, python_generation
from tests.support.processes import RelayProcess, needs
from tests.support.scripted import Call, ScriptedUpstream, Step, stream
from tests.support.sseclient import RawEvent, RawStream, open_stream

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"

KEY = {"authorization": "Bearer YOUR_API_KEY"}
GENERATION = "py-new"

Language = Literal["python", "node"]

_RETRY_HINT = re.compile(r"\A(id: st_[\w-]+\.1\n)retry: \d+\n")
_FRAMES = Path(__file__).with_name("frames")
_PROGRAM_TIMEOUT = 60


def document(name: str) -> str:
    """A file of `frames/` as it is."""
    return (_FRAMES / name).read_text()


def frames(name: str) -> list[str]:
    """The events of a file of `frames/`, each with its blank line."""
    return [f"{block}\n\n" for block in document(name).split("\n\n") if block]


def with_upstream_ids(events: Sequence[str]) -> list[str]:
    """The same events with an id of the gateway's own before every data line."""
    return [event.replace("data:", f"id: gateway-{number}\ndata:", 1) for number, event in enumerate(events, 1)]


@dataclass
class Gateway:
    upstream: ScriptedUpstream
    relay: RelayProcess

    def __post_init__(self) -> None:
        self._earlier_calls = len(self.upstream.calls)

    def plays(self, model: str, *script: str | Step) -> None:
        """From now on this model answers with this stream."""
        self.upstream.on(model, *stream(*script))

    def answers(self, model: str, *steps: Step) -> None:
        self.upstream.on(model, *steps)

    @property
    def calls(self) -> list[Call]:
        """What went upstream in this test."""
        return self.upstream.calls[self._earlier_calls :]

    def post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> RawStream:
        return open_stream(self.relay.url + path, headers={**KEY, **(headers or {})}, body=body)

    def resume(self, path: str, body: object, last_event_id: str) -> RawStream:
        """The same request to the same URL, with the last observed id."""
        return self.post(path, body, {"last-event-id": last_event_id})

    def status(self, stream_id: str) -> dict[str, Any]:
        headers = {**KEY, "accept": "application/json"}
        with open_stream(f"{self.relay.url}/streams/{stream_id}", "GET", headers) as answer:
            assert answer.status == 200, answer.read()
            status: dict[str, Any] = answer.json
            return status

    def outcome_of(self, read: RawStream) -> str:
        """How the stream of this response ended, as GET /streams/{id} tells it."""
        return str(self.status(read.headers["relay-stream-id"])["outcome"])

    # The documents' own programs. They change their base URL and nothing else.

    def prints(self, language: Language, code: str, base_url: str = "https://gateway.example") -> str:
        return self.python(code, base_url) if language == "python" else self.node(code, base_url)

    def python(self, code: str, base_url: str = "https://gateway.example") -> str:
        """What a Python program prints with the official SDKs and nothing of the relay's on its path."""
        needs(is_installed(GENERATION), f"the SDKs of {GENERATION}: run tests/sdk/install.py")
        assert base_url in code
        command = [sys.executable, "-S", "-c", code.replace(base_url, self.relay.url)]
        return run(command, Path(__file__).parent, {"PYTHONPATH": str(python_generation(GENERATION))})

    def node(self, code: str, base_url: str = "https://gateway.example") -> str:
        """What a JavaScript program prints with the official npm packages."""
        needs(shutil.which("node"), "Node.js")
        needs(is_installed("node"), "the JavaScript SDKs: run tests/sdk/install.py")
        assert base_url in code
        return run(["node", "--input-type=module", "-e", code.replace(base_url, self.relay.url)], NODE)

    def curl(self, url: str, *arguments: str, base_url: str) -> str:
        needs(shutil.which("curl"), "curl")
        assert base_url in url
        return run(["curl", "--silent", "--max-time", "30", url.replace(base_url, self.relay.url), *arguments])


def run(command: Sequence[str], folder: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """What a program prints. It must succeed, and no proxy or key of this machine may reach it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "ANTHROPIC_", "PYTHON"))}
    done = subprocess.run(
        list(command),
        cwd=folder,
        env={**kept, "NO_PROXY": "*", "no_proxy": "*", "PYTHONIOENCODING": "utf-8", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=_PROGRAM_TIMEOUT,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def numbered(stream_id: str, events: Sequence[str], after: int = 0) -> list[str]:
    """What the relay has to send for these upstream events, the first of them being event `after` + 1."""
    return [f"id: {stream_id}.{n}\n{event}" for n, event in enumerate(events, after + 1)]


def texts(events: Sequence[RawEvent]) -> list[str]:
    """Frames as they came, but for the reconnection time that the relay puts into a stream's first event."""
    return [_RETRY_HINT.sub(r"\1", event.raw.decode()) for event in events]


def printed_frames(printed: str) -> str:
    """What a program has printed of a stream, without the relay's own lines."""
    lines = printed.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("id:", "retry:", ":")))


def assert_relayed(read: RawStream, events: Sequence[str], after: int = 0) -> list[RawEvent]:
    """Read the response to its end: these events byte for byte, ids without a gap, a clean end."""
    assert read.status == 200, read.read()
    got = read.events()
    assert texts(got) == numbered(read.headers["relay-stream-id"], events, after)
    assert read.ended == "zero-chunk"
    return got


def deltas(events: Sequence[RawEvent]) -> list[dict[str, Any]]:
    """The deltas of every choice of a chat stream."""
    chunks = [event.json for event in events if event.data != "[DONE]"]
    return [choice.get("delta", {}) for chunk in chunks for choice in chunk.get("choices", [])]


def text_of(events: Sequence[RawEvent], field: str = "content") -> str:
    return "".join(delta.get(field) or "" for delta in deltas(events))


def arguments_of(events: Sequence[RawEvent]) -> str:
    """The fragments of the first tool call, joined as the documents tell their readers to."""
    calls = (call for delta in deltas(events) for call in delta.get("tool_calls", []))
    return "".join(call["function"]["arguments"] for call in calls if call["index"] == 0)
