"""The programs of `deploy/recipes` as they stand there: the real client, the settings of its page, and a cut.

Everything of a page but its addresses holds: an upstream's host is the scripted one's, or that of the real llama.cpp.
LiteLLM is run where it is installed (`make bench` does that); CI has it not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from relay.processes import ProcessEnded, wait_ready
from tests.client_js.install import NODE
from tests.client_js.install import is_installed as has_node_packages
from tests.conftest import Relays
from tests.recipes.pages import FOLDER, ROOT, blocks, kind, marked, run
from tests.sdk.install import is_installed, python_generation
from tests.support import streams
from tests.support.cutting_http import Cut, CuttingBalancer
from tests.support.processes import RelayProcess, free_port, needs
from tests.support.scripted import Pause, ScriptedUpstream, Step, stream
from tests.support.sseclient import open_stream
from tests.upstream.servers import llama_cpp

pytestmark = pytest.mark.slow

WORDS = [f"word-{n} " for n in range(60)]
TEXT = "".join(WORDS)
KEY = "sk-of-a-client"
LITELLM = Path(os.environ.get("RELAY_BENCH", ROOT / ".bench")) / "litellm/bin/litellm"
# Page to what its program needs: the SDKs, the model that it names and the API that it speaks.
PYTHON: dict[str, tuple[str, str, streams.Api]] = {
    "openai-sdk": ("py-new", "gpt-4o", "chat"),
    "anthropic-sdk": ("py-new", "claude-x", "messages"),
    "langgraph": ("langchain", "gpt-4o", "chat"),
}
RUN = {(name, "") for name in (*PYTHON, "ai-sdk", "llama-cpp")} | {("litellm", "behind"), ("litellm", "front")}


def test_every_program_is_run() -> None:
    assert marked() == RUN


def settings(page: str, upstream: str) -> dict[str, Any]:
    """The page's own, with another host for each upstream, and without what names the operator's machine."""
    (text,) = (text for text in blocks(FOLDER / f"{page}.md", "yaml") if kind(text) == "relay.yaml")
    return moved(yaml.safe_load(text), upstream)


def moved(read: dict[str, Any], upstream: str) -> dict[str, Any]:
    for one in read["upstreams"]:
        one["base_url"] = upstream + urlsplit(one["base_url"]).path
    return {**read, "streams": {**read.get("streams", {}), "heartbeat": "200ms"}}


def answer(api: streams.Api) -> tuple[Step, ...]:
    sent = streams.answer(api, WORDS)
    words = [step for word in sent.words for step in (word, Pause(0.01))]
    return stream(*sent.before, *words, *sent.after)


@contextmanager
def cutting(relay: RelayProcess) -> Iterator[CuttingBalancer]:
    """In front of the relay; the first two answers are cut in their midst."""
    cuts = iter([Cut(4000, "rst"), Cut(2500, "fin")])
    port = int(relay.url.rpartition(":")[2])
    with CuttingBalancer(port, plan=lambda: next(cuts, Cut(1 << 40, "fin"))) as cutter:
        yield cutter


def environment(base_url: str, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONIOENCODING": "utf-8",
        "OPENAI_BASE_URL": f"{base_url}/v1",
        "OPENAI_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": base_url,
        "ANTHROPIC_API_KEY": KEY,
        "NO_PROXY": "*",
        **more,
    }


def output(command: list[str], env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PYTHON)
def test_a_python_program_reads_through_cuts(
    page: str, upstream: ScriptedUpstream, relays: Relays, tmp_path: Path
) -> None:
    generation, model, api = PYTHON[page]
    needs(is_installed(generation), f"the SDKs of {generation}: run tests/sdk/install.py")
    language, program = run(FOLDER / f"{page}.md")
    assert language == "python"
    (tmp_path / "program.py").write_text(program)
    upstream.on(model, *answer(api))
    relay = relays.start(settings(page, upstream.url))
    with cutting(relay) as cutter:
        env = environment(cutter.url, PYTHONPATH=f"{python_generation(generation)}:{ROOT}")
        assert output([sys.executable, "-S", "program.py"], env, tmp_path) == TEXT
        assert sum(cutter.cuts.values()) == 2
    (call,) = upstream.calls_of(model)
    assert KEY in (call.header("authorization") or "") + (call.header("x-api-key") or "")


def test_the_ai_sdk_reads_through_cuts(upstream: ScriptedUpstream, relays: Relays, tmp_path: Path) -> None:
    needs(shutil.which("node") and has_node_packages(), "Node.js, and python tests/client_js/install.py")
    language, program = run(FOLDER / "ai-sdk.md")
    assert language == "js"
    (tmp_path / "program.mjs").write_text(program)
    modules = tmp_path / "node_modules"
    modules.mkdir()
    for path in (NODE / "node_modules").iterdir():
        (modules / path.name).symlink_to(path)
    (modules / "relay-streams").symlink_to(ROOT / "relay/client/js")
    upstream.on("gpt-4o", *answer("chat"))
    relay = relays.start(settings("ai-sdk", upstream.url))
    with cutting(relay) as cutter:
        assert output(["node", "program.mjs"], environment(cutter.url), tmp_path) == TEXT
        assert sum(cutter.cuts.values()) == 2
    assert len(upstream.calls_of("gpt-4o")) == 1


@pytest.fixture
def llama(tmp_path: Path) -> Iterator[tuple[str, str]]:
    with llama_cpp(tmp_path) as found:
        yield found.url, found.model


def test_llama_cpp_s_answer_is_read_on_after_a_cut(llama: tuple[str, str], relays: Relays) -> None:
    url, model = llama
    relay = relays.start(moved(yaml.safe_load(run(FOLDER / "llama-cpp.md")[1]), url))
    body = {
        "model": model,
        "stream": True,
        "max_tokens": 40,
        "temperature": 0,
        "messages": [{"role": "user", "content": "Count from one to twenty."}],
    }
    headers = {"authorization": f"Bearer {KEY}"}
    path = f"{relay.url}/v1/chat/completions"
    with open_stream(path, "POST", headers, body=body) as first:
        begun = first.events(5)
    with open_stream(path, "POST", {**headers, "last-event-id": str(begun[-1].id)}) as second:
        rest = [event for event in second if event.id]
    numbers = [int(str(event.id).rpartition(".")[2]) for event in (*begun, *rest)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert rest[-1].data == "[DONE]"


@contextmanager
def litellm(config: dict[str, Any], folder: Path) -> Iterator[str]:
    if not LITELLM.exists():
        pytest.skip("LiteLLM is not installed: make bench, or RELAY_BENCH names where it is")
    port = free_port()
    (folder / "litellm.yaml").write_text(yaml.safe_dump(config))
    env = environment(
        "http://127.0.0.1:1",
        HOME=str(folder),
        LITELLM_TELEMETRY="False",
        LITELLM_LOCAL_MODEL_COST_MAP="True",
        LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY="true",
    )
    del env["OPENAI_BASE_URL"], env["ANTHROPIC_BASE_URL"]
    command = [
        str(LITELLM),
        "--config",
        "litellm.yaml",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        wait_ready(process, f"127.0.0.1:{port}", "/health/liveliness", 90)
        yield f"http://127.0.0.1:{port}"
    except (ProcessEnded, TimeoutError) as error:
        raise AssertionError((folder / "litellm.log").read_text()[-3000:]) from error
    finally:
        process.terminate()
        process.wait(30)


def pair(place: str) -> tuple[Callable[[str], dict[str, Any]], Callable[[str], dict[str, Any]]]:
    """LiteLLM's settings and the relay's, of one half of the page, for what is behind each."""
    text = (FOLDER / "litellm.md").read_text()
    half = text[text.index(f"<!-- run: {place} -->") :]
    first, second = (yaml.safe_load(part.partition("\n```")[0]) for part in half.split("```yaml\n")[1:3])

    def gateway(behind: str) -> dict[str, Any]:
        for one in first["model_list"]:
            one["litellm_params"]["api_base"] = f"{behind}/v1"
        return dict(first)

    return gateway, lambda behind: moved(second, behind)


@pytest.mark.parametrize("place", ["behind", "front"])
def test_litellm(place: str, upstream: ScriptedUpstream, relays: Relays, tmp_path: Path) -> None:
    gateway, relay_settings = pair(place)
    upstream.on("gpt-4o", *answer("chat"))
    _, program = run(FOLDER / "openai-sdk.md")
    (tmp_path / "program.py").write_text(program)
    python = f"{python_generation('py-new')}:{ROOT}"
    command = [sys.executable, "-S", "program.py"]
    if place == "behind":
        with litellm(gateway(upstream.url), tmp_path) as url, cutting(relays.start(relay_settings(url))) as cutter:
            assert output(command, environment(cutter.url, PYTHONPATH=python), tmp_path) == TEXT
            assert sum(cutter.cuts.values()) == 2
    else:
        relay = relays.start(relay_settings(upstream.url))
        with litellm(gateway(relay.url), tmp_path) as url:
            assert output(command, environment(url, PYTHONPATH=python), tmp_path) == TEXT
    assert len(upstream.calls_of("gpt-4o")) == 1
