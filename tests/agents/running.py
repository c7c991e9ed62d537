"""How each agent is run: one turn in a folder of its own, against an address, without this machine's settings."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.agents.answering import MAIN
from tests.agents.install import binary
from tests.support.streams import Api

AGENTS: dict[str, Api] = {"codex": "responses", "claude-code": "messages", "opencode": "chat", "aider": "chat"}
WITH_TOOLS = ("codex", "claude-code", "opencode")
PROMPT = "Say what you have to say."
IDLE_MS = 5000
LONGEST = 150.0
"""Seconds that a turn may take."""


@dataclass(frozen=True)
class Ran:
    code: int | None
    """None where it had to be ended."""
    output: str
    tool_runs: int


def run(agent: str, url: str, folder: Path, longest: float = LONGEST) -> Ran:
    """One turn at a relay, or an upstream, at `url`, which is ended after so many seconds."""
    program = binary(agent)
    assert program is not None, agent
    home, work = folder / "home", folder / "work"
    home.mkdir(parents=True)
    work.mkdir()
    command, more = _BUILD[agent](url, home)
    env = {name: os.environ[name] for name in ("PATH", "LANG", "TERM") if name in os.environ}
    env |= {"HOME": str(home), "NO_PROXY": "127.0.0.1,localhost", "NO_COLOR": "1", "CI": "1", **more}
    env |= {f"XDG_{name}_HOME": str(home / name.lower()) for name in ("CONFIG", "DATA", "CACHE", "STATE")}
    process = subprocess.Popen(
        [str(program), *command],
        cwd=work,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=longest)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        code = None
    runs = work / "runs.txt"
    return Ran(code, output.decode("utf-8", "replace"), runs.read_text().count("ran") if runs.exists() else 0)


def _codex(url: str, home: Path) -> tuple[list[str], dict[str, str]]:
    (home / "config.toml").write_text(
        f'model = "{MAIN}"\nmodel_provider = "rig"\n[model_providers.rig]\nname = "rig"\n'
        f'base_url = "{url}/v1"\nwire_api = "responses"\nenv_key = "RIG_KEY"\n'
        # Its own clock of 300 s, shortened so that a silence need not be so long.
        f"stream_idle_timeout_ms = {IDLE_MS}\n"
    )
    options = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    return ["exec", *options, PROMPT], {"CODEX_HOME": str(home), "RIG_KEY": "sk-rig"}


def _claude_code(url: str, home: Path) -> tuple[list[str], dict[str, str]]:
    settings = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "sk-rig",
        "CLAUDE_CONFIG_DIR": str(home),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "IS_SANDBOX": "1",
    }
    return ["-p", PROMPT, "--model", MAIN, "--allowedTools", "Bash"], settings


def _opencode(url: str, home: Path) -> tuple[list[str], dict[str, str]]:
    models = {name: {"name": name, "tool_call": True} for name in (MAIN, "small")}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "rig",
        "options": {"baseURL": f"{url}/v1", "apiKey": "sk-rig"},
        "models": models,
    }
    config = {"provider": {"rig": provider}, "model": f"rig/{MAIN}", "small_model": "rig/small", "autoupdate": False}
    path = home / "opencode.json"
    path.write_text(json.dumps({**config, "permission": {"bash": "allow"}, "share": "disabled"}))
    settings = {"OPENCODE_CONFIG": str(path), "OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"}
    return ["run", "--model", f"rig/{MAIN}", PROMPT], settings


def _aider(url: str, home: Path) -> tuple[list[str], dict[str, str]]:
    off = ("git", "check-update", "show-model-warnings", "show-release-notes", "pretty", "auto-lint", "detect-urls")
    options = ["--model", f"openai/{MAIN}", "--message", PROMPT, "--yes-always", "--analytics-disable"]
    session = {"name": f"openai/{MAIN}", "extra_params": {"extra_headers": {"x-session-id": home.parent.name}}}
    path = home / "models.yml"
    path.write_text(json.dumps([session]))  # which is YAML, too
    settings = {"OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": "sk-rig", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    options += ["--map-tokens=0", f"--model-settings-file={path}", "--chat-mode=ask", *(f"--no-{name}" for name in off)]
    return options, settings


_BUILD = {"codex": _codex, "claude-code": _claude_code, "opencode": _opencode, "aider": _aider}
