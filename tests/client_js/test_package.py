"""What users install: a package without dependencies, whose types fit the SDKs and whose README's example runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from relay import __version__
from tests.client_js.conftest import Bench, environment
from tests.client_js.install import NODE
from tests.client_js.scripts import script
from tests.sdk.scenarios import TEXT
from tests.support.cutting_http import CuttingProxy, Fate
from tests.support.processes import needs

pytestmark = pytest.mark.slow

CLIENT = Path(__file__).resolve().parents[2] / "relay" / "client" / "js"


def run(*command: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**environment(), **env}, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh folder with the package that `npm pack` makes, and the OpenAI SDK."""
    npm = shutil.which("npm")
    needs(npm, "npm")
    folder = tmp_path_factory.mktemp("project")
    run(str(npm), "pack", "--silent", "--pack-destination", str(folder), cwd=CLIENT)
    (packed,) = folder.glob("relay-streams-*.tgz")
    modules = folder / "node_modules"
    modules.mkdir()
    with tarfile.open(packed) as archive:
        archive.extractall(modules, filter="data")
    (modules / "package").rename(modules / "relay-streams")
    (modules / "openai").symlink_to(NODE / "node_modules" / "openai")
    return folder


def test_the_package_holds_what_it_needs_and_no_more(project: Path) -> None:
    package = project / "node_modules" / "relay-streams"
    assert {path.name for path in package.iterdir()} == {
        "LICENSE",
        "README.md",
        "ai.d.ts",
        "ai.js",
        "events.d.ts",
        "events.js",
        "package.json",
        "resuming-fetch.d.ts",
        "resuming-fetch.js",
    }
    assert (package / "LICENSE").read_text() == (CLIENT.parents[2] / "LICENSE").read_text()
    about = json.loads((package / "package.json").read_text())
    assert about["version"] == __version__
    assert not {"dependencies", "scripts"} & about.keys()
    assert about["peerDependenciesMeta"] == {name: {"optional": True} for name in about["peerDependencies"]}


def test_the_module_is_one_file() -> None:
    """So that it can be copied, and the relay serves all of it at one address."""
    code = (CLIENT / "resuming-fetch.js").read_text()
    assert not re.findall(r"^(?:import|export .* from)\b|\bimport\((?!\")|\brequire\(", code, re.MULTILINE)


def test_the_lock_file_names_no_registry() -> None:
    packages = json.loads((NODE / "package-lock.json").read_text())["packages"]
    assert [name for name, about in packages.items() if "resolved" in about] == []


def test_it_imports_in_a_fresh_folder(project: Path) -> None:
    code = 'import * as it from "relay-streams"; console.log(Object.keys(it).join())'
    assert (
        run("node", "--input-type=module", "-e", code, cwd=project)
        == "ResumeError,resume,resumeErrorOf,resumingFetch\n"
    )


@pytest.mark.parametrize("resumes", [True, False], ids=["after", "before"])
def test_the_readmes_example_reads_through_cuts_with_its_two_lines(bench: Bench, project: Path, resumes: bool) -> None:
    readme = (CLIENT / "README.md").read_text()
    (example,) = re.findall(r"<!-- example -->\n```js\n(.*?)```\n<!-- /example -->", readme, re.DOTALL)
    lines = example.splitlines()
    added = [line for line in lines if "resumingFetch" in line]
    assert len(added) == 2
    (project / "example.mjs").write_text("\n".join(line for line in lines if resumes or line not in added))
    model = f"example-{resumes}"
    bench.upstream.on(model, *script("chat"))
    left = [Fate(500), Fate(300, "clean"), Fate(to=1)]
    with CuttingProxy(*bench.urls, fate=lambda asked: left.pop(0)) as proxy:
        env = {"RELAY_URL": f"{proxy.url}/v1", "API_KEY": "sk-test", "MODEL": model}
        if resumes:
            assert run("node", "example.mjs", cwd=project, **env) == TEXT
        else:
            with pytest.raises(AssertionError, match="terminated"):
                run("node", "example.mjs", cwd=project, **env)
    assert len(left) == (0 if resumes else 2)
    assert len(bench.upstream.calls_of(model)) == 1


def test_the_readme_names_every_setting() -> None:
    types = (CLIENT / "resuming-fetch.d.ts").read_text()
    declared = set(re.findall(r"^  (\w+)\?:", types, re.MULTILINE))
    code = "".join(
        re.findall(r"^const (?:TIMES|BOUNDS|DEFAULTS) .*$", (CLIENT / "resuming-fetch.js").read_text(), re.MULTILINE)
    )
    defaults = {
        name: value.replace("_", "") for name, value in re.findall(r"(\w+): ([\d_]+|Infinity|false|null)[,\s]", code)
    }
    table = (CLIENT / "README.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| `(\w+)`", table, re.MULTILINE))
    assert documented == defaults
    others = {"headers", "baseUrls", "onCut", "onResume", "onGaveUp", "random", "sleep", "now"}
    assert declared == {*documented, *others}
    assert all(f"`{name}`" in table for name in others)


@pytest.mark.parametrize("module", ["ai", "events"])
def test_the_other_modules_import_the_first_one_only(project: Path, module: str) -> None:
    code = (CLIENT / f"{module}.js").read_text()
    imported = set(re.findall(r'^import .* from "(.+)";$', code, re.MULTILINE))
    assert imported == {"./resuming-fetch.js", *(["ai"] if module == "ai" else [])}
    (project / "node_modules" / "ai").unlink(missing_ok=True)
    (project / "node_modules" / "ai").symlink_to(NODE / "node_modules" / "ai")
    code = f'import * as it from "relay-streams/{module}"; console.log(Object.keys(it).join())'
    exported = {"ai": "RelayChatTransport\n", "events": "RelayEventSource\n"}
    assert run("node", "--input-type=module", "-e", code, cwd=project) == exported[module]


@pytest.mark.parametrize("project", ["tsconfig.json", "tsconfig.bare.json"])
def test_the_types_fit_every_client(project: str) -> None:
    """The second has the types of neither a browser nor Node.js."""
    run("node", "node_modules/typescript/bin/tsc", "--project", project, cwd=NODE)
