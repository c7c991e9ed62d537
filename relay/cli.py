"""The command: `relay serve`, `relay connect`, `relay check`, `relay key`, `relay demo`, `relay bench`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relay import __version__, bench
from relay.auth import command as key
from relay.auth.keyring import Keyring
from relay.config import Settings, SettingsError, load
from relay.config.auth import KeySettings


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status (2 for settings that cannot be used)."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except SettingsError as error:
        print(f"relay: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"relay: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="relay",
        description="A resumable stream relay with persistence, between LLM clients and LLM APIs.",
    )
    parser.add_argument("--version", action="version", version=f"relay {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve clients until SIGTERM")
    _settings_flags(serve)
    serve.set_defaults(run=_serve)
    connect = commands.add_parser(
        "connect",
        help="a relay on your own machine in front of a far one: programs there see no cut of the line",
        description="A relay on your own machine, in front of a far one, for programs that nobody can change: they see "
        "no cut of the line to it, for up to 15 minutes. It prints what to tell them. Settings in the environment "
        "(RELAY_STREAMS__ABANDON_AFTER=5m) hold here, too.",
    )
    connect.add_argument("url", metavar="URL", help="the far relay, such as https://relay.example")
    connect.add_argument("--bind", metavar="HOST:PORT", help="the address for clients (127.0.0.1:8080)")
    connect.add_argument("--metrics-bind", metavar="HOST:PORT", help="the address of /metrics (a free port)")
    connect.add_argument(
        "--key-env",
        metavar="NAME",
        help="an environment variable with the key for the far relay; without it the programs' own credentials go on",
    )
    connect.add_argument(
        "--no-store", action="store_true", help="keep nothing: who hangs up cannot come back to the stream"
    )
    connect.set_defaults(run=_connect)
    check = commands.add_parser("check", help="validate the settings; reach the store and the upstreams")
    _settings_flags(check)
    check.set_defaults(run=_check)
    key.add_arguments(commands.add_parser("key", help="make a key for `auth.mode: keys`"))
    demo = commands.add_parser("demo", help="two replicas, a store and a real model, to try a resume")
    demo.add_argument("--port", type=int, default=8080, help="of replica one; replica two has the next")
    demo.set_defaults(run=_demo)
    measure = commands.add_parser("bench", help="measure this or any other OpenAI-compatible gateway")
    bench.add_arguments(measure)
    measure.set_defaults(run=bench.run)
    return parser


def _settings_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML")
    parser.add_argument("--bind", metavar="HOST:PORT", help="the address for clients")
    parser.add_argument("--metrics-bind", metavar="HOST:PORT", help="the address of /metrics")
    parser.add_argument("--upstream", metavar="URL", help="one upstream for every API and model")
    parser.add_argument("--store", metavar="URL", help="embedded, or a Redis URL")
    parser.add_argument("--data-dir", metavar="DIR", help="where the embedded store keeps its data")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that share the address")


def _settings(arguments: argparse.Namespace) -> Settings:
    flags: dict[str, Any] = {
        name: value for name in ("bind", "metrics_bind", "workers") if (value := getattr(arguments, name)) is not None
    }
    store = {"url": arguments.store, "data_dir": arguments.data_dir}
    if given := {name: value for name, value in store.items() if value is not None}:
        flags["store"] = given
    if arguments.upstream is not None:
        flags["upstreams"] = [{"name": "upstream", "base_url": arguments.upstream}]
    return load(arguments.config, flags)


def _keyring(arguments: argparse.Namespace) -> Keyring | None:
    """The keys of `auth.mode: keys`, and where they are read again; None in the other mode. Raises SettingsError."""
    auth = _settings(arguments).auth
    if auth.mode != "keys":
        return None
    files = [path for path in (arguments.config, auth.keys_file) if path is not None]
    return Keyring(lambda: _keys(arguments), files)


def _keys(arguments: argparse.Namespace) -> list[KeySettings]:
    auth = _settings(arguments).auth
    if auth.mode != "keys":
        raise SettingsError("auth.mode: is no longer keys; start the relay anew for that")
    try:
        return auth.all_keys()
    except ValueError as error:
        raise SettingsError(str(error)) from None


@contextmanager
def _shared_counters(workers: int) -> Iterator[None]:
    """prometheus-client decides when it is first imported: one process's memory, or files that workers share."""
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    if workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="relay-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        yield


def _serve(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    keyring = _keyring(arguments)
    with _shared_counters(settings.workers):
        from relay import logs, server
        from relay.store.embedded import EmbeddedStoreError

        logs.configure(settings.log)
        try:
            return server.run(settings, keyring)
        except EmbeddedStoreError as error:
            print(f"relay: {error}", file=sys.stderr)
            return 1


def _connect(arguments: argparse.Namespace) -> int:
    with _shared_counters(1):
        from relay import connect

        options = connect.Options(
            arguments.url,
            bind=arguments.bind,
            metrics_bind=arguments.metrics_bind,
            key_env=arguments.key_env,
            store=not arguments.no_store,
        )
        return connect.run(options)


def _check(arguments: argparse.Namespace) -> int:
    from relay.check import check

    _keyring(arguments)
    return asyncio.run(check(_settings(arguments)))


def _demo(arguments: argparse.Namespace) -> int:
    from relay.demo import run

    port: int = arguments.port
    return run(port)
