"""`relay owner`: what stands for a credential in the log, so that a user's lines are found. The credential is read from
standard input or an environment variable, never from the command line, which every user of the machine can see."""

from __future__ import annotations

import argparse
import os
import sys

from relay.auth.owners import Owners, of_key
from relay.config import Settings
from relay.protocol.errors import ApiError
from relay.store.reaching import reach


async def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print it as `owner` of the log's lines has it."""
    if arguments.name:
        identity = of_key(arguments.name)
    else:
        given = os.environ.get(arguments.env, "") if arguments.env else sys.stdin.readline()
        scheme, _, token = given.strip().partition(" ")
        identity = (token.strip() if scheme.lower() == "bearer" else given.strip()).encode()
    if not identity:
        print(
            "relay: there is no credential; write it to standard input, or name its variable with --env",
            file=sys.stderr,
        )
        return 1
    try:
        async with reach(settings) as log:
            owners = Owners(log.directory, settings.auth.secret() or await log.directory.known_secret())
    except (ApiError, LookupError):
        print(
            "relay: the deployment's secret cannot be read; check store.url, and that a relay runs there, or give "
            "auth.secret_env as the relays have it",
            file=sys.stderr,
        )
        return 1
    print(owners.owner(identity)[:12])
    return 0
