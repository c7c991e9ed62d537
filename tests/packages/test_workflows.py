"""The workflows: well-formed, with the rights that each job needs and no more, and with commands that run.

What a command asks of a host (a login, a push, a page) cannot be tried here; each of those is named with its reason,
and all others are carried out as they stand.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay import __version__
from tests.helm.install import helm
from tests.packages.conftest import ROOT
from tests.packages.install import FOLDERS, is_installed
from tests.support.processes import needs

FOLDER = ROOT / ".github/workflows"
NAMES = sorted(path.name for path in FOLDER.iterdir())
REPOSITORY = "https://github.com/Owner/Relay"

# Job to rights. Whatever is not here, a job has not: each workflow starts from none.
RIGHTS = {
    ("ci.yml", "test"): {"contents": "read"},
    ("release.yml", "test"): {"contents": "read"},
    ("release.yml", "build"): {"contents": "read", "id-token": "write", "attestations": "write"},
    ("release.yml", "pypi"): {"id-token": "write"},
    ("release.yml", "npm"): {"id-token": "write"},
    ("release.yml", "image"): {"contents": "read", "packages": "write"},
    ("release.yml", "images"): {"packages": "write", "id-token": "write", "attestations": "write"},
    ("release.yml", "chart"): {"packages": "write"},
    ("release.yml", "page"): {"contents": "write"},
}
# What begins so is not carried out, and why.
ELSEWHERE = {
    "apt-get update": "the machine's own packages, as .ci/run installs them",
    "git config --global": "the settings of the user who runs this",
    "bash .ci/run": "what runs this test",
    "docker login": "a host",
    "docker buildx create": "a host; `make image-test` builds the same Dockerfile",
    "image=": "a host",
    "helm registry login": "a host",
    "gh release create": "a host",
}


def workflow(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return read


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name in NAMES:
        for job, about in workflow(name)["jobs"].items():
            yield name, job, about


def commands() -> list[str]:
    steps = [step for _, _, job in jobs() for step in job.get("steps", [])]
    return list(dict.fromkeys(step["run"].strip() for step in steps if "run" in step))


def test_actionlint_finds_nothing_to_say() -> None:
    needs(is_installed("actionlint"), "actionlint: install Go, and run python tests/packages/install.py")
    done = subprocess.run([FOLDERS["actionlint"] / "actionlint", "-no-color"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_workflow_that_is_wrong_is_found(tmp_path: Path) -> None:
    needs(is_installed("actionlint"), "actionlint: install Go, and run python tests/packages/install.py")
    wrong = tmp_path / "wrong.yml"
    wrong.write_text((FOLDER / "release.yml").read_text().replace("needs: [test, build]", "needs: [test, biuld]", 1))
    done = subprocess.run([FOLDERS["actionlint"] / "actionlint", wrong], capture_output=True, text=True, check=False)
    assert "biuld" in done.stdout


def test_every_job_has_the_rights_that_it_needs() -> None:
    assert all(workflow(name)["permissions"] == {} for name in NAMES)
    assert {(name, job): about["permissions"] for name, job, about in jobs()} == RIGHTS


def test_nothing_is_published_that_was_not_tested() -> None:
    release = workflow("release.yml")["jobs"]
    for job in ("pypi", "npm", "images", "chart"):
        assert {"test", "build"} <= set(release[job]["needs"])
    assert {"pypi", "npm", "images", "chart"} <= set(release["page"]["needs"])


def test_every_action_is_one_commit_of_a_version() -> None:
    for name in NAMES:
        lines = re.findall(r"uses: (\S+)(.*)", (FOLDER / name).read_text())
        for action, rest in lines:
            assert action.startswith("./") or re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), action
            assert action.startswith("./") or re.fullmatch(r" # v\d+\.\d+\.\d+", rest), action


def test_no_command_is_put_together_from_what_others_wrote() -> None:
    """`${{ … }}` in a command is text before the shell reads it: a branch's name could be a program."""
    assert [command for command in commands() if "${{" in command] == []


def test_no_secret_is_stored_and_none_is_left_behind() -> None:
    for name, _, job in jobs():
        assert "secrets." not in (FOLDER / name).read_text()
        for step in job.get("steps", []):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one_that_a_shell_reads(command: str) -> None:
    done = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_left_out_here_is_still_there() -> None:
    assert [begin for begin in ELSEWHERE if not any(one.startswith(begin) for one in commands())] == []


@pytest.mark.slow
def test_every_other_command_does_what_it_says(tmp_path: Path) -> None:
    """In the order in which the jobs carry them out, in a copy of the tree, at the version that stands in it."""
    needs(helm("helm3").exists(), "Helm: python tests/helm/install.py")
    needs(shutil.which("npm"), "npm")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "helm").symlink_to(helm("helm3"))
    changes = tmp_path / "CHANGELOG.md"
    changes.write_text(f"# Changelog\n\n## Unreleased\n\n## {__version__} - 2020-01-01\n\n- It began.\n")
    env = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "GITHUB_REF_NAME": f"v{__version__}",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "REPOSITORY_URL": REPOSITORY,
    }
    ran = [command for command in commands() if not command.startswith(tuple(ELSEWHERE))]
    assert len(ran) == 5
    for command in ran:
        # What this environment was made by is newer than the copy; a registry is asked nothing.
        tried = command.replace("make ", "make -o .venv/.dev ").replace("--provenance", "--dry-run --offline")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", tried], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, command + done.stdout + done.stderr
    assert (tmp_path / "output").read_text() == f"version={__version__}\n"
    assert (tmp_path / "dist/notes/notes.md").read_text().strip() == "- It began."
    assert json.loads((tmp_path / "dist/sbom/sbom.cyclonedx.json").read_text())["bomFormat"] == "CycloneDX"
    (chart,) = (tmp_path / "dist/chart").iterdir()
    with tarfile.open(chart) as archive:
        values = archive.extractfile("relay/values.yaml")
        assert values is not None
        assert yaml.safe_load(values.read())["image"]["repository"] == "ghcr.io/owner/relay"
