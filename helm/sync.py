"""Copies the dashboards, alert rules and store's users into the chart, which can only carry files of its own folder.

python helm/sync.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "helm" / "relay" / "files"
SOURCES = {
    FILES / "dashboards": (ROOT / "grafana", "*.json"),
    FILES / "redis": (ROOT / "deploy" / "redis", "*.acl"),
    FILES / "rules": (ROOT / "deploy" / "prometheus", "*.rules.yaml"),
}


def differences() -> list[str]:
    """A line for each copy that is missing, old, or of a file that is gone."""
    found = []
    for folder, (source, pattern) in SOURCES.items():
        copies = {path.name: path.read_bytes() for path in folder.glob("*")}
        originals = {path.name: path.read_bytes() for path in source.glob(pattern)}
        if not originals:
            found.append(f"{source.relative_to(ROOT)} has no {pattern}")
        found += [
            f"{(folder / name).relative_to(ROOT)} is not {(source / name).relative_to(ROOT)}"
            for name in sorted(copies.keys() | originals.keys())
            if copies.get(name) != originals.get(name)
        ]
    return found


def copy() -> None:
    for folder, (source, pattern) in SOURCES.items():
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*"):
            path.unlink()
        for path in source.glob(pattern):
            (folder / path.name).write_bytes(path.read_bytes())


def main() -> int:
    if "--check" not in sys.argv[1:]:
        copy()
    found = differences()
    for line in found:
        print(f"{line}; run: python helm/sync.py")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
