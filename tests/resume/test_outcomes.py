"""What a resume answers, row by row: on the three APIs' own paths, and on /streams by header and by query.

Replica one keeps its streams for an hour, replica two for 300 ms and their tombstones for 2 s more.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.conftest import Relays
from tests.support.ids import end_ids, event_ids
from tests.support.processes import RelayProcess
from tests.support.replicas import Replicas, stream_id, two_replicas
from tests.support.samples import SAMPLES, Sample, error_of, masked, refusal_of, rest, resume, start
from tests.support.scripted import Cut, Gate, Head, ScriptedUpstream, Send, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import valkey_server
from tests.support.streams import APIS, Api
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

each_api = pytest.mark.parametrize("api", APIS)
each_way = pytest.mark.parametrize("how", ["post", "get", "query"])

SSE_HEAD = Head(200, {"content-type": "text/event-stream"})
_names = (f"model-{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def replicas(upstream: ScriptedUpstream) -> Iterator[Replicas]:
    config = {
        "upstreams": [
            {"name": "unlogged", "base_url": upstream.url, "models": ["unlogged-*"], "buffer": False},
            {"name": "scripted", "base_url": upstream.url},
        ],
        "drain": {"timeout": "0s"},
    }
    soon = {"patience": "200ms"}  # a stream without events gets its head then
    with two_replicas(config, soon, {**soon, "retention": "300ms", "tombstone": "2s"}) as pair:
        yield pair


@pytest.fixture(autouse=True)
def a_resume_is_no_call(upstream: ScriptedUpstream) -> Iterator[None]:
    yield
    assert upstream.calls_of("nothing-may-go-upstream") == []


def finished(relay: RelayProcess, upstream: ScriptedUpstream, sample: Sample, prefix: str = "") -> str:
    """The id of a stream that has run to its end."""
    model = prefix + next(_names)
    upstream.on(model, *stream(*sample.frames))
    answer = start(relay, sample, model)
    rest(answer)
    return stream_id(answer)


def live(relay: RelayProcess, upstream: ScriptedUpstream, sample: Sample, k: int) -> tuple[str, str, RawStream]:
    """The id of a stream that is held after event k, the gate, and its first reader, which has k events."""
    model = next(_names)
    upstream.on(model, *stream(*sample.frames[:k], Gate(model), *sample.frames[k:]))
    answer = start(relay, sample, model)
    answer.events(k)
    return stream_id(answer), model, answer


def path_api(sample: Sample, how: str) -> Api:
    """The API in whose shape a refusal comes: that of the path; /streams speaks OpenAI's."""
    return sample.api if how == "post" else "chat"


def refused(answer: RawStream, sample: Sample, how: str) -> tuple[int, str]:
    """Status and code of a refusal, after a check of its form."""
    with answer:
        body = answer.read()
        assert answer.status >= 400, (answer.header_list, body, answer.ended)
        assert answer.headers["content-type"] == "application/json"
        assert "relay-stream-id" not in answer.headers
        code, message = refusal_of(path_api(sample, how), body)
        assert re.search(r"\b(Send|send|Check|Read|Use|Resume|Try|Come)\b", message), message
        return answer.status, code


def without_request_id(answer: RawStream) -> tuple[int, list[tuple[str, str]], bytes]:
    """A whole answer as a client sees it, but for its request id and its date."""
    with answer:
        body = answer.read()
        ids = [answer.headers[name] for name in ("request-id", "x-request-id") if name in answer.headers]
        assert len(ids) == 1
        headers = [
            (name.lower(), "*" if value in ids else value)
            for name, value in answer.header_list
            if name.lower() != "date"
        ]
        return answer.status, headers, body.replace(ids[0].encode(), b"*")


def status_of(relay: RelayProcess, sample: Sample, stream_name: str, token: str = "sk-one") -> RawStream:
    headers = {**sample.headers(token), "accept": "application/json"}
    return open_stream(f"{relay.url}/streams/{stream_name}", "GET", headers)


# -- 200 and 204 --------------------------------------------------------------------------------------------


@each_api
@each_way
def test_up_to_the_last_event_of_a_live_stream(
    replicas: Replicas, upstream: ScriptedUpstream, api: Api, how: str
) -> None:
    sample = SAMPLES[api]
    name, gate, answer = live(replicas.first, upstream, sample, 4)
    with answer:
        again = [(k, resume(relay, sample, f"{name}.{k}", how)) for k in (0, 2, 4) for relay in vars(replicas).values()]
        upstream.open(gate)
        for k, reader in again:
            assert sample.expected(name, k) + rest(reader) == sample.expected(name)
            assert reader.headers["relay-stream-id"] == name
            assert reader.headers["relay-resumable"] == "true"


@each_api
@each_way
@pytest.mark.parametrize("number", [0, 1])
def test_end_of_a_finished_stream(
    replicas: Replicas, upstream: ScriptedUpstream, api: Api, how: str, number: int
) -> None:
    sample = SAMPLES[api]
    name = finished(replicas.first, upstream, sample)
    with resume(replicas[number], sample, f"{name}.{len(sample.events)}", how) as answer:
        assert (answer.status, answer.read()) == (204, b"")
        assert "content-length" not in answer.headers
        assert "content-type" not in answer.headers


@each_api
@each_way
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("kind", ["error", "stop"])
def test_end_that_the_relay_tells(
    replicas: Replicas, upstream: ScriptedUpstream, api: Api, how: str, number: int, k: int, kind: str
) -> None:
    """It takes no number, is told again to who has all events but not the end, and only to them."""
    sample = SAMPLES[api]
    model = next(_names)
    end = Gate(model) if kind == "stop" else Cut()
    upstream.on(model, SSE_HEAD, *(Send(frame) for frame in sample.frames[:k]), Gate(f"{model}-end"), end)
    answer = start(replicas.first, sample, model)
    name = stream_id(answer)
    sent = answer.events(k)
    upstream.open(f"{model}-end")
    if kind == "stop":
        with open_stream(f"{replicas[number].url}/streams/{name}", "DELETE", sample.headers()) as stopped:
            assert stopped.status == 204
    with answer:
        told = [event for event in answer if not event.is_heartbeat]
        assert answer.ended == "zero-chunk"
    assert [event.id for event in sent + told] == [*event_ids(name, k), *end_ids(name, k, len(told))]
    assert masked(b"".join(event.raw for event in sent)) == sample.expected(name, k)
    if kind == "error":
        assert error_of(api, told, k - 1 if api == "responses" and k else None)[0] == "upstream_disconnected"
    closing = b"".join(event.raw for event in told)
    for n in {0, k // 2, k}:
        with resume(replicas[number], sample, f"{name}.{n}", how) as again:
            assert again.headers["relay-stream-id"] == name
            assert (n, sample.expected(name, n) + rest(again)) == (n, sample.expected(name, k) + closing)
    with resume(replicas[number], sample, f"{name}.{k}e", how) as done:
        assert (done.status, done.read()) == (204, b"")
    assert refused(resume(replicas[number], sample, f"{name}.{k + 1}", how), sample, how) == (410, "position_unknown")
    with status_of(replicas[number], sample, name) as status:
        told_as = "stopped" if kind == "stop" else "upstream_disconnected"
        assert (status.json["outcome"], status.json["events"]) == (told_as, k)


@each_api
def test_no_body_and_any_body_resume(replicas: Replicas, upstream: ScriptedUpstream, api: Api) -> None:
    sample = SAMPLES[api]
    name = finished(replicas.first, upstream, sample)
    for body in (b"", b"no json", b"[]", b"x" * 300_000, sample.body("m", stream=False)):
        answer = resume(replicas.second, sample, f"{name}.0", body=body)
        assert rest(answer) == sample.expected(name)


# -- 404, and who the owner is ------------------------------------------------------------------------------


@each_api
@each_way
def test_unknown_and_foreign_are_alike_to_the_byte(
    replicas: Replicas, upstream: ScriptedUpstream, api: Api, how: str
) -> None:
    sample = SAMPLES[api]
    other_api = SAMPLES["chat" if api == "messages" else "messages"]
    done = finished(replicas.first, upstream, sample)
    other = finished(replicas.first, upstream, other_api)
    running, gate, answer = live(replicas.first, upstream, sample, 3)
    unknown = "st_" + "A" * (len(done) - 3)
    end = len(sample.events)
    with answer:
        for relay in (replicas.first, replicas.second):
            wanted = without_request_id(resume(relay, sample, f"{unknown}.2", how, token="sk-two"))
            assert wanted[0] == 404
            assert json.loads(wanted[2])["error"]["code"] == "stream_not_found"
            for position in (
                *(f"{done}.{n}" for n in (0, 2, end, end + 1, f"{end}e")),
                *(f"{running}.{n}" for n in (0, 3, 4, "3e")),
                f"{other}.1",  # of another API, which only its owner may know
                f"{unknown}.0",
            ):
                foreign = without_request_id(resume(relay, sample, position, how, token="sk-two"))
                assert (position, foreign) == (position, wanted)
        upstream.open(gate)


@each_api
def test_status_of_unknown_and_foreign_are_alike(replicas: Replicas, upstream: ScriptedUpstream, api: Api) -> None:
    sample = SAMPLES[api]
    name = finished(replicas.first, upstream, sample)
    unknown = "st_" + "A" * (len(name) - 3)
    wanted = without_request_id(status_of(replicas.second, sample, unknown))
    assert wanted[0] == 404
    assert without_request_id(status_of(replicas.second, sample, name, token="sk-two")) == wanted
    with status_of(replicas.second, sample, name) as known:
        assert (known.status, known.json["outcome"]) == (200, "completed")


@each_api
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer sk-one"}, 200),
        ({"authorization": "bearer sk-one"}, 200),
        ({"x-api-key": "sk-one"}, 200),
        ({"authorization": "Bearer sk-on"}, 404),
        ({"x-api-key": "sk-one2"}, 404),
        ({"x-api-key": "SK-ONE"}, 404),
        ({}, 404),
    ],
)
def test_the_owner_is_the_credential(
    replicas: Replicas, upstream: ScriptedUpstream, api: Api, headers: dict[str, str], status: int
) -> None:
    sample = SAMPLES[api]
    name = finished(replicas.first, upstream, sample)
    asking = {**headers, "last-event-id": f"{name}.0"}
    for relay in (replicas.first, replicas.second):
        with open_stream(relay.url + sample.path, headers=asking, body=sample.body("any")) as answer:
            assert answer.status == status
            if status == 200:
                assert rest(answer) == sample.expected(name)


# -- 410 ----------------------------------------------------------------------------------------------------


@each_api
def test_expired_then_forgotten(replicas: Replicas, upstream: ScriptedUpstream, api: Api) -> None:
    sample = SAMPLES[api]
    name = finished(replicas.second, upstream, sample)

    def status(relay: RelayProcess) -> tuple[int, str]:
        with status_of(relay, sample, name) as answer:
            return answer.status, "" if answer.status == 200 else refusal_of("chat", answer.read())[0]

    wait_until(lambda: status(replicas.first)[0] != 200, 5, "the end of retention")
    seen = []
    for how, n in itertools.product(("post", "get", "query"), (0, 3, len(sample.events))):
        seen.append(refused(resume(replicas[n], sample, f"{name}.{n}", how), sample, how))
    with resume(replicas.first, sample, f"{name}.0", token="sk-two") as foreign:
        assert foreign.status == 404
    assert status(replicas.first) == (410, "stream_expired")
    assert set(seen) == {(410, "stream_expired")}

    wait_until(lambda: status(replicas.first)[0] != 410, 5, "the end of the tombstone")
    assert status(replicas.second) == (404, "stream_not_found")
    for how in ("post", "get", "query"):
        assert refused(resume(replicas.first, sample, f"{name}.0", how), sample, how) == (404, "stream_not_found")


@each_api
@each_way
def test_beyond_the_last_event(replicas: Replicas, upstream: ScriptedUpstream, api: Api, how: str) -> None:
    """The replica that produces a stream knows all of its ids. Another knows those of the log, which the producer may
    be ahead of as long as it lives."""
    sample = SAMPLES[api]
    done = finished(replicas.first, upstream, sample)
    running, gate, answer = live(replicas.first, upstream, sample, 3)
    with answer:
        for relay in (replicas.first, replicas.second):
            for position in (f"{done}.{len(sample.events) + 1}", f"{done}.99999", f"{running}.4", f"{running}.1000"):
                with resume(relay, sample, position, how) as again:
                    behind = position.startswith(running) and relay is replicas.second
                    assert ("retry-after" in again.headers) == behind
                    told = refused(again, sample, how)
                assert (position, told) == (position, (503, "store_behind") if behind else (410, "position_unknown"))
        upstream.open(gate)
        rest(answer)
        assert refused(resume(replicas.second, sample, f"{running}.1000"), sample, "post") == (410, "position_unknown")


@each_way
@pytest.mark.parametrize("state", ["live", "finished"])
@pytest.mark.parametrize("trimmed", [1, 3, 8])
def test_trimmed(replicas: Replicas, upstream: ScriptedUpstream, how: str, state: str, trimmed: int) -> None:
    """Someone has trimmed the log from its start: the hole is never passed over, and what is left can be read unless
    the event is gone from which it differs."""
    sample = SAMPLES["messages"]
    name, gate, answer = live(replicas.first, upstream, sample, 9)
    if state == "finished":
        upstream.open(gate)
        answer.events()
    with answer, redis.Redis.from_url(replicas.store_url) as client:
        (key,) = client.keys(f"*{name}*:log")
        client.execute_command("XTRIM", key, "MINID", f"{trimmed + 1}-0")
        told = [refused(resume(replicas.second, sample, f"{name}.{trimmed - 1}", how), sample, how)]
        again = resume(replicas.second, sample, f"{name}.{trimmed}", how)
        upstream.open(gate)
        if trimmed < 8:  # behind the eighth comes one that differs from it in its text alone
            assert sample.expected(name, trimmed) + rest(again) == sample.expected(name)
        else:
            told.append(refused(again, sample, how))
    assert set(told) <= {(410, "position_unknown"), (410, "stream_expired")}


# -- 400 ----------------------------------------------------------------------------------------------------


@each_api
@pytest.mark.parametrize("number", [0, 1])
def test_stream_of_another_api(replicas: Replicas, upstream: ScriptedUpstream, api: Api, number: int) -> None:
    sample = SAMPLES[api]
    name = finished(replicas.first, upstream, sample)
    for other in (SAMPLES[a] for a in APIS if a != api):
        for n in (0, 2, len(sample.events), 1000):
            told = refused(resume(replicas[number], other, f"{name}.{n}"), other, "post")
            assert told == (400, "invalid_last_event_id")
        assert rest(resume(replicas[number], other, f"{name}.0", "get")) == sample.expected(name)


@each_api
@each_way
def test_not_logged(replicas: Replicas, upstream: ScriptedUpstream, api: Api, how: str) -> None:
    sample = SAMPLES[api]
    model = f"unlogged-{api}-{how}"
    upstream.on(model, *stream(*sample.frames))
    with start(replicas.first, sample, model) as answer:
        assert answer.headers["relay-resumable"] == "false"
        name = stream_id(answer)
        assert answer.read() == b"".join(event.to_client(None) for event in sample.events)
    for relay, token, n in itertools.product((replicas.first, replicas.second), ("sk-one", "sk-two"), (0, 3)):
        told = refused(resume(relay, sample, f"{name}.{n}", how, token), sample, how)
        assert told == (400, "resume_not_supported")


GOOD = "st_" + "A" * 22
WRONG = {
    "empty": b"",
    "spaces": b"   ",
    "no dot": GOOD.encode(),
    "no number": GOOD.encode() + b".",
    "leading zero": GOOD.encode() + b".01",
    "an end without a number": GOOD.encode() + b".e",
    "an end in upper case": GOOD.encode() + b".1E",
    "more behind an end": GOOD.encode() + b".1ee",
    "two zeros": GOOD.encode() + b".00",
    "negative": GOOD.encode() + b".-1",
    "plus": GOOD.encode() + b".+1",
    "fraction": GOOD.encode() + b".1.5",
    "exponent": GOOD.encode() + b".1e3",
    "hexadecimal": GOOD.encode() + b".0x10",
    "underscore": GOOD.encode() + b".1_0",
    "beyond 64 bits": GOOD.encode() + b".18446744073709551616",
    "huge": GOOD.encode() + b"." + b"9" * 400,
    "4301 digits": GOOD.encode() + b"." + b"1" * 4301,  # where Python refuses to convert
    "digits of another script": GOOD.encode() + ".٣".encode(),
    "superscript in latin-1": GOOD.encode() + b".\xb2",
    "other prefix": b"sx_" + b"A" * 22 + b".1",
    "upper case prefix": b"ST_" + b"A" * 22 + b".1",
    "no prefix": b"A" * 22 + b".1",
    "too short": b"st_" + b"A" * 21 + b".1",
    "too long": b"st_" + b"A" * 40 + b".1",
    "other characters": b"st_" + b"A" * 21 + b"*.1",
    "braces": b"st_{" + b"A" * 20 + b"}.1",
    "non-ASCII": "st_ÄÄÄÄÄÄÄÄÄÄÄ.1".encode(),
    "non-ASCII latin-1": b"st_" + b"\xe4" * 22 + b".1",
    "line separator": GOOD.encode() + ".1\u2028".encode(),
    "next line": GOOD.encode() + b".1\x85",
    "space inside": GOOD.encode() + b" .1",
    "tab inside": GOOD.encode() + b".1\t2",
    "quoted": b'"' + GOOD.encode() + b'.1"',
    "10 kB": GOOD.encode() + b".1" + b"x" * 10_000,
    "path": b"../../etc/passwd",
    "glob": b"st_*.1",
    "another gateway's": b"evt_123",
    "a number": b"17",
    "null": b"null",
    "two headers": GOOD.encode() + b".1\r\nlast-event-id: " + GOOD.encode() + b".1",
    "a list": GOOD.encode() + b".1, " + GOOD.encode() + b".2",
}


@each_api
@pytest.mark.parametrize("how", ["post", "get"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_last_event_id(replicas: Replicas, upstream: ScriptedUpstream, api: Api, how: str, kind: str) -> None:
    sample = SAMPLES[api]
    headers = {**sample.headers(), "last-event-id": WRONG[kind].decode("latin-1")}
    calls = len(upstream.calls)
    if how == "post":
        answer = open_stream(replicas.second.url + sample.path, headers=headers, body=sample.body("m"))
    else:
        answer = open_stream(f"{replicas.second.url}/streams/{GOOD}", "GET", headers)
    assert refused(answer, sample, how) == (400, "invalid_last_event_id")
    assert len(upstream.calls) == calls


@each_api
@pytest.mark.parametrize("control", [b"\x1c", b"\x7f"], ids=["information separator", "delete"])
def test_a_control_character_is_in_no_header(
    replicas: Replicas, upstream: ScriptedUpstream, api: Api, control: bytes
) -> None:
    """Such a head is none (RFC 9110, section 5.5)."""
    sample = SAMPLES[api]
    calls = len(upstream.calls)
    headers = {**sample.headers(), "last-event-id": f"{GOOD}.1{control.decode()}"}
    with open_stream(replicas.second.url + sample.path, headers=headers, body=sample.body("m")) as answer:
        assert answer.status == 400
    assert len(upstream.calls) == calls


@pytest.mark.parametrize(
    "query",
    [
        "last_event_id=",
        "last_event_id",
        "last_event_id=17",
        f"last_event_id={GOOD}",
        f"last_event_id={GOOD}.01",
        f"last_event_id={GOOD}.1%0A",
        f"last_event_id={GOOD}.1%00",
        f"last_event_id={GOOD}.1+",
        f"last_event_id={GOOD}.%D9%A3",
        f"last_event_id=st_{'B' * 22}.1",
        "last_event_id=%FF%FE",
    ],
)
def test_wrong_last_event_id_in_the_query(replicas: Replicas, query: str) -> None:
    sample = SAMPLES["chat"]
    answer = open_stream(f"{replicas.first.url}/streams/{GOOD}?{query}", "GET", sample.headers())
    assert refused(answer, sample, "query") == (400, "invalid_last_event_id")


@pytest.mark.parametrize("name", ["st_", "evt_123", "st_" + "A" * 21, GOOD + ".1", GOOD + "%0a", "%C3%A4", "*"])
def test_wrong_stream_id_in_the_path(replicas: Replicas, name: str) -> None:
    sample = SAMPLES["chat"]
    for accept in ("text/event-stream", "application/json"):
        headers = {**sample.headers(), "accept": accept}
        answer = open_stream(f"{replicas.first.url}/streams/{name}", "GET", headers)
        assert refused(answer, sample, "get") == (400, "invalid_last_event_id")


def test_id_of_another_stream_than_the_path(replicas: Replicas, upstream: ScriptedUpstream) -> None:
    sample = SAMPLES["chat"]
    one, two = (finished(replicas.first, upstream, sample) for _ in range(2))
    headers = {**sample.headers(), "last-event-id": f"{one}.1"}
    answer = open_stream(f"{replicas.second.url}/streams/{two}", "GET", headers)
    assert refused(answer, sample, "get") == (400, "invalid_last_event_id")


# -- 503 ----------------------------------------------------------------------------------------------------


def test_store_gone_and_back(upstream: ScriptedUpstream, relays: Relays, tmp_path: Path) -> None:
    with valkey_server(tmp_path / "store", appendonly=True, unix=True, config=[("appendfsync", "always")]) as store:
        config = {"upstreams": [{"name": "scripted", "base_url": upstream.url}], "store": {"url": store.url}}
        pair = relays.start(config), relays.start(config)
        names = {api: finished(pair[0], upstream, SAMPLES[api]) for api in APIS}
        (server,) = store.servers
        server.kill()
        for sample, how in itertools.product(SAMPLES.values(), ("post", "get", "query")):
            for relay, n in itertools.product(pair, (0, 2, len(sample.events))):
                with resume(relay, sample, f"{names[sample.api]}.{n}", how) as answer:
                    assert int(answer.headers["retry-after"]) >= 1
                    assert refused(answer, sample, how) == (503, "store_unavailable")
        with status_of(pair[0], SAMPLES["chat"], names["chat"]) as answer:
            assert (answer.status, answer.json["error"]["code"]) == (503, "store_unavailable")
        server.start()
        for sample, relay in itertools.product(SAMPLES.values(), pair):
            assert rest(resume(relay, sample, f"{names[sample.api]}.0")) == sample.expected(names[sample.api])


# -- a restart of the relay that owns the embedded store ----------------------------------------------------


@pytest.mark.parametrize("how_it_ends", [signal.SIGTERM, signal.SIGKILL])
def test_restarted_relay_still_serves(upstream: ScriptedUpstream, relays: Relays, how_it_ends: signal.Signals) -> None:
    """Finished streams byte for byte; the one that ran when it was killed, up to there and with its error."""
    config = {"upstreams": [{"name": "scripted", "base_url": upstream.url}], "streams": {"lease": "500ms"}}
    relay = relays.start({**config, "drain": {"timeout": "0s"}})
    done = {api: finished(relay, upstream, SAMPLES[api]) for api in APIS}
    running = {api: live(relay, upstream, SAMPLES[api], 4) for api in APIS}
    relay.signal(how_it_ends)
    relay.wait()
    relay.start()
    for sample in SAMPLES.values():
        name = done[sample.api]
        for how, k in itertools.product(("post", "get"), (0, 5)):
            answer = resume(relay, sample, f"{name}.{k}", how)
            assert sample.expected(name, k) + rest(answer) == sample.expected(name)
        with resume(relay, sample, f"{name}.{len(sample.events)}") as end:
            assert end.status == 204
        with resume(relay, sample, f"{name}.0", token="sk-two") as foreign:
            assert foreign.status == 404
    for sample in SAMPLES.values():
        name, _, reader = running[sample.api]
        with reader, resume(relay, sample, f"{name}.0") as answer:
            events = answer.events()
            assert answer.ended == "zero-chunk"
        assert [event.id for event in events] == [*event_ids(name, 4), *end_ids(name, 4, len(events) - 4)]
        assert masked(b"".join(event.raw for event in events[:4])) == sample.expected(name, 4)
        last = 3 if sample.api == "responses" else None
        code, _ = error_of(sample.api, events[4:], last)
        assert code == ("shutdown" if how_it_ends is signal.SIGTERM else "producer_lost")
    assert len(upstream.calls_of("nothing-may-go-upstream")) == 0
