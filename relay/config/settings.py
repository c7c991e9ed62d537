"""What can be set, each with its default and the text of the settings reference."""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from relay.config import tls
from relay.config.auth import AuthSettings
from relay.config.units import (
    Address,
    Duration,
    DurationOrNever,
    DurationOrOff,
    DurationOrZero,
    OrOff,
    RateText,
    Section,
    Size,
    off_to_word,
    variable,
)
from relay.encryption import PLAIN, Cipher
from relay.protocol.apis import ApiName


class StoreSettings(Section):
    url: Annotated[str, Field(pattern=r"^(embedded$|rediss?://|unix://|rediss?\+sentinel://|rediss?\+cluster://)")] = (
        Field(
            "embedded",
            description="`embedded` (a Valkey of the relay's own in `data_dir`), or a URL: `redis://`, `rediss://`, "
            "`unix://`, `redis+sentinel://host:port,host:port/master-name`, `redis+cluster://host:port,host:port`.",
        )
    )
    data_dir: Path = Field(Path("relay-data"), description="Where the embedded store keeps its socket and file.")
    outage: Literal["degrade", "refuse"] = Field(
        "degrade",
        description="New streams while the store cannot be reached: `degrade` relays them without a log, "
        "`refuse` answers 503.",
    )
    hold: Duration = Field(
        5.0,
        description="How long the events of a stream in flight are held back for a store that does not answer. Then "
        "they are shown, with their ids, and written when it is back.",
    )
    ahead: Size = Field(
        64 * 1024**2,
        description="How much of all streams a replica may show before the store holds it; with more, upstreams wait.",
    )
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,64}$")] = Field(
        "relay:",
        description="What its keys and channels there begin with; deployments that share a server have one each.",
    )
    encryption_env: OrOff[Annotated[str, AfterValidator(variable)]] = Field(
        None,
        description="The environment variable that holds the keys under which events are kept: 32 bytes in base64 each "
        "(`openssl rand -base64 32`), separated by commas. The first encrypts, each of them decrypts. `none` among "
        "them: events that are not encrypted are read, too; `none` first: nothing is encrypted yet. `off`: as `none`.",
    )

    @model_validator(mode="after")
    def _check(self) -> StoreSettings:
        try:
            self.cipher()
        except ValueError as error:
            raise ValueError(f"encryption_env: {self.encryption_env}: {error}") from None
        return self

    def cipher(self) -> Cipher:
        return Cipher(os.environ.get(self.encryption_env, "") if self.encryption_env else PLAIN)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one upstream may take, in seconds: its own setting, or the one of that name in `streams`."""

    upstream_answer_timeout: float
    unstreamed_answer_timeout: float
    first_token_timeout: float
    upstream_stall_timeout: float
    upstream_idle_timeout: float


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
        "asked again, before the next one is.",
    )
    api_key_env: str | None = Field(
        None,
        description="The environment variable that holds its key. Absent: the client's own credentials go upstream.",
    )
    headers: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]] = Field(
        [],
        description="Patterns of further headers that cross to it and back (`helicone-*`, `session_id`), beside those "
        "of HTTP and of the APIs and every `x-…`; what they name comes with streams and resumes, too.",
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


class StreamSettings(Section):
    heartbeat: Duration = Field(15.0, description="A silent stream gets a sign of life this often.")
    patience: Duration = Field(
        10.0, description="How long to wait for the upstream's status before the relay answers 200 itself."
    )
    upstream_answer_timeout: DurationOrOff = Field(
        120.0,
        description="How long an upstream that has a request for a stream may take to answer at all. `off`: for ever.",
    )
    unstreamed_answer_timeout: Duration = Field(
        600.0, description="The same for every other request: the whole answer may be made before its first byte."
    )
    first_token_timeout: DurationOrOff = Field(
        float("inf"), description="How long the first output may take, from the request on. `off`: no limit."
    )
    upstream_stall_timeout: DurationOrOff = Field(
        120.0,
        description="An upstream that has sent no event of its answer for so long has failed, whatever keeps its "
        "connection alive. `off`: no limit.",
    )
    upstream_idle_timeout: Duration = Field(
        300.0, description="An upstream that has sent nothing at all for so long, keep-alives included, has failed."
    )
    max_duration: Duration = Field(3600.0, description="The longest a stream may run.")
    abandon_after: DurationOrNever = Field(
        60.0,
        description="No reader for so long: the upstream call is cancelled, or drained where its `after_abandon` says "
        "so. `0s`: at once. `off`: never.",
    )
    detached: DurationOrNever = Field(
        600.0,
        description="How long a detached generation (`Prefer: respond-async`) runs before its first reader. `off`: to "
        "its end.",
    )
    retention: Duration = Field(3600.0, description="How long a stream can be read after its end.")
    tombstone: DurationOrZero = Field(86400.0, description="How long after that a resume answers 410 instead of 404.")
    lease: Duration = Field(10.0, description="A producer that has not been heard of for so long is lost.")
    event_ids: Literal["always", "ask"] = Field(
        "always",
        description="Which frames have their ids. `ask`: those of requests with `Relay-Event-Ids: include`, and of "
        "resumes. With either, `Relay-Event-Ids: omit` leaves them out.",
    )
    max_event_bytes: Size = Field(8 * 1024**2, description="The largest event.")
    max_stream_bytes: Size = Field(64 * 1024**2, description="The largest stream.")
    attach_retries: bool = Field(False, description="An SDK's own retry joins the generation in flight.")


class TicketSettings(Section):
    scope: Annotated[Literal["off", "read", "read+stop"], BeforeValidator(off_to_word)] = Field(
        "read",
        description="What the ticket in `Relay-Stream-Url` lets its holder do; a request's `Relay-Ticket` header says "
        "otherwise for its stream.",
    )
    ttl: Duration = Field(3600.0, description="How long a ticket is good for.")


class CorsSettings(Section):
    origins: list[Annotated[str, Field(pattern=r"^(\*|https?://[^/?#@\s]+)$")]] = Field(
        [], description="Origins whose pages may call the relay (`https://app.example`, or `*`)."
    )


class LimitSettings(Section):
    body: Size = Field(32 * 1024**2, description="The largest JSON request body.")
    readers_per_stream: Annotated[int, Field(gt=0)] = Field(64, description="Readers of one stream on one replica.")
    streams_per_owner: Annotated[int, Field(gt=0)] = Field(256, description="Live streams of one owner on one replica.")
    streams: Annotated[int, Field(gt=0)] = Field(10000, description="Live streams on one replica.")
    read_timeout: Duration = Field(
        30.0,
        description="How long a new connection may take for its first request's head, and a request's body to reach a "
        "pace of 1 KiB/s; time that the relay or the upstream takes is not counted.",
    )
    open_rate: OrOff[RateText] = Field(
        None, description="Requests of one owner that go upstream, on one replica, such as `600/m`. `off`: no limit."
    )
    resume_rate: OrOff[RateText] = Field(
        None, description="Requests of one owner for streams that are there: resume, status, stop, retrieve."
    )
    replay_rate: OrOff[RateText] = Field(
        None, description="Events of one owner's resumes that are sent once more, such as `100000/m`."
    )
    idle_timeout: Duration = Field(
        75.0,
        description="A connection is closed after so long without a request; longer than a proxy in front keeps it.",
    )
    write_timeout: Duration = Field(30.0, description="A reader that takes nothing for so long is dropped.")


class DrainSettings(Section):
    timeout: DurationOrZero = Field(
        600.0, description="After SIGTERM, how long own streams may run on before they are ended."
    )


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="What is logged. At `debug` the words of upstreams' errors are, too, which may quote a prompt.",
    )
    format: Literal["text", "json"] = Field("text", description="For people or for machines.")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="RELAY_", env_nested_delimiter="__", case_sensitive=False
    )

    bind: Address = Field("127.0.0.1:8080", description="The address for clients.")
    metrics_bind: Address = Field("127.0.0.1:9090", description="The address of `/metrics`, never the public one.")
    workers: Annotated[int, Field(ge=1, le=256)] = Field(1, description="Processes that share the address.")
    store: StoreSettings = StoreSettings()
    upstreams: list[UpstreamSettings] = Field(
        [], description="Where requests go, in order; the first whose `apis` and `models` match wins."
    )
    streams: StreamSettings = StreamSettings()
    auth: AuthSettings = AuthSettings()
    tickets: TicketSettings = TicketSettings()
    cors: CorsSettings = CorsSettings()
    playground: bool = Field(
        False,
        description="Serve a page at `/playground` to try streams by hand. It needs no credential of its own: the page "
        "asks for one.",
    )
    playground_replicas: list[Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?$")]] = Field(
        [],
        description="Other replicas that the page can switch to (`http://127.0.0.1:8081`); their `cors.origins` must "
        "name this one.",
    )
    limits: LimitSettings = LimitSettings()
    drain: DrainSettings = DrainSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _check(self) -> Settings:
        names = [u.name for u in self.upstreams]
        if len(set(names)) < len(names):
            raise ValueError(f"upstreams: two have the same name ({', '.join(names)}); give each its own")
        for upstream in self.upstreams:
            if self.auth.mode == "keys" and not upstream.api_key_env:
                raise ValueError(
                    f"upstreams.{upstream.name}.api_key_env: is missing, and with auth.mode keys no credential of a "
                    "client's goes upstream; name the variable that holds its key (any word, where it wants none)"
                )
            if upstream.api_key_env and not os.environ.get(upstream.api_key_env):
                raise ValueError(
                    f"upstreams.{upstream.name}.api_key_env: the environment variable "
                    f"{upstream.api_key_env} is not set; set it or take the key out"
                )
        return self

    @classmethod
    def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, *_: Any, **__: Any) -> Any:
        # load() merges file, environment and flags itself, so that each error can name its source.
        return (init_settings,)
