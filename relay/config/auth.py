"""The `auth` section of the settings, and the file of keys.

No error here repeats what it was given: a key may stand where its hash belongs.
"""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import yaml
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from relay.config.units import OrOff, RateText, Section, variable
from relay.protocol.keys import is_hash, is_key

_SECRET_CHARS = 32
_LABEL = r"[A-Za-z0-9_.@-]{1,64}"
# libyaml's parser, where PyYAML has it: 5 times as fast as its own.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _hash(text: str) -> str:
    if not is_hash(text):
        raise ValueError("write sha256: and 64 hex digits, as `relay key new` or `relay key hash` prints them")
    return text


def _label(text: str) -> str:
    if re.fullmatch(_LABEL, text) is None:
        raise ValueError("write 1 to 64 letters, digits and _ . @ -")
    if is_key(text.encode()):
        raise ValueError("this is a key; keep it out of the settings, give its hash as `hash`")
    return text


def _instant(value: object) -> object:
    number = isinstance(value, str) and value.strip().lstrip("+-").replace(".", "").isdigit()  # seconds since 1970
    if number or not isinstance(value, str | datetime):
        raise ValueError("write a time with its zone, such as 2027-01-31T00:00:00Z")
    return value


_Name = Annotated[str, AfterValidator(_label), Field(json_schema_extra={"type": "string", "pattern": f"^{_LABEL}$"})]


class _Section(Section):
    model_config = ConfigDict(hide_input_in_errors=True)


class KeySettings(_Section):
    hash: Annotated[
        str, AfterValidator(_hash), Field(json_schema_extra={"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"})
    ] = Field(description="The key's SHA-256, as `relay key new` prints it. The key itself stands nowhere.")
    owner: _Name = Field(description="Who owns the streams that it starts: keys with the same owner share them.")
    name: _Name | None = Field(None, description="What tells it from other keys.")
    models: list[str] = Field(
        ["*"], min_length=1, description="Patterns of the models that it may ask for, by the names that clients use."
    )
    paths: list[str] = Field(
        [],
        description="Patterns of further paths under `/v1/` that it may use. Upstream all keys are one account: who "
        "may use `/v1/files*` sees everybody's files.",
    )
    rate: OrOff[RateText] = Field(
        None,
        description="How often it may send a request that goes upstream, such as `60/m`, on each replica. "
        "`off`: no limit.",
    )
    concurrency: OrOff[Annotated[int, Field(gt=0)]] = Field(
        None,
        description="How many of its streams and other requests may be in progress upstream, on each replica. "
        "`off`: no limit.",
    )
    expires: OrOff[Annotated[AwareDatetime, BeforeValidator(_instant)]] = Field(
        None, description="When it stops working, such as `2027-01-31T00:00:00Z`. `off`: never."
    )


class AuthSettings(_Section):
    mode: Literal["passthrough", "keys"] = Field(
        "passthrough",
        description="`passthrough`: the client's own credential goes upstream, and whoever holds the one that started "
        "a stream owns it. `keys`: clients show keys that `relay key new` made, listed in `auth.keys` or "
        "`auth.keys_file`; every upstream needs `api_key_env`.",
    )
    keys: list[KeySettings] = Field([])
    keys_file: OrOff[Path] = Field(
        None,
        description="A YAML or JSON file with a list of further keys. It and the settings' own `auth.keys` are read "
        "again when they change, without a restart.",
    )
    credential_headers: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]] = Field(
        [
            "cf-aig-authorization",
            "helicone-auth",
            "ocp-apim-subscription-key",
            "x-bf-vk",
            "x-goog-api-key",
            "x-litellm-api-key",
            "x-portkey-api-key",
            "x-portkey-virtual-key",
        ],
        description="With `passthrough`: names of further headers that tell clients apart, beside those whose names "
        "say that they hold a credential. Who sends another value in one of them is another owner.",
    )
    secret_env: Annotated[str, AfterValidator(variable)] | None = Field(
        None,
        description="The environment variable that holds the secret from which owners and tickets are derived: at "
        "least 32 random characters, the same for all replicas. Absent: replicas share one through the store.",
    )

    @model_validator(mode="after")
    def _check(self) -> AuthSettings:
        if self.mode == "passthrough" and (self.keys or self.keys_file):
            raise ValueError("there are keys, but clients need none: set mode to keys, or take the keys out")
        if self.mode == "keys" and not self.keys and self.keys_file is None:
            raise ValueError("mode is keys, and there is none: make one with `relay key new --owner NAME`")
        if self.secret_env and len(os.environ.get(self.secret_env, "")) < _SECRET_CHARS:
            raise ValueError(
                f"secret_env: the environment variable {self.secret_env} has fewer than {_SECRET_CHARS} characters; "
                "set it to what `openssl rand -hex 32` prints"
            )
        return self

    def secret(self) -> bytes | None:
        return os.environ[self.secret_env].encode() if self.secret_env else None

    def all_keys(self) -> list[KeySettings]:
        """Those of the settings and those of the file. Raises ValueError, with a message that quotes neither."""
        listed = [(f"auth.keys.{i}", key) for i, key in enumerate(self.keys)]
        if self.keys_file is not None:
            listed += [(f"{self.keys_file}: {i}", key) for i, key in enumerate(_read(self.keys_file))]
        places: dict[str, str] = {}
        for place, key in listed:
            if key.hash in places:
                raise ValueError(f"{place}: is the same key as {places[key.hash]}; take one of them out")
            places[key.hash] = place
        return [key for _, key in listed]


_LIST = TypeAdapter(list[KeySettings])


def _read(path: Path) -> list[KeySettings]:
    try:
        raw = path.read_bytes()
        content = orjson.loads(raw) if path.suffix == ".json" else yaml.load(raw, _Loader)
    except OSError as error:
        raise ValueError(f"auth.keys_file {path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, ValueError) as error:  # their words quote the file
        line = getattr(getattr(error, "problem_mark", None), "line", getattr(error, "lineno", 1) - 1) + 1
        raise ValueError(f"auth.keys_file {path}: cannot be read as YAML or JSON at line {line}; fix it") from None
    if not isinstance(content, list):  # an empty file may be one that is just being written
        raise ValueError(f"auth.keys_file {path}: must hold a list of keys, `[]` for none")
    try:
        return _LIST.validate_python(content)
    except ValidationError as error:
        faults = "; ".join(explain(item) for item in error.errors())
        raise ValueError(f"auth.keys_file {path}: {faults}") from None


def explain(error: Any) -> str:
    """A validation error of this section, without its input and without keys that are no settings."""
    where = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        shown = where if re.fullmatch("[a-z_]{1,32}", where[-1]) else [*where[:-1], "?"]
        return f"{'.'.join(shown)}: no such setting; see the settings reference in deploy/SETTINGS.md"
    if error["type"] == "missing":
        return f"{'.'.join(where)}: is missing"
    return f"{'.'.join(where)}: {error['msg'].removeprefix('Value error, ')} (its value is not shown)"
