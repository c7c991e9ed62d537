"""Installs the SDKs, the type checker, the browser driver and the runtimes that these tests run, at exact versions.

They go to `node/node_modules`. A stamp makes the second run free; a change of the lock file installs again.

    python tests/client_js/install.py
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

NODE = Path(__file__).resolve().parent / "node"
_STAMP = NODE / "node_modules" / ".installed"


def is_installed() -> bool:
    return _STAMP.is_file() and _STAMP.read_text() == _fingerprint()


def main() -> None:
    npm = shutil.which("npm")
    if npm is None:
        print("npm is not on the PATH: the JavaScript client's tests are left out", file=sys.stderr)
        return
    if not is_installed():
        # Package scripts stay off: none of these packages needs one.
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run([npm, "ci", *options], cwd=NODE, check=True)
        _STAMP.write_text(_fingerprint())


def _fingerprint() -> str:
    return hashlib.sha256((NODE / "package-lock.json").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
