"""What coding agents send, and what they make of an answer, each fact with a client of these tests' own.

The agents themselves were watched (`tests/agents/rig`); what they would do is told here by what reaches them: bytes,
headers, and how a connection ended.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.auth.keyed import ENV, config, issued
from tests.conftest import Relays
from tests.deploy.h2client import H2Client
from tests.support.asking import ask
from tests.support.samples import SAMPLES, Sample, error_of, refusal_of, resume
from tests.support.scripted import Cut, Gate, Pause, ScriptedUpstream, Step, json_response, stream
from tests.support.site import PairSite, Site, one_relay, pair_of_relays
from tests.support.sseclient import RawStream
from tests.support.streams import APIS, Api

pytestmark = pytest.mark.slow

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODEX = {
    "authorization": "Bearer sk-codex",
    "originator": "codex_exec",
    "user-agent": "codex_exec/0.171.0 (Linux; x86_64)",
    "version": "0.171.0",
    "session-id": "0199-session",
    "thread-id": "0199-thread",
    "x-codex-window-id": "window",
    "x-codex-turn-metadata": json.dumps({"turn": "x" * 600}),
    "x-codex-beta-features": "a,b",
    "x-client-request-id": "0199-session",
    "accept": "text/event-stream",
}
CLAUDE = {
    "x-api-key": "sk-claude",
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "a-2025-01-01,b-2025-01-01",
    "anthropic-dangerous-direct-browser-access": "true",
    "user-agent": "claude-cli/2.1.332 (external, cli)",
    "x-app": "cli",
    "x-claude-code-session-id": "session",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
    "accept": "application/json",
}
OPENCODE = {"authorization": "Bearer sk-open", "x-session-id": "ses_1", "x-session-affinity": "ses_1"}
OF: dict[Api, dict[str, str]] = {"responses": CODEX, "messages": CLAUDE, "chat": OPENCODE}
TURN = {
    "x-codex-turn-state": "turn-state-1",
    "x-models-etag": 'W/"models"',
    "x-codex-primary-used-percent": "12",
    "x-reasoning-included": "true",
    "openai-model": "gpt-other",
    "x-ratelimit-remaining-tokens": "9",
}
LASTING = {name: value for name, value in TURN.items() if "ratelimit" not in name}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    # No longer patience: in these tests a late refusal is one after 700 ms.
    with one_relay(streams={"heartbeat": "150ms", "patience": "700ms", "patience_limit": "700ms"}) as site:
        yield site


@pytest.fixture(scope="module")
def pair() -> Iterator[PairSite]:
    with pair_of_relays({"heartbeat": "5s", "patience": "300ms", "patience_limit": "300ms"}) as site:
        yield site


def asked(url: str, api: Api, model: str, headers: dict[str, str] | None = None) -> RawStream:
    sample = SAMPLES[api]
    return ask(url + sample.path, headers={**OF[api], **(headers or {})}, body=sample.body(model))


def cut_after(sample: Sample, events: int, *before: Step) -> tuple[Step, ...]:
    """An upstream whose connection ends after so many events."""
    return (*stream(*sample.frames[:events], *before)[:-1], Cut())


# -- Codex: the way up ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [False, True], ids=["passthrough", "keys"])
def test_a_probe_for_a_websocket_is_answered_at_once_and_goes_nowhere(
    upstream: ScriptedUpstream, relays: Relays, keys: bool
) -> None:
    settings = (
        config(upstream, issued("alice")[1]) if keys else {"upstreams": [{"name": "up", "base_url": upstream.url}]}
    )
    relay = relays.start(settings, ENV)
    probe = {"connection": "Upgrade", "upgrade": "websocket", "openai-beta": "responses_websockets=2026-02-06"}
    # A key that the relay does not know: what another protocol is answered is no secret.
    answer = ask(relay.url + "/v1/responses", "GET", {**CODEX, **probe})
    assert (answer.status, refusal_of("responses", answer.read())[0]) == (426, "upgrade_required")
    assert upstream.calls == []


def test_a_body_in_zstd_is_read_and_goes_on_as_it_is_without(site: Site) -> None:
    sample = SAMPLES["responses"]
    site.upstream.on("zstd", *stream(*sample.frames))
    body = json.dumps(sample.body("zstd", padding="x" * 40_000)).encode()
    packed = zstd.compress(body)
    answer = ask(site.relay.url + sample.path, headers={**CODEX, "content-encoding": "zstd"}, body=packed)
    assert answer.status == 200
    (call,) = site.upstream.calls_of("zstd")
    assert (call.body, call.header("content-encoding")) == (body, None)
    assert call.header("content-length") == str(len(body))


@pytest.mark.parametrize("api", APIS)
def test_the_headers_of_a_session_and_of_a_turn_go_up(site: Site, api: Api) -> None:
    site.upstream.on(f"up-{api}", *stream(*SAMPLES[api].frames))
    asked(site.relay.url, api, f"up-{api}", {"x-codex-turn-state": "turn-state-0"}).read()
    (call,) = site.upstream.calls_of(f"up-{api}")
    for name, value in {**OF[api], "x-codex-turn-state": "turn-state-0"}.items():
        assert call.header(name) == value


def test_an_upstream_with_paths_of_its_own(upstream: ScriptedUpstream, relays: Relays) -> None:
    served = {"name": "up", "base_url": upstream.url, "path_map": {"/v1": "/backend-api/codex"}}
    relay = relays.start({"upstreams": [served]})
    sample = SAMPLES["responses"]
    upstream.on("mapped", *stream(*sample.frames))
    upstream.on_path("GET /backend-api/codex/models", *json_response(200, {"models": []}))
    upstream.on_path("POST /backend-api/codex/responses/compact", *json_response(200, {"compacted": True}))
    assert asked(relay.url, "responses", "mapped").status == 200
    assert ask(relay.url + "/v1/models?client_version=0.171.0", "GET", CODEX).json == {"models": []}
    compacted = ask(relay.url + "/v1/responses/compact", headers=CODEX, body={"model": "mapped"})
    assert compacted.json == {"compacted": True}
    assert [call.path for call in upstream.calls] == [
        "/backend-api/codex/responses",
        "/backend-api/codex/models?client_version=0.171.0",
        "/backend-api/codex/responses/compact",
    ]


# -- Codex: the way down -------------------------------------------------------------------------------------------


def shown(answer: RawStream, names: dict[str, str]) -> dict[str, str]:
    return {name: answer.headers[name] for name in names if name in answer.headers}


def test_a_turn_s_headers_come_down_with_its_stream_and_with_every_resume_on_every_replica(pair: PairSite) -> None:
    sample = SAMPLES["responses"]
    pair.upstream.on("turn", *stream(*sample.frames[:3], Gate("turn"), *sample.frames[3:], headers=TURN))
    answer = asked(pair.replicas[0].url, "responses", "turn")
    assert shown(answer, TURN) == TURN
    first = next(iter(answer))
    assert first.id is not None
    for relay in (pair.replicas[0], pair.replicas[1]):
        with resume(relay, sample, first.id, token="sk-codex") as again:
            assert shown(again, TURN) == LASTING
    pair.upstream.open("turn")
    answer.read()
    for relay in (pair.replicas[0], pair.replicas[1]):
        with resume(relay, sample, first.id, token="sk-codex") as again:
            assert shown(again, TURN) == LASTING


def test_a_stream_that_began_before_its_upstream_answered_has_them_for_who_comes_later(pair: PairSite) -> None:
    sample = SAMPLES["responses"]
    pair.upstream.on(
        "late", Gate("late"), *stream(*sample.frames[:3], Gate("late-end"), *sample.frames[3:], headers=TURN)
    )
    answer = asked(pair.replicas[0].url, "responses", "late")
    assert (answer.status, shown(answer, TURN)) == (200, {})
    pair.upstream.open("late")
    first = next(part for part in answer if part.id)
    assert first.id is not None
    for relay in (pair.replicas[0], pair.replicas[1]):
        with resume(relay, sample, first.id, token="sk-codex") as again:
            assert shown(again, TURN) == LASTING
    pair.upstream.open("late-end")


@pytest.mark.parametrize("omit", [False, True], ids=["ids", "no ids"])
@pytest.mark.parametrize("buffer", [True, False], ids=["logged", "unlogged"])
def test_a_silent_stream_sends_codex_events_between_whole_events(
    upstream: ScriptedUpstream, relays: Relays, buffer: bool, omit: bool
) -> None:
    served = {"name": "up", "base_url": upstream.url, "buffer": buffer}
    streams = {"heartbeat": "150ms", "patience": "200ms", "patience_limit": "200ms"}
    relay = relays.start({"upstreams": [served], "streams": streams})
    sample = SAMPLES["responses"]
    upstream.on("quiet", Pause(1.0), *stream(*sample.frames[:5], Pause(0.6), *sample.frames[5:]))
    answer = asked(relay.url, "responses", "quiet", {"relay-event-ids": "omit"} if omit else {})
    parts = list(answer)
    beats = [part for part in parts if part.event == "keepalive"]
    assert {part.raw for part in beats} == {b'event: keepalive\ndata: {"type":"keepalive"}\n\n'}
    assert parts[0] in beats, "none before the first event"
    assert beats[-1] in parts[len(beats) - 1 :], "none between two events"
    assert [part.data for part in parts if part not in beats] == [event.data for event in sample.events]
    assert answer.ended == "zero-chunk"
    if buffer:
        with resume(relay, sample, f"{answer.headers['relay-stream-id']}.0", token="sk-codex") as again:
            assert [part.data for part in again] == [event.data for event in sample.events], "a heartbeat was logged"


@pytest.mark.parametrize(
    ("form", "api", "headers", "beat"),
    [
        ("auto", "responses", {"originator": "other", "user-agent": "OpenAI/Python 3.57.0"}, b": hb\n"),
        ("auto", "messages", {}, b'event: ping\ndata: {"type":"ping"}\n\n'),
        ("auto", "chat", {}, b": hb\n"),
        ("comment", "responses", {}, b": hb\n"),
        ("comment", "messages", {}, b": hb\n"),
        ("event", "responses", {"originator": "other", "user-agent": "x"}, b"event: keepalive\n"),
        ("event", "chat", {}, b"event: keepalive\n"),
    ],
)
def test_heartbeats_of_all_forms(
    upstream: ScriptedUpstream, relays: Relays, form: str, api: Api, headers: dict[str, str], beat: bytes
) -> None:
    served = {"upstreams": [{"name": "up", "base_url": upstream.url}]}
    relay = relays.start({**served, "streams": {"heartbeat": "150ms", "heartbeat_form": form}})
    sample = SAMPLES[api]
    upstream.on("quiet", *stream(*sample.frames[:4], Pause(0.8), *sample.frames[4:]))
    answer = asked(relay.url, api, "quiet", headers)
    parts = list(answer)
    beats = [part.raw for part in parts if part.id is None]
    assert beats
    assert all(raw.startswith(beat) for raw in beats)
    assert [part.data for part in parts if part.id is not None] == [event.data for event in sample.events]


def test_a_late_429_tells_codex_how_long_to_wait_and_nothing_at_which_it_gives_up(site: Site) -> None:
    refused = json_response(429, {"error": {"message": "Slow down.", "code": "slow"}}, {"retry-after": "7"})
    site.upstream.on("late-429", Pause(1.2), *refused)
    answer = asked(site.relay.url, "responses", "late-429")
    error, failed = [part for part in answer if part.event in ("error", "response.failed")]
    assert error.json["code"] == "upstream_refused"
    told = failed.json["response"]["error"]
    assert told["code"] == "rate_limit_exceeded"
    assert "try again in 7 seconds" in told["message"].lower()


@pytest.mark.parametrize("status", [503, 529])
def test_a_late_overload_is_no_reason_to_give_up(site: Site, status: int) -> None:
    refused = json_response(status, {"error": {"message": "Busy.", "code": "server_is_overloaded"}})
    site.upstream.on(f"late-{status}", Pause(1.2), *refused)
    answer = asked(site.relay.url, "responses", f"late-{status}")
    assert b"server_is_overloaded" not in b"".join(part.raw for part in answer)


# -- Claude Code ---------------------------------------------------------------------------------------------------


def ending(answer: RawStream) -> tuple[list[str | None], str | None]:
    """The kinds of its events, and how its connection ended."""
    kinds = [part.event for part in answer if not part.is_heartbeat]
    return kinds, answer.ended


@pytest.mark.parametrize("events", [1, 4])
def test_a_lost_stream_ends_claude_code_s_connection_and_a_resume_is_told_the_error(site: Site, events: int) -> None:
    sample = SAMPLES["messages"]
    site.upstream.on(f"lost-{events}", *cut_after(sample, events, Gate(f"lost-{events}")))
    answer = asked(site.relay.url, "messages", f"lost-{events}")
    site.upstream.open(f"lost-{events}")
    kinds, ended = ending(answer)
    assert kinds == [event.kind for event in sample.events[:events]], "it was told an error"
    assert ended in ("fin", "reset"), "it looks complete"
    stream_id = answer.headers["relay-stream-id"]
    for n in (0, events):
        with resume(site.relay, sample, f"{stream_id}.{n}", token="sk-claude") as again:
            assert error_of("messages", list(again)[events - n :])[0] == "upstream_disconnected"


def test_who_has_joined_on_another_replica_hears_the_loss_in_the_same_way(pair: PairSite) -> None:
    sample = SAMPLES["messages"]
    pair.upstream.on("lost-joined", *cut_after(sample, 3, Gate("lost-joined")))
    key = {"idempotency-key": "joined"}
    answers = [asked(pair.replicas[n].url, "messages", "lost-joined", key) for n in (0, 1)]
    other = {**sample.headers("sk-claude"), **key}
    answers.append(ask(pair.replicas[1].url + sample.path, headers=other, body=sample.body("lost-joined")))
    for answer in answers:
        assert len(answer.events(3)) == 3
    pair.upstream.open("lost-joined")
    kinds, ends = zip(*(ending(answer) for answer in answers), strict=True)
    assert kinds == ([], [], ["error"])
    assert [end in ("fin", "reset") for end in ends] == [True, True, False]
    assert len(pair.upstream.calls_of("lost-joined")) == 1


def test_over_http2_only_the_stream_is_cut(site: Site) -> None:
    sample = SAMPLES["messages"]
    site.upstream.on("lost-h2", *cut_after(sample, 3, Gate("lost-h2")))
    site.upstream.on("fine-h2", *stream(*sample.frames))
    with H2Client(site.relay.url) as client:
        lost = client.send("POST", sample.path, CLAUDE, sample.body("lost-h2"))
        client.until(lambda: len(lost.events()) == 3)
        site.upstream.open("lost-h2")
        client.until(lambda: lost.ended is not None)
        assert (lost.ended, len(lost.events())) == ("reset", 3)
        fine = client.send("POST", sample.path, CLAUDE, sample.body("fine-h2"))
        client.until(lambda: fine.ended is not None)
        assert fine.ended == "end"


@pytest.mark.parametrize(
    ("form", "agent", "cut"),
    [("auto", False, False), ("error", True, False), ("cut", False, True), ("cut", True, True)],
)
@pytest.mark.parametrize("api", APIS)
def test_who_hears_a_loss_how(
    upstream: ScriptedUpstream, relays: Relays, api: Api, form: str, agent: bool, cut: bool
) -> None:
    relay = relays.start({"upstreams": [{"name": "up", "base_url": upstream.url}], "streams": {"broken_end": form}})
    sample = SAMPLES[api]
    upstream.on("lost", *cut_after(sample, 2))
    answer = ask(relay.url + sample.path, headers=OF[api] if agent else sample.headers(), body=sample.body("lost"))
    parts = list(answer)
    assert (answer.ended in ("fin", "reset"), len(parts) == 2) == (cut, cut)


def test_the_upstream_s_own_error_is_told_as_it_is(site: Site) -> None:
    sample = SAMPLES["messages"]
    error = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
    site.upstream.on("own", *stream(*sample.frames[:3], error))
    answer = asked(site.relay.url, "messages", "own")
    assert ending(answer) == ([*(event.kind for event in sample.events[:3]), "error"], "zero-chunk")


@pytest.mark.parametrize(("status", "cut"), [(429, True), (529, True), (500, True), (400, False), (401, False)])
def test_a_late_refusal_that_passes_is_a_cut_and_one_that_stays_is_told(site: Site, status: int, cut: bool) -> None:
    refused = json_response(status, {"type": "error", "error": {"type": "some_error", "message": "No."}})
    site.upstream.on(f"claude-late-{status}", Pause(1.2), *refused)
    kinds, ended = ending(asked(site.relay.url, "messages", f"claude-late-{status}"))
    assert (kinds, ended in ("fin", "reset")) == (([], True) if cut else (["error"], False))


@pytest.mark.parametrize(("told", "status"), [("600", 429), ("20", 200), (None, 200)])
def test_who_waits_for_long_itself_gets_a_late_refusal_with_its_status(
    upstream: ScriptedUpstream, relays: Relays, told: str | None, status: int
) -> None:
    streams = {"patience": "300ms", "patience_limit": "6s"}
    relay = relays.start({"upstreams": [{"name": "up", "base_url": upstream.url}], "streams": streams})
    refused: Any = json_response(429, {"error": {"message": "Slow down."}}, {"retry-after": "7"})
    upstream.on("late", Pause(3.0), *refused)
    headers = {name: value for name, value in CLAUDE.items() if name != "x-stainless-timeout"}
    answer = ask(
        relay.url + "/v1/messages",
        headers=headers if told is None else {**headers, "x-stainless-timeout": told},
        body=SAMPLES["messages"].body("late"),
    )
    assert (answer.status, answer.headers.get("retry-after")) == (status, "7" if status == 429 else None)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_look_whether_the_api_is_there_is_no_refusal(site: Site, method: str) -> None:
    before = refusals(site)
    answer = ask(site.relay.url + "/api/hello", method, CLAUDE)
    assert answer.status == 200
    assert answer.read() == (b"" if method == "HEAD" else b'{"message":"hello"}')
    assert refusals(site) == before
    ask(site.relay.url + "/api/other", "HEAD", CLAUDE).read()
    assert refusals(site) == before + 1
    assert not [call for call in site.upstream.calls if "hello" in call.path]


def refusals(site: Site) -> float:
    with urllib.request.urlopen(site.relay.metrics_url + "/metrics", timeout=10) as metrics:
        lines = metrics.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("relay_refusals_total{"))


# -- opencode ------------------------------------------------------------------------------------------------------


def test_a_clean_end_without_a_finish_is_no_answer(site: Site) -> None:
    sample = SAMPLES["chat"]
    site.upstream.on("no-finish", *stream(*sample.frames[:4]))
    answer = asked(site.relay.url, "chat", "no-finish")
    assert error_of("chat", list(answer)[4:])[0] == "upstream_disconnected"


# -- all of them, with a relay's key -------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
def test_a_turn_with_a_relay_s_key(upstream: ScriptedUpstream, relays: Relays, api: Api) -> None:
    key, entry = issued("alice")
    relay = relays.start(config(upstream, entry), ENV)
    sample = SAMPLES[api]
    upstream.on("turn", *stream(*sample.frames))
    shown_as = {"x-api-key": key} if api == "messages" else {"authorization": f"Bearer {key}"}
    answer = asked(relay.url, api, "turn", shown_as)
    assert [part.data for part in answer if not part.is_heartbeat] == [event.data for event in sample.events]
    (call,) = upstream.calls_of("turn")
    assert key not in str(call.headers)
