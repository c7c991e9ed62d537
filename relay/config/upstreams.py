"""What can be set of one upstream."""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from relay.config import tls
from relay.config.streams import StreamSettings
from relay.config.units import Duration, DurationOrOff, DurationOrZero, OrOff, Section, off_to_word
from relay.protocol.apis import ApiName


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one upstream may take, in seconds: its own setting, or the one of that name in `streams`."""

    upstream_answer_timeout: float
    unstreamed_answer_timeout: float
    first_token_timeout: float
    upstream_stall_timeout: float
    upstream_idle_timeout: float
    upstream_resume: float

    def extended(self, grace: float) -> Timeouts:
        """The same with so much more time for silence, in which an answer that broke off is gone on with."""
        if not grace:
            return self
        return replace(
            self,
            upstream_stall_timeout=self.upstream_stall_timeout + grace,
            upstream_idle_timeout=self.upstream_idle_timeout + grace,
        )


# With these an upstream says that it has not begun. Others (500, 502, 504, a time-out) leave that open.
Refusal = Literal[400, 401, 402, 403, 404, 413, 422, 429, 503, 529, "unreachable"]
_OWN = "This upstream's own, in place of the one in `streams`."


class UpstreamSettings(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = Field(
        description="The upstream's name in metrics and logs."
    )
    base_url: Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$")] = Field(
        description="Where it is, with or without the version's path, as the API's SDK is given it "
        "(`https://api.openai.com/v1`, `https://api.anthropic.com`)."
    )
    path_map: dict[
        Annotated[str, Field(pattern=r"^/v1(/[^/?#\s]+)*$")], Annotated[str, Field(pattern=r"^(/[^/?#\s]+)*$")]
    ] = Field(
        {},
        description="Where its paths are not those of the API: a path here, with all below it, and the one that stands "
        "for it after `base_url`; the longest that fits counts (`/v1: /backend-api/codex`).",
    )
    apis: list[ApiName] = Field(["chat", "messages", "responses"], min_length=1, description="Which APIs it speaks.")
    models: list[str] = Field(
        ["*"],
        min_length=1,
        description="Patterns of the models it serves; the first upstream that matches wins.",
    )
    strip_prefix: str = Field("", description="Taken off the model's name before it goes upstream.")
    model: str = Field("", description="The model's name there, in place of the one that was asked for.")
    next_on: list[Refusal] = Field(
        [],
        description="After these refusals (statuses, and `unreachable`: no connection) a request that names a model "
        "goes on to the next upstream whose `apis` and `models` match. Never after a connection that broke, a silence "
        "or a first byte, so nothing is generated twice.",
    )
    wait: DurationOrZero = Field(
        0.0,
        description="A refusal of `next_on` whose `Retry-After` is within this time is waited out, and this upstream "
        "asked again, before the next one is. Where there is no next one, an `unreachable` one is looked for so long.",
    )
    api_key_env: str | None = Field(
        None,
        description="The environment variable that holds its key. Absent: the client's own credentials go upstream.",
    )
    headers: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]] = Field(
        [],
        description="Patterns of further headers that cross to it and back (`helicone-*`, `session_id`), beside those "
        "of HTTP and of the APIs and every `x-…`; with `api_key_env` beside a few harmless ones only (`anthropic-beta` "
        "has to be named). What they name comes with streams and resumes, too.",
    )
    proxy: Annotated[
        str, BeforeValidator(off_to_word), Field(pattern=r"^(env|off|https?://([^/?#@\s]+@)?[^/?#@\s]+/?)$")
    ] = Field(
        "env",
        description="The proxy on the way to it (`http://proxy:3128`). `env`: as `HTTPS_PROXY`, `HTTP_PROXY`, "
        "`ALL_PROXY` and `NO_PROXY` say. `off`: none.",
    )
    ca_file: OrOff[Path] = Field(
        None,
        description="A PEM file with the authorities that may vouch for it, in place of the public ones. `off`: the "
        "public ones and the system's own.",
    )
    client_cert: OrOff[Path] = Field(
        None,
        description="A PEM file with the certificate, its chain and its key, with which the relay proves itself to it.",
    )
    keepalive: Duration = Field(
        4.0,
        description="How long an idle connection to it is kept: less than it keeps one itself, or requests are lost.",
    )
    buffer: bool = Field(True, description="`false`: relayed without a log; a resume answers `resume_not_supported`.")
    after_abandon: Literal["cancel", "drain"] = Field(
        "cancel",
        description="What becomes of a stream that nobody reads any more (`streams.abandon_after`, or its client left "
        "before the answer). `cancel`: the call ends. `drain`: it is read to its end, for upstreams that bill it all "
        "the same, so that its usage is counted and whoever comes back has the whole answer.",
    )
    usage: Literal["passthrough", "observe", "always"] = Field(
        "passthrough",
        description="Token usage of a chat stream. `observe`: asked for upstream, hidden from clients that did not "
        "ask. `always`: asked for and shown.",
    )
    malformed: Literal["forward", "end"] = Field(
        "forward",
        description="An event that is not of its API's format. `forward`: it goes on as it is, and is counted. "
        "`end`: the stream ends as `upstream_malformed`.",
    )
    resume: Annotated[Literal["auto", "off", "last-event-id", "responses"], BeforeValidator(off_to_word)] = Field(
        "auto",
        description="How an answer of it that broke off is gone on with. `auto`: where it is a relay, known by its "
        "answer's headers, by its stream's ids. `last-event-id`: by its own `id:` lines, with the same request and "
        "`Last-Event-ID`; only for an upstream that documents it, for another one generates anew. `responses`: "
        "responses that run in the background are retrieved after their last `sequence_number`. With `auto` and "
        "`responses` another replica goes on where one is lost.",
    )
    upstream_resume: DurationOrZero | None = Field(None, description=_OWN)
    upstream_answer_timeout: DurationOrOff | None = Field(None, description=_OWN)
    unstreamed_answer_timeout: Duration | None = Field(None, description=_OWN)
    first_token_timeout: DurationOrOff | None = Field(None, description=_OWN)
    upstream_stall_timeout: DurationOrOff | None = Field(None, description=_OWN)
    upstream_idle_timeout: Duration | None = Field(None, description=_OWN)

    def timeouts(self, streams: StreamSettings) -> Timeouts:
        own = {each.name: getattr(self, each.name) for each in fields(Timeouts)}
        return Timeouts(**{name: getattr(streams, name) if time is None else time for name, time in own.items()})

    @model_validator(mode="after")
    def _check_tls(self) -> UpstreamSettings:
        if self.ca_file is not None or self.client_cert is not None:
            tls.context(self.ca_file, self.client_cert)
        return self

    def matches(self, api: str | None, model: str) -> str | None:
        """The pattern that takes this model over this API (None: any), None where there is none."""
        if api is not None and api not in self.apis:
            return None
        return next((p for p in self.models if fnmatch.fnmatchcase(model, p)), None)

    def api_key(self) -> str | None:
        return os.environ[self.api_key_env] if self.api_key_env else None
