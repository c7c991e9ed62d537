"""The files with which a user's own session starts `relay connect`."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from relay.connect import Options, settings_of
from tests.deploy.proxies import DEPLOY
from tests.support.processes import needs

UNIT = (DEPLOY / "systemd" / "relay-connect.service").read_text()
PLIST = DEPLOY / "launchd" / "relay-connect.plist"


def helped() -> str:
    command = [sys.executable, "-m", "relay", "connect", "--help"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_systemd_takes_the_user_unit(tmp_path: Path) -> None:
    needs(shutil.which("systemd-analyze"), "systemd-analyze (Debian's package systemd)")
    unit = tmp_path / "relay-connect.service"
    unit.write_text(UNIT.replace("%h/.local/share/relay/bin/relay", sys.executable))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_unit_runs_the_command() -> None:
    (start,) = re.findall(r"^ExecStart=\S+/relay (.*)$", UNIT, re.M)
    assert start == "connect ${CONNECT_TO}"
    assert "https://relay.example" in UNIT
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.M)
    assert int(seconds) > settings_of(Options("https://relay.example"), {"HOME": "/home/ada"}).drain.timeout
    (name,) = re.findall(r"\$\{(\w+)\}", start)
    assert not name.startswith("RELAY_"), "that would be taken for a setting"


def test_launchd_takes_its_file() -> None:
    job = plistlib.loads(PLIST.read_bytes())
    program, *arguments = job["ProgramArguments"]
    assert job["Label"] == PLIST.stem
    assert arguments == ["connect", "https://relay.example"]
    assert program.startswith("/"), "launchd expands nothing"
    assert job["RunAtLoad"] is True
    assert job["KeepAlive"] == {"SuccessfulExit": False}
    assert job["Umask"] == 0o077
    assert all(job[name].startswith("/Users/you/") for name in ("StandardOutPath", "StandardErrorPath"))


def test_its_help_names_every_flag() -> None:
    text = helped()
    assert all(flag in text for flag in ("URL", "--bind", "--metrics-bind", "--key-env", "--no-store"))
