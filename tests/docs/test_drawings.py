"""The drawings in the documentation are what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from relay.store import scripts
from relay.streams import writer

ARCHITECTURE = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text(encoding="utf-8")
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
