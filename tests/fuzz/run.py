"""Runs the fuzzers: each target for some seconds in a process of its own, from its kept corpus.

    python tests/fuzz/run.py [--seconds 20] [--target sse] [--findings FOLDER]

An input that breaks a target is put into the target's corpus, where `test_corpus.py` replays it without a fuzzer, until
the fault is mended and from then on. Inputs that only reach more code are kept in `.audit/fuzz`, out of Git, for the
next run. Exit status: 0, 1 with a finding, 2 without the fuzzer.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py"))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Fuzz the relay's parsers.")
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--target", choices=TARGETS, action="append", help="all, where none is named")
    parser.add_argument("--findings", type=Path, default=CORPUS, help="what breaks a target goes to a folder in here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.child:
        fuzz(asked.target[0], asked.seconds, asked.findings)
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("fuzz: no fuzzer here. It has wheels for Linux on x86-64 and Python 3.11 to 3.13: pip install atheris")
        return 2
    failed = []
    for target in asked.target or TARGETS:
        (asked.findings / target).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(HERE / "run.py"), "--child", "--target", target]
        command += ["--seconds", str(asked.seconds), "--findings", str(asked.findings)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        told = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith(("#", "INFO:"))]
        ended = [line for line in told if line.startswith("Done")]
        print(f"fuzz: {target}: {ended[-1] if ended else 'broken'}")
        if done.returncode:
            failed.append(target)
            print("\n".join(told)[:6000])
    if failed:
        print(f"fuzz: {', '.join(failed)} broke. Mend it, and rename the input beside its corpus so that it stays.")
    return 1 if failed else 0


def fuzz(target: str, seconds: int, findings: Path) -> None:
    import atheris

    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=["relay.protocol", "relay.http.heads"]):
        one = importlib.import_module(f"tests.fuzz.fuzz_{target}").one
    found = ROOT / ".audit" / "fuzz" / target
    found.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}"]
    options += [f"-artifact_prefix={findings / target}/", "-max_len=512", "-timeout=10", "-rss_limit_mb=1024"]
    options += [f"-dict={HERE / target}.dict"]
    atheris.Setup([sys.argv[0], *options, str(found), str(CORPUS / target)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
