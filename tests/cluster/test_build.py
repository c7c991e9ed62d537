"""What `make cluster` builds, and when: with a `go` that only notes what it is asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cluster import build
from tests.cluster.build import Missing, Program

_GO = """#!{python}
import json, os, sys
folder = {folder!r}
with open(folder + "/asked", "a") as asked:
    print(*sys.argv[1:3], open("go.mod").read() if os.path.exists("go.mod") else "", file=asked)
if "unreachable" in sys.argv[-1]:
    print(json.dumps({{"Error": "dial tcp: no route"}}))  # as go tells it with -json
    sys.exit(1)
if sys.argv[1] == "mod":
    replaced = [
        {{"Old": {{"Path": "k8s.io/api"}}, "New": {{"Path": "./staging/src/k8s.io/api"}}}},
        {{"Old": {{"Path": "a.test/sibling"}}, "New": {{"Path": "../sibling"}}}},
        {{"Old": {{"Path": "a.test/old", "Version": "v1.0.0"}}, "New": {{"Path": "a.test/new", "Version": "v1.2.3"}}}},
    ]
    print(json.dumps({{"GoMod": "go.mod", "Replace": replaced}}))
elif sys.argv[-1].endswith("/broken"):
    sys.exit("undefined: something")
elif "-o" in sys.argv:
    open(sys.argv[sys.argv.index("-o") + 1], "w").write("program")
"""

ONE = Program("one", "a.test/one", "v1.34.4", "cmd/one")
BROKEN = Program("broken", "a.test/two", "v1.0.0", "broken", needed=False)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What go has been asked."""
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text(_GO.format(python=sys.executable, folder=str(tmp_path)))
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(go.parent))
    monkeypatch.setattr(build, "PROGRAMS", (ONE,))
    return tmp_path / "asked"


def test_a_module_s_replacements_are_said_again(asked: Path, tmp_path: Path) -> None:
    assert build.build(tmp_path / "cache") == {}
    text = asked.read_text()
    assert "require a.test/one v1.34.4" in text
    assert "replace k8s.io/api => k8s.io/api v0.34.4\n" in text
    assert "replace a.test/old v1.0.0 => a.test/new v1.2.3\n" in text
    assert "sibling" not in text


def test_what_is_there_is_not_built_again(asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.build(tmp_path / "cache")
    before = asked.read_text()
    build.build(tmp_path / "cache")
    assert asked.read_text() == before
    newer = Program("one", "a.test/one", "v1.35.0", "cmd/one")
    monkeypatch.setattr(build, "PROGRAMS", (newer,))
    build.build(tmp_path / "cache")
    assert "require a.test/one v1.35.0" in asked.read_text()


def test_what_is_not_needed_may_be_missing(asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PROGRAMS", (BROKEN, ONE))
    assert build.build(tmp_path / "cache") == {"broken": "undefined: something"}
    assert (tmp_path / "cache" / "one").read_text() == "program"


def test_what_is_needed_is_named(asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PROGRAMS", (Program("broken", "a.test/two", "v1.0.0", "broken"),))
    with pytest.raises(Missing, match=r"broken v1\.0\.0 cannot be built:\nundefined: something"):
        build.build(tmp_path / "cache")


def test_without_a_network_it_says_what_go_has_said(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "PROGRAMS", (Program("far", "a.test/unreachable", "v1.0.0", ""),))
    with pytest.raises(Missing, match=r"cannot be built:\ndial tcp: no route"):
        build.build(tmp_path / "cache")


def test_without_go_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="install Go"):
        build.build(tmp_path / "cache")
