"""`python -m relay.bench`: the same as `relay bench`."""

from __future__ import annotations

import argparse
import sys

from relay.bench import add_arguments, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="relay bench", description="Measure gateways for streamed answers.")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
