"""How often an owner or a key may ask, in memory that strangers cannot fill."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import pytest

from relay.auth.gate import Gate
from relay.auth.rates import BOUND, Buckets
from relay.config import LimitSettings
from relay.config.units import parse_rate
from relay.protocol.errors import TooManyRequests
from tests.auth.keyed import ENV, ask, bearer, code, config, finished, get, issued, whole
from tests.conftest import Relays
from tests.support.scripted import Gate as Held
from tests.support.scripted import ScriptedUpstream
from tests.support.sseclient import open_stream
from tests.support.streams import PATHS
from tests.support.waiting import wait_until


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestBuckets:
    def test_a_full_one_gives_its_rate_at_once_and_then_one_at_a_time(self) -> None:
        clock = Clock()
        buckets = Buckets(clock=clock)
        rate = parse_rate("6/m")
        for _ in range(6):
            assert buckets.wait(b"a", rate) == 0
            buckets.take(b"a", rate)
        assert buckets.wait(b"a", rate) == pytest.approx(10)
        assert buckets.wait(b"b", rate) == 0
        clock.now += 9.99
        assert buckets.wait(b"a", rate) > 0
        clock.now += 0.02
        assert buckets.wait(b"a", rate) == 0
        buckets.take(b"a", rate)
        assert buckets.wait(b"a", rate) > 9

    def test_in_any_minute_no_more_than_twice_the_rate(self) -> None:
        clock = Clock()
        buckets = Buckets(clock=clock)
        rate = parse_rate("60/m")
        taken = 0
        while clock.now < 1060:
            if buckets.wait(b"a", rate) == 0:
                buckets.take(b"a", rate)
                taken += 1
            else:
                clock.now += 0.25
        assert 60 <= taken <= 120

    def test_what_is_taken_beyond_it_is_a_debt(self) -> None:
        clock = Clock()
        buckets = Buckets(clock=clock)
        rate = parse_rate("60/m")
        buckets.take(b"a", rate, 600)
        assert buckets.wait(b"a", rate) == pytest.approx(541)
        clock.now += 542
        assert buckets.wait(b"a", rate) == 0

    def test_full_ones_are_forgotten(self) -> None:
        clock = Clock()
        buckets = Buckets(clock=clock)
        for number in range(1000):
            buckets.take(b"%d" % number, parse_rate("1/s"))
        assert len(buckets) == 1000
        clock.now += 2
        buckets.take(b"last", parse_rate("1/s"))
        assert len(buckets) == 1

    @pytest.mark.parametrize("wrong", ["0/m", "60", "60/d", "1.5/s", "-1/s", "60/m ", "", "off"])
    def test_what_is_no_rate_is_told(self, wrong: str) -> None:
        with pytest.raises(ValueError, match="60/m"):
            parse_rate(wrong)


def test_credentials_that_an_attacker_makes_up_do_not_fill_memory() -> None:
    """In passthrough mode every one of them is an owner."""
    buckets = Buckets(clock=Clock())
    gate = Gate(LimitSettings(open_rate="1/h", resume_rate="1/h", replay_rate="1/h"), None, buckets)
    tracemalloc.start()
    for number in range(BOUND + 1000):
        caller = gate.caller([(b"authorization", b"Bearer %d" % number + b"x" * 2000)])
        gate.acquire(caller)
        gate.charge_resume(caller.identity)
        gate.charge_replay(caller.identity, 5)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(buckets) == BOUND
    assert held < 4 << 20
    with pytest.raises(TooManyRequests):
        gate.acquire(caller)  # the last one is remembered


def rate_told(answer: Any) -> tuple[int, str, str]:
    with answer:
        error = answer.json["error"]
        wait = int(answer.headers["retry-after"])
        assert 1 <= wait <= 3600
        return answer.status, error["type"], error["code"]


TOLD = (429, "rate_limit_error", "rate_limit_exceeded")


class TestKeys:
    @pytest.mark.parametrize("api", PATHS)
    def test_a_key_s_rate_is_its_own_and_told_in_the_api_s_form(
        self, upstream: ScriptedUpstream, relays: Relays, api: str
    ) -> None:
        (key, a), (other, b) = issued("team-a", rate="2/h"), issued("team-a")
        upstream.on("m", *whole())
        relay = relays.start(config(upstream, a, b), ENV)
        assert code(ask(relay, key, api=api))[0] == 200
        ask(relay, key, api=api, streamed=False).read()
        for streamed in (True, False):
            with ask(relay, key, api=api, streamed=streamed) as refused:
                assert (refused.json.get("type") == "error") == (api == "messages")
                assert rate_told(refused) == TOLD
                assert math.isclose(int(refused.headers["retry-after"]), 1800, abs_tol=60)
        with ask(relay, other, api=api) as unhindered:
            assert unhindered.status == 200
        assert len(upstream.calls) == 3

    def test_who_joins_or_resumes_pays_for_no_request(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        key, entry = issued("team-a", rate="1/h", concurrency=1)
        upstream.on("m", *whole(Held("end")))
        relay = relays.start(config(upstream, entry), ENV)
        body = {"model": "m", "stream": True, "messages": []}
        headers = {**bearer(key), "idempotency-key": "mine"}
        with open_stream(relay.url + PATHS["chat"], headers=headers, body=body) as first:
            first.events(1)
            with open_stream(relay.url + PATHS["chat"], headers=headers, body=body) as joined:
                assert joined.status == 200
            assert code(get(relay, key, f"/streams/{first.headers['relay-stream-id']}"))[0] == 200
        assert len(upstream.calls) == 1


class TestOwners:
    def settings(self, upstream: ScriptedUpstream, **limits: str) -> dict[str, Any]:
        return {"upstreams": [{"name": "up", "base_url": upstream.url}], "limits": limits, "drain": {"timeout": "0s"}}

    def test_how_often_one_opens(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        upstream.on("m", *whole())
        relay = relays.start(self.settings(upstream, open_rate="2/h"))
        assert [code(ask(relay, "one"))[0] for _ in range(3)] == [200, 200, 429]
        assert rate_told(ask(relay, "one")) == TOLD
        assert rate_told(get(relay, "one", "/v1/models")) == TOLD
        assert code(ask(relay, "two"))[0] == 200
        assert len(upstream.calls) == 3

    def test_two_keys_of_an_owner_have_one_rate(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        (one, a), (two, b), (other, c) = issued("team-a"), issued("team-a"), issued("team-b")
        upstream.on("m", *whole())
        relay = relays.start(config(upstream, a, b, c, limits={"open_rate": "2/h"}), ENV)
        assert [code(ask(relay, key))[0] for key in (one, two, one, two, other)] == [200, 200, 429, 429, 200]

    def test_how_often_one_comes_back_whether_there_is_something_or_not(
        self, upstream: ScriptedUpstream, relays: Relays
    ) -> None:
        upstream.on("m", *whole())
        relay = relays.start(self.settings(upstream, resume_rate="6/h"))
        name = finished(relay, "one")
        nothing = "st_" + "a" * 22
        seen = [code(get(relay, "one", f"/streams/{stream_id}"))[0] for stream_id in (name, nothing)]
        seen.append(code(get(relay, "one", f"/streams/{name}", "DELETE"))[0])
        for last in (name, nothing):
            headers = {**bearer("one"), "last-event-id": f"{last}.0"}
            seen.append(code(open_stream(relay.url + PATHS["chat"], headers=headers, body={}))[0])
        seen.append(code(get(relay, "one", "/v1/responses/resp_1?stream=true"))[0])
        assert seen == [200, 404, 204, 200, 404, 404]
        for stream_id in (name, nothing):
            assert rate_told(get(relay, "one", f"/streams/{stream_id}")) == TOLD
            assert rate_told(get(relay, "one", f"/streams/{stream_id}", "DELETE")) == TOLD
            headers = {**bearer("one"), "last-event-id": f"{stream_id}.0"}
            assert rate_told(open_stream(relay.url + PATHS["chat"], headers=headers, body={})) == TOLD
        assert rate_told(get(relay, "one", "/v1/responses/resp_1?stream=true")) == TOLD
        assert code(get(relay, "two", f"/streams/{name}")) == (404, "stream_not_found")

    def test_how_much_one_reads_again(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        upstream.on("m", *whole())
        relay = relays.start(self.settings(upstream, replay_rate="4/h"))
        with ask(relay, "one") as answer:
            answer.read()
        name, url = answer.headers["relay-stream-id"], relay.url + answer.headers["relay-stream-url"]
        assert code(get(relay, "one", f"/streams/{name}?last_event_id={name}.1")) == (200, "")  # two events
        assert code(get(relay, "one", f"/streams/{name}")) == (200, "")  # three, for which two are left
        assert rate_told(get(relay, "one", f"/streams/{name}")) == TOLD
        assert rate_told(get(relay, "one", f"/streams/{name}?last_event_id={name}.2")) == TOLD
        assert code(get(relay, "one", f"/streams/{name}?last_event_id={name}.3")) == (204, "")  # nothing again
        for _ in range(2):
            assert code(open_stream(url, "GET")) == (200, "")  # who holds a ticket has a rate of their own
        assert rate_told(open_stream(url, "GET")) == TOLD

    def test_a_replay_that_is_refused_holds_no_reader_s_place(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        upstream.on("m", *whole(Held("end")))
        relay = relays.start(
            self.settings(upstream, replay_rate="1/h") | {"limits": {"replay_rate": "1/h", "readers_per_stream": "2"}}
        )
        with ask(relay, "one") as answer:
            answer.events(1)
            path = f"/streams/{answer.headers['relay-stream-id']}"
            get(relay, "one", path).take(1)
            wait_until(lambda: rate_told(get(relay, "one", path)) == TOLD, 5, "the second reader to be gone")
            for _ in range(4):
                assert rate_told(get(relay, "one", path)) == TOLD
            upstream.open("end")
            assert answer.events()[-1].data == "[DONE]"
