"""What can be set, each with its default and the text of the settings reference."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from relay.config.auth import AuthSettings
from relay.config.streams import StreamSettings
from relay.config.units import (
    AUTO,
    Address,
    Duration,
    DurationOrZero,
    OrOff,
    RateText,
    Section,
    Size,
    SizeOrAuto,
    Workers,
    off_to_word,
    variable,
)
from relay.config.upstreams import UpstreamSettings
from relay.config.webhook import WebhookSettings
from relay.encryption import PLAIN, Cipher


class StoreSettings(Section):
    url: Annotated[str, Field(pattern=r"^(embedded$|rediss?://|unix://|rediss?\+sentinel://|rediss?\+cluster://)")] = (
        Field(
            "embedded",
            description="`embedded` (a Valkey of the relay's own in `data_dir`), or a URL: `redis://`, `rediss://`, "
            "`unix://`, `redis+sentinel://host:port,host:port/master-name`, `redis+cluster://host:port,host:port`.",
        )
    )
    data_dir: Path = Field(Path("relay-data"), description="Where the embedded store keeps its socket and file.")
    max_memory: OrOff[SizeOrAuto] = Field(
        AUTO,
        description="How much memory the embedded store takes. `auto`: a quarter of what the relay may use (its "
        "machine's memory, or its container's limit). When it is full, streams that run go on out of the relay's own, "
        "up to `ahead`, and `outage` decides of new ones. `off`: no limit but the kernel's, which ends the store.",
    )
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
    compact: bool = Field(
        True,
        description="Keep of an event only what differs from an earlier one of its stream: a tenth to a third of its "
        "bytes. Limits count events as clients get them all the same. Replicas of version 0.2 and before cannot read "
        "such events, and send readers to other replicas: `false` until none of them is left.",
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


class TicketSettings(Section):
    scope: Annotated[Literal["off", "read", "read+stop"], BeforeValidator(off_to_word)] = Field(
        "read",
        description="What the ticket in `Relay-Stream-Url` lets its holder do; a request's `Relay-Ticket` header says "
        "otherwise for its stream.",
    )
    ttl: Duration = Field(
        3600.0,
        description="How long a ticket is good beyond the time that its stream may run (`streams.max_duration`): none "
        "ends before its stream.",
    )


class CorsSettings(Section):
    origins: list[Annotated[str, Field(pattern=r"^(\*|https?://[^/?#@\s]+)$")]] = Field(
        [], description="Origins whose pages may call the relay (`https://app.example`, or `*`)."
    )


class LimitSettings(Section):
    body: Size = Field(32 * 1024**2, description="The largest JSON request body.")
    bodies: Size = Field(
        256 * 1024**2,
        description="How much of JSON request bodies a replica holds at once, until upstreams have taken them; one "
        "owner may have half of it. Streams that are put together to an answer (`?content=true`) count, too. With "
        "more, requests are refused with 503 `bodies_full`. Less than twice `body` counts as that.",
    )
    readers_per_stream: Annotated[int, Field(gt=0)] = Field(64, description="Readers of one stream on one replica.")
    streams_per_owner: Annotated[int, Field(gt=0)] = Field(256, description="Live streams of one owner on one replica.")
    streams: Annotated[int, Field(gt=0)] = Field(10000, description="Live streams on one replica.")
    listed_streams: Annotated[int, Field(ge=1, le=10000)] = Field(
        256, description="How many of an owner's streams `GET /streams` knows, by name or in its list: the newest ones."
    )
    read_timeout: Duration = Field(
        30.0,
        description="How long a new connection may take for its first request's head, and a request's body to reach a "
        "pace of 1 KiB/s; time that the relay or the upstream takes is not counted.",
    )
    open_rate: OrOff[RateText] = Field(
        None,
        description="Requests of one owner that may go upstream, on one replica, such as `600/m`; counted before their "
        "bodies are read. `off`: no limit.",
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
    write_timeout: Duration = Field(
        30.0, description="A client that takes nothing of its answer for so long is dropped."
    )


class DrainSettings(Section):
    timeout: DurationOrZero = Field(
        600.0,
        description="After SIGTERM, how long own streams may run on before they are ended, or left to another replica "
        "that can go on with them.",
    )


class MetricsSettings(Section):
    models: Literal["patterns", "names"] = Field(
        "patterns",
        description="What the label `model` holds. `patterns`: the pattern of `upstreams[].models` that took the "
        "request. `names`: the model's name at its upstream, from the second request on that the upstream answered "
        "with success; then whoever may ask for models can make labels, up to `metrics.most_names`.",
    )
    most_names: Annotated[int, Field(ge=1, le=10000)] = Field(
        100, description="How many names a process takes; further models are under their pattern."
    )


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="What is logged. At `debug` the words of upstreams' errors are, too, which may quote a prompt.",
    )
    format: Literal["text", "json"] = Field("text", description="For people or for machines.")
    access: Annotated[Literal["off", "streams", "all"], BeforeValidator(off_to_word)] = Field(
        "streams",
        description="Lines that tell who did what. `streams`: a stream's begin and end, readers who come back to it or "
        "leave it before its end, stops, refusals of upstreams. `all`: as well readers who had everything, and the "
        "relay's own refusals of requests for no stream that is there. `off`: failures alone.",
    )


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="RELAY_", env_nested_delimiter="__", case_sensitive=False
    )

    bind: Address = Field("127.0.0.1:8080", description="The address for clients.")
    metrics_bind: Address = Field(
        "127.0.0.1:9464",
        description="The address of `/metrics`, never the public one. Its port is that of OpenTelemetry's exporters "
        "for Prometheus, whose own is 9090.",
    )
    hosts: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9._:*?\[\]-]+$")]] = Field(
        [],
        description="Patterns of the names under which the relay may be asked where it lends a key of its own "
        "(`api_key_env` without `auth.mode: keys`), with a port or for every port (`relay.example`): a page could have "
        "another name point to it. Empty: on loopback the bind address and localhost, elsewhere every name. `/metrics` "
        "on loopback is to be had under these and localhost.",
    )
    workers: Workers = Field(
        1,
        description="Processes that share the address, each a replica on a core of its own. `auto`: one for each core "
        "that the relay may use, by its binding and its control group's quota (a container's CPU limit), rounded down.",
    )
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
    playground_control: str | None = Field(
        None,
        pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?/[A-Za-z0-9_-]+$",
        description="Address of what starts the replicas again, for the page's button that kills one; `relay demo` "
        "sets it. The relay itself asks nothing of it.",
    )
    limits: LimitSettings = LimitSettings()
    webhook: WebhookSettings = WebhookSettings()
    drain: DrainSettings = DrainSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _check(self) -> Settings:
        names = [u.name for u in self.upstreams]
        if len(set(names)) < len(names):
            raise ValueError(f"upstreams: two have the same name ({', '.join(names)}); give each its own")
        if self.webhook.url is not None and self.webhook.retry_for > self.streams.retention:
            raise ValueError(
                "webhook.retry_for: is longer than streams.retention, after which nothing is known of a stream; make "
                "one of them fit the other"
            )
        for upstream in self.upstreams:
            if self.auth.mode == "keys" and upstream.owner:
                if upstream.api_key_env or not upstream.is_application:
                    raise ValueError(
                        f"upstreams.{upstream.name}.owner: with auth.mode keys its application judges its callers "
                        "itself; take api_key_env and all apis but sse out, or take owner out"
                    )
            elif self.auth.mode == "keys" and not upstream.api_key_env:
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

    @property
    def lent(self) -> list[str]:
        """The upstreams whose key is spent by whoever reaches the address."""
        return [u.name for u in self.upstreams if u.api_key_env] if self.auth.mode == "passthrough" else []

    @cached_property
    def asks_for_usage(self) -> bool:
        """Is any upstream asked for usage, whether its client asks or not?"""
        return any(upstream.usage != "passthrough" for upstream in self.upstreams)

    @cached_property
    def continues(self) -> bool:
        """May another call go on with an answer of any upstream?"""
        return any(upstream.continues for upstream in self.upstreams)

    @classmethod
    def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, *_: Any, **__: Any) -> Any:
        # load() merges file, environment and flags itself, so that each error can name its source.
        return (init_settings,)
