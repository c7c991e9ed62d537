"""Each generation of the SDKs reads every end and every error of the relay's.

They are a table, client × API × end, that is in the documents.

    python -m tests.sdk.test_ends prints it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.sdk import scenarios_chat, scenarios_messages, scenarios_responses
from tests.sdk.install import NODE, PYTHON_GENERATIONS, is_installed, python_generation
from tests.support.processes import RelayProcess, needs
from tests.support.scripted import Cut, End, Head, Pause, ScriptedUpstream, Send, Step, json_response

README = Path(__file__).parents[2] / "relay/protocol/README.md"
SDKS = (*(name for name in PYTHON_GENERATIONS if name.startswith("py-")), "node")
PLAIN = {
    "chat": scenarios_chat.PLAIN,
    "messages": scenarios_messages.PLAIN,
    "responses": scenarios_responses.frames(*scenarios_responses.PLAIN),
}
BUSY = b'data: {"error": {"message": "Busy", "code": "503"}}\n\n'
HEAD = Head(200, {"content-type": "text/event-stream"})
REFUSED = json_response(429, {"error": {"message": "Busy", "type": "rate_limit_error"}})


def ends(api: str) -> dict[str, tuple[Step, ...]]:
    """What the upstream does, by what it is called in the table."""
    sent = [Send(frame.encode()) for frame in PLAIN[api]]
    some = sent[:4]
    last = PLAIN[api][-1].encode().rstrip(b"\n")
    return {
        "complete": (HEAD, *sent, End()),
        "complete, without its last line": (HEAD, *sent[:-1], Send(last), End()),
        "cut": (HEAD, *some, Cut()),
        "an end too early": (HEAD, *some, End()),
        "an error of another API": (HEAD, *some, Send(BUSY), End()),
        "an error as text": (HEAD, *some, Send(b"data: error: Busy\n\n"), End()),
        "an error first": (HEAD, Send(BUSY), End()),
        "a malformed event, `malformed: end`": (HEAD, *some, Send(b"data: {torn\n\n"), *sent[4:], End()),
        "a late refusal": (Pause(0.8), *REFUSED),
        "no event at all": (HEAD, End()),
    }


CASES = [(api, end) for api in PLAIN for end in ends(api)]


def model_of(api: str, end: str) -> str:
    return f"{api}-{list(ends(api)).index(end)}"


@contextmanager
def running() -> Iterator[str]:
    with ScriptedUpstream() as upstream:
        for api, end in CASES:
            upstream.on(model_of(api, end), *ends(api)[end])
        config: dict[str, Any] = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url, "malformed": "end"}],
            "streams": {"patience": "400ms", "patience_limit": "400ms"},
        }
        with RelayProcess(config) as relay:
            yield relay.url


def seen(sdk: str, url: str) -> dict[tuple[str, str], str]:
    """What a user of this SDK sees of each end."""
    jobs = json.dumps([(api, model_of(api, end), "raw") for api, end in CASES])
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "ANTHROPIC_"))}
    env = {**keep, "NO_PROXY": "*", "no_proxy": "*"}
    if sdk == "node":
        command, folder = ["node", "driver.mjs", url, jobs], NODE
    else:
        command = [sys.executable, "-S", str(Path(__file__).with_name("driver.py")), url, jobs]
        folder = Path(__file__).parent
        env["PYTHONPATH"] = str(python_generation(sdk))
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-4000:]
    return {case: _told(transcript) for case, transcript in zip(CASES, json.loads(done.stdout), strict=True)}


def _told(transcript: dict[str, Any]) -> str:
    error = transcript["error"]
    if error is None:
        return "an answer"
    status = error.get("status_code") or error.get("status")
    return f"{error['class']}{f' {status}' if status and status != 200 else ''}"


def table(by_sdk: dict[str, dict[tuple[str, str], str]]) -> str:
    rows = [f"| API | the upstream | {' | '.join(by_sdk)} |", "|---" * (2 + len(by_sdk)) + "|"]
    rows += [f"| {api} | {end} | {' | '.join(told[api, end] for told in by_sdk.values())} |" for api, end in CASES]
    return "\n".join(rows)


@pytest.fixture(scope="module")
def by_sdk() -> dict[str, dict[tuple[str, str], str]]:
    needs(shutil.which("node"), "Node.js")
    for sdk in SDKS:
        needs(is_installed(sdk), f"the SDKs of {sdk}: run tests/sdk/install.py")
    with running() as url:
        return {sdk: seen(sdk, url) for sdk in SDKS}


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize(("api", "end"), CASES)
def test_only_what_is_complete_is_an_answer(
    by_sdk: dict[str, dict[tuple[str, str], str]], sdk: str, api: str, end: str
) -> None:
    assert (by_sdk[sdk][api, end] == "an answer") == end.startswith("complete")


def test_the_table_is_in_the_documents(by_sdk: dict[str, dict[tuple[str, str], str]]) -> None:
    assert table(by_sdk) in README.read_text(encoding="utf-8")


if __name__ == "__main__":
    with running() as relay_url:
        print(table({sdk: seen(sdk, relay_url) for sdk in SDKS}))
