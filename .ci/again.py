"""Tests that have failed among thousands on two busy cores: does their failure come again?

Run after `make test` has failed. Each test that failed is run 20 times, 4 at once, so that the cores are busy again.
One failure in these is a failure, and so are more than three tests that failed, and a suite that failed for another
reason. What passes every time is named: a test that fails once in a while is a bug of the test or of the relay, to be
found from what the suite has printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MOST = 3
ROUNDS = 5
AT_ONCE = "4"
LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")


def main() -> int:
    failed = list(json.loads(LAST_FAILED.read_text())) if LAST_FAILED.exists() else []
    if not 0 < len(failed) <= MOST or any("::" not in test for test in failed):
        print(f"{len(failed)} entries of the suite failed: too many, or no single test. Nothing is run again.")
        return 1
    for _ in range(ROUNDS):
        command = [sys.executable, "-m", "pytest", "-q", "-n", AT_ONCE, "--dist", "each", "-p", "no:cacheprovider"]
        if code := subprocess.run([*command, *failed], check=False).returncode:
            print("It has failed again. The failure above is to be fixed.")
            return code
    for test in failed:
        print(f"FLAKY: {test} failed once in the suite and then passed {ROUNDS * int(AT_ONCE)} times. Find out why.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
