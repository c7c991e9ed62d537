"""The packages of relay/ stand on floors: each imports what stands below it, nothing imports upwards or in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_FILE = 400

# From the ground up. What shares a floor does not import each other.
FLOORS = [
    {
        "protocol",
        "signals",
        "processes",
        "histograms",
        "model_labels",
        "access",
        "completion",
        "tracing",
        "garbage",
        "timers",
    },
    {"encryption", "client", "workers", "bench", "metrics", "flags"},
    {"machine"},
    {"config"},
    {"http", "store", "upstream", "logs"},
    {"auth", "check", "demo"},
    {"streams", "inspection"},
    {"api"},
    {"server"},
    {"connect"},
    {"cli"},
    {"__main__"},
]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "relay").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The modules of relay/ that a module names in its imports, those for types alone included."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "relay":
            assert node.level == 0
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "relay")


def room(name: str) -> str:
    """The package, or the module of its own, directly under relay/."""
    return name.split(".")[1] if "." in name else ""


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(name) in rooms)


def test_every_package_has_a_floor() -> None:
    placed = [package for rooms in FLOORS for package in rooms]
    assert sorted(placed) == sorted({room(name) for name in MODULES} - {""})


@pytest.mark.parametrize("name", [name for name in MODULES if room(name)])
def test_nothing_imports_upwards(name: str) -> None:
    for imported in imports(name):
        if room(imported) not in ("", room(name)):
            assert floor(imported) < floor(name), f"{name} imports {imported}, which stands on a higher floor"


def test_nothing_imports_in_a_circle() -> None:
    """At run time: two modules of one package may name each other for types alone."""
    pending = {name: set(_at_run_time(name)) - {name} for name in MODULES}
    while ready := [name for name, needed in pending.items() if not needed & pending.keys()]:
        for name in ready:
            del pending[name]
    assert not pending


def _at_run_time(name: str) -> Iterator[str]:
    tree = ast.parse(MODULES[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "relay":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found = full if full in MODULES else node.module
                # The version stands in the package itself, before anything is imported there.
                if found != "relay":
                    yield found


@pytest.mark.parametrize("name", MODULES)
def test_no_file_is_longer_than_can_be_read_at_once(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= LONGEST_FILE
