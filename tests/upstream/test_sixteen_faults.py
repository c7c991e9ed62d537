"""The faults that a benchmark of failover plays (failoverbench's catalogue), through a relay with a second upstream.

Of none a truncated answer comes that looks whole, none takes longer than its time, and where a generation may run the
request was sent once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.asking import ask
from tests.support.oracle import DONE, PATH, check, error_code, frame
from tests.support.processes import RelayProcess, free_port
from tests.support.scripted import (
    Call,
    Cut,
    Gate,
    Head,
    Pause,
    Reset,
    ScriptedUpstream,
    Send,
    Step,
    json_response,
    stream,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

WORDS = 12
HEAD = Head(200, {"content-type": "text/event-stream"})
FINISH = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":12}}\n\n'
TEXT = [frame(n) for n in range(1, WORDS + 1)]
WHOLE = stream(*TEXT, FINISH, USAGE, DONE)


def refusal(status: int, code: str = "refused", **headers: str) -> tuple[Step, ...]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return json_response(status, {"error": {"message": f"no: {code}", "type": "t", "code": code}}, named)


class InTurn(ScriptedUpstream):
    """Plays a model's scripts one after the other, the last one for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: dict[str, list[tuple[Step, ...]]] = {}

    def _script(self, call: Call) -> tuple[Step, ...]:
        left = self.scripts.get(str(call.json.get("model")), [WHOLE])
        return left.pop(0) if len(left) > 1 else left[0]


@dataclass(frozen=True)
class Bench:
    first: InTurn
    second: InTurn
    relay: RelayProcess

    def play(self, model: str, *scripts: tuple[Step, ...]) -> None:
        self.first.scripts[model] = list(scripts)

    def sends(self, model: str) -> tuple[int, int]:
        """How often the first upstream was asked for that model, and the second for its stand-in."""
        return len(self.first.calls_of(model)), len(self.second.calls_of(f"{model}-stand-in"))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with InTurn() as first, InTurn() as second:
        nobody = f"http://127.0.0.1:{free_port()}"
        on = [429, 503, 529, "unreachable"]
        named = [f"f{n:02}" for n in range(1, 17)] + ["late", "plain", "keyed", "nobody"]
        upstreams: list[dict[str, Any]] = [
            {"name": "nobody", "base_url": nobody, "models": ["nobody"], "next_on": on},
            {
                "name": "first",
                "base_url": first.url,
                "models": ["f*", "late", "plain", "keyed"],
                "next_on": on,
                "wait": "3s",
                "api_key_env": "FIRST_KEY",
            },
            *(
                {
                    "name": f"second-{name}",
                    "base_url": second.url,
                    "models": [name],
                    "model": f"{name}-stand-in",
                    "api_key_env": "SECOND_KEY",
                    "usage": "observe",
                }
                for name in named
            ),
        ]
        streams = {
            "patience": "500ms",
            "heartbeat": "200ms",
            "upstream_answer_timeout": "2s",
            "upstream_stall_timeout": "1s",
            "first_token_timeout": "2s",
        }
        env = {"FIRST_KEY": "key-of-the-first", "SECOND_KEY": "key-of-the-second"}
        with RelayProcess({"upstreams": upstreams, "streams": streams}, env) as relay:
            yield Bench(first, second, relay)


def answer(bench: Bench, model: str, **headers: str) -> str:
    """`whole`, the code of the error that the client is told, or the status of a refusal."""
    sent = {"authorization": "Bearer client-s", **{name.replace("_", "-"): value for name, value in headers.items()}}
    got = ask(bench.relay.url + PATH, headers=sent, body={"model": model, "stream": True, "messages": []})
    if got.status != 200:
        return f"{got.status} {got.json['error']['code']}"
    events = got.events()
    assert got.ended == "zero-chunk"
    codes = [code for event in events if (code := error_code(event)) is not None]
    if codes:
        return codes[0]
    text = [event for event in events if event.data and '"content"' in event.data]
    assert check(text)[0] == WORDS, "truncated, and nobody says so"
    return "whole"


def begun(*then: Step, words: int = 8) -> tuple[Step, ...]:
    return (HEAD, *map(Send, TEXT[:words]), *then)


CUT = begun(Cut())

FAULTS: dict[str, tuple[list[tuple[Step, ...]], str, tuple[int, int], float]] = {
    # model: what the first upstream plays, what the client has of it, sends to each upstream, seconds at most
    "f01": ([refusal(429, retry_after="2"), WHOLE], "whole", (2, 0), 5),  # a limit that says when
    "f02": ([refusal(429)], "whole", (1, 1), 3),  # a limit that does not
    "f03": ([refusal(500, "oops"), WHOLE], "500 oops", (1, 0), 3),  # may have generated
    "f04": ([refusal(503)], "whole", (1, 1), 3),  # overloaded
    "f05": ([(Reset(),), WHOLE], "502 upstream_disconnected", (1, 0), 3),  # reset before a head
    "f06": ([(Gate("never"),)], "upstream_timeout", (1, 0), 5),  # no answer at all
    "f07": ([stream(Pause(0.8), *TEXT, FINISH, DONE)], "whole", (1, 0), 4),  # a slow first token
    "f08": ([CUT, WHOLE], "upstream_disconnected", (1, 0), 3),  # cut in the middle
    "f09": ([begun(Gate("never"), words=4)], "upstream_timeout", (1, 0), 4),  # stalled in the middle
    "f11": ([stream(*TEXT, FINISH, USAGE)], "whole", (1, 0), 3),  # no [DONE]
    "f12": ([refusal(400, "context_length_exceeded")], "400 context_length_exceeded", (1, 0), 3),
    "f13": ([refusal(400, "content_policy_violation")], "400 content_policy_violation", (1, 0), 3),
    "f14": ([CUT], "upstream_disconnected", (1, 0), 3),  # cut, where the second could not go on from there
    "f16": ([refusal(503)], "whole", (1, 1), 3),
    "late": ([(Pause(0.9), *refusal(503))], "whole", (1, 1), 4),  # refused after the client has had its 200
}


@pytest.mark.parametrize("model", FAULTS)
def test_a_fault(bench: Bench, model: str) -> None:
    scripts, outcome, sends, seconds = FAULTS[model]
    bench.play(model, *scripts)
    began = time.monotonic()
    assert answer(bench, model) == outcome
    assert time.monotonic() - began < seconds
    assert bench.sends(model) == sends
    assert answer(bench, "f00-well") == "whole", "and the relay is well afterwards"


def test_a_time_that_was_asked_for_is_waited(bench: Bench) -> None:
    bench.play("f01", refusal(429, retry_after="1"), WHOLE)
    began = time.monotonic()
    assert answer(bench, "f01") == "whole"
    assert time.monotonic() - began >= 1


def test_a_broken_event_is_not_the_end_of_a_whole_answer(bench: Bench) -> None:
    broken = stream(*TEXT[:6], b'data: {"id":\n\n', *TEXT[6:], FINISH, DONE)
    bench.play("f10", broken)
    got = ask(bench.relay.url + PATH, headers={}, body={"model": "f10", "stream": True, "messages": []})
    data = [event.data or "" for event in got.events()]
    told = any("upstream_malformed" in each for each in data)
    assert told or (sum('"content"' in each for each in data), data[-1]) == (WORDS, "[DONE]")
    assert bench.sends("f10") == (1, 0)


def test_an_upstream_that_comes_and_goes(bench: Bench) -> None:
    bench.play("f15", *[refusal(503)] * 3, WHOLE)
    assert [answer(bench, "f15") for _ in range(5)] == ["whole"] * 5
    assert bench.sends("f15") == (5, 3)


def test_an_upstream_that_is_not_there(bench: Bench) -> None:
    assert answer(bench, "nobody") == "whole"
    assert len(bench.second.calls_of("nobody-stand-in")) == 1


def test_each_upstream_gets_its_own_key_model_and_wish_for_usage(bench: Bench) -> None:
    bench.play("f04", refusal(503))
    assert answer(bench, "f04") == "whole"
    call = bench.first.calls_of("f04")[-1]
    assert call.header("authorization") == "Bearer key-of-the-first"
    assert "stream_options" not in call.json
    stand_in = bench.second.calls_of("f04-stand-in")[-1]
    assert stand_in.header("authorization") == "Bearer key-of-the-second"
    assert stand_in.json["stream_options"] == {"include_usage": True}
    assert stand_in.json["messages"] == []


def test_what_is_not_streamed_goes_on_as_well(bench: Bench) -> None:
    bench.play("plain", refusal(529))
    bench.second.scripts["plain-stand-in"] = [json_response(200, {"object": "chat.completion", "model": "theirs"})]
    got = ask(bench.relay.url + PATH, headers={}, body={"model": "plain", "messages": []})
    assert (got.status, got.json["model"]) == (200, "theirs")
    assert bench.sends("plain") == (1, 1)


def test_one_idempotency_key_is_one_generation_wherever_it_is_made(bench: Bench) -> None:
    bench.play("keyed", refusal(503))
    assert [answer(bench, "keyed", idempotency_key="once") for _ in range(3)] == ["whole"] * 3
    assert bench.sends("keyed") == (1, 1)


def test_everything_is_counted_where_it_was_made(bench: Bench) -> None:
    if not bench.sends("late")[1]:
        bench.play("late", *FAULTS["late"][0])
        answer(bench, "late")

    def counted(name: str, **labels: str) -> float:
        found = ask(bench.relay.metrics_url + "/metrics", "GET").read().decode()
        lines = re.findall(rf"^{name}{{(.*)}} (\S+)$", found, re.M)
        return sum(float(v) for have, v in lines if all(f'{k}="{w}"' in have for k, w in labels.items()))

    late = {"upstream": "second-late"}
    wait_until(lambda: counted("relay_streams_total", outcome="completed", **late) == 1, 5, "the stream's end")
    assert counted("relay_upstream_responses_total", status="200", **late) == 1
    assert counted("relay_upstream_responses_total", status="503", upstream="first") >= 1
    assert counted("relay_tokens_total", kind="output", **late) == WORDS
    assert counted("relay_streams_active") == 0

    def told() -> list[str]:
        return [line for line in bench.relay.log().splitlines() if "stream ended" in line and "second-late" in line]

    wait_until(told, 10, "the line of its end")
    (line,) = told()
    assert "late-stand-in" in line
