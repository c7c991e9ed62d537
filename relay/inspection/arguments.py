"""The flags of `relay streams`."""

from __future__ import annotations

import argparse
from collections.abc import Callable


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
            action.add_argument("id", metavar="ID", help="the stream's id, or that of one of its events")
            continue
        action.add_argument("--owner", default="", help="of this owner: a key's owner, or what `relay owner` prints")
        action.add_argument("--model", default="*", metavar="PATTERN", help="of these models")
        action.add_argument("--to", default="*", metavar="PATTERN", help="at these upstreams, by their names")
        if name == "ls":
            action.add_argument(
                "--state", default="all", help="live, ended, all, lost, or an outcome such as stopped (default: all)"
            )
            action.add_argument(
                "--since", default="1h", metavar="TIME", help="of those that have ended, how far back (default: 1h)"
            )
            action.add_argument("--limit", type=int, default=100, metavar="N", help="this many (default: 100)")
        else:
            action.add_argument("--interval", default="2s", metavar="TIME", help="between two looks (default: 2s)")
            action.add_argument("--count", type=int, default=0, metavar="N", help="look so often (default: for ever)")
