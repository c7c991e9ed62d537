"""The version stands in four files, and a release is refused where they, its tag and the CHANGELOG do not agree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from relay import __version__
from tests.packages.conftest import ROOT

TOOL = ROOT / ".ci/version.py"
FILES = ("relay/__init__.py", "pyproject.toml", "relay/client/js/package.json", "helm/relay/Chart.yaml", "CHANGELOG.md")


def version(*words: str, root: Path = ROOT) -> tuple[int, str]:
    command = [sys.executable, str(TOOL), "--root", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changes = tmp_path / "CHANGELOG.md"
    head, _, rest = changes.read_text().partition("\n## ")
    # As it is between two releases, whatever this tree is at.
    changes.write_text(f"{head}\n## Unreleased\n\n### Added\n\n- Something new.\n\n## 0.0.1 - 2020-01-01\n\n{rest}")
    return tmp_path


def test_they_agree() -> None:
    assert version() == (0, f"{__version__}\n")


@pytest.mark.parametrize("name", FILES[:-1])
def test_one_that_differs_is_named(tree: Path, name: str) -> None:
    text = (tree / name).read_text()
    for place in re.findall(rf".*{re.escape(__version__)}.*", text):
        (tree / name).write_text(text.replace(place, place.replace(__version__, "9.9.9")))
        status, told = version(root=tree)
        assert status == 1
        assert f"{name} (" in told
        assert "python .ci/version.py VERSION" in told


def test_it_is_written_everywhere_and_then_may_be_released(tree: Path) -> None:
    status, told = version("--tag", "v7.8.9", root=tree)
    assert (status, "run python .ci/version.py 7.8.9" in told) == (1, True)
    assert version("7.8.9", root=tree) == (0, "7.8.9\n")
    assert version("--tag", "v7.8.9", root=tree) == (0, "7.8.9\n")
    assert version("--notes", root=tree)[1].strip() == "### Added\n\n- Something new."
    changes = (tree / "CHANGELOG.md").read_text()
    assert re.search(r"^## Unreleased\n\n## 7\.8\.9 - \d{4}-\d\d-\d\d\n", changes, re.MULTILINE)
    assert version("7.8.9", root=tree) == (0, "7.8.9\n")
    assert (tree / "CHANGELOG.md").read_text() == changes
    assert all(__version__ not in (tree / name).read_text() for name in ("relay/__init__.py", "helm/relay/Chart.yaml"))


def test_a_tag_without_a_dated_section_is_refused(tree: Path) -> None:
    changes = tree / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace(f"## {__version__} - ", "## 0.0.1 - "))
    status, told = version("--tag", f"v{__version__}", root=tree)
    assert (status, "no dated section" in told) == (1, True)


@pytest.mark.parametrize("word", ["v1.2.3", "1.2", "next"])
def test_what_is_no_version_is_not_written(tree: Path, word: str) -> None:
    assert version(word, root=tree)[0] == 1
    assert version(root=tree) == (0, f"{__version__}\n")
