"""`relay connect URL`: a relay on a user's own machine, beside programs that nobody can change, in front of a far one.

Its clients see no cut of the line to the far relay: the near one comes back to it for up to a quarter of an hour. It
has a store of its own in the user's cache folder, or none where that cannot be had. What is set here are defaults: the
environment (`RELAY_STREAMS__ABANDON_AFTER`) and the command's flags say otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import httpx
import orjson

from relay import logs, processes, server
from relay.config import Settings, SettingsError, UpstreamSettings, load
from relay.protocol.errors import ApiError
from relay.store.embedded import EmbeddedStoreError
from relay.upstream.addresses import relay_root
from relay.upstream.client import UpstreamClient, body_of

BIND = "127.0.0.1:8080"
FAR = "far"
_AWAY = "15m"
_PROBE_TIMEOUT = 10.0
_LONGEST_DESCRIPTION = 4 << 20
# A server that cannot be reached is looked for again, less and less often.
_LOOK_AGAIN, _LOOK_SELDOM = 1.0, 30.0

_GUIDE = """\
relay: {url} stands in front of {far}. Ctrl-C ends it, and what runs through it.

  OpenAI SDKs    export OPENAI_BASE_URL={url}/v1
  Anthropic SDKs export ANTHROPIC_BASE_URL={url}
  Claude Code    export ANTHROPIC_BASE_URL={url}
  Codex          codex -c model_provider=relay -c model_providers.relay.name=relay \\
                   -c model_providers.relay.base_url={url}/v1 -c model_providers.relay.wire_api=responses \\
                   -c model_providers.relay.env_key=OPENAI_API_KEY
  Open WebUI     export OPENAI_API_BASE_URL={url}/v1

{credentials}
Metrics: http://{metrics}/metrics
"""


@dataclass(frozen=True, slots=True)
class Options:
    """The command's flags; None where one was not given. `store` is False for none at all."""

    url: str
    bind: str | None = None
    metrics_bind: str | None = None
    key_env: str | None = None
    store: bool = True


class Server(Enum):
    """What was found at an address."""

    RELAY = auto()
    OTHER = auto()
    NONE = auto()


def cache_folder(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Where programs of this user keep what they can do without (XDG Base Directory Specification; on macOS Apple's
    File System Programming Guide)."""
    if (named := environ.get("XDG_CACHE_HOME", "")) and Path(named).is_absolute():
        return Path(named)
    home = Path(environ.get("HOME") or Path.home())
    return home / "Library" / "Caches" if platform == "darwin" else home / ".cache"


def settings_of(options: Options, environ: Mapping[str, str]) -> Settings:
    """Raises SettingsError."""
    bind = options.bind or environ.get("RELAY_BIND") or BIND
    folder = cache_folder(environ) / "relay" / re.sub(r"[^0-9A-Za-z.]+", "-", f"connect-{bind}")
    far: dict[str, Any] = {
        "name": FAR,
        "base_url": options.url,
        "upstream_resume": _AWAY,
        # A request that finds no line waits for one, as a stream does that has lost it.
        "next_on": ["unreachable"],
        "wait": _AWAY,
    }
    if options.key_env is not None:
        far["api_key_env"] = options.key_env
    defaults = {
        "bind": bind,
        "metrics_bind": f"127.0.0.1:{processes.free_port()}",
        "store": {"data_dir": str(folder)},
        "drain": {"timeout": "0s"},  # nobody else reads what runs here
        "log": {"level": "warning"},
    }
    flags: dict[str, Any] = {"upstreams": [far], "workers": 1}
    if options.bind is not None:
        flags["bind"] = options.bind
    if options.metrics_bind is not None:
        flags["metrics_bind"] = options.metrics_bind
    try:
        settings = load(flags=flags, environ=environ, defaults=defaults)
    except SettingsError as error:
        raise SettingsError(str(error).replace("upstreams.0.base_url:", "URL:")) from None
    return settings if options.store else without_store(settings)


def without_store(settings: Settings) -> Settings:
    """The same without a log: streams go on after a cut of the far line, and nobody can come back to them here."""
    far = settings.upstreams[0].model_copy(update={"buffer": False})
    nowhere = settings.store.model_copy(update={"url": "unix:///nonexistent/relay-has-no-store"})
    return settings.model_copy(update={"upstreams": [far], "store": nowhere})


def run(options: Options) -> int:
    """Serve until a signal that ends it (`relay.signals`). The exit status. Raises SettingsError, OSError."""
    settings = settings_of(options, os.environ)
    logs.configure(settings.log)
    if not options.store:
        return _serve(settings)
    try:
        return _serve(settings)
    except EmbeddedStoreError as error:
        _say(f"{error}\nrelay: it goes on without a store: a client that hangs up cannot come back to its stream.")
        return _serve(without_store(settings))


def _serve(settings: Settings) -> int:
    if not settings.upstreams[0].buffer:
        # That there is none has been said.
        for quiet in ("relay.store", "relay.streams.registry"):
            logging.getLogger(quiet).setLevel(logging.CRITICAL)

    async def alongside(client: UpstreamClient) -> None:
        print(guide(settings), flush=True)
        await _find(client, settings.upstreams[0])

    return server.run(settings, alongside=alongside)


def guide(settings: Settings) -> str:
    """What its user has to tell the programs."""
    far = settings.upstreams[0]
    key = far.api_key_env
    return _GUIDE.format(
        url=f"http://{settings.bind}",
        far=far.base_url,
        metrics=settings.metrics_bind,
        credentials=(
            f"Every program on this machine that reaches it spends the key in {key}. Give them any word as theirs."
            if key
            else "The programs' own credentials go on to it."
        ),
    )


async def _find(client: UpstreamClient, far: UpstreamSettings) -> None:
    """Say what the far server is, once it can be told."""
    wait, away = _LOOK_AGAIN, False
    while True:
        found, why = await probe(client, far)
        if found is not Server.NONE:
            break
        if not away:
            away = True
            _say(f"{far.base_url} cannot be reached ({why}). What comes meanwhile waits for it for up to {_AWAY}.")
        await asyncio.sleep(wait)
        wait = min(2 * wait, _LOOK_SELDOM)
    if found is Server.RELAY:
        client.relays.add(far.base_url)
        _say(f"{far.base_url} is a relay{', and can be reached now' if away else ''}: streams outlive the line to it.")
    else:
        _say(
            f"{far.base_url} is no relay ({why}): a line to it that breaks ends its stream. A client that hangs up and "
            "comes back still joins what runs here."
        )


async def probe(client: UpstreamClient, far: UpstreamSettings) -> tuple[Server, str]:
    """What answers at an upstream's address, and why it is thought so; no credential is shown. A relay describes itself
    at `/openapi.json`, to everybody."""
    url = relay_root(far.base_url) + "/openapi.json"
    body = b""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT):
            response = await client.send(far, "GET", url, [(b"accept", b"application/json")], b"")
            try:
                async for chunk in body_of(response):
                    body += chunk
                    if len(body) > _LONGEST_DESCRIPTION:
                        break
            finally:
                await body_of(response).aclose()
    except (ApiError, TimeoutError, httpx.HTTPError) as error:
        why = error.__cause__ or error
        return Server.NONE, f"{type(why).__name__}: {why}"
    if response.status_code in (502, 503, 504):
        return Server.NONE, f"a gateway in front of it answers {response.status_code}"
    try:
        described = orjson.loads(body)
        is_relay = described["info"]["title"] == "Relay" and "/streams/{id}" in described["paths"]
    except (ValueError, TypeError, LookupError):
        is_relay = False
    return (Server.RELAY if is_relay else Server.OTHER), f"GET {url} answers {response.status_code}"


def _say(text: str) -> None:
    print(f"relay: {text}", file=sys.stderr, flush=True)
