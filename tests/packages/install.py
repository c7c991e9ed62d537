"""Installs what judges packages and workflows, at exact versions, outside the relay's own environment.

    python tests/packages/install.py

twine goes to `.sdk/twine`, actionlint is built from its Go module into `.sdk/bin`. A second run is free. Without Go
actionlint is left out, with a word on stderr, and its test says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SDK = Path(__file__).resolve().parents[2] / ".sdk"
TWINE, ACTIONLINT = "twine==7.0.0", "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
FOLDERS = {"twine": SDK / "twine", "actionlint": SDK / "bin"}
_MARKS = {"twine": f"{TWINE} {sys.version.split()[0]}", "actionlint": ACTIONLINT}


def is_installed(name: str) -> bool:
    mark = FOLDERS[name] / f"{name}.installed"
    return mark.is_file() and mark.read_text() == _MARKS[name]


def main() -> None:
    if not is_installed("twine"):
        shutil.rmtree(FOLDERS["twine"], ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-conflicts"]
        subprocess.run([*pip, "--target", str(FOLDERS["twine"]), TWINE], check=True)
        _mark("twine")
    if not is_installed("actionlint"):
        if shutil.which("go") is None:
            print(
                "go is not on the PATH and is needed to build actionlint; install it, run this again", file=sys.stderr
            )
            return
        FOLDERS["actionlint"].mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"GOBIN": str(FOLDERS["actionlint"])}
        subprocess.run(["go", "install", "-ldflags=-s -w", ACTIONLINT], cwd=SDK, env=environment, check=True)
        _mark("actionlint")


def _mark(name: str) -> None:
    (FOLDERS[name] / f"{name}.installed").write_text(_MARKS[name])


if __name__ == "__main__":
    main()
