"""`relay key`: makes keys, and tells what is kept of one."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml
from pydantic import ValidationError

from relay.config import SettingsError, parse_duration
from relay.config.auth import KeySettings, explain
from relay.protocol.keys import hash_of, is_key, new_key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make a key; print it once, and the entry for the settings")
    new.add_argument("--owner", required=True, help="who owns the streams; keys of one owner share them")
    new.add_argument("--name", help="what tells the key from others")
    new.add_argument("--models", nargs="+", metavar="PATTERN", help="what it may ask for (default: everything)")
    new.add_argument("--paths", nargs="+", metavar="PATTERN", help="further paths under /v1/ that it may use")
    new.add_argument("--rate", metavar="N/m", help="requests, such as 60/m")
    new.add_argument("--concurrency", type=int, metavar="N", help="requests in progress")
    new.add_argument("--expires", metavar="WHEN", help="in so long (90d), or a time (2027-01-31T00:00:00Z)")
    new.set_defaults(run=_new)
    known = actions.add_parser(
        "hash",
        help="print a key's hash, to find its entry",
        description="Print a key's hash, to find its entry. Every user of the machine can see a command line, and a "
        "shell keeps it: leave KEY out, and it is read from standard input, or asked for without being shown.",
    )
    known.add_argument("key", nargs="?", metavar="KEY", help="the key (default: read standard input)")
    known.set_defaults(run=_hash)


def _new(arguments: argparse.Namespace) -> int:
    _check_paths(arguments.paths or ())
    key = new_key()
    entry: dict[str, Any] = {"name": arguments.name, "hash": hash_of(key), "owner": arguments.owner}
    entry |= {name: getattr(arguments, name) for name in ("models", "paths", "rate", "concurrency")}
    entry |= {"expires": _expiry(arguments.expires) if arguments.expires else None}
    entry = {name: value for name, value in entry.items() if value is not None}
    try:
        KeySettings(**entry)
    except ValidationError as error:
        raise SettingsError("\n".join(f"--{explain(fault)}" for fault in error.errors())) from None
    print(f"{key}\n")
    print("# Give the key to who is to use it: it is shown only now. The relay gets this, under auth.keys or in the")
    print("# file of auth.keys_file:")
    print(yaml.safe_dump([entry], sort_keys=False), end="")
    return 0


def _expiry(text: str) -> str:
    """Raises SettingsError for what is no time to come: such a key would be good for nothing."""
    now = datetime.now(UTC)
    try:
        at = now + timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            at = datetime.min
    if at.tzinfo is None or at <= now:
        wrong = "is not to come" if at.tzinfo else "is no time, or one without a zone"
        raise SettingsError(f"--expires: {text!r} {wrong}; write in so long (90d), or a time (2027-01-31T00:00:00Z)")
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_paths(patterns: Sequence[str]) -> None:
    """Raises SettingsError for a pattern that no path fits."""
    for pattern in patterns:
        if not pattern.startswith(("/v1/", "/v1*", "/*", "*", "?", "[")):
            raise SettingsError(f"--paths: {pattern!r} fits no path; write whole ones, such as '/v1/files*'")


def _hash(arguments: argparse.Namespace) -> int:
    key = (arguments.key or _read()).strip()
    if not is_key(key.encode()):
        print("relay: this is no key of a relay, or it has a typing error; copy it again", file=sys.stderr)
        return 1
    print(hash_of(key))
    return 0


def _read() -> str:
    return getpass.getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline()
