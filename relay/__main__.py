"""The command as a process of its own, `relay` or `python -m relay`. Signals first: the imports take half a second."""

import sys

from relay import signals


def main() -> int:
    if sys.argv[1:2] in (["serve"], ["connect"]):
        signals.hold()
    from relay.cli import main as command

    return command()


if __name__ == "__main__":
    raise SystemExit(main())
