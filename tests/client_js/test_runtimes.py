"""Other runtimes than Node.js, as npm carries them: the same table of scripts, and real relays through real cuts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.client.cases import PATH, load
from tests.client_js.conftest import Bench, environment
from tests.client_js.install import NODE
from tests.client_js.scripts import script
from tests.client_js.test_fetch import at_first, ids, is_whole
from tests.support.cutting_http import CuttingProxy, Fate
from tests.support.processes import needs
from tests.support.streams import PATHS

pytestmark = pytest.mark.slow

MODULES = NODE / "node_modules"
RUNTIMES: dict[str, list[str | Path]] = {
    "bun": [MODULES / "@oven/bun-linux-x64/bin/bun"],
    "deno": [MODULES / "@deno/linux-x64-glibc/deno", "run", "--no-remote", "--no-npm", "--no-config", "--allow-all"],
}


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> list[str]:
    command = RUNTIMES[request.param]
    needs(Path(command[0]).is_file(), f"{request.param}, which npm carries for Linux on x64 with glibc")
    return [str(word) for word in command]


def run(runtime: list[str], program: str, argument: object, folder: Path) -> Any:
    own = {"DENO_DIR": str(folder), "DENO_NO_UPDATE_CHECK": "1", "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        [*runtime, program, json.dumps(argument)],
        cwd=NODE,
        env={**environment(), **own},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_every_case(runtime: list[str], tmp_path: Path) -> None:
    found = run(runtime, "cases.mjs", str(PATH), tmp_path)
    assert {name: wrong for name, wrong in found.items() if wrong is not None} == {}
    assert len(found) == len(load())


def test_a_stream_through_cuts(runtime: list[str], bench: Bench, tmp_path: Path) -> None:
    name = Path(runtime[0]).name
    bench.upstream.on(name, *script("chat"))
    body = {"model": name, "messages": [], "stream": True}
    fates = [Fate(700), Fate(300, "rst"), Fate(300, "clean", to=1), Fate(300, "close"), Fate(to=1)]
    with CuttingProxy(*bench.urls, fate=at_first(*fates)) as proxy:
        job = {"path": PATHS["chat"], "body": body}
        (seen,) = run(runtime, "fetching.mjs", {"url": proxy.url, "jobs": [job], "options": {}}, tmp_path)
        assert len(proxy.asked()) == len(fates)
    assert is_whole(seen), ids(seen["text"])
    assert len(bench.upstream.calls_of(name)) == 1
