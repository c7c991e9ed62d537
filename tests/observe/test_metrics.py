"""What the metrics say is what happened: measured against the client's own clock, cause by cause, and bounded."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client import Gauge

from relay.metrics import Metrics
from relay.protocol.outcomes import Cause
from tests.conftest import Relays
from tests.observe.scraped import Scrape, scrape, until
from tests.support.ids import event_ids
from tests.support.processes import RelayProcess
from tests.support.scripted import Cut, Gate, Pause, ScriptedUpstream, Step, json_response, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import Store, valkey_server
from tests.support.streams import FIRST_TOKENS, PATHS, chat, data
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
# What acts on the metrics: alerts, what they are computed from, and the chart's autoscaler.
ACTED_ON = (*(ROOT / "deploy" / "prometheus").glob("*.rules.yaml"), ROOT / "helm/relay/templates/scaling.yaml")
KEY = {"authorization": "Bearer sk-one"}
FIRST = "relay_time_to_first_token_seconds"
DURATION = "relay_stream_duration_seconds"
TOKEN = chat({"content": "a"})
END = (chat({}, "stop"), data("[DONE]"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path) as server:
        yield server


def config(upstream: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    streams = {"heartbeat": "200ms", "lease": "1s", **more.pop("streams", {})}
    up = {"name": "up", "base_url": upstream.url, "models": ["m*"], "malformed": "end"}
    return {"upstreams": [up], "streams": streams, **more}


def ask(relay: RelayProcess, path: str = PATHS["chat"], model: str = "m") -> RawStream:
    answer = open_stream(relay.url + path, headers=KEY, body={"model": model, "stream": True, "messages": []})
    assert answer.status == 200, answer.read()
    return answer


def status_of(url: str, method: str = "GET", headers: dict[str, str] = KEY, body: object = None) -> int:
    with open_stream(url, method, headers, body) as answer:
        answer.read()
        return answer.status


def ended(relay: RelayProcess, n: int = 1) -> Scrape:
    """When so many streams have ended there."""
    return until(relay, lambda s: s.value("relay_streams_total") >= n, f"{n} streams ended")


def last_scrape(relay: RelayProcess) -> Scrape:
    """What a process that ends has counted when it can be asked no more."""
    last = scrape(relay)
    with suppress(OSError, http.client.HTTPException):
        while True:
            last = scrape(relay)
    return last


def over(relay: RelayProcess) -> Scrape:
    """When a stream has ended there and none is left: an upstream may keep it for a moment after its end."""
    return until(
        relay,
        lambda s: s.value("relay_streams_total") >= 1 and s.value("relay_streams_active") == 0,
        "the last stream to be gone",
    )


class TestTimes:
    @pytest.mark.parametrize("case", FIRST_TOKENS)
    def test_first_token_and_duration_lie_between_the_upstream_s_and_the_client_s_clock(
        self, upstream: ScriptedUpstream, relays: Relays, case: str
    ) -> None:
        """What the relay measures contains what the upstream took and is contained in what the client waited."""
        streamed = FIRST_TOKENS[case]
        upstream.on("m", *stream(*streamed.before, Gate("token"), streamed.token, Gate("end"), *streamed.rest))
        relay = relays.start(config(upstream))
        sent = time.monotonic()
        with ask(relay, streamed.path) as answer:
            answer.events(len(streamed.before))
            arrived = time.monotonic()  # the request had been read to its end by then
            wait_until(lambda: time.monotonic() - arrived > 0.06, 5, "a while before the first token")
            assert scrape(relay).value(f"{FIRST}_count") == 0  # a role or a start is no token
            token_due = time.monotonic() - arrived
            upstream.open("token")
            answer.events(1)
            first_seen = time.monotonic() - sent
            end_due = time.monotonic() - arrived
            upstream.open("end")
            answer.events()
            end_seen = time.monotonic() - sent
        seen = ended(relay)
        first, duration = seen.value(f"{FIRST}_sum"), seen.value(f"{DURATION}_sum")
        assert (seen.value(f"{FIRST}_count"), seen.value(f"{DURATION}_count")) == (1, 1)
        assert token_due <= first <= first_seen
        assert end_due <= duration <= end_seen
        assert seen.bucket(FIRST, token_due) <= seen.bucket(FIRST, first) <= seen.bucket(FIRST, first_seen)
        assert seen.value(f"{DURATION}_count", api=streamed.api, outcome="completed", upstream="up", model="m*") == 1
        assert seen.labels("relay_tokens_total", "kind") == {"input": 11, "output": 7}
        assert seen.value("relay_events_total") == len(streamed.events)
        assert len(seen.exemplars(FIRST)) == len(seen.exemplars(DURATION)) == 1
        assert seen.exemplars(FIRST) == {answer.headers["relay-stream-id"]}

    @pytest.mark.parametrize("case", ["chat-content", "messages-thinking", "responses-tool"])
    def test_a_stream_resumed_elsewhere_is_measured_once_and_where_it_is_produced(
        self, upstream: ScriptedUpstream, relays: Relays, store: Store, case: str
    ) -> None:
        streamed = FIRST_TOKENS[case]
        upstream.on("m", *stream(*streamed.before, Gate("token"), streamed.token, Gate("end"), *streamed.rest))
        shared = config(upstream, store={"url": store.url})
        one, two = relays.start(shared), relays.start(shared)
        sent = time.monotonic()
        with ask(one, streamed.path) as answer:
            stream_id = answer.headers["relay-stream-id"]
            answer.take(len(streamed.before))
        arrived = time.monotonic()
        last = {"last-event-id": f"{stream_id}.{len(streamed.before)}"}
        with open_stream(two.url + streamed.path, headers={**KEY, **last}, body={}) as again:
            assert again.status == 200
            token_due = time.monotonic() - arrived
            upstream.open("token")
            again.events(1)
            first_seen = time.monotonic() - sent
            upstream.open("end")
            assert len(again.events()) == len(streamed.rest)
        seen, there = ended(one), scrape(two)
        assert token_due <= seen.value(f"{FIRST}_sum") <= first_seen
        assert (seen.value(f"{FIRST}_count"), there.value(f"{FIRST}_count")) == (1, 0)
        assert (seen.value("relay_streams_total"), there.value("relay_streams_total")) == (1, 0)
        assert there.labels("relay_resumes_total", "result") == {"live": 1}

    def test_gaps_are_those_between_tokens(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        upstream.on("m", *stream(chat({"role": "assistant"}), TOKEN, Gate("one"), TOKEN, Gate("two"), TOKEN, *END))
        relay = relays.start(config(upstream))
        with ask(relay) as answer:
            answer.events(2)
            begun = time.monotonic()
            upstream.open("one")
            answer.events(1)
            upstream.open("two")
            answer.events()
            within = time.monotonic() - begun
        seen = ended(relay)
        assert seen.value("relay_inter_token_seconds_count") == 2
        assert 0 < seen.value("relay_inter_token_seconds_sum") < within + 1


class TestEnds:
    def check(self, seen: Scrape, cause: Cause, streams: int = 1) -> None:
        assert seen.labels("relay_mid_stream_failures_total", "cause") == {cause.value: 1}
        assert seen.labels("relay_streams_total", "outcome") == {"failed": 1}
        assert seen.value(f"{DURATION}_count", outcome="failed") == streams
        assert seen.value("relay_streams_active") == 0

    @pytest.mark.parametrize(
        ("cause", "steps", "settings"),
        [
            (Cause.UPSTREAM_DISCONNECTED, stream(TOKEN, Cut()), {}),
            (Cause.UPSTREAM_ERROR, stream(TOKEN, data({"error": {"message": "over"}})), {}),
            (Cause.UPSTREAM_REFUSED, (Pause(0.4), *json_response(429, {"error": {}})), {"patience": "100ms"}),
            (Cause.UPSTREAM_TIMEOUT, stream(TOKEN, Gate("never")), {"upstream_idle_timeout": "300ms"}),
            (Cause.UPSTREAM_MALFORMED, stream(TOKEN, data("{no json")), {}),
            (Cause.EVENT_TOO_LARGE, stream(TOKEN, chat({"content": "x" * 5000})), {"max_event_bytes": "4KiB"}),
            (Cause.STREAM_TOO_LARGE, stream(*[chat({"content": "x" * 900})] * 6), {"max_stream_bytes": "4KiB"}),
            (Cause.MAX_DURATION, stream(TOKEN, Gate("never")), {"max_duration": "400ms"}),
        ],
        ids=lambda value: value.value if isinstance(value, Cause) else "",
    )
    def test_each_cause_counts_itself_once(
        self, upstream: ScriptedUpstream, relays: Relays, cause: Cause, steps: tuple[Step, ...], settings: Any
    ) -> None:
        upstream.on("m", *steps)
        relay = relays.start(config(upstream, streams=settings))
        with ask(relay) as answer:
            answer.events()
        self.check(over(relay), cause)

    def test_a_lost_producer_is_counted_by_the_one_that_ended_its_stream(
        self, upstream: ScriptedUpstream, relays: Relays, store: Store
    ) -> None:
        upstream.on("m", *stream(TOKEN, Gate("never")))
        shared = config(upstream, store={"url": store.url})
        one, two, three = (relays.start(shared) for _ in range(3))
        with ask(one) as answer:
            answer.events(1)
            one.kill()
        wait_until(
            lambda: sum(scrape(r).value("relay_streams_total") for r in (two, three)) > 0, 20, "the stream to be ended"
        )
        ender = two if scrape(two).value("relay_streams_total") else three
        self.check(scrape(ender), Cause.PRODUCER_LOST)
        other = three if ender is two else two
        with open_stream(other.url + f"/streams/{answer.headers['relay-stream-id']}", "GET", KEY) as replay:
            assert len(replay.events()) == 3  # the event, and the two frames of the end
        assert scrape(other).value("relay_streams_total") == 0

    def test_a_producer_that_was_fenced_off_does_not_count_an_end_that_another_wrote(
        self, upstream: ScriptedUpstream, relays: Relays, store: Store
    ) -> None:
        upstream.on("m", *stream(TOKEN, Gate("go"), TOKEN, *END))
        shared = config(upstream, store={"url": store.url})
        one, two = relays.start(shared), relays.start(shared)
        with ask(one) as answer:
            answer.events(1)
            one.signal(signal.SIGSTOP)
            seen = until(two, lambda s: s.value("relay_streams_total") > 0, "the end")
            one.signal(signal.SIGCONT)
            upstream.open("go")
            answer.read()
        self.check(seen, Cause.PRODUCER_LOST)
        until(one, lambda s: s.value("relay_streams_active") == 0, "the fenced producer to stop")
        assert scrape(one).value("relay_streams_total") == 0

    def test_a_store_that_comes_back_has_cost_no_stream(
        self, upstream: ScriptedUpstream, relays: Relays, store: Store
    ) -> None:
        """Its reader has all of it, with ids, before the store is back; it counts as ended once the log has it."""
        upstream.on("m", *stream(TOKEN, Gate("go"), TOKEN, *END))
        relay = relays.start(config(upstream, store={"url": store.url, "hold": "500ms"}))
        until(relay, lambda s: s.value("relay_store_up") == 1, "the store to be seen")
        sent = time.monotonic()
        with ask(relay) as answer:
            stream_id = answer.headers["relay-stream-id"]
            answer.events(1)
            store.servers[0].kill()
            upstream.open("go")
            assert [event.id for event in answer.events()] == event_ids(stream_id, 4)[1:]
            assert answer.ended == "zero-chunk"
        read = time.monotonic() - sent
        seen = until(relay, lambda s: s.value("relay_store_up") == 0, "the store to be missed")
        assert (seen.value("relay_streams_total"), seen.value("relay_streams_active")) == (0, 1)
        assert seen.value("relay_append_failures_total") > 0
        wait_until(lambda: time.monotonic() - sent > read + 1, 5, "a while that is no part of the stream's duration")
        store.servers[0].start()
        seen = over(relay)
        assert seen.labels("relay_streams_total", "outcome") == {"completed": 1}
        assert seen.labels("relay_mid_stream_failures_total", "cause") == {}
        assert seen.value("relay_events_total") == 4
        assert seen.value("relay_streams_degraded_total") == 0
        assert seen.value(f"{FIRST}_count") == seen.value(f"{DURATION}_count") == 1
        assert seen.value(f"{DURATION}_sum") <= read
        until(relay, lambda s: s.value("relay_store_up") == 1, "the store to be seen again", 30)

    def test_a_store_that_stays_away(self, upstream: ScriptedUpstream, relays: Relays, store: Store) -> None:
        """An end that could not be written for as long as a log is kept is one that the store has lost."""
        upstream.on("m", *stream(TOKEN, Gate("go"), TOKEN, *END))
        settings = config(upstream, store={"url": store.url, "hold": "300ms"}, streams={"retention": "1s"})
        relay = relays.start(settings)
        with ask(relay) as answer:
            answer.events(1)
            store.servers[0].kill()
            upstream.open("go")
            assert len(answer.events()) == 3
        seen = over(relay)
        self.check(seen, Cause.STORE_LOST)
        assert seen.value("relay_streams_degraded_total") == 0

    def test_a_stream_that_began_without_a_store(
        self, upstream: ScriptedUpstream, relays: Relays, store: Store
    ) -> None:
        upstream.on("m", *stream(TOKEN, *END))
        relay = relays.start(config(upstream, store={"url": store.url}))
        until(relay, lambda s: s.value("relay_store_up") == 1, "the store to be seen")
        store.servers[0].kill()
        with ask(relay) as answer:
            assert answer.headers["relay-resumable"] == "false"
            assert len(answer.events()) == 3
        seen = over(relay)
        assert seen.labels("relay_streams_total", "outcome") == {"completed": 1}
        assert seen.value("relay_streams_degraded_total") == 1

    def test_a_shutdown(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        upstream.on("m", *stream(TOKEN, Gate("never")))
        relay = relays.start(config(upstream, drain={"timeout": "1s"}))
        with ask(relay) as answer:
            answer.events(1)
            relay.signal(signal.SIGTERM)
            until(relay, lambda s: s.value("relay_draining") == 1, "the drain")
            self.check(last_scrape(relay), Cause.SHUTDOWN)

    @pytest.mark.parametrize("reset", [False, True])
    def test_a_client_that_leaves_is_no_failure(self, upstream: ScriptedUpstream, relays: Relays, reset: bool) -> None:
        upstream.on("m", *stream(TOKEN, Gate("never")))
        relay = relays.start(config(upstream, streams={"abandon_after": "0s"}))
        answer = ask(relay)
        answer.events(1)
        assert scrape(relay).value("relay_readers_active") == 1
        answer.close(reset=reset)
        seen = over(relay)
        assert seen.labels("relay_streams_total", "outcome") == {"abandoned": 1}
        assert seen.labels("relay_mid_stream_failures_total", "cause") == {}
        assert seen.value("relay_readers_active") == seen.value("relay_streams_active") == 0

    def test_a_stop_is_no_failure(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        upstream.on("m", *stream(TOKEN, Gate("never")))
        relay = relays.start(config(upstream))
        with ask(relay) as answer:
            answer.events(1)
            assert scrape(relay).value("relay_streams_active") == 1
            url = f"{relay.url}/streams/{answer.headers['relay-stream-id']}"
            assert status_of(url, "DELETE") == 204
            answer.events()
        assert over(relay).labels("relay_streams_total", "outcome") == {"stopped": 1}
        assert scrape(relay).labels("relay_mid_stream_failures_total", "cause") == {}

    def test_every_cause_has_its_series_from_the_start(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        """A counter that appears with its first failure shows Prometheus no increase."""
        upstream.on("m", *stream(TOKEN, *END))
        relay = relays.start(config(upstream))
        with ask(relay) as answer:
            answer.read()
        causes = {
            sample.labels["cause"]
            for family in over(relay).families
            for sample in family.samples
            if sample.name == "relay_mid_stream_failures_total"
        }
        assert causes == set(Cause)


class TestCounts:
    def test_resumes_replays_heartbeats_and_refusals(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        upstream.on("m", *stream(TOKEN, TOKEN, Gate("go"), *END))
        upstream.on("mbusy", *json_response(429, {"error": {"message": "slow down"}}))
        relay = relays.start(config(upstream))
        with ask(relay) as answer:
            stream_id = answer.headers["relay-stream-id"]
            answer.events(2)
            until(relay, lambda s: s.value("relay_heartbeats_total") > 0, "a heartbeat")
            url = f"{relay.url}/streams/{stream_id}"
            with open_stream(url, "GET", {**KEY, "last-event-id": f"{stream_id}.1"}) as again:
                again.events(1)
                assert scrape(relay).value("relay_readers_active") == 2
            upstream.open("go")
            answer.events()
        ended(relay)
        for position, status in ((f"{stream_id}.0", 200), (f"{stream_id}.4", 204), (f"{stream_id}.9", 410), ("x", 400)):
            for _ in range(2):
                assert status_of(url, "GET", {**KEY, "last-event-id": position}) == status
        assert status_of(url, "GET", {"authorization": "Bearer other"}) == 404
        body = {"model": "mbusy", "stream": True, "messages": []}
        assert status_of(relay.url + PATHS["chat"], "POST", body=body) == 429
        assert status_of(relay.url + PATHS["chat"], "POST", body={"model": "x"}) == 404
        seen = until(relay, lambda s: s.value("relay_readers_active") == 0, "all readers to leave")
        assert seen.labels("relay_resumes_total", "result") == {
            "live": 1,
            "replay": 2,
            "complete": 2,
            "position_unknown": 2,
            "invalid_last_event_id": 2,
            "stream_not_found": 1,
        }
        assert seen.value("relay_replayed_events_total") == 1 + 2 * 4
        assert seen.labels("relay_upstream_responses_total", "status") == {"200": 1, "429": 1}
        assert seen.labels("relay_refusals_total", "code")["model_not_found"] == 1
        assert seen.value("relay_streams_total") == 1  # a refusal is no stream

    def test_the_public_address_has_no_metrics(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        relay = relays.start(config(upstream))
        assert status_of(f"{relay.url}/metrics") == 404
        assert status_of(f"{relay.metrics_url}/metrics") == 200

    def test_ten_thousand_model_names_add_no_series(
        self, upstream: ScriptedUpstream, relays: Relays, request: pytest.FixtureRequest
    ) -> None:
        upstream.on_path("POST /v1/chat/completions", *json_response(200, {"id": "x"}))
        relay = relays.start(config(upstream))
        address = urlsplit(relay.url).netloc
        connection = http.client.HTTPConnection(address)
        request.addfinalizer(connection.close)

        def name(model: str, path: str = PATHS["chat"]) -> int:
            connection.request("POST", path, json.dumps({"model": model}), {**KEY, "content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return answer.status

        assert (name("m"), name("x"), name("m", "/v1/embeddings")) == (200, 404, 404)
        before = scrape(relay).series()
        statuses = {name(f"m-{i}" if i % 10 == 0 else f"{os.urandom(8).hex()}-{i}") for i in range(10_000)}
        assert statuses == {200, 404}
        assert scrape(relay).series() == before
        assert scrape(relay).value("relay_refusals_total", code="model_not_found") >= 9_000


class TestWorkers:
    def test_counters_add_up_and_outlive_a_worker_and_its_gauges_do_not(
        self, upstream: ScriptedUpstream, relays: Relays
    ) -> None:
        upstream.on("m", *stream(TOKEN, *END))
        upstream.on("mlong", *stream(TOKEN, Gate("never")))
        relay = relays.start(config(upstream, workers=2))
        for _ in range(20):
            with ask(relay) as answer:
                answer.read()
        seen = ended(relay, 20)
        assert seen.value("relay_streams_total", outcome="completed") == 20
        assert seen.value("relay_events_total") == 60
        assert seen.value("relay_build_info") == 1
        held = [ask(relay, model="mlong") for _ in range(8)]
        for answer in held:
            answer.events(1)
        until(relay, lambda s: s.value("relay_streams_active") == 8, "all streams to be shown")
        for pid in _workers(relay.pid):
            os.kill(pid, signal.SIGKILL)
        seen = until(relay, lambda s: s.value("relay_streams_active") == 0, "the dead workers' gauges to go")
        assert seen.value("relay_streams_total", outcome="completed") == 20
        assert seen.value("relay_readers_active") == 0
        for answer in held:
            answer.close()
        seen = until(relay, lambda s: s.value("relay_mid_stream_failures_total", cause="producer_lost") == 8, "ends")
        assert seen.value("relay_streams_total") == 28


def _workers(parent: int) -> list[int]:
    """The relay's own processes below a parent: not the embedded store."""
    found = []
    with open(f"/proc/{parent}/task/{parent}/children") as children:
        for pid in map(int, children.read().split()):
            with open(f"/proc/{pid}/cmdline") as command:
                if "relay" in command.read().split("\0"):
                    found.append(pid)
    return found


def test_a_stream_without_a_log_is_counted_too(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, Gate("go"), *END))
    settings = config(upstream)
    settings["upstreams"][0]["buffer"] = False
    relay = relays.start(settings)
    with ask(relay) as answer:
        answer.events(1)
        seen = scrape(relay)
        assert (seen.value(f"{FIRST}_count"), seen.value("relay_streams_active")) == (1, 1)
        upstream.open("go")
        answer.events()
    seen = ended(relay)
    assert (seen.value("relay_events_total"), seen.value("relay_streams_degraded_total")) == (3, 0)


def test_an_address_that_is_taken_is_named(upstream: ScriptedUpstream, relays: Relays) -> None:
    relay = relays.start(config(upstream))
    with pytest.raises(AssertionError, match=r"metrics_bind 127.0.0.1:.*set another"):
        relays.start(config(upstream, metrics_bind=relay.config["metrics_bind"]))


# -- what is there before anything has happened -------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_every_gauge_that_is_acted_on_is_there_from_the_start(
    relays: Relays, upstream: ScriptedUpstream, workers: int
) -> None:
    """An autoscaler that is told nothing of a new replica does not scale down, and an alert on it cannot fire."""
    acted_on = "".join(path.read_text() for path in ACTED_ON)
    gauges = {metric._name for metric in vars(Metrics()).values() if isinstance(metric, Gauge)}
    read = {name for name in gauges if re.search(rf"\b{name}\b", acted_on)}
    assert {"relay_streams_active", "relay_store_up", "relay_draining"} <= read
    up = {"name": "up", "base_url": upstream.url, "models": ["m*", "other"]}
    own = {"name": "own", "base_url": upstream.url, "apis": ["chat"]}
    relay = relays.start({"upstreams": [up, own], "workers": workers})
    shown = scrape(relay)
    there = {sample.name for family in shown.families for sample in family.samples}
    assert read - there == set()
    labels = {
        (sample.labels["api"], sample.labels["upstream"], sample.labels["model"])
        for family in shown.families
        for sample in family.samples
        if sample.name == "relay_streams_active"
    }
    apis = ("chat", "messages", "responses")
    assert labels == {*((api, "up", model) for api in apis for model in ("m*", "other")), ("chat", "own", "*")}
    assert shown.value("relay_streams_active") == shown.value("relay_readers_active") == 0
