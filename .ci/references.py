"""Writes the tables of settings, metrics and ends into their documents, from the code's own descriptions.

    python .ci/references.py [--check]

`--check` writes nothing and fails where a table is not what would be written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from relay import metrics
from relay.config.reference import reference
from relay.protocol import ends

ROOT = Path(__file__).resolve().parents[1]


def documents() -> dict[Path, str]:
    """Each document as it should be."""
    wanted = {}
    for name, mark, table in (
        ("deploy/SETTINGS.md", "settings", reference()),
        ("grafana/METRICS.md", "metrics", metrics.reference()),
        ("relay/protocol/README.md", "ends", ends.reference()),
    ):
        begin, end = f"<!-- {mark} -->\n", f"\n<!-- /{mark} -->"
        before, _, rest = (ROOT / name).read_text(encoding="utf-8").partition(begin)
        wanted[ROOT / name] = before + begin + table + end + rest.partition(end)[2]
    return wanted


def main(arguments: list[str]) -> int:
    differing = {path: text for path, text in documents().items() if path.read_text(encoding="utf-8") != text}
    for path, text in differing.items():
        if "--check" in arguments:
            print(f"{path.relative_to(ROOT)} is not what the code says; run: make generate")
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if differing and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
