"""The fuzzers find what they are for: each of these faults, planted in a copy of the tree, within seconds."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.run import ROOT
from tests.support.processes import needs

FAULTS = {
    "a CR and its LF in two packets are two line ends": (
        "sse",
        "relay/protocol/sse.py",
        'if self._after_cr and chunk[:1] == b"\\n":',
        "if False:",
    ),
    "an event's bound counts its last packet only": (
        "sse",
        "relay/protocol/sse.py",
        "self._held_bytes += len(chunk)",
        "self._held_bytes = len(chunk)",
    ),
    "a position may begin with 0": ("event_id", "relay/protocol/ids.py", "[1-9][0-9]{0,14}", "[0-9]{1,15}"),
    "what Connection names goes on": (
        "headers",
        "relay/protocol/headers.py",
        'name.lower() == b"connection"',
        'name == b"connection"',
    ),
    "a backslash at a piece's end escapes nothing": (
        "json",
        "relay/protocol/json_scan.py",
        'odd = (len(text) - len(text.rstrip(b"\\\\"))) & 1',
        "odd = 0",
    ),
    "what stands around a text may overlap": (
        "compact",
        "relay/protocol/compact.py",
        'return self.head + frame[start:stop] if start <= stop else b""',
        "return self.head + frame[start:stop]",
    ),
    "a head's end in two packets is none": ("heads", "relay/http/heads.py", "max(0, self._looked - 3)", "self._looked"),
    "an answer's header may end its line": (
        "headers",
        "relay/protocol/headers.py",
        r'rb"[\x00-\x08\x0a-\x1f\x7f]"',
        r'rb"[\x00-\x08\x0a-\x0c\x0e-\x1f\x7f]"',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path) -> None:
    needs(importlib.util.find_spec("atheris"), "the fuzzer: pip install atheris (Linux, x86-64, Python 3.11 to 3.13)")
    target, module, sound, broken = FAULTS[fault]
    for name in ("relay", "tests/fuzz", "tests/protocol"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "js", "corpus"))
    # From nothing but a harmless beginning, so that it is the fuzzer that finds it and not the kept corpus.
    seeds = {
        "sse": b"\x01\x02\x01\x10data: 1\n\n",
        "event_id": b"st_" + b"Aa0_-" * 4 + b"Zz.7",
        "json": b'\x01\x02\x03{"model":"m","a":"\\\\n"}',
        "compact": b"\0data: 1\n\n\0A A A A A x A A A A A\n\n\0A A A A A y A A A A A\n\n\0A A A A A\n\n",
        "heads": b"\0POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nabGET / HTTP/1.1\r\nhost: x\r\n\r\n",
        "headers": b"x-a: 1\nconnection: x-b\nx-b: 2",
    }
    (tmp_path / "tests/fuzz/corpus" / target).mkdir(parents=True)
    (tmp_path / "tests/fuzz/corpus" / target / "seed").write_bytes(seeds[target])
    source = tmp_path / module
    text = source.read_text()
    assert text.count(sound) == 1, f"{module} no longer has the line that this test breaks"
    source.write_text(text.replace(sound, broken))
    command = [sys.executable, "tests/fuzz/run.py", "--target", target, "--seconds", "60"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "AssertionError" in done.stdout
    found = [path.name for path in (tmp_path / "tests/fuzz/corpus" / target).iterdir()]
    assert any(name.startswith("crash-") for name in found)
