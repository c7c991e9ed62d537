"""Starts an example: its backend, and a relay in front of it. What it needs is installed into its folder first.

    python deploy/examples/run.py ai-sdk        (or fastapi, langgraph)

The page is at http://127.0.0.1:8080, where the relay is; the backend listens on port 3000, and nobody asks it but the
relay. Ctrl-C ends both. The relay is the one of this Python, or the one on the PATH.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLES = ("ai-sdk", "fastapi", "langgraph")


def backend(name: str, port: int, python: str) -> list[str]:
    """The command that starts it, in its folder; a Node.js one is told the port by its environment."""
    if (HERE / name / "package.json").exists():
        return ["node", "server.mjs"]
    return [python, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"]


def install(folder: Path) -> str:
    """The packages that its lock file names, once. Returns the Python that has them."""
    if (folder / "package.json").exists():
        if not (folder / "node_modules").exists():
            subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)
        return sys.executable
    python = folder / ".venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "--requirement", folder / "requirements.lock"], check=True)
    return str(python)


def relay() -> list[str]:
    if importlib.util.find_spec("relay"):
        return [sys.executable, "-m", "relay"]
    found = shutil.which("relay")
    if found is None:
        sys.exit("There is no relay here. Run `make demo` once in the checkout, and this with .venv/bin/python.")
    return [found]


def main() -> None:
    if sys.argv[1:] not in [[name] for name in EXAMPLES]:
        sys.exit(f"Name one example: python {sys.argv[0]} {'|'.join(EXAMPLES)}")
    folder = HERE / sys.argv[1]
    commands = [backend(folder.name, 3000, install(folder)), [*relay(), "serve", "--config", "relay.yaml"]]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    running = [subprocess.Popen(command, cwd=folder) for command in commands]
    print("The page is at http://127.0.0.1:8080 in a moment. Ctrl-C ends it.", flush=True)
    try:
        while all(process.poll() is None for process in running):
            time.sleep(0.2)
    except KeyboardInterrupt:
        pass
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


if __name__ == "__main__":
    main()
