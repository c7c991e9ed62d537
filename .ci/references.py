"""Writes the tables of settings, metrics, causes and ends into their documents, from the code's own descriptions.

    python .ci/references.py [--check]

`--check` writes nothing and fails where a table is not what would be written.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from relay import metrics
from relay.config.reference import reference
from relay.protocol import ends, outcomes

ROOT = Path(__file__).resolve().parents[1]


def between_marks(text: str, mark: str, table: str) -> str:
    begin, end = f"<!-- {mark} -->\n", f"\n<!-- /{mark} -->"
    before, _, rest = text.partition(begin)
    return before + begin + table + end + rest.partition(end)[2]


def after_heading(text: str, heading: str, table: str) -> str:
    """The first table after the heading is replaced."""
    pattern = re.compile(rf"(^#+ {re.escape(heading)}\n(?:(?!\|).*\n)*)(?:\|.*\n)+", re.MULTILINE)
    return pattern.sub(lambda found: f"{found[1]}{table}\n", text, count=1)


def documents() -> dict[Path, str]:
    """Each document as it should be."""
    wanted: dict[Path, str] = {}
    for name, write, place, table in (
        ("deploy/SETTINGS.md", between_marks, "settings", reference()),
        ("grafana/METRICS.md", between_marks, "metrics", metrics.reference()),
        ("relay/protocol/README.md", after_heading, "How a stream ends", outcomes.reference()),
        ("relay/protocol/README.md", between_marks, "ends", ends.reference()),
        ("deploy/prometheus/RUNBOOK.md", after_heading, "RelayMidStreamFailures", outcomes.runbook()),
    ):
        path = ROOT / name
        wanted[path] = write(wanted.get(path) or path.read_text(encoding="utf-8"), place, table)
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
