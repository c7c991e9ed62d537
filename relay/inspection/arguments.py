"""The flags of `relay streams`."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable

from relay.protocol.outcomes import Cause, Ending

STATES = ("all", "live", "lost", "ended", "failed", *(end.value for end in Ending), *(cause.value for cause in Cause))


def _state(given: str) -> str:
    if given in STATES:
        return given
    close = difflib.get_close_matches(given, STATES, 1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise argparse.ArgumentTypeError(
        f"there is no state {given!r}. {meant.capitalize()}The states: {', '.join(STATES)}"
    )


def _number(given: str) -> int:
    if not (given.isascii() and given.isdigit() and int(given[:9]) > 0):
        raise argparse.ArgumentTypeError(f"{given!r} is no whole number above 0")
    return int(given[:9])


def add_arguments(parser: argparse.ArgumentParser, settings_flags: Callable[[argparse.ArgumentParser], None]) -> None:
    """The five commands and their flags; `settings_flags` adds those that say which store it is."""
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    for name, help_text in (
        ("ls", "list streams that run, and those that have ended lately"),
        ("top", "the busiest streams, again and again"),
        ("show", "tell what happened to a stream: readers, resumes, stops, its end"),
        ("tail", "print a stream's events, from its start and as they come"),
        ("stop", "stop a stream, wherever it runs"),
    ):
        action = actions.add_parser(name, help=help_text)
        settings_flags(action)
        action.add_argument("--json", action="store_true", help="one JSON object for each line")
        if name in ("show", "tail", "stop"):
            action.add_argument(
                "id", metavar="ID", help="the stream's id, or that of one of its events, or its address"
            )
            continue
        action.add_argument("--owner", default="", help="of this owner: a key's owner, or what `relay owner` prints")
        action.add_argument("--model", default="*", metavar="PATTERN", help="of these models")
        action.add_argument("--to", default="*", metavar="PATTERN", help="at these upstreams, by their names")
        if name == "ls":
            action.add_argument(
                "--state",
                default="all",
                type=_state,
                metavar="STATE",
                help="live, lost, ended, failed, all, or an outcome such as stopped (default: all)",
            )
            action.add_argument(
                "--since", default="1h", metavar="TIME", help="of those that have ended, how far back (default: 1h)"
            )
            action.add_argument("--limit", type=_number, default=100, metavar="N", help="this many (default: 100)")
        else:
            action.add_argument("--interval", default="2s", metavar="TIME", help="between two looks (default: 2s)")
            action.add_argument(
                "--count", type=_number, default=0, metavar="N", help="look so often (default: for ever)"
            )
