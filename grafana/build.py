"""Write the dashboards' JSON from their code, or with `--check` say whether it is up to date.

    python grafana/build.py [--check]

Needs grafana-foundation-sdk. The JSON is committed, because Grafana and the Helm chart take it as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana import on_call, single_stream

HERE = Path(__file__).resolve().parent
BOARDS = {"relay.json": on_call.dashboard, "streams.json": single_stream.dashboard}


def render() -> dict[str, str]:
    """What each file must hold."""
    return {
        name: JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(made()) + "\n"
        for name, made in BOARDS.items()
    }


def differing() -> list[str]:
    """The files that do not hold what the code says."""
    return [
        name
        for name, content in render().items()
        if not (HERE / name).exists() or (HERE / name).read_text(encoding="utf-8") != content
    ]


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: python grafana/build.py [--check]", file=sys.stderr)
        return 2
    stale = differing()
    if arguments:
        for name in stale:
            print(f"grafana/{name} differs from its code; run python grafana/build.py and commit it", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (HERE / name).write_text(render()[name], encoding="utf-8")
        print(f"grafana/{name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
