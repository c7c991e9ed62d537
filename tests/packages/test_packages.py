"""The two Python distributions and the npm package: what is in them, what their pages say, how they install."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from relay import __version__
from tests.packages.conftest import REPOSITORY, ROOT
from tests.packages.install import FOLDERS, is_installed
from tests.support.processes import needs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # a cold cache of packages

SERVER, CLIENT = "relay_streams", "relay_streams_client"
UV = Path(sys.executable).parent / "uv"
LOCK = ROOT / "deploy/requirements.lock"


def wheel(dist: Path, name: str) -> Path:
    (found,) = (dist / "python").glob(f"{name}-*.whl")
    return found


def code(path: Path) -> set[str]:
    """The files of `relay/` in a wheel."""
    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}


def page(path: Path) -> email.message.Message:
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_string(archive.read(name).decode())


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "PYTHON", "VIRTUAL"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def pythons() -> dict[str, str]:
    """Minor version to interpreter, of all that this machine has and the packages are for."""
    places = [Path(sys.executable), *Path("/usr/bin").glob("python3.*"), *Path("/usr/local/bin").glob("python3.*")]
    places += sorted(Path.home().glob(".pyenv/versions/*/bin/python3"))
    found: dict[str, str] = {}
    for place in places:
        if re.fullmatch(r"python(3(\.\d+)?)?", place.name):
            told = subprocess.run(
                [place, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True
            )
            major, minor = (int(part) for part in told.stdout.split()) if told.returncode == 0 else (0, 0)
            if (3, 11) <= (major, minor) <= (3, 14):
                found.setdefault(f"{major}.{minor}", str(place))
    return found


def environment(folder: Path, python: str = sys.executable) -> Path:
    """A bare virtual environment; its interpreter."""
    run(UV, "venv", "--quiet", "--python", python, folder, cwd=folder.parent)
    return folder / "bin" / "python"


def test_each_file_of_the_tree_is_in_one_of_the_wheels(dist: Path) -> None:
    server, client = code(wheel(dist, SERVER)), code(wheel(dist, CLIENT))
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "relay", cwd=ROOT).split()
    assert server & client == set()
    assert server | client == {name for name in listed if (ROOT / name).exists()}
    assert {"relay/client/httpx.py", "relay/client/httpx2.py", "relay/__init__.py", "relay/py.typed"} <= client
    assert client - {"relay/py.typed"} == {name for name in client if name.endswith((".py", "relay/client/README.md"))}


def test_both_have_the_licence(dist: Path) -> None:
    for name in (SERVER, CLIENT):
        with zipfile.ZipFile(wheel(dist, name)) as archive:
            (held,) = (entry for entry in archive.namelist() if entry.endswith("/licenses/LICENSE"))
            assert archive.read(held) == (ROOT / "LICENSE").read_bytes()


def test_the_server_asks_for_exactly_this_client(dist: Path) -> None:
    asked = page(wheel(dist, SERVER)).get_all("Requires-Dist")
    assert asked is not None
    assert f"relay-streams-client=={__version__}" in asked
    assert page(wheel(dist, CLIENT))["Version"] == page(wheel(dist, SERVER))["Version"] == __version__


@pytest.mark.parametrize("name", [SERVER, CLIENT])
def test_the_wheel_that_the_source_distribution_makes_is_the_same(dist: Path, tmp_path: Path, name: str) -> None:
    (source,) = (dist / "python").glob(f"{name}-*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    (project,) = tmp_path.iterdir()
    run(
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        tmp_path,
        cwd=project,
        REPOSITORY_URL=REPOSITORY,
    )
    (made,) = tmp_path.glob("*.whl")
    assert made.read_bytes() == wheel(dist, name).read_bytes()


def test_twine_finds_nothing_to_say(dist: Path) -> None:
    needs(is_installed("twine"), "twine: python tests/packages/install.py")
    files = sorted((dist / "python").iterdir())
    assert len(files) == 4
    told = run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=dist, PYTHONPATH=str(FOLDERS["twine"]))
    assert told.count("PASSED") == 4


@pytest.mark.parametrize("name", [SERVER, CLIENT])
def test_every_link_of_a_page_leads_somewhere(dist: Path, name: str) -> None:
    about = page(wheel(dist, name))
    text = str(about.get_payload())
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("#")]
    assert [target for target in targets if not target.startswith("https://")] == []
    own = [target for target in targets if target.startswith(REPOSITORY)]
    assert own
    for target in own:
        path = re.sub(r"^.*?/(blob|raw)/HEAD/|#.*$", "", target)
        assert (ROOT / path).exists(), target
    addresses = about.get_all("Project-URL")
    assert addresses is not None
    assert all(REPOSITORY in address for address in addresses)


@pytest.mark.parametrize(
    ("name", "says"), [(SERVER, "$ pip install relay-streams\n"), (CLIENT, "`pip install relay-streams-client`")]
)
def test_a_page_says_how_to_install_what_it_is_of(dist: Path, name: str, says: str) -> None:
    text = str(page(wheel(dist, name)).get_payload())
    assert says in text
    assert "./deploy/client" not in text


def test_npm_s_package_says_where_it_is_from(dist: Path) -> None:
    """npm's provenance holds only where `repository` names the place of the build."""
    (packed,) = (dist / "npm").iterdir()
    with tarfile.open(packed) as archive:
        names = {name.removeprefix("package/") for name in archive.getnames()}
        about = json.loads(archive.extractfile("package/package.json").read())  # type: ignore[union-attr]
        readme = archive.extractfile("package/README.md").read().decode()  # type: ignore[union-attr]
    assert names == {"LICENSE", "README.md", "package.json", "resuming-fetch.d.ts", "resuming-fetch.js"} | {
        path.name for path in (ROOT / "relay/client/js").iterdir() if path.suffix in (".js", ".ts")
    }
    assert about["version"] == __version__
    assert about["repository"] == {"type": "git", "url": f"git+{REPOSITORY}.git", "directory": "relay/client/js"}
    assert [link for link in re.findall(r"\]\(([^)\s]+)\)", readme) if not link.startswith(("https://", "#"))] == []


@pytest.mark.parametrize("version", pythons())
def test_the_client_installs_nothing_but_itself(dist: Path, tmp_path: Path, version: str) -> None:
    python = environment(tmp_path / "bare", pythons()[version])
    run(UV, "pip", "install", "--quiet", "--no-index", "--python", python, wheel(dist, CLIENT), cwd=tmp_path)
    assert run(UV, "pip", "list", "--format=json", "--python", python, cwd=tmp_path) == (
        json.dumps([{"name": "relay-streams-client", "version": __version__}], separators=(",", ":")) + "\n"
    )
    run(python, "-c", "import relay.client, relay.client.policy, relay.client.resumable_stream", cwd=tmp_path)
    code = "try: import relay.client.httpx\nexcept ModuleNotFoundError as error: print(error)"
    assert "pip install httpx" in run(python, "-c", code, cwd=tmp_path)
    assert not (python.parent / "relay").exists()


@pytest.mark.parametrize("version", pythons())
def test_the_server_starts_where_only_its_lock_is(dist: Path, tmp_path: Path, version: str) -> None:
    python = environment(tmp_path / "bare", pythons()[version])
    install = (UV, "pip", "install", "--quiet", "--python", python)
    run(*install, "--require-hashes", "--requirement", LOCK, cwd=tmp_path)
    run(*install, "--no-index", wheel(dist, SERVER), wheel(dist, CLIENT), cwd=tmp_path)
    run(UV, "pip", "check", "--python", python, cwd=tmp_path)
    assert run(python.parent / "relay", "--version", cwd=tmp_path) == f"relay {__version__}\n"
    run(python, "-c", "import relay.server, relay.client.httpx", cwd=tmp_path)


def test_either_may_come_and_go_first(dist: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "bare")
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    others = Path(run(sys.executable, "-c", "import yaml; print(yaml.__file__)", cwd=tmp_path).strip()).parents[1]
    (site / "others.pth").write_text(f"{others}\n")
    names = {SERVER: "relay-streams", CLIENT: "relay-streams-client"}

    def install(name: str) -> None:
        options = ("--quiet", "--python", python, "--no-index", "--no-deps")
        run(UV, "pip", "install", *options, wheel(dist, name), cwd=tmp_path)

    def uninstall(name: str) -> None:
        run(UV, "pip", "uninstall", "--quiet", "--python", python, names[name], cwd=tmp_path)

    def works(*words: str) -> bool:
        return subprocess.run([python, *words], cwd=tmp_path, capture_output=True, check=False).returncode == 0

    def both() -> tuple[bool, bool]:
        """Does the server run, and the client work?"""
        client = f"import relay.client.httpx as it; assert it.__file__.startswith({str(site)!r})"
        return works("-m", "relay", "--version"), works("-c", client)

    for first, second in ((CLIENT, SERVER), (SERVER, CLIENT)):
        install(first)
        assert both()[0] is False
        install(second)
        assert both() == (True, True)
        uninstall(SERVER)
        assert both() == (False, True)
        install(SERVER)
        uninstall(CLIENT)
        assert both() == (False, False)
        done = subprocess.run([python, "-m", "relay"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.endswith("--force-reinstall --no-deps relay-streams-client\n")
        install(CLIENT)
        assert both() == (True, True)
        uninstall(first)
        uninstall(second)
        assert [path for path in (site / "relay").rglob("*") if path.is_file()] == []
