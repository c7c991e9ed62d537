"""The command as a process of its own, `relay` or `python -m relay`. Signals first: the imports take half a second."""

import sys

from relay import signals


def main() -> int:
    if sys.argv[1:2] in (["serve"], ["connect"]):
        signals.hold()
    try:
        from relay.cli import main as command
    except ImportError as error:
        if not (error.name or "").startswith("relay"):
            raise
        advice = "python -m pip install --force-reinstall --no-deps relay-streams-client"
        print(f"relay: a part of it is missing, the package relay-streams-client; run: {advice}", file=sys.stderr)
        return 1
    return command()


if __name__ == "__main__":
    raise SystemExit(main())
