"""The command: `relay serve`, `connect`, `check`, `key`, `owner`, `streams`, `demo`, `bench` and `completion`."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from relay import __version__, bench, completion
from relay.auth import command as key
from relay.auth.keyring import Keyring
from relay.config import Settings, SettingsError, load
from relay.config.auth import KeySettings
from relay.config.loading import one_upstream
from relay.inspection import arguments as streams_command


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status (2 for settings that cannot be used)."""
    parser = _parser()
    given = sys.argv[1:] if argv is None else argv
    if not given:
        parser.print_help()
        return 0
    parser.want_command(given[0])
    arguments = parser.parse_args(["--help"] if given == ["help"] else given)
    try:
        status: int = arguments.run(arguments)
    except SettingsError as error:
        print(f"relay: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"relay: {error}", file=sys.stderr)
        return 1
    return status


_EXAMPLES = """\
examples:
  relay serve --upstream https://api.openai.com
  relay serve --config relay.yaml --store redis://localhost:6379
  relay check --config relay.yaml

Each setting can stand in the file, in the environment (RELAY_ and its path, joined by __) or in a flag; later ones win:
  RELAY_BIND=0.0.0.0:8080  RELAY_STREAMS__HEARTBEAT=10s  RELAY_LOG__FORMAT=json
"""


# Who only looks needs no upstream, but whatever else the relays' settings ask for.
_NO_UPSTREAM = {"upstreams": [{"name": "none", "base_url": "http://127.0.0.1:1"}]}


class _Parser(argparse.ArgumentParser):
    """Says which flag or command was meant, where one is close, among the words of all that there are."""

    there_are: ClassVar[dict[str, _Parser]] = {}

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.there_are[self.prog] = self

    def follow(self) -> list[str]:
        """What may stand after this command: commands, what an argument may be, flags."""
        usage = re.sub(r"(--[\w-]+) \{[\w,-]+\}", r"\1", self.format_usage())  # without what a flag takes
        commands = [prog.split()[-1] for prog in self.there_are if prog.rpartition(" ")[0] == self.prog]
        choices = [word for found in re.findall(r"(?<!-)\{([\w,-]+)\}", usage) for word in found.split(",")]
        return [*commands, *choices, "--help", *re.findall(r"(?<![\w-])--[a-z][a-z-]+", usage)]

    def want_command(self, first: str) -> None:
        """Say where a command's flag stands that is the first word."""
        flag = first.partition("=")[0]
        if flag.startswith("--") and flag not in self.follow():
            whose = [prog for prog, parser in self.there_are.items() if flag in parser.follow()]
            if whose:
                super().error(f"{flag} stands behind a command: {whose[0]} {flag} …")

    def error(self, message: str) -> NoReturn:
        found = re.search(r"unrecognized arguments: (-[^\s=]+)|invalid choice: '([^']*)'", message)
        wrong = "" if found is None else found[1] or found[2]
        words = {word for parser in self.there_are.values() for word in parser.follow()}
        close = difflib.get_close_matches(wrong, sorted(words), 1)
        super().error(f"{message}; did you mean {close[0]}?" if close else message)


def _parser() -> _Parser:
    parser = _Parser(
        prog="relay",
        description="A resumable stream relay with persistence, between LLM clients and LLM APIs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"relay {__version__}")
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
    owner = commands.add_parser("owner", help="tell what stands for a credential in the log")
    _settings_flags(owner)
    owner.add_argument("--env", metavar="NAME", help="the variable that holds it (default: read standard input)")
    owner.add_argument("--name", metavar="OWNER", help="an owner of auth.mode: keys, in place of a credential")
    owner.set_defaults(run=_owner)
    streams = commands.add_parser(
        "streams",
        help="see what streams there are and what happened to each; stop one",
        description="Read from the store, with the settings of the relays: all replicas' streams at once. A stream's "
        "content is shown only by `tail`, and where the store is encrypted only with its keys.",
    )
    streams_command.add_arguments(streams, partial(_settings_flags, only="store."))
    streams.set_defaults(run=_streams)
    demo = commands.add_parser("demo", help="two replicas, a store and a real model, to try a resume")
    demo.add_argument("--port", type=int, default=8080, help="of replica one; replica two has the next")
    demo.set_defaults(run=_demo)
    measure = commands.add_parser("bench", help="measure this or any other OpenAI-compatible gateway")
    bench.add_arguments(measure)
    measure.set_defaults(run=bench.run)
    complete = commands.add_parser(
        "completion",
        help="print what a shell needs to complete this command",
        epilog="\n".join(completion.ADVICE.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    complete.add_argument("shell", choices=completion.SHELLS)
    complete.set_defaults(run=_completion)
    return parser


def _settings_flags(parser: argparse.ArgumentParser, *, only: str = "") -> None:
    """`only`: those whose settings are in this section."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML (default: none)")
    for flag, metavar, text, setting in (
        ("--bind", "HOST:PORT", "the address for clients", "bind"),
        ("--metrics-bind", "HOST:PORT", "the address of /metrics", "metrics_bind"),
        ("--upstream", "URL", "one upstream for every API and model, as the API's SDK is given it", "upstreams"),
        ("--store", "URL", "embedded, or a Redis URL", "store.url"),
        ("--data-dir", "DIR", "where the embedded store keeps its data", "store.data_dir"),
        ("--workers", "N", "processes that share the address, auto for one on each core", "workers"),
    ):
        if not setting.startswith(only):
            continue
        default = "none" if setting == "upstreams" else _default(setting)
        variable = "RELAY_" + setting.upper().replace(".", "__")
        parser.add_argument(flag, metavar=metavar, help=f"{text} (default: {default}; environment: {variable})")


def _default(setting: str) -> object:
    kind: Any = Settings
    *sections, name = setting.split(".")
    for section in sections:
        kind = kind.model_fields[section].annotation
    return kind.model_fields[name].default


def _settings(arguments: argparse.Namespace, defaults: Mapping[str, Any] | None = None) -> Settings:
    flags: dict[str, Any] = {
        name: value
        for name in ("bind", "metrics_bind", "workers")
        if (value := getattr(arguments, name, None)) is not None
    }
    store = {"url": arguments.store, "data_dir": arguments.data_dir}
    if given := {name: value for name, value in store.items() if value is not None}:
        flags["store"] = given
    if getattr(arguments, "upstream", None) is not None:
        flags["upstreams"] = one_upstream(arguments.upstream)
    return load(arguments.config, flags, defaults=defaults)


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


def _owner(arguments: argparse.Namespace) -> int:
    from relay.auth import owner_command

    return asyncio.run(owner_command.run(_settings(arguments, _NO_UPSTREAM), arguments))


def _streams(arguments: argparse.Namespace) -> int:
    from relay.inspection import command

    return asyncio.run(command.run(_settings(arguments, _NO_UPSTREAM), arguments))


def _demo(arguments: argparse.Namespace) -> int:
    from relay.demo.run import run

    port: int = arguments.port
    return run(port)


def _completion(arguments: argparse.Namespace) -> int:
    words = {prog: parser.follow() for prog, parser in _Parser.there_are.items()}
    print(completion.script(arguments.shell, words), end="")
    return 0
