"""Does the API server take what the chart makes? Every values file of the chart's, dry-run by the server itself.

With the real definitions of the custom resources, no unknown field passed, and `restricted` pods: a warning is a fault.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from tests.cluster.build import Missing
from tests.cluster.objects import ADMISSION
from tests.cluster.world import World, name_of
from tests.helm.chart import CASES, CHART
from tests.helm.install import DEFINITIONS, helm

VERSIONS = ("helm3", "helm4")


def fetch(folder: Path) -> None:
    """The definitions, out of their Go modules. Raises Missing."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {Path(file).name: (module, file) for module, files in DEFINITIONS.items() for file in files}
    if all((folder / name).is_file() for name in wanted):
        return
    with tempfile.TemporaryDirectory() as elsewhere:
        for name, (module, file) in wanted.items():
            command = ["go", "mod", "download", "-json", module]
            done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
            if done.returncode:
                raise Missing(f"{module} cannot be fetched: {(done.stderr or done.stdout).strip()[-500:]}")
            shutil.copy(Path(json.loads(done.stdout)["Dir"]) / file, folder / name)


def admit(world: World, definitions: Path) -> None:
    cluster = world.cluster
    files = sorted(definitions.glob("*.yaml"))
    assert files, f"no definitions in {definitions}"
    for file in files:
        cluster.kubectl("create", "--filename", file)
    cluster.wait("--for=condition=Established", "crds", "--all")
    count = 0
    faults = []
    for version in VERSIONS:
        for name, values in CASES.items():
            command = [str(helm(version)), "template", "try", str(CHART), "--namespace", ADMISSION]
            shown = cluster.run(*command, "--values", str(values), "--kube-version", "1.34")
            assert shown.returncode == 0, shown.stderr
            items = [item for item in yaml.safe_load_all(shown.stdout) if item]
            count += len(items)
            _add_accounts(world, {item["spec"]["serviceAccountName"] for item in items if item["kind"] == "Pod"})
            apply = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--namespace", ADMISSION)
            done = cluster.try_kubectl(*apply, "--filename", "-", given=shown.stdout)
            if done.returncode or done.stderr.strip():
                faults.append(f"{version}, {name}: {done.stderr.strip()}")
    for fault in faults:
        world.say(f"    {fault}")
    text = f"{count} objects of {len(CASES)} values files by {len(VERSIONS)} Helms, {len(faults)} faults"
    world.note("admission, by strict server-side dry run with the real CRDs", text, not faults)


def _add_accounts(world: World, names: set[str]) -> None:
    """A pod is taken only where its account is, which a dry run does not leave there."""
    there = {name_of(item) for item in world.cluster.get("serviceaccounts", "--namespace", ADMISSION)}
    for name in sorted(names - there):
        world.cluster.kubectl("create", "serviceaccount", name, "--namespace", ADMISSION)
