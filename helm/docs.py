"""Writes the table of relay/README.md from relay/values.yaml, whose `# -- ` comments are its text.

    python helm/docs.py [--check]

A comment describes the key under it, with all that the key holds. Every key must have one, or lie under one that has.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parent / "relay"
README = CHART / "README.md"
_TABLE = re.compile(r"(<!-- values -->\n).*?(<!-- /values -->)", re.DOTALL)


class Undocumented(Exception):
    """A key of values.yaml without a comment."""


def rows() -> list[tuple[str, str, str]]:
    """Key, default and meaning, in the file's order."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return list(_walk(root, "", text.splitlines()))


def _walk(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        path = prefix + key.value
        if comment := _comment_above(key.start_mark.line, lines):
            default = yaml.safe_load(yaml.serialize(value))
            yield path, f"`{json.dumps(default, ensure_ascii=False)}`", comment
        elif isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _walk(value, f"{path}.", lines)
        else:
            raise Undocumented(f"values.yaml: {path} has no `# -- ` comment above it; write one")


def _comment_above(line: int, lines: list[str]) -> str:
    words: list[str] = []
    for above in reversed(lines[:line]):
        text = above.strip()
        if not text.startswith("#"):
            return ""
        words.insert(0, text.removeprefix("#").strip())
        if text.startswith("# -- "):
            return " ".join(words).removeprefix("-- ")
    return ""


def table() -> str:
    body = "\n".join(f"| `{path}` | {default} | {meaning} |" for path, default, meaning in rows())
    return f"| value | default | meaning |\n|---|---|---|\n{body}\n"


def readme() -> str:
    """README.md with the table that values.yaml makes."""
    return _TABLE.sub(lambda found: found[1] + table() + found[2], README.read_text(encoding="utf-8"))


def main() -> int:
    wanted = readme()
    if "--check" in sys.argv[1:]:
        if README.read_text(encoding="utf-8") != wanted:
            print("helm/relay/README.md is not what values.yaml says; run: python helm/docs.py")
            return 1
        return 0
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
