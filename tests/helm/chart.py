"""The chart as tests see it: rendered by a real Helm, its objects as dicts, and values to render it with.

Needs what `python tests/helm/install.py` installs.
"""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.helm.install import HELMS, helm
from tests.support.processes import needs

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "relay"
CASES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
VERSIONS = tuple(item.name for item in HELMS)
# The oldest that the chart takes, one between, and the newest; the first has no `sleep` for preStop.
KUBERNETES = ("1.28", "1.33", "1.37")
RELEASE = "try"

Object = dict[str, Any]
Values = dict[str, Any]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def run(version: str, *arguments: str, values: str = "{}") -> subprocess.CompletedProcess[str]:
    """Helm with these arguments; `values` goes to its standard input, for `--values -`."""
    binary = helm(version)
    needs(binary.is_file(), f"{version} is not installed: run python tests/helm/install.py")
    command = [str(binary), *arguments]
    return subprocess.run(command, cwd=ROOT, input=values, capture_output=True, text=True, timeout=60, check=False)


def template(
    version: str, *arguments: str, kubernetes: str = "1.37", release: str = RELEASE, values: str = "{}"
) -> str:
    """What `helm template` prints; an AssertionError with its message where it refuses."""
    command = ("template", release, str(CHART), "--kube-version", kubernetes, *arguments, "--values", "-")
    shown = run(version, *command, values=values)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def objects(text: str) -> list[Object]:
    return [document for document in yaml.load_all(text, Loader=_LOADER) if document]


@functools.cache
def _case(name: str, version: str, kubernetes: str, overrides: str) -> str:
    return template(version, "--values", str(CASES[name]), kubernetes=kubernetes, values=overrides)


def case(name: str, version: str = "helm4", kubernetes: str = "1.37", **overrides: Any) -> list[Object]:
    """The objects of one of the chart's own values files, with further values on top."""
    return objects(_case(name, version, kubernetes, json.dumps(overrides)))


def of(found: list[Object], kind: str, suffix: str = "") -> Object:
    """The one object of a kind whose name ends so; by default the relay's own."""
    matching = [
        item
        for item in found
        if item["kind"] == kind and item["metadata"]["name"] in (f"{RELEASE}-relay{suffix}", f"llm-relay{suffix}")
    ]
    assert len(matching) == 1, f"{len(matching)} objects {kind} …{suffix}"
    return matching[0]


def kinds(found: list[Object], kind: str) -> list[Object]:
    return [item for item in found if item["kind"] == kind]


def pod(found: list[Object]) -> Object:
    """The relay's pod template."""
    template: Object = of(found, "Deployment")["spec"]["template"]
    return template


def container(found: list[Object]) -> Object:
    (only,) = pod(found)["spec"]["containers"]
    return dict(only)


def settings(found: list[Object]) -> Values:
    """The relay's settings file as the ConfigMap holds it."""
    loaded: Values = yaml.safe_load(of(found, "ConfigMap")["data"]["relay.yaml"])
    return loaded
