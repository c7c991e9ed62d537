"""Every private name of another package that the relay uses is on the list in ARCHITECTURE.md, and its version bounded.

A use is an import from a module whose name begins with an underscore; such an attribute of anything but `self`; such an
attribute of `self` that no class of the file has, or that a base class from elsewhere has too (it is read, set or
overridden). What is reached by `getattr`, or by inheriting public names, is not found.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ROW = re.compile(r"^\| `(relay/[\w/]+\.py)` \| ([\w-]+) \| (.+) \| .+ \|$", re.MULTILINE)
# `super()._x` is the base class's, as `self._x` is where the base class has it.
_OWN = ("self", "cls", "super()")


def listed() -> dict[str, set[str]]:
    """File to names; a file may have several rows."""
    found: dict[str, set[str]] = {}
    for path, _, names in ROW.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")):
        found.setdefault(path, set()).update(re.findall(r"`(_\w+)`", names))
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def imports(tree: ast.AST) -> dict[str, tuple[str, str]]:
    """What a name of the file stands for: a module, and a name in it ('' for the module itself)."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.partition(".")[0]: (alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return found


def bound(tree: ast.AST) -> set[str]:
    """The names that a file's classes and functions give to something of their own."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) in _OWN:
            names.add(node.attr)
    return names


@cache
def of_package(module: str, name: str) -> frozenset[str]:
    """The private names of a class from elsewhere and of the classes that it comes from."""
    kind = getattr(importlib.import_module(module), name, None)
    names: set[str] = set()
    for ancestor in kind.__mro__ if inspect.isclass(kind) else ():
        if ancestor.__module__.partition(".")[0] not in {"relay", *sys.stdlib_module_names}:
            names |= {name for name in vars(ancestor) if is_private(name)}
            names |= {name for name in bound(ast.parse(inspect.getsource(ancestor).strip())) if is_private(name)}
    return frozenset(names)


@cache
def bound_in(source: Path) -> set[str]:
    return bound(ast.parse(source.read_text(encoding="utf-8"))) if source.exists() else set()


def uses(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known = imports(tree)
    own = bound(tree)
    for module, _ in known.values():
        parts = module.split(".")
        if parts[0] == "relay":
            own |= bound_in(ROOT.joinpath(*parts).with_suffix(".py"))
        else:
            yield from filter(is_private, parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            holder = ast.unparse(node.value)
            of_stdlib = known.get(holder, ("", ""))[0] in sys.stdlib_module_names
            if (holder not in _OWN and not of_stdlib) or (holder in _OWN and node.attr not in own):
                yield node.attr
        elif isinstance(node, ast.ClassDef):
            for base in map(ast.unparse, node.bases):
                module, name = known.get(base, ("", ""))
                if name and module.partition(".")[0] != "relay":
                    inside = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)} | bound(node)
                    yield from inside & of_package(module, name)


def test_every_private_name_of_a_dependency_is_listed_and_used() -> None:
    found = {str(path.relative_to(ROOT)): set(uses(path)) for path in sorted((ROOT / "relay").rglob("*.py"))}
    assert {path: names for path, names in found.items() if names} == listed()


def test_each_of_these_packages_has_an_upper_bound() -> None:
    packages = {package for _, package, _ in ROW.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))}
    bounds = {
        requirement.name.lower(): {specifier.operator for specifier in requirement.specifier}
        for requirement in map(Requirement, PROJECT["dependencies"])
    }
    assert len(packages) > 5
    for package in packages - {"asyncio"}:
        assert "<" in bounds[package], f"{package}: give it an upper bound in pyproject.toml"
