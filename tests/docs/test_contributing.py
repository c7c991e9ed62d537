"""The recipes of CONTRIBUTING.md name files, targets and names that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", TEXT.partition("## Recipes\n")[2], re.M | re.S))


def test_there_is_a_recipe_for_each_thing_that_is_added_often() -> None:
    assert list(RECIPES) == [
        "A setting",
        "A metric",
        "An error code",
        "An outcome",
        "A response header",
        "An event of a dialect",
        "A Lua script",
        "A command",
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_every_file_of_a_recipe_is_there(name: str) -> None:
    paths = {path for path in re.findall(r"`([\w./-]+)`", RECIPES[name]) if "/" in path or path.endswith(".md")}
    assert len(paths) > 4
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", RECIPES)
def test_every_name_of_a_recipe_stands_in_one_of_its_files(name: str) -> None:
    words = set(re.findall(r"`(_?[A-Z][A-Z_]+|[A-Z][a-z]+[a-zA-Z]*)`", RECIPES[name]))
    paths = [ROOT / path for path in re.findall(r"`([\w./-]+\.\w+)`", RECIPES[name])]
    sources = "".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())
    assert [word for word in words if not re.search(rf"\b{word}\b", sources)] == []


def test_the_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for line in re.findall(r"`make ([a-z ]+)[`A-Z]", TEXT) for word in line.split()}
    assert len(named) > 8
    assert named <= targets
