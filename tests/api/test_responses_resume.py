"""The responses API's own resume, with the unmodified OpenAI SDK: retrieve with `starting_after`, and cancel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.sdk import scenarios_responses as responses
from tests.sdk.install import is_installed, python_generation
from tests.support.asking import ask
from tests.support.processes import RelayProcess, needs
from tests.support.replicas import stream_id
from tests.support.scripted import Gate, Send, json_response, stream
from tests.support.site import PairSite, pair_of_relays
from tests.support.sseclient import RawStream

pytestmark = pytest.mark.slow

STREAMS = {"heartbeat": "200ms", "lease": "1s"}
PATH = "/v1/responses"
AUTH = {"authorization": "Bearer sk-sdk"}
SDKS = ("py-new", "py-httpx")


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with pair_of_relays(STREAMS) as found:
        yield found


@pytest.fixture(params=SDKS)
def sdk(request: pytest.FixtureRequest) -> str:
    needs(is_installed(request.param), f"the SDKs of {request.param}: run tests/sdk/install.py")
    return str(request.param)


def frames(response_id: str, first: int | None = 0) -> tuple[str, ...]:
    """A response whose sequence numbers begin at `first`, or has none."""
    bodies = json.loads(json.dumps(responses.PLAIN).replace('"resp_1"', json.dumps(response_id)))
    found = []
    for number, body in enumerate(bodies):
        full = body if first is None else {**body, "sequence_number": number + first}
        found.append(f"event: {full['type']}\ndata: {json.dumps(full)}\n\n")
    return tuple(found)


COUNT = len(responses.PLAIN)


def start(site: PairSite, model: str, *, replica: int = 0, headers: Mapping[str, str] = AUTH) -> RawStream:
    body = {"model": model, "stream": True, "input": "Say hello."}
    answer = ask(site.replicas[replica].url + PATH, headers=headers, body=body)
    assert answer.status == 200, answer.read()
    return answer


def retrieve(relay: RelayProcess, response_id: str, query: str, headers: Mapping[str, str] = AUTH) -> RawStream:
    return ask(f"{relay.url}{PATH}/{response_id}?{query}", "GET", headers)


# Prints, for every [starting_after, limit] asked for, the sequence numbers and the text that an SDK's user sees.
_CLIENT = """
import json, sys, openai
base_url, response_id, wanted = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
client = openai.OpenAI(base_url=base_url + "/v1", api_key="sk-sdk", max_retries=0, timeout=20)
answers = []
for after, limit in wanted:
    more = {} if after is None else {"starting_after": after}
    numbers = []
    with client.responses.retrieve(response_id, stream=True, **more) as stream:
        for event in stream:
            numbers.append(event.sequence_number)
            if len(numbers) == limit:
                break
    answers.append(numbers)
print(json.dumps(answers))
"""

_CANCEL = """
import json, sys, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="sk-sdk", max_retries=0, timeout=20)
try:
    response = client.responses.cancel(sys.argv[2])
    print(json.dumps([response.id, response.status]))
except openai.APIStatusError as error:
    print(json.dumps([error.status_code, error.code]))
"""


def run(sdk: str, script: str, *arguments: str) -> Any:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    env |= {"NO_PROXY": "*", "no_proxy": "*", "PYTHONPATH": str(python_generation(sdk))}
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, *arguments], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("first", [0, 1], ids=["from-0", "from-1"])
def test_the_sdk_resumes_behind_every_event_live_and_finished(site: PairSite, sdk: str, first: int) -> None:
    name = f"resp_{sdk}_{first}".replace("-", "_")
    sent = frames(name, first)
    half = COUNT // 2
    site.upstream.on(name, *stream(*sent[:half], Gate(name), *sent[half:]))
    answer = start(site, name)
    answer.events(half)
    numbers = list(range(first, first + COUNT))
    last = numbers[half - 1]

    wanted = [[None, half], *([n, last - n] for n in range(0, last))]
    seen = run(sdk, _CLIENT, site.replicas[1].url, name, json.dumps(wanted))
    assert seen == [numbers[:half], *([m for m in numbers[:half] if m > n] for n in range(0, last))]

    site.upstream.open(name)
    answer.events()
    for replica in (0, 1):
        asked = [[None, None], *([n, None] for n in range(0, numbers[-1] + 1))]
        seen = run(sdk, _CLIENT, site.replicas[replica].url, name, json.dumps(asked))
        assert seen == [numbers, *([m for m in numbers if m > n] for n in range(0, numbers[-1] + 1))]
    assert len(site.upstream.calls_of(name)) == 1
    assert len(site.upstream.calls) == sum(len(site.upstream.calls_of(c.json["model"])) for c in site.upstream.calls)


def test_a_resume_at_the_head_waits_for_what_comes(site: PairSite) -> None:
    sent = frames("resp_head")
    site.upstream.on("resp_head", *stream(*sent[:3], Gate("resp_head"), *sent[3:]))
    answer = start(site, "resp_head")
    answer.events(3)
    waiting = [retrieve(replica, "resp_head", "stream=true&starting_after=2") for replica in _both(site)]
    site.upstream.open("resp_head")
    for each in waiting:
        assert [e.json["sequence_number"] for e in each.events()] == list(range(3, COUNT))
        assert each.ended == "zero-chunk"


def _both(site: PairSite) -> tuple[RelayProcess, RelayProcess]:
    return site.replicas.first, site.replicas.second


def test_the_name_is_known_as_soon_as_its_event_is(site: PairSite) -> None:
    """A client that acts on `response.created` at once is not sent on to the upstream."""
    for number in range(20):
        name = f"resp_soon_{number}"
        site.upstream.on(name, *stream(*frames(name)[:1], Gate("soon"), *frames(name)[1:]))
        start(site, name).events(1)
        answer = retrieve(site.replicas[number], name, "stream=true")
        assert answer.status == 200, (number, answer.read())
        answer.events(1)
    site.upstream.open("soon")


def test_without_sequence_numbers(site: PairSite) -> None:
    """None is made up: a resume from the start works, one by number is told that it cannot be had."""
    site.upstream.on("resp_bare", *stream(*frames("resp_bare", None)))
    whole = start(site, "resp_bare").events()
    for replica in _both(site):
        again = retrieve(replica, "resp_bare", "stream=true")
        assert [e.raw for e in again.events()] == [e.raw for e in whole]
        assert b"sequence_number" not in again.raw_body
        behind = retrieve(replica, "resp_bare", "stream=true&starting_after=0")
        assert (behind.status, behind.json["error"]["code"]) == (410, "position_unknown")


def test_a_sequence_number_inside_an_event_is_not_the_events(site: PairSite) -> None:
    """Text and tools may speak of sequence numbers themselves."""
    sent = list(frames("resp_decoy"))
    created = json.loads(sent[0].partition("data: ")[2])
    created["response"]["metadata"] = {"note": '"sequence_number":9'}
    created["response"]["tools"] = [
        {"type": "function", "name": "f", "strict": False, "parameters": {"default": {"sequence_number": 9}}}
    ]
    sent[0] = f"event: response.created\ndata: {json.dumps(created)}\n\n"
    site.upstream.on("resp_decoy", *stream(*sent))
    start(site, "resp_decoy").events()
    for n in range(COUNT - 1):
        answer = retrieve(site.replicas[1], "resp_decoy", f"stream=true&starting_after={n}")
        assert [e.json["sequence_number"] for e in answer.events()] == list(range(n + 1, COUNT)), n


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "%C2%B2", "9" * 5000, "1%20", "st_x.1", "0x1"])
def test_garbage_is_refused(site: PairSite, value: str) -> None:
    if not site.upstream.calls_of("resp_garbage"):
        site.upstream.on("resp_garbage", *stream(*frames("resp_garbage")))
        start(site, "resp_garbage").events()
    for replica in _both(site):
        answer = retrieve(replica, "resp_garbage", f"stream=true&starting_after={value}")
        assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_request"), answer.read()


def test_at_the_end_there_is_nothing_more(site: PairSite) -> None:
    site.upstream.on("resp_end", *stream(*frames("resp_end"), "data: [DONE]\n\n"))
    start(site, "resp_end").events()
    for replica in _both(site):
        assert retrieve(replica, "resp_end", f"stream=true&starting_after={COUNT - 1}").status == 204


def test_what_the_relay_does_not_have_is_the_upstreams(site: PairSite) -> None:
    site.upstream.on("resp_mine", *stream(*frames("resp_mine"), Send(b"")))
    start(site, "resp_mine").events()
    other = {"authorization": "Bearer sk-other"}
    for number, (name, headers) in enumerate((("resp_unknown", AUTH), ("resp_mine", other))):
        path = f"{PATH}/{name}"
        site.upstream.on_path(f"GET {path}", *json_response(418, {"from": "upstream", "n": number}))
        site.upstream.on_path(f"POST {path}/cancel", *json_response(418, {"cancelled": "upstream", "n": number}))
        for replica in _both(site):
            before = len(site.upstream.calls)
            got = retrieve(replica, name, "stream=true&starting_after=1", headers)
            assert (got.status, got.json) == (418, {"from": "upstream", "n": number})
            stopped = ask(f"{replica.url}{path}/cancel", "POST", headers)
            assert (stopped.status, stopped.json) == (418, {"cancelled": "upstream", "n": number})
            asked = site.upstream.calls[before:]
            assert [c.path for c in asked] == [f"{path}?stream=true&starting_after=1", f"{path}/cancel"]
            assert [c.header("authorization") for c in asked] == [headers["authorization"]] * 2


def test_without_stream_it_is_the_upstreams(site: PairSite) -> None:
    site.upstream.on("resp_plain", *stream(*frames("resp_plain")))
    start(site, "resp_plain").events()
    site.upstream.on_path(f"GET {PATH}/resp_plain", *json_response(200, {"id": "resp_plain", "object": "response"}))
    answer = ask(f"{site.replicas[1].url}{PATH}/resp_plain", "GET", AUTH)
    assert answer.json == {"id": "resp_plain", "object": "response"}


@pytest.mark.parametrize("where", [0, 1], ids=["producing-replica", "other-replica"])
def test_the_sdk_cancels(site: PairSite, sdk: str, where: int) -> None:
    name = f"resp_cancel_{sdk}_{where}".replace("-", "_")
    site.upstream.on(name, *stream(*frames(name)[:6], Gate(name)))
    answer = start(site, name)
    events = answer.events(6)
    relay = site.replicas[where]
    assert run(sdk, _CANCEL, relay.url, name) == [name, "cancelled"]
    (call,) = site.upstream.calls_of(name)
    assert call.ended.wait(1.5)
    assert call.cancelled
    events += answer.events()
    assert answer.ended == "zero-chunk"
    assert events[-1].json["type"] == "response.completed"
    assert events[-1].json["response"]["status"] == "cancelled"
    assert [e.json["sequence_number"] for e in events] == list(range(len(events)))
    assert run(sdk, _CANCEL, relay.url, name) == [name, "cancelled"]
    status = ask(f"{relay.url}/streams/{stream_id(answer)}", "GET", {**AUTH, "accept": "application/json"})
    assert status.json["outcome"] == "stopped"


def test_the_sdk_cancels_what_has_ended(site: PairSite, sdk: str) -> None:
    name = f"resp_over_{sdk}".replace("-", "_")
    site.upstream.on(name, *stream(*frames(name)))
    start(site, name).events()
    assert run(sdk, _CANCEL, site.replicas[1].url, name) == [name, "completed"]


def test_the_sdks_cancel_of_an_unknown_response_reaches_the_upstream(site: PairSite, sdk: str) -> None:
    error = {"error": {"message": "no such response", "type": "invalid_request_error", "param": None, "code": "gone"}}
    site.upstream.on_path(f"POST {PATH}/resp_never/cancel", *json_response(404, error))
    assert run(sdk, _CANCEL, site.replicas[0].url, "resp_never") == [404, "gone"]
