"""Reading the settings: a YAML file, the environment (`RELAY_` + the path, joined by `__`) and flags; later ones win.

An unknown key or a bad value raises SettingsError with a message that names it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource

from relay.config.auth import explain
from relay.config.settings import Settings
from relay.config.upstreams import UpstreamSettings


class SettingsError(Exception):
    """The settings cannot be used; the message names the key, the value's fault and where it stood."""


def load(
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings of a file, the environment and flags (nested dicts); `defaults` stand for those of the settings
    themselves. Raises SettingsError."""
    merged: dict[str, Any] = {}
    _merge(merged, dict(defaults or {}))
    if config is not None:
        _merge(merged, _read(config))
    _merge(merged, _from_environment(os.environ if environ is None else environ))
    _merge(merged, dict(flags or {}))
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(e) for e in error.errors())) from None
    if not settings.upstreams:
        raise SettingsError(
            "upstreams: there is none; name one with --upstream URL, or list them in the file given by --config"
        )
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {path}: cannot be read ({error}); check the path") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"--config {path}: is not YAML ({error})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"--config {path}: must hold keys and values at the top, such as `bind: 0.0.0.0:8080`")
    for key in content:
        if not isinstance(key, str):
            raise SettingsError(
                f"--config {path}: {key!r} is no such setting; keys are words (quote `on`, `yes`, `no`)"
            )
    return content


# Kubernetes puts RELAY_SERVICE_HOST, RELAY_PORT, RELAY_PORT_8080_TCP … into every pod beside a Service called
# `relay`, RELAY_METRICS_PORT … beside one called `relay-metrics`; tests and embedded store have words of their own.
_NOT_SETTINGS = re.compile(r"RELAY_(([A-Z0-9]+_)*SERVICE_(HOST|PORT.*)|([A-Z0-9]+_)*PORT(_[0-9].*)?|TEST_.*)")


def one_upstream(url: str) -> list[dict[str, str]]:
    """`upstreams` with one for every API and model."""
    return [{"name": "upstream", "base_url": url}]


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found = {k: v for k, v in environ.items() if k.startswith("RELAY_") and not _NOT_SETTINGS.fullmatch(k)}
    known = Settings.model_fields
    for name in found:
        first, *rest = name.removeprefix("RELAY_").lower().split("__")
        kind = known[first].annotation if first in known else None
        if kind is None and (close := difflib.get_close_matches(first, known, 1)):
            meant = "__".join(("RELAY_" + close[0].upper(), *(part.upper() for part in rest)))
            raise SettingsError(f"{name}: no such setting; did you mean {meant}?")
        if kind is None or (rest and not (isinstance(kind, type) and issubclass(kind, BaseModel))):
            raise SettingsError(
                f"{name}: no such setting; the settings are {', '.join(known)} (RELAY_STREAMS__HEARTBEAT=15s)"
            )
    url = found.get("RELAY_UPSTREAMS", "").strip()
    if url and url[0] not in "[{":  # as the flag --upstream has it
        del found["RELAY_UPSTREAMS"]
    source = EnvSettingsSource(Settings, case_sensitive=False)
    source.env_vars = {k.lower(): v for k, v in found.items()}
    try:
        told = dict(source())
    except Exception as error:  # the library's own SettingsError has no narrower base
        raise SettingsError(_unreadable(found, str(error))) from None
    return told if "RELAY_UPSTREAMS" in found or not url else {**told, "upstreams": one_upstream(url)}


def _unreadable(found: Mapping[str, str], error: str) -> str:
    """What is wrong with a variable that is to hold JSON."""
    field = re.search(r'for field "(\w+)"', error)
    names = [name for name in found if field and re.fullmatch(rf"RELAY_{field[1]}(__.*)?", name, re.I)]
    example = 'a list as ["a","b"], several upstreams as [{"name":"a","base_url":"https://a.example/v1"}]'
    return f"{', '.join(names) or 'environment'}: is not JSON; write {example}"


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def _in_words(error: Any) -> str:
    """What a URL must be, in place of the pattern that it does not fit."""
    if error["type"] != "string_pattern_mismatch":
        return ""
    if error["loc"] == ("webhook", "url"):
        return "write off, or a URL that begins with https:// or http://, without a user or a fragment"
    return {
        "base_url": "write a URL that begins with https:// or http://, without user, query or fragment, such as "
        "https://api.openai.com/v1",
        "url": "write embedded, or a URL that begins with redis://, rediss://, unix://, redis+sentinel:// or "
        "redis+cluster:// (with TLS rediss+sentinel://, rediss+cluster://)",
        "proxy": "write env, off, or a URL that begins with http:// or https://, such as http://proxy:3128",
        "origins": "write origins as browsers send them, such as https://app.example, or *",
        "playground_replicas": "write addresses that begin with http:// or https://, such as http://127.0.0.1:8081",
        "playground_control": "write an address with one word as its path, such as http://127.0.0.1:8079/word",
    }.get(next(str(part) for part in reversed(error["loc"]) if isinstance(part, str)), "")


def _meant(path: Sequence[object]) -> str:
    """The setting beside this one whose name is close."""
    kind: Any = Settings
    for section in path[:-1]:
        if section == "upstreams":
            kind = UpstreamSettings
        elif isinstance(section, str) and section in kind.model_fields:
            kind = kind.model_fields[section].annotation
    names = [field.alias or name for name, field in kind.model_fields.items()]
    close = difflib.get_close_matches(str(path[-1]), names, 1)
    return f"did you mean {'.'.join(map(str, [*path[:-1], close[0]]))}? Else " if close else ""


def _explain(error: Any) -> str:
    if error["loc"][:1] == ("auth",):
        return explain(error)
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{where}: no such setting; {_meant(error['loc'])}see the settings reference in deploy/SETTINGS.md"
    if error["type"] == "missing":
        return f"{where}: is missing"
    message: str = _in_words(error) or error["msg"].removeprefix("Value error, ")
    if not where:
        return message
    has_user = error["loc"][-1] == "base_url" and "@" in str(error["input"])
    if (
        where in ("store", "store.url", "webhook", "webhook.url") or error["loc"][-1] == "proxy" or has_user
    ):  # a password may stand in it
        return f"{where}: {message} (its value is not shown)"
    return f"{where}: {message} (it is {error['input']!r})"
