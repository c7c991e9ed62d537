"""The synchronous transport, and the transports for httpx2, are what .ci/twins.py writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_twins_are_written_anew() -> None:
    done = subprocess.run(
        [sys.executable, ".ci/twins.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "run `make generate`"
