"""The image and compose.yaml for real, in an engine: `make image-test`. pytest does not collect this file by itself.

Where no engine can be started it is skipped, and says why, in CI too: many machines that run CI may not start one.
RELAY_IMAGE_TEST=required makes that a failure.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.image.engine import ROOT, Engine, Missing, engine, make_bare, make_base, make_nginx, make_valkey
from tests.support.oracle import PATH, check
from tests.support.processes import free_port
from tests.support.sseclient import ConnectionEnded, RawEvent, open_stream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(600)

AUTH = {"authorization": "Bearer sk-one"}
# What the relay adds to the image that it is built from; and from `docker run` to the first answer.
SIZE_BOUND = 120 << 20
START_BOUND = 10.0
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "deploy" / "README.md").read_text()


def say(text: str) -> None:
    """Into the run's output, whatever pytest captures."""
    os.write(2, f"  {text}\n".encode())


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    """With the image `relay`, made by the real Dockerfile."""
    try:
        with engine() as found:
            say(f"base image from Debian's packages: {make_base(found):.0f} s")
            begun = time.monotonic()
            # `relay-relay` is what compose calls it.
            found.docker(
                "build", "--file", "deploy/Dockerfile", "--tag", "relay", "--tag", "relay-relay", ".", timeout=400
            )
            say(f"docker build: {time.monotonic() - begun:.0f} s")
            found.docker("network", "create", "llm")
            yield found
    except Missing as reason:
        if os.environ.get("RELAY_IMAGE_TEST") == "required":
            pytest.fail(f"needed here: {reason}")
        say(f"make image-test is skipped: {reason}")
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def upstream(docker: Engine) -> str:
    """Its name in the network `llm`."""
    script = ROOT / "tests" / "image" / "upstream.py"
    mount = f"{script}:/upstream.py:ro"
    docker.docker(
        *("run", "--detach", "--name", "upstream", "--network", "llm", "--init", "--volume", mount),
        *("--entrypoint", "python", "relay", "/upstream.py"),
    )
    return "http://upstream:8000"


def lives(url: str, path: str = "/livez") -> bool:
    try:
        with open_stream(url + path, "GET", timeout=2) as answer:
            return answer.status == 200
    except (ConnectionEnded, OSError):
        return False


def run_relay(docker: Engine, *more: str, command: tuple[str, ...]) -> tuple[str, str]:
    """A container and where it is reached."""
    port = free_port()
    options = ["--detach", "--init", "--read-only", "--tmpfs", "/tmp", "--volume", "/var/lib/relay"]
    options += ["--publish", f"127.0.0.1:{port}:8080"]
    return docker.docker("run", *options, *more, "relay", *command), f"http://127.0.0.1:{port}"


def exit_code(docker: Engine, container: str) -> int:
    return int(docker.docker("inspect", "--format", "{{.State.ExitCode}}", container))


SERVE = ("serve", "--upstream", "https://api.openai.com")


def test_the_image_is_small_and_serves_soon(docker: Engine) -> None:
    sizes = {
        name: int(docker.docker("image", "inspect", "--format", "{{.Size}}", name))
        for name in ("relay", "python:3.11-slim-bookworm")
    }
    base = sizes["python:3.11-slim-bookworm"]
    own = sizes["relay"] - base
    begun = time.monotonic()
    container, url = run_relay(docker, command=SERVE)
    wait_until(lambda: lives(url), 30, "the relay")
    took = time.monotonic() - begun
    docker.docker("rm", "--force", container)
    say(f"image: {sizes['relay'] >> 20} MiB, of it the base {base >> 20} and the relay {own >> 20} MiB")
    say(f"docker run to the first answer, with its own store: {took:.1f} s")
    assert own < SIZE_BOUND
    assert took < START_BOUND


@pytest.mark.parametrize("document", ["README.md", "deploy/README.md"])
def test_the_line_that_the_document_gives_runs(docker: Engine, document: str) -> None:
    (line,) = re.findall(r"^(?:\$ )?(docker run .* relay serve .*)$", (ROOT / document).read_text(), re.MULTILINE)
    port = free_port()
    assert "127.0.0.1:8080:8080" in line
    line = line.replace("127.0.0.1:8080:8080", f"127.0.0.1:{port}:8080").replace("docker run", "docker run --detach")
    container = docker.run("sh", "-c", line)
    wait_until(lambda: lives(f"http://127.0.0.1:{port}"), 30, "the relay")
    wait_until(lambda: lives(f"http://127.0.0.1:{port}", "/readyz?store=required"), 30, "its store")
    assert docker.docker("inspect", "--format", "{{.HostConfig.ReadonlyRootfs}}", container) == "true"
    docker.docker("stop", container, timeout=60)


@pytest.mark.parametrize("user", ["12345:0", "0:0", "10001:10001"])
def test_any_user_will_do(docker: Engine, user: str) -> None:
    command = (*SERVE, "--data-dir", "/tmp/data")
    container, url = run_relay(docker, "--user", user, "--cap-drop", "ALL", command=command)
    wait_until(lambda: lives(url), 30, "the relay")
    docker.docker("rm", "--force", container)


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_stop_right_after_the_start_is_heard(docker: Engine, seconds: float) -> None:
    container, _ = run_relay(docker, "--stop-timeout", "60", command=SERVE)
    time.sleep(seconds)  # what is tested is this moment of the start
    begun = time.monotonic()
    docker.docker("stop", container)
    took = time.monotonic() - begun
    code = exit_code(docker, container)
    docker.docker("rm", container)
    say(f"docker stop {seconds:g} s after docker run: {took:.1f} s, exit status {code}")
    # 143: the signal came before Python had begun, and the init handed it on.
    assert code in (0, 143)
    assert took < 15


def test_a_stop_in_mid_stream_waits_for_the_stream(docker: Engine, upstream: str) -> None:
    container, url = run_relay(
        docker, "--stop-timeout", "60", "--network", "llm", command=("serve", "--upstream", upstream)
    )
    wait_until(lambda: lives(url), 30, "the relay")
    body = {"model": "count-40-100", "stream": True, "messages": []}
    with open_stream(url + PATH, headers=AUTH, body=body, timeout=30) as answer:
        events = answer.events(5)
        stopping = threading.Thread(target=docker.docker, args=("stop", container))
        begun = time.monotonic()
        stopping.start()
        assert check(events + answer.events()) == (40, "done")
        assert answer.ended == "zero-chunk"
        assert time.monotonic() - begun > 2
    stopping.join(60)
    assert exit_code(docker, container) == 0
    docker.docker("rm", container)


# -- compose -----------------------------------------------------------------------------------------------------


@dataclass
class Composed:
    docker: Engine
    url: str
    files: str

    def compose(self, command: str, timeout: float = 120) -> str:
        return self.docker.run("sh", "-c", f"docker compose {self.files} {command}", timeout=timeout)

    def relays(self) -> list[str]:
        return self.compose("ps --quiet relay").split()

    def calls(self) -> int:
        script = 'import urllib.request as r; print(r.urlopen("http://127.0.0.1:8000/calls").read().decode())'
        return int(self.compose(f"exec -T upstream python -c '{script}'"))


@pytest.fixture(scope="module")
def composed(docker: Engine) -> Iterator[Composed]:
    """compose.yaml as it is, but for the port, the upstream and what a machine without Grafana leaves out."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    make_valkey(docker, services["valkey"]["image"])
    make_nginx(docker, services["nginx"]["image"])
    port = free_port()
    settings = docker.folder / "relay.yaml"
    upstreams = [{"name": "scripted", "base_url": "http://upstream:8000"}]
    settings.write_text(yaml.safe_dump({"upstreams": upstreams, "log": {"level": "info"}}))
    settings.chmod(0o644)
    override = docker.folder / "override.yaml"
    override.write_text(
        f"""
services:
  relay:
    volumes: ["{settings}:/etc/relay/relay.yaml:ro"]
  nginx:
    ports: !override ["127.0.0.1:{port}:8080"]
  upstream:
    image: relay
    init: true
    entrypoint: [python, /upstream.py]
    volumes: ["{ROOT}/tests/image/upstream.py:/upstream.py:ro"]
"""
    )
    docker.folder.chmod(0o755)
    found = Composed(docker, f"http://127.0.0.1:{port}", f"-f deploy/compose.yaml -f {override}")
    begun = time.monotonic()
    found.compose("up --detach --no-build --pull never --wait valkey upstream relay nginx")
    say(f"docker compose up until healthy: {time.monotonic() - begun:.0f} s")
    wait_until(lambda: lives(found.url, "/readyz?store=required"), 30, "the relays")
    yield found
    begun = time.monotonic()
    found.compose("down --volumes --timeout 20", timeout=120)
    say(f"docker compose down: {time.monotonic() - begun:.0f} s")
    assert docker.docker("ps", "--quiet", "--filter", "label=com.docker.compose.project=relay") == ""


@dataclass
class Client:
    """Asks for a stream and comes back by Last-Event-ID until it has all of it."""

    url: str
    events: int
    millis: int
    seen: list[RawEvent] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    resumes: int = 0
    end: str | None = None

    def run(self) -> None:
        body = {"model": f"count-{self.events}-{self.millis}", "stream": True, "messages": []}
        deadline = time.monotonic() + 120
        while self.end is None and time.monotonic() < deadline:
            last = next((event.id for event in reversed(self.seen) if event.id), None)
            headers = {**AUTH, **({"last-event-id": last} if last else {})}
            asked = "resume" if last else "new"
            try:
                with open_stream(self.url + PATH, headers=headers, body=body, timeout=30) as answer:
                    if answer.status == 200:
                        asked = ""  # what comes now is a cut, or a silence, and no refusal
                        self.resumes += last is not None
                        for event in answer:
                            if not event.is_heartbeat:
                                self.seen.append(event)
                        self.end = check(self.seen)[1]
                    else:
                        self.refused.append(f"{asked} {answer.status}")
                        time.sleep(0.5)
            except (ConnectionEnded, OSError) as error:
                if asked:
                    self.refused.append(f"{asked} {error!r}")
                time.sleep(0.5)


class Load:
    """Clients that come one after the other, each with a stream of some seconds."""

    def __init__(self, url: str, at_once: int, events: int = 40, millis: int = 100) -> None:
        self.clients: list[Client] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._loop, args=(url, events, millis)) for _ in range(at_once)]

    def _loop(self, url: str, events: int, millis: int) -> None:
        while not self._stop.is_set():
            client = Client(url, events, millis)
            self.clients.append(client)
            client.run()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
            time.sleep(0.05)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(150)

    @property
    def refused(self) -> list[str]:
        return [reason for client in self.clients for reason in client.refused]

    def told(self) -> str:
        resumes = sum(client.resumes for client in self.clients)
        return f"{len(self.clients)} streams, {resumes} resumes, {len(self.refused)} refusals {self.refused[:3]}"


def test_streams_are_resumed_when_a_relay_is_killed(composed: Composed) -> None:
    """Its own streams end with `producer_lost`, those of the other one go on, and each client has a right prefix."""
    before = composed.calls()
    clients = [Client(composed.url, 80, 100) for _ in range(20)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(len(client.seen) > 10 for client in clients), 30, "the streams")
    composed.docker.docker("kill", "--signal", "KILL", composed.relays()[0])
    for thread in threads:
        thread.join(150)
    ends = {end: sum(client.end == end for client in clients) for end in ("done", "producer_lost")}
    say(f"a relay killed under 20 streams: {ends['done']} whole, {ends['producer_lost']} told producer_lost")
    assert sum(ends.values()) == 20
    assert min(ends.values()) > 0
    assert composed.calls() - before == 20
    assert {reason.split()[0] for client in clients for reason in client.refused} <= {"resume"}
    composed.compose("up --detach --no-build --no-recreate --wait relay")


def test_an_upgrade_as_the_guide_has_it_loses_and_refuses_nothing(composed: Composed) -> None:
    (steps,) = re.findall(r"<!-- upgrade -->\n```sh\n(.*?)```", GUIDE, re.DOTALL)
    assert "$compose build relay" in steps
    # The new version: another image under the name.
    made = "FROM relay\\nENV RELAY_TEST_VERSION=2\\n"
    steps = steps.replace("$compose build relay", f"printf '{made}' | docker build --tag relay-relay -")
    steps = steps.replace("-f deploy/compose.yaml", composed.files)
    wait_until(lambda: len(composed.relays()) == 2, 30, "two relays")
    old, before = composed.relays(), composed.calls()
    with Load(composed.url, 20) as load:
        wait_until(lambda: len(load.clients) > 30, 60, "the load")
        begun = time.monotonic()
        composed.docker.run("bash", "-euc", steps, timeout=300)
        took = time.monotonic() - begun
    say(f"compose upgraded under load in {took:.0f} s: {load.told()}")
    new = composed.relays()
    assert len(new) == 2
    assert not set(new) & set(old)
    for relay in new:
        assert "RELAY_TEST_VERSION=2" in composed.docker.docker("inspect", "--format", "{{json .Config.Env}}", relay)
    assert {client.end for client in load.clients} == {"done"}
    assert load.refused == []
    assert sum(client.resumes for client in load.clients) == 0, "a stream was cut"
    assert composed.calls() - before == len(load.clients)


def test_a_relay_that_is_gone_without_a_word_costs_nobody_a_stream(composed: Composed) -> None:
    """Cut off from the network: it neither answers nor refuses. Its producer is lost to the store, too."""
    victim = composed.relays()[0]
    details = json.loads(composed.docker.docker("inspect", victim))[0]
    networks = list(details["NetworkSettings"]["Networks"])
    before = composed.calls()
    with Load(composed.url, 10) as load:
        wait_until(lambda: len(load.clients) > 15, 60, "the load")
        for network in networks:
            composed.docker.docker("network", "disconnect", "--force", network, victim)
        wanted = len(load.clients) + 80
        wait_until(lambda: len(load.clients) > wanted, 150, "streams after that")
    say(f"a relay cut off without a word: {load.told()}")
    assert {client.end for client in load.clients} <= {"done", "producer_lost"}
    # A POST that went into a connection that was kept open may have arrived, for all that nginx knows, and is not sent
    # again: it fails when the kernel gives up. It is for the client to say that it may be.
    failed = [reason for reason in load.refused if reason.startswith("new ")]
    assert len(failed) <= 20
    assert [client.refused for client in load.clients[-30:]] == [[]] * 30
    assert composed.calls() - before <= len(load.clients) + len(failed)
    composed.docker.docker("rm", "--force", victim)
    composed.compose("up --detach --no-build --no-recreate --wait relay")


def test_nothing_was_said_as_an_error(composed: Composed) -> None:
    log = composed.compose("logs --no-color --no-log-prefix relay")
    lines = [line for line in log.splitlines() if '"level":"ERROR"' in line.replace(" ", "")]
    assert lines == []


# -- an edge box -------------------------------------------------------------------------------------------------


@dataclass
class EdgeBox:
    docker: Engine
    url: str

    def sh(self, script: str, timeout: float = 300) -> str:
        return self.docker.docker("exec", "-w", "/root/relay", "edge", "bash", "-euc", script, timeout=timeout)

    def walk(self, step: str) -> str:
        """A block of the guide, word by word."""
        (block,) = re.findall(rf"<!-- edge: {step} -->\n```sh\n(.*?)```", GUIDE, re.DOTALL)
        return self.sh(block)

    def ready(self) -> None:
        wait_until(lambda: lives(self.url, "/readyz?store=required"), 60, "the relay")

    def stream(self, resume: str | None = None) -> tuple[str, list[bytes], bool]:
        headers = {**AUTH, **({"last-event-id": f"{resume}.0"} if resume else {})}
        body = {"model": "count-20-1", "stream": True, "messages": []}
        with open_stream(self.url + PATH, headers=headers, body=body, timeout=30) as answer:
            assert answer.status == 200, answer.read()
            events = answer.events()
            assert check(events) == (20, "done")
            logged = answer.headers["relay-resumable"] == "true"
            return answer.headers["relay-stream-id"], [event.raw for event in events], logged


@pytest.fixture(scope="module")
def edge(docker: Engine) -> Iterator[EdgeBox]:
    """A bare Debian under systemd, with a small disk for the store."""
    make_bare(docker, "edge")
    port = free_port()
    # For the unit's own namespaces, those of users among them.
    allowed = ["--cap-add=SYS_ADMIN", "--cap-add=SYS_PTRACE"]
    allowed += ["--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"]
    places = [
        f"--tmpfs={place}" for place in ("/run", "/run/lock", "/sys/fs/cgroup", "/var/lib/private/relay:size=32m")
    ]
    docker.docker(
        *("run", "--detach", "--name", "edge", *allowed, *places, "--env", "container=docker"),
        *("--volume", f"{ROOT}:/src:ro", "--publish", f"127.0.0.1:{port}:8080", "edge"),
    )

    def state() -> str:
        return docker.docker("exec", "edge", "systemctl", "is-system-running", check=False)

    try:
        wait_until(lambda: state() in ("running", "degraded"), 30, "systemd")
    except TimeoutError:
        say(f"systemd does not run in a container here ({state()}): the guide of an edge box is not walked")
        pytest.skip("systemd does not run in a container here")
    box = EdgeBox(docker, f"http://127.0.0.1:{port}")
    docker.docker("exec", "edge", "mkdir", "/root/relay")
    box.sh("tar --create --directory /src --exclude .git --exclude .venv --exclude .sdk . | tar --extract")
    docker.docker("exec", "--detach", "edge", "python3", "/src/tests/image/upstream.py")
    yield box
    docker.docker("rm", "--force", "edge")


def test_the_guide_of_an_edge_box_step_by_step(edge: EdgeBox) -> None:
    begun = time.monotonic()
    edge.walk("install")
    asked = 'import urllib.request as r; r.urlopen("http://127.0.0.1:8080/readyz?store=required")'
    wait_until(lambda: not edge.docker.docker("exec", "edge", "python3", "-c", asked, check=False), 60, "the relay")
    settings = {"bind": "0.0.0.0:8080", "upstreams": [{"name": "up", "base_url": "http://127.0.0.1:8000"}]}
    edge.sh(f"cat > /etc/relay/relay.yaml <<'END'\n{yaml.safe_dump(settings)}END\nsystemctl restart relay")
    edge.ready()
    first, events, logged = edge.stream()
    assert logged
    for step, version in (("upgrade", "relay-2"), ("back", "relay-1")):
        edge.walk(step)
        edge.ready()
        assert version in edge.sh(
            "readlink /proc/$(systemctl show --property MainPID --value relay)/exe; ls -l /opt/relay"
        )
        assert edge.stream(first)[1] == events, step
    edge.walk("backup")
    edge.ready()
    second = edge.stream()[0]
    edge.walk("restore")
    edge.ready()
    assert edge.stream(first)[1] == events
    with open_stream(f"{edge.url}/streams/{second}", "GET", AUTH) as answer:
        assert answer.status == 404, "it is younger than the backup"
    assert edge.stream()[2]
    # A disk that is full.
    edge.sh("dd if=/dev/zero of=/var/lib/private/relay/filler bs=64k 2>/dev/null || true")
    wait_until(lambda: not edge.stream()[2], 60, "a store without room")
    wait_until(lambda: "MISCONF" in edge.walk("disk"), 60, "the reason in the journal")
    edge.sh("rm /var/lib/private/relay/filler")
    wait_until(lambda: edge.stream()[2], 60, "a store with room")
    edge.ready()
    assert edge.stream(first)[1] == events
    say(
        f"an edge box under systemd: installed, upgraded, back, saved, restored, full: {time.monotonic() - begun:.0f} s"
    )


def test_make_image_test_is_what_runs_this() -> None:
    assert "tests/image/checks.py" in (ROOT / "Makefile").read_text()
    assert "make image-test" in Path(ROOT / ".ci" / "run").read_text()
