"""The pure core imports no I/O and no framework, and of the relay only itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import relay.protocol

FOLDER = Path(relay.protocol.__file__).parent
MODULES = sorted(FOLDER.rglob("*.py"))
ALLOWED_OUTSIDE = {"orjson", "backports", "compression"}  # the latter two: zstd, the standard library's from 3.14 on
IO = {
    "aiohttp", "anyio", "asyncio", "concurrent", "fakeredis", "h11", "http", "httpx", "httpx_aiohttp", "hypercorn",
    "multiprocessing", "os", "pathlib", "pydantic", "redis", "requests", "select", "selectors", "signal", "socket",
    "ssl", "starlette", "subprocess", "tempfile", "threading", "time", "urllib", "uvloop",
}  # fmt: skip


def imported(module: Path) -> set[str]:
    """The absolute names of all that a module imports, wherever in it the import stands."""
    package = ["relay", "protocol", *module.relative_to(FOLDER).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names.add(".".join([*base, *([node.module] if node.module else [])]))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"__import__", "importlib.import_module"}:
            names.add(ast.unparse(node))
    return names


def name_of(module: Path) -> str:
    return str(module.relative_to(FOLDER))


def test_there_is_something_to_check() -> None:
    assert {"sse.py", "chat.py", "messages.py", "responses.py", "headers.py"} <= {name_of(m) for m in MODULES}


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_it_imports_nothing_that_does_io(module: Path) -> None:
    assert not {name for name in imported(module) if name.partition(".")[0] in IO}


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_of_the_relay_it_imports_the_core_alone(module: Path) -> None:
    ours = {name for name in imported(module) if name.partition(".")[0] == "relay"}
    assert all(name == "relay.protocol" or name.startswith("relay.protocol.") for name in ours)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_of_others_it_imports_the_standard_library_and_little_else(module: Path) -> None:
    roots = {name.partition(".")[0] for name in imported(module)}
    assert roots - {"relay"} <= sys.stdlib_module_names | ALLOWED_OUTSIDE


def test_loading_all_of_it_loads_no_framework() -> None:
    names = [
        ".".join(["relay", "protocol", *module.relative_to(FOLDER).with_suffix("").parts]).removesuffix(".__init__")
        for module in MODULES
    ]
    program = f"import {', '.join(names)}, sys; print('\\n'.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=FOLDER.parents[1], capture_output=True, text=True, check=True
    ).stdout.split()
    frameworks = {"asyncio", "httpx", "redis", "starlette", "aiohttp", "hypercorn", "pydantic", "uvloop", "anyio"}
    assert not frameworks & set(loaded)
    assert not [n for n in loaded if n.startswith("relay.") and not n.startswith("relay.protocol")]
