"""The packages of this tree, made once as a release makes them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import needs

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "https://code.example/owner/relay"


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs(shutil.which("npm"), "npm")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, str(ROOT / ".ci/packages.py"), "--out", str(folder)]
    subprocess.run(command, env=os.environ | {"REPOSITORY_URL": f"{REPOSITORY}/"}, check=True, capture_output=True)
    return folder
