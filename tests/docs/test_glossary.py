"""The glossary has each word once, and each stands in the code under the name that the glossary gives."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHAPTER = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## What each word means\n")[2]
ENTRIES = re.findall(r"^\| ([\w-]+) \| (.+) \| `(\w+)` \|$", CHAPTER.partition("\n## ")[0], re.MULTILINE)


@cache
def identifiers() -> set[str]:
    """All that relay/ defines: modules, classes, functions, arguments, attributes."""
    found: set[str] = set()
    for path in (ROOT / "relay").rglob("*.py"):
        found.add(path.stem)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return found


def test_it_has_at_most_25_words_in_order_and_none_twice() -> None:
    words = [word for word, _, _ in ENTRIES]
    assert 15 <= len(words) <= 25
    assert words == sorted(set(words))
    meanings = [meaning for _, meaning, _ in ENTRIES]
    assert len(set(meanings)) == len(meanings)


@pytest.mark.parametrize(("word", "_", "name"), ENTRIES, ids=[word for word, _, _ in ENTRIES])
def test_each_word_stands_in_the_code(word: str, _: str, name: str) -> None:
    assert word in name.lower(), "the code says it by another word"
    assert name in identifiers(), f"{name}: relay/ has no such name"
