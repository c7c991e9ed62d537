"""The page of the package: links that work away from the repository, and what it may be found by."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://code.example/owner/relay"


def built() -> ProjectMetadata[PluginManager]:
    return ProjectMetadata(str(ROOT), PluginManager())


def links(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", text)


def test_with_an_address_every_link_of_the_page_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPOSITORY_URL", f"{REPOSITORY}/")
    core = built().core
    pictures = [target for picture, target in links(core.readme) if picture]
    assert pictures == [f"{REPOSITORY}/raw/HEAD/deploy/pictures/{n}" for n in ("resume.svg", "playground-killed.png")]
    own = [target.removeprefix(f"{REPOSITORY}/blob/HEAD/") for _, target in links(core.readme) if REPOSITORY in target]
    assert len(own) > 10
    assert [target for _, target in links(core.readme) if not target.startswith("https://")] == []
    assert core.urls["Source"] == REPOSITORY
    assert all(address.startswith(REPOSITORY) for address in core.urls.values())


def test_what_the_page_says_otherwise_stands_in_a_readme() -> None:
    said = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "relay/client/README.md"))
    spec = importlib.util.spec_from_file_location("package_page", ROOT / "deploy/package_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [here for here in module.PUBLISHED if here not in " ".join(said.split())] == []


def test_without_one_no_address_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPOSITORY_URL", raising=False)
    core = built().core
    assert core.readme == (ROOT / "README.md").read_text(encoding="utf-8")
    assert core.urls == {}


def test_its_classifiers_exist_and_name_the_python_of_the_tests() -> None:
    core = built().core  # hatchling refuses a classifier that the index does not know
    assert "Programming Language :: Python :: 3.11" in core.classifiers
    assert "ARG PYTHON=3.11\n" in (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
