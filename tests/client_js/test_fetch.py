"""The resuming fetch by itself: what it sends, when it waits, gives up and refuses, and what it leaves alone.

The relays, the store and the upstream are real; what stands between is a proxy that plays the network and gateways.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.client_js.conftest import Bench, finish, node, replicas, start
from tests.client_js.scripts import script
from tests.support.cutting_http import BEFORE_HEAD, Asked, CuttingProxy, Fate, Way
from tests.support.processes import RelayProcess
from tests.support.sseclient import open_stream
from tests.support.streams import PATHS
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

CHAT = PATHS["chat"]
TOKEN = {"authorization": "Bearer sk-test"}
# What the upstream's own frames amount to; the relay adds ids, a hint and heartbeats.
EVENTS = len([step for step in script("chat") if hasattr(step, "data")])


def job(bench: Bench, model: str, api: str = "chat", gate: str | None = None, **more: Any) -> dict[str, Any]:
    bench.upstream.on(model, *script(api, gate))
    return {"path": PATHS[api], "body": {"model": model, "messages": [], "input": "", "stream": True}, **more}


def read(proxy: CuttingProxy | str, *jobs: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    url = proxy if isinstance(proxy, str) else proxy.url
    seen: list[dict[str, Any]] = node("fetching.mjs", {"url": url, "jobs": jobs, "options": options})
    return seen


def at_first(first: Fate, *then: Fate) -> Callable[[Asked], Fate]:
    """Fates in the order of the requests; the last one goes for all that follow. The model "warm" is left alone."""
    left = [first, *then]
    return lambda asked: Fate() if asked.model == "warm" else left.pop(0) if len(left) > 1 else left[0]


def gateway(status: int, body: str = "", **headers: str) -> Fate:
    """An answer of something that stands before the relay."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = [f"HTTP/1.1 {status} No", *lines, f"content-length: {len(body)}", "connection: close", "", ""]
    return Fate(instead="\r\n".join(head).encode() + body.encode())


def ids(text: str) -> list[str]:
    return re.findall(r"^id: (.+)$", text, re.MULTILINE)


def hint(text: str) -> int:
    return int(re.findall(r"^retry: (\d+)$", text, re.MULTILINE)[0])


def without_comments(text: str) -> str:
    return re.sub(r"^: .*\n", "", text, flags=re.MULTILINE)


def is_whole(seen: dict[str, Any]) -> bool:
    stream = seen["headers"]["relay-stream-id"]
    return seen["error"] is None and ids(seen["text"]) == [f"{stream}.{n + 1}" for n in range(EVENTS)]


@pytest.mark.parametrize("form", ["string", "bytes", "buffer", "request", "both"])
def test_the_bytes_are_the_log_and_the_head_is_the_first(bench: Bench, form: str) -> None:
    model = f"form-{form}"
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700), Fate(555, to=1), Fate())) as proxy:
        (seen,) = read(proxy, job(bench, model, form=form))
        requests = proxy.asked(model)
        url = proxy.url + CHAT
    assert is_whole(seen)
    stream = seen["headers"]["relay-stream-id"]
    with open_stream(f"{bench.urls[0]}/streams/{stream}", "GET", headers=TOKEN) as log:
        assert without_comments(seen["text"]) == without_comments(log.read().decode())
    assert (seen["status"], seen["url"], seen["untouched"]) == (200, url, False)
    assert len({asked.body for asked in requests}) == 1
    assert [asked.headers["authorization"] for asked in requests] == ["Bearer sk-test"] * 3
    assert [asked.headers.get("last-event-id", "none").rpartition(".")[0] for asked in requests[1:]] == [stream] * 2
    assert len(bench.upstream.calls_of(model)) == 1


def test_a_body_that_is_made_while_it_is_sent_goes_through_untouched(bench: Bench) -> None:
    with CuttingProxy(*bench.urls, fate=lambda asked: Fate(700)) as proxy:
        bench.upstream.on("made", *script("chat"))
        (seen,) = read(proxy, {**job(bench, "made"), "form": "stream"})
        assert len(proxy.asked()) <= 1
    assert seen["error"] is not None
    assert not seen["error"]["isResumeError"]


def test_no_relay_is_left_alone(bench: Bench) -> None:
    """Straight at the upstream: no header of ours, the very answer of the native fetch, and its own error."""
    with CuttingProxy(bench.upstream.url, fate=at_first(Fate(700, "rst"), Fate(BEFORE_HEAD, "rst"))) as proxy:
        cut, dead = read(proxy, job(bench, "plain"), job(bench, "plain-dead"))
        (asked,) = proxy.asked("plain")
        assert len(proxy.asked("plain-dead")) == 1
    assert cut["untouched"]
    assert (cut["error"]["name"], dead["error"]["name"]) == ("TypeError", "TypeError")
    assert not {"idempotency-key", "last-event-id"} & asked.headers.keys()
    assert cut["waits"] == dead["waits"] == []


def test_a_stream_without_a_log_is_left_alone(bench: Bench) -> None:
    config = {"upstreams": [{"name": "scripted", "base_url": bench.upstream.url, "buffer": False}]}
    with RelayProcess(config) as relay, CuttingProxy(relay.url, fate=lambda asked: Fate(700)) as proxy:
        (seen,) = read(proxy, job(bench, "unlogged"))
        assert len(proxy.asked()) == 1
    assert seen["headers"]["relay-resumable"] == "false"
    assert seen["untouched"]
    assert seen["error"]["name"] == "TypeError"


def test_what_is_no_stream_is_left_alone(bench: Bench) -> None:
    whole = job(bench, "whole")
    whole["body"]["stream"] = False
    seen = read(bench.urls[0], whole, {"path": "/livez", "method": "GET"}, {**job(bench, "x"), "path": "/v1/other"})
    assert [one["untouched"] for one in seen] == [True] * 3
    assert [call.header("idempotency-key") for call in bench.upstream.calls_of("whole")] == [None]


def test_a_death_before_the_head_is_an_error_where_no_relay_is_known(bench: Bench) -> None:
    with CuttingProxy(*bench.urls, fate=at_first(Fate(BEFORE_HEAD, "rst"))) as proxy:
        (seen,) = read(proxy, job(bench, "unknown"))
        assert len(proxy.asked("unknown")) == 1
    assert seen["error"]["name"] == "TypeError"


@pytest.mark.parametrize("how", ["warm", "assumeRelay"])
def test_a_death_before_the_head_joins_the_same_generation(bench: Bench, how: str) -> None:
    model = f"known-{how}"
    fate = at_first(Fate(BEFORE_HEAD, "rst"), gateway(502), Fate(BEFORE_HEAD, "fin"), Fate(to=1))
    with CuttingProxy(*bench.urls, fate=fate) as proxy:
        warm = [job(bench, "warm")] if how == "warm" else []
        seen = read(proxy, *warm, job(bench, model), assumeRelay=not warm)[-1]
        keys = [asked.headers["idempotency-key"] for asked in proxy.asked(model)]
    assert is_whole(seen)
    assert seen["waits"] == [500, 1000, 2000]
    assert len(keys) == 4
    assert len(set(keys)) == 1
    assert len(bench.upstream.calls_of(model)) == 1


def test_the_users_own_key_is_kept(bench: Bench) -> None:
    with CuttingProxy(*bench.urls, fate=at_first(Fate(BEFORE_HEAD, "rst"), Fate())) as proxy:
        _, seen = read(proxy, job(bench, "warm"), job(bench, "keyed", headers={"Idempotency-Key": "mine-1"}))
        assert [asked.headers["idempotency-key"] for asked in proxy.asked("keyed")] == ["mine-1"] * 2
    assert is_whole(seen)


def test_the_users_own_last_event_id_is_where_it_begins(bench: Bench) -> None:
    (whole,) = read(bench.urls[0], job(bench, "from"))
    third = ids(whole["text"])[2]
    with CuttingProxy(*bench.urls, fate=at_first(Fate(0), Fate(300), Fate())) as proxy:
        (rest,) = read(proxy, job(bench, "from", headers={"Last-Event-ID": third}))
        assert [asked.headers["last-event-id"] for asked in proxy.asked()][:2] == [third] * 2
    assert ids(rest["text"]) == ids(whole["text"])[3:]


def test_it_waits_for_as_long_as_it_is_told(bench: Bench) -> None:
    refusals = (gateway(503, retry_after="7"), gateway(429, retry_after="3"), gateway(502))
    dated = gateway(504, date="Sat, 01 Jan 2000 00:00:00 GMT", retry_after="Sat, 01 Jan 2000 00:00:09 GMT")
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700), *refusals, dated, Fate())) as proxy:
        (seen,) = read(proxy, job(bench, "told"))
    assert is_whole(seen)
    told = hint(seen["text"])
    assert seen["waits"] == [max(told, 500), 7000, 3000, max(told, 4000), 9000]


def test_it_gives_up(bench: Bench) -> None:
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700), Fate(BEFORE_HEAD, "rst"))) as proxy:
        (seen,) = read(proxy, job(bench, "bounded"), maxAttempts=4, longestDelayMs=3000)
        assert len(proxy.asked()) == 5
    told = hint(seen["text"])
    assert seen["waits"] == [max(told, 500), max(told, 1000), max(told, 2000), 3000]
    error = seen["error"]
    assert (error["isResumeError"], error["code"], error["status"]) == (True, "gave_up", None)
    assert error["lastEventId"] == ids(seen["text"])[-1]
    assert error["lastEventId"] in error["message"]
    assert error["cause"] == "fetch failed"
    assert "send the request with this Last-Event-ID to read on" in error["message"]
    assert "4 tries in " in error["message"]


def test_a_wait_beyond_the_time_limit_is_not_begun(bench: Bench) -> None:
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700), gateway(503, retry_after="600"))) as proxy:
        (seen,) = read(proxy, job(bench, "too-long"))
        assert len(proxy.asked()) == 2
    assert len(seen["waits"]) == 1
    assert (seen["error"]["code"], seen["error"]["status"]) == ("timed_out", 503)


def test_progress_begins_the_bounds_anew(bench: Bench) -> None:
    one_each = [Fate(380) for _ in range(8)]
    with CuttingProxy(*bench.urls, fate=at_first(*one_each, Fate())) as proxy:
        (seen,) = read(proxy, job(bench, "progress"), maxAttempts=1)
    assert is_whole(seen)
    assert seen["waits"] == [max(hint(seen["text"]), 500)] * 8


@pytest.mark.parametrize("how", ["clean", "close"])
def test_a_clean_end_is_asked_about_no_later_than_the_stream_asks_for(bench: Bench, how: Way) -> None:
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700, how), Fate())) as proxy:
        (seen,) = read(proxy, job(bench, f"asked-{how}"), firstDelayMs=60_000, longestDelayMs=60_000)
    assert is_whole(seen)
    assert seen["waits"] == [hint(seen["text"])]


def test_an_end_without_the_last_event_is_the_end_when_the_relay_says_so(bench: Bench) -> None:
    """Some upstreams of the chat API send no [DONE]."""
    short = job(bench, "no-done")
    bench.upstream.on("no-done", *script("chat")[:-3])
    with CuttingProxy(*bench.urls) as proxy:
        (seen,) = read(proxy, short)
        assert [asked.headers.get("last-event-id") for asked in proxy.asked()] == [None, ids(seen["text"])[-1]]
    assert seen["error"] is None
    assert len(ids(seen["text"])) == EVENTS - 1


def test_404_another_store(bench: Bench) -> None:
    config = {"upstreams": [{"name": "scripted", "base_url": bench.upstream.url}]}
    fate = at_first(Fate(700), Fate(to=1))
    with RelayProcess(config) as stranger, CuttingProxy(bench.urls[0], stranger.url, fate=fate) as proxy:
        (seen,) = read(proxy, job(bench, "lost"))
        assert len(proxy.asked()) == 2
    refused(seen, 404, "stream_not_found", "Send the request again for a new answer.")


def test_410_what_the_log_no_longer_has(bench: Bench) -> None:
    def forget(stream: str) -> None:
        """Once it has ended: a live producer would write it again."""
        about = {"accept": "application/json", **TOKEN}
        url = f"{bench.urls[0]}/streams/{stream}"
        wait_until(lambda: open_stream(url, "GET", about).json["state"] == "ended", 10, "the end")
        bench.store.servers[0].command("DEL", f"relay:{{{stream}}}:log")

    def fate(asked: Asked) -> Fate:
        if (last := asked.headers.get("last-event-id")) is None:
            return Fate(700)
        forget(last.rpartition(".")[0])
        return Fate(to=1)

    with CuttingProxy(*bench.urls, fate=fate) as proxy:
        (seen,) = read(proxy, job(bench, "gone"))
        assert len(proxy.asked()) == 2
    refused(seen, 410, "stream_expired", "Send the request again for a new answer.")


@pytest.mark.parametrize(
    ("status", "body", "code", "advice"),
    [
        (400, '{"error": {"code": "resume_not_supported"}}', "resume_not_supported", "Send the request again"),
        (401, '{"error": {"code": "invalid_api_key"}}', "invalid_api_key", "Renew the credential"),
        (403, '{"error": {"code": "invalid_ticket"}}', "invalid_ticket", "Use the credential that started the stream."),
    ],
)
def test_other_refusals_are_thrown(bench: Bench, status: int, body: str, code: str, advice: str) -> None:
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700), gateway(status, body))) as proxy:
        (seen,) = read(proxy, job(bench, f"refused-{status}"))
        assert len(proxy.asked()) == 2
    refused(seen, status, code, advice)


@pytest.mark.parametrize("body", ["<html>sk-secret</html>", '{"error": {"code": "sk-secret \\u001b[2J"}}'])
def test_a_refusal_without_a_code_is_not_the_relays_word(bench: Bench, body: str) -> None:
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700), gateway(404, body), gateway(403, body), Fate())) as proxy:
        (seen,) = read(proxy, job(bench, f"word-{len(body)}"))
    assert is_whole(seen)
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700), gateway(404, body))) as proxy:
        (seen,) = read(proxy, job(bench, f"word-{len(body)}-always"), maxAttempts=2)
        assert len(proxy.asked()) == 3
    assert (seen["error"]["code"], seen["error"]["status"]) == ("gave_up", 404)
    assert "secret" not in seen["error"]["message"]


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_within_the_origin_is_followed(bench: Bench, status: int) -> None:
    moved = gateway(status, location=f"{CHAT}?moved=1")
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700), moved, Fate())) as proxy:
        (seen,) = read(proxy, job(bench, f"moved-{status}"))
        asked = proxy.asked()
    assert is_whole(seen)
    assert [one.path for one in asked] == [CHAT, CHAT, f"{CHAT}?moved=1"]
    assert asked[2].headers["last-event-id"] == asked[1].headers["last-event-id"]


def test_a_known_relay_is_asked_for_an_answer_without_compression(bench: Bench) -> None:
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700), Fate())) as proxy:
        read(proxy, job(bench, "plain-encoding"), job(bench, "warm"))
        asked = [one.headers["accept-encoding"] for one in (*proxy.asked("plain-encoding"), *proxy.asked("warm"))]
    assert asked[0] != "identity"
    assert asked[1:] == ["identity"] * 2


def refused(seen: dict[str, Any], status: int, code: str, advice: str) -> None:
    error = seen["error"]
    assert (error["isResumeError"], error["status"], error["code"]) == (True, status, code)
    assert error["lastEventId"] == ids(seen["text"])[-1]
    assert f"({status} {code})" in error["message"]
    assert advice in error["message"]
    assert "secret" not in error["message"]


def test_a_lost_header_leads_back_to_the_same_generation_or_is_noticed(bench: Bench) -> None:
    """Something on the way drops Last-Event-ID: the key still joins, and what was handed out is not repeated."""
    dropped = Fate(without=("last-event-id",))
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700), dropped)) as proxy:
        _, keyed = read(proxy, job(bench, "warm"), job(bench, "dropped"))
    assert is_whole(keyed)
    assert len(bench.upstream.calls_of("dropped")) == 1
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700), dropped)) as proxy:
        (bare,) = read(proxy, job(bench, "dropped-bare"))
    assert (bare["error"]["isResumeError"], bare["error"]["code"]) == (True, "wrong_stream")


@pytest.mark.parametrize("act", ["abort", "cancel"])
def test_who_leaves_hangs_up(bench: Bench, act: str) -> None:
    """In the first connection and in a later one; the generation waits at a gate, so nothing else can end it."""
    for fate, name in ((at_first(Fate()), "first"), (at_first(Fate(200), Fate(to=1)), "later")):
        model = f"{act}-{name}"
        with CuttingProxy(*bench.urls, fate=fate) as proxy:
            process = start(
                "fetching.mjs",
                {"url": proxy.url, "jobs": [job(bench, model, gate=model, after=800, act=act)], "options": {}},
            )
            (seen,) = finish(process)
            assert proxy.asked()[-1].gone.wait(10)
        bench.upstream.open(model)
        assert (seen["error"] and seen["error"]["message"]) == ("enough" if act == "abort" else None)


@pytest.mark.parametrize("act", ["abort", "cancel"])
@pytest.mark.parametrize("stops", [True, False])
def test_who_leaves_stops_it_where_that_was_asked_for(bench: Bench, act: str, stops: bool) -> None:
    """Without it the relay keeps the generation for a minute. Its own end is no reason to stop it."""
    for fate, name in ((at_first(Fate()), "first"), (at_first(Fate(200), Fate(to=1)), "later")):
        model = f"stops-{act}-{stops}-{name}"
        with CuttingProxy(*bench.urls, fate=fate) as proxy:
            (seen,) = read(proxy, job(bench, model, gate=model, after=800, act=act), stopOnAbort=stops)
            asked = proxy.asked()
        stream = seen["headers"]["relay-stream-id"]
        deleted = [one for one in asked if one.path == f"/streams/{stream}"]
        assert len(deleted) == stops
        (call,) = bench.upstream.calls_of(model)
        assert call.ended.wait(10 if stops else 0.5) is stops
        bench.upstream.open(model)
        if stops:
            assert deleted[0].headers["authorization"] == "Bearer sk-test"
            assert "content-type" not in deleted[0].headers


def test_a_stream_that_was_read_to_its_end_is_not_stopped(bench: Bench) -> None:
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700), Fate())) as proxy:
        (seen,) = read(proxy, job(bench, "read-to-its-end"), stopOnAbort=True)
        assert is_whole(seen)
        assert [asked.path for asked in proxy.asked()] == [CHAT, CHAT]


def test_an_abort_ends_a_wait(bench: Bench) -> None:
    """A wait of a minute, by the module's own timer."""
    with CuttingProxy(*bench.urls, fate=at_first(Fate(700))) as proxy:
        (seen,) = read(proxy, job(bench, "waiting", inWait=True), real=True, firstDelayMs=60_000, longestDelayMs=60_000)
        assert len(proxy.asked()) == 1
    assert seen["error"]["message"] == "enough"


def test_an_abort_ends_a_wait_before_the_head(bench: Bench) -> None:
    with CuttingProxy(*bench.urls, fate=lambda asked: Fate(BEFORE_HEAD, "rst")) as proxy:
        options = {"real": True, "assumeRelay": True, "firstDelayMs": 60_000, "longestDelayMs": 60_000}
        (seen,) = read(proxy, job(bench, "waiting-head", inWait=True), **options)
        assert len(proxy.asked()) == 1
    assert seen["error"]["message"] == "enough"


def test_a_silent_connection_is_given_up_for_another(bench: Bench) -> None:
    """Neither a byte nor an end, of the body and then of the head: a laptop that slept, a NAT that forgot."""
    fate = at_first(Fate(700, "hang"), Fate(BEFORE_HEAD, "hang"), Fate(to=1))
    with CuttingProxy(*bench.urls, fate=fate) as proxy:
        (seen,) = read(proxy, job(bench, "silent"), silenceMs=1000)
        assert all(asked.gone.wait(10) for asked in proxy.asked()[:2])
    assert is_whole(seen)


def test_a_relay_without_its_store_is_asked_without_a_key(tmp_path: Path) -> None:
    with replicas(tmp_path) as bench, CuttingProxy(*bench.urls) as proxy:

        def fate(asked: Asked) -> Fate:
            if asked.model == "outage" and len(proxy.asked("outage")) == 1:
                bench.store.servers[0].kill()
            return Fate()

        proxy.fate = fate
        _, seen = read(proxy, job(bench, "warm"), job(bench, "outage"))
        assert ["idempotency-key" in asked.headers for asked in proxy.asked("outage")] == [True, False]
    assert (seen["error"], seen["untouched"]) == (None, True)
    assert seen["headers"]["relay-resumable"] == "false"
    assert "[DONE]" in seen["text"]
