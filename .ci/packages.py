"""Every package that a release publishes, in `dist/`: `make packages`.

    dist/python    relay-streams and relay-streams-client, each as source distribution and wheel
    dist/npm       relay-streams for JavaScript
    dist/chart     the Helm chart, where Helm is installed (`--chart` insists)

REPOSITORY_URL=https://github.com/OWNER/NAME makes the links of their pages lead there, and lets npm say where its
package was built. Without it no address is named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PYTHON = (ROOT, ROOT / "deploy/client")
NPM = Path("relay/client/js")
CHART = ROOT / "helm/relay"
PLACEHOLDER = "ghcr.io/example/relay"


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the packages of a release.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--chart", action="store_true", help="fail where Helm is not installed")
    asked = parser.parse_args()
    out = asked.out.resolve()
    for kind in ("python", "npm", "chart"):
        shutil.rmtree(out / kind, ignore_errors=True)
        (out / kind).mkdir(parents=True)
    for project in PYTHON:
        run([sys.executable, "-m", "hatchling", "build", "-d", str(out / "python")], project)
    npm(out / "npm")
    if helm := shutil.which("helm"):
        chart(helm, out / "chart")
    elif asked.chart:
        raise SystemExit("packages: the chart needs Helm 3 or 4 on the PATH; install it and run this again")
    for path in sorted(out.glob("*/*")):
        print(f"{path.relative_to(out)}  {path.stat().st_size // 1024} KiB")
    return 0


def chart(helm: str, out: Path) -> None:
    """Its image is the one that the release workflow pushes beside it, where the repository is on GitHub."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder) / CHART.name
        shutil.copytree(CHART, stage)
        host, _, name = page_of().repository_url().removeprefix("https://").partition("/")
        if host == "github.com":
            values = stage / "values.yaml"
            text = values.read_text(encoding="utf-8")
            values.write_text(
                text.replace(f"repository: {PLACEHOLDER}", f"repository: ghcr.io/{name.lower()}"), "utf-8"
            )
        run([helm, "package", str(stage), "--destination", str(out)], ROOT)


def npm(out: Path) -> None:
    command = shutil.which("npm")
    if command is None:
        raise SystemExit("packages: npm is not on the PATH; install Node.js and run this again")
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder) / "package"
        shutil.copytree(ROOT / NPM, stage)
        page = page_of()
        if repository := page.repository_url():
            readme = stage / "README.md"
            readme.write_text(page.absolute(readme.read_text(encoding="utf-8"), repository, NPM.as_posix()), "utf-8")
            about = json.loads((stage / "package.json").read_text(encoding="utf-8"))
            about["homepage"] = f"{repository}/blob/HEAD/{NPM}/README.md"
            about["bugs"] = f"{repository}/issues"
            about["repository"] = {"type": "git", "url": f"git+{repository}.git", "directory": NPM.as_posix()}
            (stage / "package.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        run([command, "pack", "--silent", "--ignore-scripts", "--pack-destination", str(out)], stage)


def page_of() -> ModuleType:
    spec = importlib.util.spec_from_file_location("package_page", ROOT / "deploy/package_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"packages: {' '.join(command)} in {folder} ended with {done.returncode}:\n{done.stdout}")


if __name__ == "__main__":
    sys.exit(main())
