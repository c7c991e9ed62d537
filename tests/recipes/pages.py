"""The pages of `deploy/recipes`, and what stands in them in blocks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/recipes"
PAGES = sorted(FOLDER.glob("*.md"))
AGENTS = sorted((ROOT / "deploy/agents").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def kind(block: str) -> str:
    """The file that a block of settings is: its first line says it."""
    return block.partition("\n")[0].removeprefix("# ")


def run(page: Path, what: str = "") -> tuple[str, str]:
    """Language and text of the block that is marked to be run."""
    mark = re.escape(f"<!-- run{': ' if what else ''}{what} -->")
    (found,) = re.findall(rf"^{mark}\n```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    language, text = found
    return language, text


def marked() -> set[tuple[str, str]]:
    """Page and name of every block that is to be run."""
    found = [
        (page.stem, what)
        for page in PAGES
        for what in re.findall(r"^<!-- run(?:: )?(.*?) -->$", page.read_text(), re.M)
    ]
    return set(found)
