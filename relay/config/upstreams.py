"""What can be set of one upstream."""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from relay.config import applications, tls
from relay.config.streams import StreamSettings
from relay.config.units import Duration, DurationOrOff, DurationOrZero, OrOff, Section, off_to_word
from relay.protocol.apis import ApiName
from relay.protocol.continuing import Prefill


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one upstream may take, in seconds: its own setting, or the one of that name in `streams`."""

    upstream_answer_timeout: float
    unstreamed_answer_timeout: float
    first_token_timeout: float
    upstream_stall_timeout: float
    upstream_idle_timeout: float
    upstream_resume: float

    def answer_limit(self, *, streamed: bool) -> tuple[str, float]:
        """The setting that says how long an answer may take, and its seconds."""
        if not streamed:
            return "unstreamed_answer_timeout", self.unstreamed_answer_timeout
        if self.first_token_timeout < self.upstream_answer_timeout:
            return "first_token_timeout", self.first_token_timeout
        return "upstream_answer_timeout", self.upstream_answer_timeout

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
_RESUME = rf"^(auto|off|last-event-id|responses)$|{applications.RESUME}"
_OF_APPLICATIONS = ("paths", "end", "owner", "cookies", "stream_name")
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
    apis: list[ApiName] = Field(
        ["chat", "messages", "responses"],
        min_length=1,
        description="Which APIs it speaks. `sse`: it is an application of your own, and every event stream that it "
        "answers with on its `paths` can be resumed.",
    )
    paths: list[applications.Path] = Field(
        [],
        description="With `sse`: its paths, whatever the method; `*` stands for a segment or a part of one, a last "
        "`**` for all below (`/api/chat`, `/api/agents/*/runs`). What is no event stream there is passed through.",
    )
    end: OrOff[Annotated[str, Field(min_length=1, max_length=1024)]] = Field(
        None,
        description="With `sse`: the type or the data of the event with which a stream ends that is in no format which "
        "the relay knows (`[DONE]`); without it, it is `upstream_disconnected`. `off`: a clean end is the end.",
    )
    owner: list[applications.Source] = Field(
        [],
        description="With `sse`: what says whose a stream is: `authorization`, `cookie:NAME`, `header:NAME`; those "
        "that a request has count together. The application judges who may ask, also with `auth.mode: keys`. Empty: as "
        "for all others, by the credential or the relay's key.",
    )
    cookies: bool = Field(
        False,
        description="With `sse`: cookies cross both ways, and with them all headers but those of one hop.",
    )
    stream_name: OrOff[applications.NamePath] = Field(
        None,
        description="With `sse`: where a request's JSON body names its stream (`$.id`, `$.messages[0].id`), for "
        "`GET /streams?name=…`; a `Relay-Stream-Name` header comes first.",
    )
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
    resume: Annotated[str, BeforeValidator(off_to_word), Field(pattern=_RESUME)] = Field(
        "auto",
        description="How an answer of it that broke off is gone on with. `auto`: where it is a relay, known by its "
        "answer's headers, by its stream's ids. `last-event-id`: by its own `id:` lines, with the same request and "
        "`Last-Event-ID`; only for an upstream that documents it, for another one generates anew. `responses`: "
        "responses that run in the background are retrieved after their last `sequence_number`. With `sse` also a "
        "path, as `auto` for the rest: a GET there is answered with the newest stream of that name which is live, "
        "with 204 where there is none (`/api/chat/{name}/stream`). With `auto` and `responses` another replica goes on "
        "where one is lost.",
    )
    continue_: Annotated[Literal["off", "prefill"], BeforeValidator(off_to_word)] = Field(
        "off",
        alias="continue",
        description="`prefill`: an answer of text alone that broke off, and that `resume` cannot go on with, is gone "
        "on with by another call, which is billed: the text so far is its last message, the assistant's. Only for an "
        "upstream and models that document it, for another one begins anew. Chat completions and messages.",
    )
    prefill: Prefill = Field(
        "continue_final_message",
        description="What tells it, on chat completions, to go on with that message. `continue_final_message`: that "
        "member, with `add_generation_prompt: false` (vLLM, SGLang, llama.cpp). `prefix`: `prefix: true` in the "
        "message (DeepSeek, whose `base_url` ends with `/beta` then). `prefix_echoed`: the same, and the answer begins "
        "with the text (Mistral). `message`: nothing.",
    )
    upstream_resume: DurationOrZero | None = Field(None, description=_OWN)
    upstream_answer_timeout: DurationOrOff | None = Field(None, description=_OWN)
    unstreamed_answer_timeout: Duration | None = Field(None, description=_OWN)
    first_token_timeout: DurationOrOff | None = Field(None, description=_OWN)
    upstream_stall_timeout: DurationOrOff | None = Field(None, description=_OWN)
    upstream_idle_timeout: Duration | None = Field(None, description=_OWN)

    @property
    def continues(self) -> bool:
        return self.continue_ == "prefill"

    @property
    def is_application(self) -> bool:
        """Is it one of one's own, and nothing else?"""
        return self.apis == ["sse"]

    @cached_property
    def going_on(self) -> str:
        """How an answer of it that broke off is gone on with."""
        return "auto" if self.resume.startswith("/") else self.resume

    def timeouts(self, streams: StreamSettings) -> Timeouts:
        """Asked for twice for each stream, put together once."""
        known = self._timeouts
        if not known or known[0][0] is not streams:
            known[:] = [(streams, self._put_together(streams))]
        return known[0][1]

    @cached_property
    def _timeouts(self) -> list[tuple[StreamSettings, Timeouts]]:
        """The last that were put together. (A private attribute of pydantic's is looked up by a function.)"""
        return []

    def _put_together(self, streams: StreamSettings) -> Timeouts:
        """An application may have nothing to say for long, and only a silent connection is a sign of its loss."""
        own = {each.name: getattr(self, each.name) for each in fields(Timeouts)}
        if self.is_application and self.upstream_stall_timeout is None:
            own["upstream_stall_timeout"] = float("inf")
        return Timeouts(**{name: getattr(streams, name) if time is None else time for name, time in own.items()})

    @model_validator(mode="after")
    def _check_tls(self) -> UpstreamSettings:
        if self.ca_file is not None or self.client_cert is not None:
            tls.context(self.ca_file, self.client_cert)
        return self

    @model_validator(mode="after")
    def _check_application(self) -> UpstreamSettings:
        if "sse" in self.apis:
            if not self.paths:
                raise ValueError("apis: sse needs paths: name those of the application, such as /api/chat")
        elif said := [name for name in _OF_APPLICATIONS if getattr(self, name)]:
            raise ValueError(f"{said[0]}: is for applications; write sse among its apis, or take it out")
        elif self.resume.startswith("/"):
            raise ValueError("resume: a path is for applications; write sse among its apis, or take it out")
        return self

    def serves(self, path: str) -> bool:
        """Is this one of the paths of the application that it is? `path` as it was sent; a slash at its end counts for
        nothing."""
        plain = path.removesuffix("/") or "/"
        named = self.resume.startswith("/") and applications.name_in_path(self.resume, path) is not None
        return named or any(applications.matches(pattern, plain) for pattern in self.paths)

    def matches(self, api: str | None, model: str) -> str | None:
        """The pattern that takes this model over this API (None: any), None where there is none."""
        if (api not in self.apis) if api is not None else self.is_application:
            return None
        for pattern in self.models:
            if pattern == "*" or fnmatch.fnmatchcase(model, pattern):
                return pattern
        return None

    def api_key(self) -> str | None:
        return os.environ[self.api_key_env] if self.api_key_env else None
