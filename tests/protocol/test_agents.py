"""Which client is which, by what it says of itself, and what follows from that: row by row."""

from __future__ import annotations

import pytest

from relay.protocol import agents
from relay.protocol.agents import BrokenEnd, HeartbeatForm
from relay.protocol.apis import DIALECTS
from relay.protocol.headers import Headers
from relay.protocol.sse import COMMENT_BLOCK, COMMENT_LINE

CODEX: Headers = [(b"originator", b"codex_exec"), (b"user-agent", b"codex_exec/0.171.0 (Linux)")]
CLAUDE: Headers = [(b"user-agent", b"claude-cli/2.1.332 (external, cli)"), (b"x-app", b"cli")]
OTHER: Headers = [(b"user-agent", b"OpenAI/Python 3.57.0"), (b"x-stainless-retry-count", b"0")]


@pytest.mark.parametrize(
    ("headers", "codex", "claude"),
    [
        (CODEX, True, False),
        ([(b"originator", b"codex_cli_rs")], True, False),
        ([(b"Originator", b"Codex Desktop")], True, False),
        ([(b"user-agent", b"codex_vscode/1.0")], True, False),
        ([(b"user-agent", b"Codex/1.0")], True, False),
        ([(b"user-agent", b"codexamine/1.0")], False, False),
        ([(b"user-agent", b"my-codex_cli_rs/1.0")], False, False),
        (CLAUDE, False, True),
        ([(b"x-claude-code-session-id", b"s")], False, True),
        ([(b"user-agent", b"claude-cli/1")], False, True),
        # Other programs call themselves that, too.
        ([(b"x-app", b"cli")], False, False),
        ([(b"user-agent", b"Anthropic/JS 0.128.0")], False, False),
        (OTHER, False, False),
        ([], False, False),
    ],
)
def test_agents_are_known_by_their_headers(headers: Headers, codex: bool, claude: bool) -> None:
    assert (agents.is_codex(headers), agents.is_claude_code(headers)) == (codex, claude)


KEEPALIVE = b'event: keepalive\ndata: {"type":"keepalive"}\n\n'
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


@pytest.mark.parametrize("comment", [COMMENT_LINE, COMMENT_BLOCK])
@pytest.mark.parametrize(
    ("form", "api", "headers", "beat"),
    [
        ("auto", "responses", CODEX, KEEPALIVE),
        ("auto", "responses", OTHER, None),
        ("auto", "responses", CLAUDE, None),
        ("auto", "chat", CODEX, None),
        ("auto", "messages", OTHER, PING),
        ("auto", "messages", CLAUDE, PING),
        ("comment", "responses", CODEX, None),
        ("comment", "messages", CLAUDE, None),
        ("event", "responses", OTHER, KEEPALIVE),
        ("event", "messages", OTHER, PING),
    ],
)
def test_heartbeats(form: HeartbeatForm, api: str, headers: Headers, beat: bytes | None, comment: bytes) -> None:
    assert agents.heartbeat(form, DIALECTS[api], headers, comment) == (beat or comment)


@pytest.mark.parametrize(
    ("form", "api", "headers", "cut"),
    [
        ("auto", "messages", CLAUDE, True),
        ("auto", "messages", OTHER, False),
        ("auto", "messages", CODEX, False),
        ("auto", "responses", CODEX, False),
        ("auto", "responses", CLAUDE, False),
        ("auto", "chat", CLAUDE, False),
        ("error", "messages", CLAUDE, False),
        *(("cut", api, OTHER, True) for api in DIALECTS),
    ],
)
def test_who_hears_a_loss_as_a_cut(form: BrokenEnd, api: str, headers: Headers, cut: bool) -> None:
    assert agents.hears_losses_as_cuts(form, DIALECTS[api], headers) == cut


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        (b"600", 30),
        (b"300", 30),
        (b"200", 20),
        (b"200.5", 20.05),
        (b"100", 10),
        (b"60", 10),
        (b"1", 10),
        (b"", 10),
        (b"never", 10),
        (b"-600", 10),
        (b"1e9", 10),
        (b"inf", 10),
        (b"9" * 400, 10),
    ],
)
def test_the_patience_of_a_client_that_waits_for_long_itself(told: bytes, seconds: float) -> None:
    assert agents.patience(10, 30, told) == pytest.approx(seconds)


def test_a_limit_below_the_patience_does_not_shorten_it() -> None:
    assert agents.patience(10, 5, b"600") == 10
    assert agents.patience(10, 30, None) == 10
