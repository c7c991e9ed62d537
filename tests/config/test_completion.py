"""What `relay completion` prints, read by the shells themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from relay.cli import main
from tests.support.processes import needs

CASES = [
    ("relay ser", {"serve"}),
    ("relay c", {"check", "connect", "completion"}),
    ("relay serve --me", {"--metrics-bind"}),
    ("relay check --up", {"--upstream"}),
    ("relay key ", {"new", "hash"}),
    ("relay key new --ra", {"--rate"}),
    ("relay key hash --o", set()),
    ("relay completion f", {"fish"}),
    ("relay demo --bi", set()),
]


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    shell = str(request.param)
    assert main(["completion", shell]) == 0
    path = tmp_path / f"relay.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("made", ["bash"], indirect=True)
def test_bash(made: Path) -> None:
    needs(shutil.which("bash"), "bash")
    for line, expected in CASES:
        words = line.split(" ")
        begin = f"source {made}; COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}"
        told = set(run("bash", "-c", f'{begin}; _relay; printf "%s\\n" "${{COMPREPLY[@]}}"').split())
        assert told - {"--help"} == expected, line


@pytest.mark.parametrize("made", ["bash"], indirect=True)
def test_a_file_follows_a_flag_that_names_one(made: Path, tmp_path: Path) -> None:
    (tmp_path / "relay-settings.yaml").touch()
    begin = f"source {made}; COMP_WORDS=(relay serve --config {tmp_path}/relay-s); COMP_CWORD=3"
    assert run("bash", "-c", f"{begin}; _relay; echo $COMPREPLY").strip() == str(tmp_path / "relay-settings.yaml")


@pytest.mark.parametrize("made", ["fish"], indirect=True)
def test_fish(made: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    for line, expected in CASES:
        told = run("fish", "--no-config", "-c", f"source {made}; complete -C '{line}'")
        assert {word.split("\t")[0] for word in told.splitlines()} - {"--help"} == expected, line


@pytest.mark.parametrize("made", ["zsh"], indirect=True)
def test_zsh_takes_it(made: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    code = f"autoload -U compinit && compinit -D -u; source {made}; print $_comps[relay]"
    assert "_relay" in run("zsh", "-f", "-c", code)


def test_who_names_no_shell_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["completion"])
    assert "{bash,zsh,fish}" in capsys.readouterr().err


def test_it_is_a_command_of_its_own() -> None:
    told = run(sys.executable, "-m", "relay", "completion", "bash")
    assert told.startswith("# Made by: relay completion bash\n")
