"""The version, which stands in four files: checked, or written into all of them, and a release's place in CHANGELOG.md.

    python .ci/version.py                     do they agree?
    python .ci/version.py 0.2.0               write it; what is Unreleased in CHANGELOG.md becomes its section, dated
    python .ci/version.py --tag v0.2.0        is this what the tag names, and does CHANGELOG.md have it with a date?
    python .ci/version.py --notes             that part of CHANGELOG.md, for the page of the release

Nothing is committed or tagged.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORM = r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?"
# File to the places in it; each has the version in its one group.
PLACES = {
    "relay/__init__.py": [r'^__version__ = "(.+)"$'],
    "pyproject.toml": [r'"relay-streams-client==([^"]+)"'],
    "relay/client/js/package.json": [r'^  "version": "(.+)",$'],
    "helm/relay/Chart.yaml": [r"^version: (.+)$", r'^appVersion: "(.+)"$'],
}
UNRELEASED = "## Unreleased\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Check or write the version.")
    parser.add_argument("version", nargs="?", help="write this one")
    parser.add_argument("--tag", help="the tag that is to be released")
    parser.add_argument("--notes", action="store_true", help="print what the version changed")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.version:
        if not re.fullmatch(FORM, asked.version):
            return _wrong([f"{asked.version} is not a version such as 0.2.0 or 0.2.0rc1"])
        write(asked.root, asked.version)
    found = versions(asked.root)
    if len(set(found.values())) != 1:
        lines = [f"{place}: {version}" for place, version in found.items()]
        return _wrong([*lines, "the version differs; write it with: python .ci/version.py VERSION"])
    (version,) = set(found.values())
    if asked.notes:
        print(notes(asked.root, version) or "")
        return 0
    if asked.tag and asked.tag != f"v{version}":
        advice = f"run python .ci/version.py {asked.tag.removeprefix('v')}, commit, and tag that"
        return _wrong([f"the tag {asked.tag} is not v{version}; {advice}"])
    if asked.tag and notes(asked.root, version) is None:
        return _wrong([f"CHANGELOG.md has no dated section of {version}; run python .ci/version.py {version}"])
    print(version)
    return 0


def versions(root: Path) -> dict[str, str]:
    """Every place to what stands there; "none" where it is not found."""
    found = {}
    for name, patterns in PLACES.items():
        text = (root / name).read_text(encoding="utf-8")
        for number, pattern in enumerate(patterns, 1):
            match = re.search(pattern, text, re.MULTILINE)
            found[f"{name} ({number})"] = match[1] if match else "none"
    return found


def write(root: Path, version: str) -> None:
    for name, patterns in PLACES.items():
        text = (root / name).read_text(encoding="utf-8")
        for pattern in patterns:
            text = re.sub(pattern, lambda match: match[0].replace(match[1], version), text, flags=re.MULTILINE)
        (root / name).write_text(text, encoding="utf-8")
    changes = root / "CHANGELOG.md"
    text = changes.read_text(encoding="utf-8")
    if notes(root, version) is None:
        dated = f"## {version} - {datetime.date.today().isoformat()}\n"
        changes.write_text(text.replace(UNRELEASED, f"{UNRELEASED}\n{dated}", 1), encoding="utf-8")


def notes(root: Path, version: str) -> str | None:
    """What CHANGELOG.md says of a version; None where it has no section with a date."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    head = rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d\n"
    match = re.search(rf"{head}(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return match and match[1].strip() + "\n"


def _wrong(lines: list[str]) -> int:
    print("\n".join(f"version: {line}" for line in lines), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
