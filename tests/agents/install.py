"""Installs the agents that the rig runs, at exact versions, into `.agents` (or RELAY_AGENTS) and nowhere else.

A stamp makes the second run free; a change of a version installs again. Where npm or a registry cannot be had, what is
missing is left out, and the rig says so.

    python tests/agents/install.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(os.environ.get("RELAY_AGENTS", Path(__file__).resolve().parents[2] / ".agents"))
FROM_NPM = {"@openai/codex": "0.171.0", "@anthropic-ai/claude-code": "2.1.332", "opencode-ai": "1.18.33"}
FROM_PYPI = {"aider-chat": "0.86.2"}

_BINARIES = {
    "codex": ROOT / "node" / "node_modules" / ".bin" / "codex",
    "claude-code": ROOT / "node" / "node_modules" / ".bin" / "claude",
    "opencode": ROOT / "node" / "node_modules" / ".bin" / "opencode",
    "aider": ROOT / "aider" / "bin" / "aider",
}
VERSIONS = {
    "codex": FROM_NPM["@openai/codex"],
    "claude-code": FROM_NPM["@anthropic-ai/claude-code"],
    "opencode": FROM_NPM["opencode-ai"],
    "aider": FROM_PYPI["aider-chat"],
}


def binary(agent: str) -> Path | None:
    """The agent's program, None where it is not installed as pinned here."""
    folder = ROOT / ("aider" if agent == "aider" else "node")
    stamp = folder / ".installed"
    wanted = FROM_PYPI if agent == "aider" else FROM_NPM
    pinned = stamp.is_file() and json.loads(stamp.read_text()) == wanted
    return _BINARIES[agent] if pinned and _BINARIES[agent].exists() else None


def _from_npm(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        print("npm is not on the PATH: Codex, Claude Code and opencode are left out", file=sys.stderr)
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": FROM_NPM}))
    # Package scripts are on: two of the packages put their program in its place with one.
    subprocess.run([npm, "install", "--no-audit", "--no-fund", "--loglevel=error"], cwd=folder, check=True)
    (folder / ".installed").write_text(json.dumps(FROM_NPM))


def _from_pypi(folder: Path) -> None:
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *(f"{name}=={version}" for name, version in FROM_PYPI.items())], check=True)
    (folder / ".installed").write_text(json.dumps(FROM_PYPI))


def main() -> None:
    for agent, install in (("codex", _from_npm), ("aider", _from_pypi)):
        if binary(agent) is None:
            try:
                install(ROOT / ("aider" if agent == "aider" else "node"))
            except (subprocess.CalledProcessError, OSError) as error:
                print(f"left out, because the installation failed: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
