"""`make cluster`: a whole Kubernetes on this machine, the chart in it, and what operators do to it, under load.

    python -m tests.cluster [--cache FOLDER] [--only NAME …]

Programs and images are made first, with the machine's network, into a folder that is kept. Everything else happens in
namespaces of its own (tests/cluster/space.py), which leave nothing behind. A whole run writes its table into
deploy/CLUSTER.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.cluster import admission, build, images, space
from tests.image.engine import ROOT
from tests.image.engine import Missing as NoEngine


def main() -> int:
    parser = argparse.ArgumentParser(prog="make cluster", description=__doc__.partition("\n")[0])
    parser.add_argument("--cache", type=Path, default=ROOT / ".cluster", help="what is built is kept here")
    parser.add_argument("--only", nargs="*", default=[], help="exercises to do, after the installation")
    given = parser.parse_args()
    cache = given.cache.resolve()
    try:
        space.refuse_unless_possible()
        without = build.build(cache)
        admission.fetch(cache / "crds")
        archives = images.make_images(cache)
    except (build.Missing, NoEngine) as reason:
        print(f"make cluster cannot be run here: {reason}", file=sys.stderr)
        return 2
    for program, why in without.items():
        print(f"  {program} cannot be built, and what needs it is left out: {why}", file=sys.stderr)
    name = f"relay-cluster-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="relay-cluster-") as folder, space.space(name):
        more = ["--only", *given.only] if given.only else []
        return space.enter("tests.cluster.inside", name, folder, str(cache), *map(str, archives), *more)


if __name__ == "__main__":
    sys.exit(main())
