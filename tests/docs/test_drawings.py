"""The drawings in the documentation are what the code does."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from relay.store import scripts
from relay.streams import writer

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
SEQUENCES = re.findall(r"^```mermaid\n(sequenceDiagram\n.*?)^```", ARCHITECTURE, re.MULTILINE | re.DOTALL)
REPLIES = {
    "OK": writer.OK,
    "OK_END": writer.OK_END,
    "MISMATCH": writer.MISMATCH,
    "FENCED": scripts.FENCED,
    "GONE": writer.GONE,
    "AWAY": writer.AWAY,
}


def test_the_drawing_of_the_writer_is_its_table() -> None:
    (drawing,) = re.findall(r"^```mermaid\n(stateDiagram-v2\n.*?)^```", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    lines = drawing.splitlines()[1:]
    begins: list[str] = []
    drawn: dict[tuple[str, int], tuple[str, str]] = {}
    for line in lines:
        if begin := re.fullmatch(r"    \[\*\] --> (\w+)", line):
            begins.append(begin[1])
            continue
        arrow = re.fullmatch(r"    (\w+) --> (\w+): (\w+) / (\w+)", line)
        assert arrow is not None, line
        before, after, said, effect = arrow.groups()
        for reply in writer.REPLIES if said == "any" else [REPLIES[said]]:
            assert (before, reply) not in drawn, f"{line}: there is an arrow for this already"
            drawn[before, reply] = (after, effect)
    assert drawn == writer.TRANSITIONS
    assert set(REPLIES.values()) == set(writer.REPLIES)
    assert begins == [writer.WRITING, writer.UNLOGGED]
    assert {state for state, _ in drawn} == set(writer.STATES)


@cache
def methods() -> dict[str, set[str]]:
    """Of each class in relay/."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "relay").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                functions = {n.name for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
                found.setdefault(node.name, set()).update(functions)
    return found


def test_there_are_four_sequences() -> None:
    assert len(SEQUENCES) == 4


@pytest.mark.parametrize("drawing", SEQUENCES, ids=["post", "resume", "lost producer", "drain"])
def test_a_sequence_names_classes_methods_and_scripts_that_are_there(drawing: str) -> None:
    of_classes = methods()
    participants = {name: label for name, _, label in re.findall(r"^ +participant (\w+)( as (.+))?$", drawing, re.M)}
    for name, label in participants.items():
        if not label:
            assert name in of_classes, f"{name}: no class of the relay"
        elif "/" in label:
            assert (ROOT / "relay" / label).exists(), label
    arrows = re.findall(r"^ +(\w+)(?:-->>|->>|--x)(\w+): (.+)$", drawing, re.M)
    assert len(arrows) > 5
    named = 0
    for before, after, said in arrows:
        assert {before, after} <= participants.keys(), said
        for script in re.findall(r"\b(\w+\.lua)\b", said):
            assert (ROOT / "relay/store/scripts" / script).exists(), script
        for method in re.findall(r"\b(\w+)\(", said):
            kind = (participants[after] or after).partition(" ")[0]
            assert method in of_classes[kind], f"{kind} has no {method}: {said}"
            named += 1
    assert named or "Lost" in drawing
