"""The transport for the AI SDK's `useChat`, on the chat of every generation of the SDK that it is for (node/ai.mjs)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.client_js.conftest import environment, finish, start
from tests.client_js.install import NODE

pytestmark = pytest.mark.slow

CLIENT = Path(__file__).resolve().parents[2] / "relay" / "client" / "js"
CASES = re.findall(r"^  async (\w+)\(\) \{$", (NODE / "ai.mjs").read_text(), re.MULTILINE)
GENERATIONS = ("ai-v5", "ai-v6", "ai")


@pytest.fixture(scope="module", params=GENERATIONS)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the package and one generation of the SDK."""
    folder = tmp_path_factory.mktemp("project")
    modules = folder / "node_modules"
    modules.mkdir()
    shutil.copytree(CLIENT, modules / "relay-streams")
    (modules / "ai").symlink_to(NODE / "node_modules" / request.param)
    for name in ("ai.mjs", "chat.mjs", "types.ai.ts"):
        shutil.copy(NODE / name, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


@pytest.fixture(scope="module")
def played(project: Path) -> dict[str, str | None]:
    """What each case said."""
    found: dict[str, str | None] = finish(start("ai.mjs", None, cwd=project), quiet=False)
    return found


@pytest.mark.parametrize("case", CASES)
def test_ai(played: dict[str, str | None], case: str) -> None:
    assert played.keys() == set(CASES)
    assert played[case] is None, played[case]


def test_its_types_are_those_of_the_sdk(project: Path) -> None:
    options = ["--strict", "--noEmit", "--skipLibCheck", "--target", "es2022", "--lib", "es2023,dom,dom.iterable"]
    compiler = NODE / "node_modules" / "typescript" / "bin" / "tsc"
    modules = ["--module", "nodenext", "--moduleResolution", "nodenext"]
    done = subprocess.run(
        ["node", str(compiler), *options, *modules, "types.ai.ts"],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
