"""Kubernetes and what it needs, built from published Go modules into a folder that is kept: minutes once, then nothing.

    python -m tests.cluster.build FOLDER [NAME …]

Each program is built in an empty module that requires its module at one exact version, so that Go's checksum database
vouches for all of it. A program whose stamp names the same build is not built again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

KUBERNETES = "v1.34.4"
ETCD = "v3.6.5"
COREDNS = "v1.13.1"
ADAPTER = "v0.12.0"
ROUTER = "v2.1.0"
PROMETHEUS = "v0.305.0"  # of the module: 3.5.0. Debian's is built without Kubernetes

# Kubernetes' module names its own parts by folders beside it; they are published as v0.<minor>.<patch>.
_STAGING = "./staging/"

# The container that holds a pod's namespaces.
_PAUSE = """package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
}
"""


class Missing(Exception):
    """What this machine lacks, as a sentence that says what to do."""


@dataclass(frozen=True)
class Program:
    name: str
    module: str
    version: str
    package: str  # below the module
    variables: Mapping[str, str] = field(default_factory=dict)  # set by the linker
    needed: bool = True  # without it there is no cluster

    @property
    def path(self) -> str:
        return f"{self.module}/{self.package}" if self.package else self.module

    @property
    def stamp(self) -> str:
        return f"{self.path}@{self.version} {dict(self.variables)}\n"


def _kubernetes(name: str) -> Program:
    version = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES[1:].split(".")
    variables = {
        f"{version}.gitVersion": KUBERNETES,
        f"{version}.gitMajor": major,
        f"{version}.gitMinor": minor,
        f"{version}.gitTreeState": "clean",
    }
    return Program(name, "k8s.io/kubernetes", KUBERNETES, f"cmd/{name}", variables)


PROGRAMS = (
    Program("etcd", "go.etcd.io/etcd/server/v3", ETCD, ""),
    _kubernetes("kube-apiserver"),
    _kubernetes("kubelet"),
    _kubernetes("kube-controller-manager"),
    _kubernetes("kube-scheduler"),
    _kubernetes("kube-proxy"),
    _kubernetes("kubectl"),
    Program("coredns", "github.com/coredns/coredns", COREDNS, ""),
    Program("kube-router", "github.com/cloudnativelabs/kube-router/v2", ROUTER, "cmd/kube-router", needed=False),
    Program("prometheus", "github.com/prometheus/prometheus", PROMETHEUS, "cmd/prometheus", needed=False),
    Program("adapter", "sigs.k8s.io/prometheus-adapter", ADAPTER, "cmd/adapter", needed=False),
)


def build(folder: Path, names: list[str] | None = None, at_once: int = 2) -> dict[str, str]:
    """What cannot be built and is not needed, with the reason. Raises Missing for what is needed."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = {}
    for program in PROGRAMS:
        if names and program.name not in names:
            continue
        stamp = folder / f"{program.name}.built"
        if (folder / program.name).is_file() and stamp.is_file() and stamp.read_text() == program.stamp:
            continue
        begun = time.monotonic()
        try:
            _build(program, folder / program.name, at_once)
        except subprocess.CalledProcessError as error:
            said = _reason(error)
            if program.needed:
                raise Missing(f"{program.name} {program.version} cannot be built:\n{said}") from None
            failed[program.name] = said.splitlines()[-1]
            continue
        stamp.write_text(program.stamp)
        print(f"  built {program.name} {program.version} in {time.monotonic() - begun:.0f} s", flush=True)
    _build_pause(folder)
    return failed


def _reason(error: subprocess.CalledProcessError) -> str:
    """What go has said: with `-json` it is a member of its answer."""
    if error.stdout.startswith("{"):
        return str(json.loads(error.stdout).get("Error", ""))
    return str(error.stderr).strip()[-1500:] or f"go exited with {error.returncode}"


def _build(program: Program, target: Path, at_once: int) -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        (Path(elsewhere) / "go.mod").write_text(
            f"module relay.test/cluster\n\ngo 1.24.0\n\nrequire {program.module} {program.version}\n"
            + _replaced(program, elsewhere)
        )
        linked = [f"-X {name}={value}" for name, value in program.variables.items()]
        _go(
            elsewhere,
            *("build", "-p", str(at_once), "-trimpath", "-ldflags", " ".join(["-s", "-w", *linked])),
            *("-o", str(target), program.path),
        )


def _replaced(program: Program, elsewhere: str) -> str:
    """A module's own replacements do not count in one that requires it: they are said again."""
    answer = json.loads(_go(elsewhere, "mod", "download", "-json", f"{program.module}@{program.version}"))
    edited = json.loads(_go(elsewhere, "mod", "edit", "-json", answer["GoMod"]))
    lines = []
    for item in edited.get("Replace") or []:
        old, new = item["Old"], item["New"]
        if new["Path"].startswith(_STAGING):
            new = {"Path": old["Path"], "Version": f"v0.{program.version.split('.', 1)[1]}"}
        elif new["Path"].startswith("."):
            continue  # the published version of a module beside it is what it requires
        left = " ".join(part for part in (old["Path"], old.get("Version")) if part)
        lines.append(f"replace {left} => {new['Path']} {new['Version']}\n")
    return "".join(lines)


def _build_pause(folder: Path) -> None:
    if (folder / "pause").is_file():
        return
    with tempfile.TemporaryDirectory() as elsewhere:
        (Path(elsewhere) / "go.mod").write_text("module relay.test/pause\n\ngo 1.24.0\n")
        (Path(elsewhere) / "main.go").write_text(_PAUSE)
        _go(elsewhere, "build", "-ldflags", "-s -w", "-o", str(folder / "pause"), ".")


def _go(folder: str, *arguments: str) -> str:
    if shutil.which("go") is None:
        raise Missing("there is no go: install Go 1.24 or newer (https://go.dev/dl)")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-mod=mod"}
    done = subprocess.run(["go", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    for name, reason in build(Path(sys.argv[1]), sys.argv[2:], int(os.environ.get("GO_AT_ONCE", "2"))).items():
        print(f"  {name}: {reason}")
