"""What can be set of streams, whatever upstream they come from."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from relay.config.units import Duration, DurationOrNever, DurationOrOff, DurationOrZero, Section, Size
from relay.protocol.agents import BrokenEnd, HeartbeatForm

_HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"


def to_attaching(value: object) -> object:
    """Earlier versions had a switch here; and without quotes YAML 1.1 reads `off` as one."""
    return {"true": "marked", "false": "off"}.get(str(value).lower(), value)


class StreamSettings(Section):
    heartbeat: Duration = Field(15.0, description="A silent stream gets a sign of life this often.")
    patience: Duration = Field(
        10.0, description="How long to wait for the upstream's status before the relay answers 200 itself."
    )
    patience_limit: Duration = Field(
        30.0,
        description="The longest such wait, for a client that says how long it waits itself (`X-Stainless-Timeout`): "
        "it is given a tenth of that, so that a late refusal keeps its status. Proxies want a byte within 30 to 60 s.",
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
    upstream_resume: DurationOrZero = Field(
        60.0,
        description="How long the relay tries to come back to an upstream whose answer broke off, where that can go on "
        "(`upstreams[].resume`, `upstreams[].continue`); readers get heartbeats meanwhile. `0s`: not at all.",
    )
    max_duration: Duration = Field(3600.0, description="The longest a stream may run.")
    abandon_after: DurationOrNever = Field(
        60.0,
        description="No reader for so long: the upstream call is cancelled, or drained where its `after_abandon` says "
        "so. `0s`: at once. `off`: never. So long a lost replica's stream waits for its owner, too, where only his "
        "credentials are good upstream.",
    )
    abandon_limit: Duration = Field(
        3600.0,
        description="The longest such time that a request can ask for (`Relay-Abandon-After`); more is taken as this.",
    )
    detached: DurationOrNever = Field(
        600.0,
        description="How long a detached generation (`Prefer: respond-async`) runs before its first reader. `off`: to "
        "its end.",
    )
    retention: Duration = Field(3600.0, description="How long a stream can be read after its end.")
    tombstone: DurationOrZero = Field(86400.0, description="How long after that a resume answers 410 instead of 404.")
    lease: Duration = Field(
        10.0,
        description="A producer that has not been heard of for so long is lost: another replica goes on with its "
        "streams where their upstreams can (`upstreams[].resume`), and ends the others.",
    )
    event_ids: Literal["always", "ask"] = Field(
        "always",
        description="Which frames have their ids. `ask`: those of requests with `Relay-Event-Ids: include`, and of "
        "resumes. With either, `Relay-Event-Ids: omit` leaves them out.",
    )
    heartbeat_form: HeartbeatForm = Field(
        "auto",
        description="`event`: a heartbeat is an event of the API's (`ping`, `keepalive`, a chunk without choices). "
        "`comment`: a comment. `auto`: an event on messages, as the API's own, and for agents that count nothing else "
        "(Codex on responses).",
    )
    broken_end: BrokenEnd = Field(
        "auto",
        description="How the client of a POST hears that its stream was lost: the upstream's connection, a time-out, "
        "the replica, a refusal that passes. `error`: by the API's error event. `cut`: its connection is cut, and a "
        "resume is told the error. `auto`: cut for agents that leave streaming at an error event (Claude Code).",
    )
    max_event_bytes: Size = Field(8 * 1024**2, description="The largest event.")
    max_stream_bytes: Size = Field(64 * 1024**2, description="The largest stream, counted as clients get it.")
    attach_retries: Annotated[Literal["auto", "marked", "off"], BeforeValidator(to_attaching)] = Field(
        "auto",
        description="Which requests join the generation of an earlier one that is the same but for the order of its "
        "members, has the same owner, path and session, and whose reader went before its end. `auto`: those with a "
        "session header, and an SDK's own retries. `marked`: only the latter (`x-stainless-retry-count` above 0).",
    )
    attach_window: Duration = Field(
        10.0, description="How long after its end a generation whose reader went can still be joined."
    )
    session_headers: list[Annotated[str, Field(pattern=_HEADER_NAME)]] = Field(
        ["x-claude-code-session-id", "session-id", "x-session-id"],
        description="Names of headers in which agents send their session. The first of them that a request has counts.",
    )

    @cached_property
    def session_names(self) -> tuple[bytes, ...]:
        """Those as a request has them."""
        return tuple(name.lower().encode() for name in self.session_headers)
