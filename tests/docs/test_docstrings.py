"""Whoever uses the client or the protocol reads what each public part does, and what it raises, where it stands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for package in ("client", "protocol") for path in (ROOT / "relay" / package).glob("*.py"))
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition, str]]:
    """Each public class, function and method, with its name and its docstring; a constructor's may be its class's."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node, ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from definitions(node.body, f"{node.name}.")
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    told = (ast.get_docstring(method) or "") + (ast.get_docstring(node) or "")
                    yield f"{node.name}.__init__", method, told


def raises(node: Definition) -> bool:
    """Does the body itself raise? What a nested function raises is that function's."""
    if isinstance(node, ast.ClassDef):
        return False
    todo: list[ast.AST] = list(node.body)
    while todo:
        found = todo.pop()
        if isinstance(found, ast.Raise):
            return True
        if not isinstance(found, Definition | ast.Lambda):
            todo += ast.iter_child_nodes(found)
    return False


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_public_parts_say_what_they_do_and_raise(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(module)
    found = list(definitions(module.body))
    assert [name for name, _, told in found if not told] == []
    assert [name for name, node, told in found if raises(node) and "Raises" not in told] == []
