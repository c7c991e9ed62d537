"""What the examples are made of: pinned packages, settings that load, and backends without a word about resuming."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from relay.config import load
from tests.client_js.install import NODE
from tests.examples.conftest import EXAMPLES, the_runner
from tests.sdk import install as sdk

NAMES = the_runner().EXAMPLES


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(), re.MULTILINE))


def test_each_has_a_readme_and_is_one_that_can_be_started() -> None:
    assert {path.parent.name for path in EXAMPLES.glob("*/README.md")} == set(NAMES)
    start = [sys.executable, str(EXAMPLES / "run.py"), "no-example"]
    done = subprocess.run(start, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Name one example: python ")


@pytest.mark.parametrize("name", NAMES)
def test_its_settings_load(name: str) -> None:
    settings = load(EXAMPLES / name / "relay.yaml")
    assert [upstream.apis for upstream in settings.upstreams] == [["sse"]]


@pytest.mark.parametrize("name", NAMES)
def test_its_backend_knows_nothing_of_resuming(name: str) -> None:
    backends = [path for kind in ("*.py", "*.mjs") for path in (EXAMPLES / name).glob(kind)]
    assert backends
    for path in backends:
        code = path.read_text().replace("knows nothing of resuming", "")
        assert not re.search(r"resum|last.event.id|redis|stream.id", code, re.IGNORECASE), path


def test_the_tests_have_the_packages_that_the_examples_name() -> None:
    assert sdk.EXAMPLES == EXAMPLES / "langgraph" / "requirements.lock"
    assert pins(EXAMPLES / "fastapi" / "requirements.lock").items() <= pins(sdk.EXAMPLES).items()
    own = json.loads((EXAMPLES / "ai-sdk" / "package.json").read_text())["dependencies"]
    tested = json.loads((NODE / "package.json").read_text())["dependencies"]
    assert own.pop("relay-streams") == "file:../../../relay/client/js"
    assert own.items() <= tested.items()


def test_the_lock_files_are_those_of_the_packages_and_name_no_registry() -> None:
    folder = EXAMPLES / "ai-sdk"
    packages = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert packages[""]["dependencies"] == json.loads((folder / "package.json").read_text())["dependencies"]
    resolved = {name: about["resolved"] for name, about in packages.items() if "resolved" in about}
    assert resolved == {"node_modules/relay-streams": "file:../../../relay/client/js"}
    for name in ("fastapi", "langgraph"):
        wanted = (EXAMPLES / name / "requirements.in").read_text().split()
        assert set(wanted) <= pins(EXAMPLES / name / "requirements.lock").keys()
