"""Installs the SDKs that the parity tests run, at exact versions, outside the relay's own environment.

Python generations go to `.sdk/<name>`, the JavaScript ones to `node/node_modules`. A stamp makes the second
run free; a change of version, of interpreter or of the lock file installs again.

    python tests/sdk/install.py [--python-only]
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SDK_ROOT = HERE.parents[1] / ".sdk"
NODE = HERE / "node"
NODE_MODULES = NODE / "node_modules"
# Of the backends in deploy/examples. The other one's are among these, at the same versions (tests/examples).
EXAMPLES = HERE.parents[1] / "deploy" / "examples" / "langgraph" / "requirements.lock"

PYTHON_GENERATIONS: dict[str, tuple[str, ...]] = {
    "py-new": ("openai==3.52.0", "anthropic==2.11.0"),
    "py-httpx": ("openai==2.54.0", "anthropic==0.125.0"),
    "py-old": ("openai==1.109.1", "anthropic==0.79.0"),
    # Kept out of the parity tests by its name; langchain-core from 1.7.5 wants a certifi that is not released.
    "langchain": ("langchain-openai==1.7.2", "langchain-core==1.7.2", "openai==3.54.0"),
    "mcp": ("mcp==2.3.0",),
    "llmock": ("llmock==0.2.2",),  # an upstream, not an SDK; its web framework must not meet the relay's
    "examples": ("--require-hashes", "--requirement", str(EXAMPLES)),
}


def python_generation(name: str) -> Path:
    """Where this generation lives, whether or not it is installed."""
    return SDK_ROOT / name


def is_installed(name: str) -> bool:
    """Is this Python generation, or "node", installed as pinned here?"""
    folder = NODE_MODULES if name == "node" else python_generation(name)
    stamp = _stamp(folder)
    return stamp.is_file() and stamp.read_text() == _fingerprint(name)


def install_python(name: str) -> None:
    folder = python_generation(name)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-warn-conflicts",
    ]
    subprocess.run([*pip, "--target", str(folder), *PYTHON_GENERATIONS[name]], check=True)
    _stamp(folder).write_text(_fingerprint(name))


def install_node() -> None:
    """Package scripts stay off: none of these packages needs one."""
    npm = shutil.which("npm")
    if npm is None:
        print("npm is not on the PATH: the JavaScript SDKs are left out", file=sys.stderr)
        return
    subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=NODE, check=True)
    _stamp(NODE_MODULES).write_text(_fingerprint("node"))


def main() -> None:
    for name in PYTHON_GENERATIONS:
        if not is_installed(name):
            install_python(name)
    if "--python-only" not in sys.argv[1:] and not is_installed("node"):
        install_node()


def _stamp(folder: Path) -> Path:
    return folder / ".installed"


def _fingerprint(name: str) -> str:
    if name == "node":
        return hashlib.sha256((NODE / "package-lock.json").read_bytes()).hexdigest()
    if name == "examples":
        return f"{hashlib.sha256(EXAMPLES.read_bytes()).hexdigest()} {sys.version.split()[0]}"
    return " ".join((*PYTHON_GENERATIONS[name], sys.version.split()[0]))


if __name__ == "__main__":
    main()
