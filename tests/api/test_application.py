"""An application of one's own (`apis: [sse]`): each of its event streams is one that can be resumed, all else is its
own answer, and whose a stream is its settings say."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from relay.config import load
from tests.conftest import Relays
from tests.support.processes import RelayProcess
from tests.support.scripted import Cut, Gate, Head, Reset, ScriptedUpstream, Send, Step, json_response, stream
from tests.support.sseclient import RawEvent, RawStream, open_stream
from tests.support.stores import valkey_server
from tests.support.streams import chat
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ALICE = {"cookie": "theme=dark; session=alice", "authorization": ""}
BOB = {"cookie": "session=bob", "authorization": ""}
KEY = {"authorization": "Bearer sk-one"}
SECOND = "https://relay.example"
_numbers = itertools.count()


@dataclass(frozen=True)
class Site:
    """Two replicas in front of one application, whose paths begin with `/web` (cookies), `/api` (none) and `/ends` (an
    event has to come). The first has hardly any patience, the second has it in plenty."""

    one: RelayProcess
    two: RelayProcess
    app: ScriptedUpstream

    def play(self, *steps: Step, method: str = "POST", under: str = "/web/chat/") -> str:
        """A path that is answered so."""
        path = f"{under}{next(_numbers)}"
        self.app.on_path(f"{method} {path}", *steps)
        return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("store")
    with ScriptedUpstream() as app, valkey_server(folder, unix=True) as store:
        common = {"base_url": app.url, "apis": ["sse"]}
        config: dict[str, Any] = {
            "upstreams": [
                {
                    "name": "web",
                    **common,
                    "paths": ["/web/chat/*", "/web/plain"],
                    "owner": ["authorization", "cookie:session"],
                    "cookies": True,
                    "stream_name": "$.id",
                    "resume": "/web/chat/{name}/stream",
                },
                {"name": "api", **common, "paths": ["/api/*/runs", "/api/**"], "headers": ["x-kept"]},
                {"name": "ends", **common, "paths": ["/ends/*"], "end": "done"},
                {"name": "llm", "base_url": app.url},
            ],
            "store": {"url": store.url},
            "streams": {"heartbeat": "60s", "patience": "500ms", "abandon_after": "20s", "lease": "1s"},
            "cors": {"origins": ["https://relay.example"]},
            "drain": {"timeout": "0s"},
        }
        patient = {**config, "streams": {**config["streams"], "patience": "30s"}}
        with RelayProcess(config) as one, RelayProcess(patient) as two:
            yield Site(one, two, app)


def ask(
    relay: RelayProcess, path: str, headers: dict[str, str] | None = None, body: object = None, method: str = "POST"
) -> RawStream:
    return open_stream(relay.url + path, method, KEY if headers is None else headers, body=body)


def get(relay: RelayProcess, path: str, headers: dict[str, str] | None = None, **more: str) -> RawStream:
    return open_stream(relay.url + path, "GET", {**(KEY if headers is None else headers), **more})


def told(events: list[RawEvent]) -> list[tuple[str, str]]:
    return [(event.event or "", event.data or "") for event in events]


def whole(answer: RawStream) -> list[tuple[str, str]]:
    """What a reader gets to a proper end."""
    with answer:
        assert answer.status == 200, answer.read()
        events = answer.events()
        assert answer.ended == "zero-chunk"
        return told(events)


A, B, C = "data: a\n\n", "event: note\ndata: b1\ndata: b2\n\n", "event: empty\ndata:\n\n"
ABC = [("", "a"), ("note", "b1\nb2"), ("empty", "")]


class TestStreams:
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
    def test_each_is_resumed_whatever_the_method_and_the_body(self, site: Site, method: str) -> None:
        path = site.play(*stream(A, Gate(f"m-{method}"), B, C), method=method, under="/api/")
        answer = open_stream(site.one.url + path + "?q=a%20b", method, KEY, body=None if method == "GET" else b"\x00no")
        assert answer.status == 200
        assert answer.headers["relay-resumable"] == "true"
        (first,) = answer.take(1)
        assert first.id == f"{answer.headers['relay-stream-id']}.1"
        answer.close()
        again = open_stream(site.two.url + path, method, {**KEY, "last-event-id": first.id})
        site.app.open(f"m-{method}")
        assert told([first]) + whole(again) == ABC
        calls = [call for call in site.app.calls if call.path.startswith(path)]
        assert [(call.method, call.path) for call in calls] == [(method, path + "?q=a%20b")]
        assert whole(get(site.two, f"/streams/{answer.headers['relay-stream-id']}")) == ABC

    def test_the_head_is_answered_before_there_is_any_event(self, site: Site) -> None:
        path = site.play(*stream(Gate("head"), A), under="/api/")
        answer = ask(site.one, path)
        assert answer.status == 200  # and not only when the patience is over
        site.app.open("head")
        assert whole(answer) == [("", "a")]

    def test_no_answer_is_taken_for_a_stream_before_it_is_one(self, site: Site) -> None:
        path = site.play(Gate("slow"), *json_response(200, {"whole": True}), under="/api/")
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask, site.one, path)
            site.app.wait_reached("slow")
            assert not wait([asking], timeout=1.0).done  # longer than the patience
            site.app.open("slow")
            with asking.result(20) as answer:
                assert (answer.status, answer.json) == (200, {"whole": True})

    @pytest.mark.parametrize("status", [201, 204, 302, 401, 404, 429, 500])
    def test_what_is_no_stream_is_the_applications_own_answer(self, site: Site, status: int) -> None:
        head = Head(
            status,
            {"content-type": "text/html", "location": "/login", "set-cookie": "a=1", "www-authenticate": "Basic"},
            framing="length",
        )
        path = site.play(head, *([] if status == 204 else [Send(b"<p>hello")]))
        with ask(site.one, path, ALICE) as answer:
            assert answer.status == status
            assert answer.headers["location"] == "/login"
            assert answer.headers["set-cookie"] == "a=1"
            assert "content-security-policy" not in answer.headers
            assert answer.read() == (b"" if status == 204 else b"<p>hello")

    def test_a_stream_that_is_idle_for_long_is_none_that_has_stalled(self, site: Site) -> None:
        settings = load(
            None, {"upstreams": [{"name": "a", "base_url": "http://a", "apis": ["sse"], "paths": ["/a"]}]}, {}
        )
        assert settings.upstreams[0].timeouts(settings.streams).upstream_stall_timeout == float("inf")

    def test_a_stop_ends_it(self, site: Site) -> None:
        path = site.play(*stream(A, Gate("never-stop")), under="/api/")
        answer = ask(site.one, path)
        answer.events(1)
        with open_stream(site.two.url + f"/streams/{answer.headers['relay-stream-id']}", "DELETE", KEY) as stopped:
            assert stopped.status == 204
        assert whole(answer) == [("stopped", '{"relay":"stopped"}')]

    def test_a_cut_is_told(self, site: Site) -> None:
        path = site.play(
            Head(200, {"content-type": "text/event-stream"}), Send(A.encode()), Send(b"data: hal"), Cut(), under="/api/"
        )
        (first, error) = whole(ask(site.one, path))
        assert first == ("", "a")
        assert error[0] == "error"
        assert json.loads(error[1])["error"]["code"] == "upstream_disconnected"

    @pytest.mark.parametrize(
        "rest", [(Send(b"data: hal"), Cut()), (Send(b"event: note\n"), Cut()), (Gate("close-reset"), Reset())]
    )
    def test_a_body_that_ends_with_its_connection_is_whole_only_where_nothing_is_broken(
        self, site: Site, rest: tuple[Step, ...]
    ) -> None:
        head = Head(200, {"content-type": "text/event-stream"}, framing="close")
        path = site.play(head, Send(A.encode()), *rest, under="/api/")
        with ask(site.one, path) as answer:
            (first,) = answer.events(1)
            site.app.open("close-reset")
            (error,) = answer.events()
            assert answer.ended == "zero-chunk"
        assert first.data == "a"
        assert error.json["error"]["code"] == "upstream_disconnected"

    @pytest.mark.parametrize("last", [C, C.rstrip("\n") + "\n"], ids=["whole", "without its blank line"])
    def test_and_an_end_that_has_come_is_the_end(self, site: Site, last: str) -> None:
        head = Head(200, {"content-type": "text/event-stream"}, framing="close")
        path = site.play(head, Send(A.encode()), Send(B.encode()), Send(C.encode()), Cut(), under="/api/")
        assert whole(ask(site.one, path)) == ABC
        ending = last.replace("empty", "done")
        path = site.play(head, Send(A.encode()), Send(ending.encode()), Cut(), under="/ends/")
        assert whole(ask(site.one, path)) == [("", "a"), ("done", "")]

    def test_an_end_that_has_to_come_is_missed(self, site: Site) -> None:
        path = site.play(*stream(A), under="/ends/")
        events = whole(ask(site.one, path))
        assert [kind for kind, _ in events] == ["", "error"]
        path = site.play(*stream(A, "event: done\ndata: x\n\n", B), under="/ends/")
        assert whole(ask(site.one, path)) == [("", "a"), ("done", "x"), ("note", "b1\nb2")]

    def test_it_runs_detached(self, site: Site) -> None:
        path = site.play(*stream(A, B, C), under="/api/")
        with ask(site.one, path, {**KEY, "prefer": "respond-async"}) as answer:
            assert answer.status == 202
            location = answer.headers["location"]
        assert whole(get(site.two, location)) == ABC

    def test_an_idempotency_key_joins_it(self, site: Site) -> None:
        path = site.play(*stream(A, Gate("joined"), B, C), under="/api/")
        keyed = {**KEY, "idempotency-key": "k-1"}
        first, second = ask(site.one, path, keyed, b"x"), ask(site.two, path, keyed, b"x")
        site.app.open("joined")
        assert whole(first) == whole(second) == ABC
        assert len([call for call in site.app.calls if call.path == path]) == 1

    def test_a_key_names_one_request_with_its_method_and_query(self, site: Site) -> None:
        path = site.play(*stream(A), under="/api/")
        keyed = {**KEY, "idempotency-key": "k-2"}
        assert whole(ask(site.one, path + "?a=1", keyed, b"x")) == [("", "a")]
        with ask(site.two, path + "?a=2", keyed, b"x") as other:
            assert (other.status, other.json["error"]["code"]) == (422, "idempotency_key_reused")

    def test_metrics_name_it(self, site: Site) -> None:
        path = site.play(*stream(A), under="/api/")
        whole(ask(site.one, path))
        ended = 'relay_streams_total{api="sse",model="other",outcome="completed",upstream="api"}'

        def counted() -> str:
            with open_stream(site.one.metrics_url + "/metrics", "GET") as answer:
                return answer.read().decode()

        wait_until(lambda: ended in counted(), 10, "the stream is counted")
        text = counted()
        assert 'relay_time_to_first_token_seconds_count{api="sse",model="other",upstream="api"}' in text
        assert 'api="sse",model="*"' not in text

    def test_a_stream_from_elsewhere_is_not_resumed_here(self, site: Site) -> None:
        """An id of the application's own is the application's to judge."""
        path = site.play(*stream(A), under="/api/")
        whole(ask(site.one, path, {**KEY, "last-event-id": "theirs-7"}))
        (call,) = [call for call in site.app.calls if call.path == path]
        assert call.header("last-event-id") == "theirs-7"


def named(site: Site, name: str, *steps: Step, headers: dict[str, str] | None = None) -> RawStream:
    """A stream that its owner calls so."""
    path = site.play(*steps)
    return ask(site.one, path, ALICE if headers is None else headers, {"id": name, "messages": []})


class TestNames:
    def test_the_newest_is_found_on_any_replica(self, site: Site) -> None:
        whole(named(site, "chat-1", *stream(A)))
        answer = named(site, "chat-1", *stream(B, Gate("chat-1"), C))
        (first,) = answer.events(1)
        again = get(site.two, "/streams?name=chat-1", ALICE)
        assert again.headers["relay-stream-id"] == answer.headers["relay-stream-id"]
        site.app.open("chat-1")
        assert whole(again) == told([first]) + whole(answer) == [("note", "b1\nb2"), ("empty", "")]
        with get(site.two, "/streams?name=chat-1&live=true", ALICE) as over:
            assert over.status == 204
        assert whole(get(site.one, "/streams?name=chat-1", ALICE)) == [("note", "b1\nb2"), ("empty", "")]

    def test_an_event_source_comes_back_to_the_stream_that_it_read(self, site: Site) -> None:
        answer = named(site, "source", *stream(A, B))
        first = answer.take(2)[0]
        whole(named(site, "source", *stream(C)))
        assert whole(get(site.two, "/streams?name=source", ALICE, **{"last-event-id": str(first.id)})) == ABC[1:2]
        assert whole(get(site.two, f"/streams?name=source&last_event_id={first.id}", ALICE)) == ABC[1:2]
        last = f"{answer.headers['relay-stream-id']}.2"
        with get(site.two, "/streams?name=source", ALICE, **{"last-event-id": last}) as over:
            assert over.status == 204

    def test_use_chat_resumes_on_its_own_path(self, site: Site) -> None:
        answer = named(site, "chat é/2", *stream(A, Gate("chat-2"), headers={"x-vercel-ai-ui-message-stream": "v1"}))
        path = "/web/chat/chat%20%C3%A9%2F2/stream"
        (first,) = answer.events(1)
        again = get(site.two, path, ALICE)
        assert (again.status, again.headers["x-vercel-ai-ui-message-stream"]) == (200, "v1")
        assert [event.raw for event in again.events(1)] == [first.raw]
        answer.close()
        again.close()
        with open_stream(f"{site.one.url}/streams/{answer.headers['relay-stream-id']}", "DELETE", ALICE) as stopped:
            assert stopped.status == 204
        with get(site.two, path, ALICE) as over:
            assert (over.status, over.read()) == (204, b"")
        with get(site.two, "/web/chat/never/stream", ALICE) as unknown:
            assert unknown.status == 204

    @pytest.mark.parametrize("asked", ["one", "two"])
    def test_a_request_that_waits_for_its_answer_is_waited_for(self, site: Site, asked: str) -> None:
        """The page is loaded again before the application has answered: its client has gone, and finds its stream."""
        gate = f"head-{asked}"
        path = site.play(Gate(gate), *stream(A, Gate(f"{gate}-end"), B))
        body = {"id": gate}
        first = socket_of(getattr(site, asked), path, ALICE, body)
        site.app.wait_reached(gate)
        first.close()
        with ThreadPoolExecutor(1) as pool:
            again = pool.submit(get, site.two, f"/web/chat/{gate}/stream", ALICE)
            early = wait([again], timeout=0.2).done
            site.app.open(gate)
            with again.result(20) as found:
                assert not early, (found.status, found.headers)
                site.app.open(f"{gate}-end")
                assert whole(found) == ABC[:2]
        assert len([call for call in site.app.calls if call.path == path]) == 1

    def test_what_came_to_be_no_stream_is_not_waited_for(self, site: Site) -> None:
        with named(site, "refused", *json_response(401, {"who": "nobody"})) as answer:
            assert answer.status == 401
        with get(site.two, "/streams?name=refused", ALICE) as none:
            assert none.status == 204
        with get(site.one, "/streams?name=refused", ALICE, accept="application/json") as listed:
            assert listed.json == {"object": "list", "data": []}

    def test_a_list_has_each_with_its_name(self, site: Site) -> None:
        carol = {"cookie": "session=carol", "authorization": ""}
        whole(named(site, "one", *stream(A), headers=carol))
        live = named(site, "two", *stream(A, Gate("two"), B), headers=carol)
        live.events(1)
        whole(ask(site.one, site.play(*stream(A, B)), carol))
        with get(site.two, "/streams", carol, accept="application/json") as answer:
            data = answer.json["data"]
        assert [(found["name"], found["api"], found["state"]) for found in data] == [
            (None, "sse", "ended"),
            ("two", "sse", "live"),
            ("one", "sse", "ended"),
        ]
        assert data[1]["id"] == live.headers["relay-stream-id"]
        assert all({"created_at", "events", "outcome", "last_event_id"} <= found.keys() for found in data)
        with get(site.two, "/streams?live=true", carol, accept="application/json") as answer:
            assert [found["name"] for found in answer.json["data"]] == ["two"]
        with get(site.two, "/streams?name=one", carol, accept="application/json") as answer:
            assert [found["name"] for found in answer.json["data"]] == ["one"]
        site.app.open("two")
        whole(live)

    def test_a_header_names_a_stream_of_any_api(self, site: Site) -> None:
        site.app.on("named", *stream(chat({"content": "a"}), chat({}, "stop"), "data: [DONE]\n\n"))
        body = {"model": "named", "stream": True, "messages": []}
        answer = ask(site.one, "/v1/chat/completions", {**KEY, "relay-stream-name": "of chat"}, body)
        expected = whole(answer)
        assert whole(get(site.two, "/streams?name=of%20chat")) == expected
        assert site.app.calls_of("named")[0].header("relay-stream-name") is None

    @pytest.mark.parametrize("name", ["x" * 129, "\x07", ""])
    def test_what_cannot_be_a_name_is_refused(self, site: Site, name: str) -> None:
        with get(site.one, f"/streams?name={quote(name)}") as answer:
            assert answer.status == 400

    def test_a_name_is_needed_for_events(self, site: Site) -> None:
        with get(site.one, "/streams") as answer:
            assert answer.status == 400
            assert "name" in answer.json["error"]["message"]


class TestOwners:
    def test_another_users_cookie_finds_nothing(self, site: Site) -> None:
        answer = named(site, "private", *stream(A, Gate("private"), B))
        (first,) = answer.events(1)
        stream_path = f"/streams/{answer.headers['relay-stream-id']}"
        for other in (BOB, {"authorization": ""}, KEY, {**ALICE, "authorization": "Bearer also"}):
            for method in ("GET", "DELETE"):
                with open_stream(site.two.url + stream_path, method, other) as foreign:
                    assert (foreign.status, foreign.json["error"]["code"]) == (404, "stream_not_found")
            with open_stream(site.one.url + stream_path + "/ticket", "POST", other) as foreign:
                assert foreign.status == 404
            for path in ("/streams?name=private", "/web/chat/private/stream"):
                with get(site.two, path, other) as foreign:
                    assert foreign.status == 204
            with ask(site.two, "/web/chat/0", {**other, "last-event-id": str(first.id)}) as foreign:
                assert foreign.status == 404
            with get(site.one, "/streams", other, accept="application/json") as listed:
                assert answer.headers["relay-stream-id"] not in {found["id"] for found in listed.json["data"]}
        site.app.open("private")
        whole(answer)

    def test_a_page_that_has_a_cookie_and_a_key_is_both(self, site: Site) -> None:
        """To `/streams` comes what came to the application, and perhaps a key for the APIs beside it."""
        answer = named(site, "both", *stream(A), headers={**ALICE, **KEY})
        whole(answer)
        both = {**ALICE, **KEY}
        assert whole(get(site.two, f"/streams/{answer.headers['relay-stream-id']}", both)) == [("", "a")]
        assert whole(get(site.one, "/streams?name=both", both)) == [("", "a")]

    def test_a_ticket_can_be_had_later(self, site: Site) -> None:
        answer = named(site, "ticket", *stream(A))
        whole(answer)
        path = f"/streams/{answer.headers['relay-stream-id']}"
        with open_stream(site.two.url + path + "/ticket", "POST", {**ALICE, "relay-ticket": "read+stop"}) as given:
            assert given.status == 200
            assert given.json["scope"] == "read+stop"
            url = given.json["url"]
            assert given.headers["relay-stream-url"] == url
        assert whole(get(site.one, url, {"authorization": ""})) == [("", "a")]
        with open_stream(site.two.url + url.replace("?", "/ticket?"), "POST", {"authorization": ""}) as prolonged:
            assert prolonged.status == 404  # a ticket is none for another one


def test_visitors_who_show_nothing_have_no_limit_together(upstream: ScriptedUpstream, relays: Relays) -> None:
    app = {"name": "app", "base_url": upstream.url, "apis": ["sse"], "paths": ["/api/*"]}
    relay = relays.start({"upstreams": [app], "limits": {"streams_per_owner": 1}})
    upstream.on_path("POST /api/chat", *stream(A, Gate("visitors"), B))
    visitors = [ask(relay, "/api/chat", {"authorization": ""}) for _ in range(3)]
    assert [answer.status for answer in visitors] == [200, 200, 200]
    members = [ask(relay, "/api/chat", KEY) for _ in range(2)]
    assert [answer.status for answer in members] == [200, 429]
    members[1].close()
    upstream.open("visitors")
    for answer in (*visitors, members[0]):
        assert whole(answer) == ABC[:2]


class TestHeaders:
    def test_cookies_and_all_headers_cross_where_the_settings_say_so(self, site: Site) -> None:
        sent = {"set-cookie": "session=alice; HttpOnly", "x-frame-options": "DENY", "odd_name": "1", "relay-x": "no"}
        path = site.play(*stream(A, headers=sent))
        answer = ask(site.one, path, {**ALICE, "odd_name": "2", "relay-ticket": "off", "x-forwarded-for": "1.2.3.4"})
        whole(answer)
        (call,) = [call for call in site.app.calls if call.path == path]
        crossed = {name: call.header(name) for name in ("cookie", "odd_name", "relay-ticket", "x-forwarded-for")}
        assert crossed == {
            "cookie": ALICE["cookie"],
            "odd_name": "2",
            "relay-ticket": None,
            "x-forwarded-for": "1.2.3.4",
        }
        assert call.header("x-forwarded-host") == site.one.url.removeprefix("http://")
        assert answer.headers["set-cookie"] == sent["set-cookie"]
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["odd_name"] == "1"
        assert "relay-x" not in answer.headers
        again = get(site.two, f"/streams/{answer.headers['relay-stream-id']}", ALICE)
        assert "set-cookie" not in again.headers
        assert again.headers["x-frame-options"] == "DENY"
        whole(again)

    def test_without_cookies_they_do_not(self, site: Site) -> None:
        path = site.play(*stream(A, headers={"set-cookie": "a=1", "x-kept": "1"}), under="/api/")
        answer = ask(site.one, path, {**KEY, "cookie": "session=alice"})
        whole(answer)
        (call,) = [call for call in site.app.calls if call.path == path]
        assert call.header("cookie") is None
        assert "set-cookie" not in answer.headers
        assert answer.headers["x-kept"] == "1"

    @pytest.mark.parametrize("under", ["/web/chat/", "/api/"])
    def test_what_a_page_may_do_the_application_says(self, site: Site, under: str) -> None:
        allows = {
            "access-control-allow-origin": "https://page.example",
            "access-control-allow-credentials": "true",
            "access-control-allow-headers": "x-own",
        }
        path = site.play(Head(204, allows, framing="length"), method="OPTIONS", under=under)
        asked = {
            "authorization": "",
            "origin": "https://page.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "x-own",
        }
        with open_stream(site.one.url + path, "OPTIONS", asked) as preflight:
            assert preflight.status == 204
            assert {name: preflight.headers.get(name) for name in allows} == allows
        call = site.app.calls[-1]
        assert {name: call.header(name) for name in asked if name != "authorization"} == {
            name: value for name, value in asked.items() if name != "authorization"
        }
        site.app.on_path(f"POST {path}", *stream(A, headers=allows))
        page = {**(ALICE if under == "/web/chat/" else KEY), "origin": "https://page.example"}
        answer = ask(site.one, path, page)
        assert answer.headers["access-control-allow-credentials"] == "true"
        answer.take(1)
        again = ask(site.two, path, {**page, "last-event-id": f"{answer.headers['relay-stream-id']}.0"})
        assert again.headers["access-control-allow-origin"] == "https://page.example"
        assert whole(again) == [("", "a")]
        assert site.app.calls[-1].header("origin") == "https://page.example"

    def test_a_page_is_let_see_what_the_relay_says_of_a_stream(self, site: Site) -> None:
        """Its clients look for that, and without it they resume nothing."""
        allows = {"access-control-allow-origin": "*", "access-control-expose-headers": "X-Own"}
        path = site.play(*stream(A, headers=allows), under="/api/")
        answer = ask(site.one, path, {**KEY, "origin": SECOND})
        whole(answer)
        again = ask(site.two, path, {**KEY, "last-event-id": f"{answer.headers['relay-stream-id']}.0"})
        for each in (answer, again):
            exposed = each.headers["access-control-expose-headers"].split(", ")
            assert {"X-Own", "relay-stream-id", "relay-resumable", "relay-heartbeat"} <= set(exposed)
        whole(again)
        unasked = ask(site.one, site.play(*stream(A), under="/api/"), KEY)
        assert not [name for name in unasked.headers if name.startswith("access-control-")]
        whole(unasked)

    @pytest.mark.parametrize("under", ["/web/chat/", "/api/"])
    def test_a_page_of_a_second_origin_resumes_where_the_settings_name_it(self, site: Site, under: str) -> None:
        """With its credential, not with a cookie: that page the application has not been asked about."""
        first = "https://page.example"
        allows = {"access-control-allow-origin": first, "access-control-allow-credentials": "true", "vary": "origin"}
        path = site.play(*stream(A, headers=allows), under=under)
        who = ALICE if under == "/web/chat/" else KEY
        answer = ask(site.one, path, {**who, "origin": first})
        whole(answer)
        for events in (0, 1):
            position = {"last-event-id": f"{answer.headers['relay-stream-id']}.{events}"}
            for origin, allowed in ((SECOND, SECOND), (first, first), ("https://evil.example", first)):
                with ask(site.two, path, {**who, **position, "origin": origin}) as again:
                    assert again.status == (204 if events else 200)
                    found = [v for name, v in again.header_list if name.lower() == "access-control-allow-origin"]
                    assert found == [allowed]
                    assert ("access-control-allow-credentials" in again.headers) is (allowed == first)

    def test_a_page_sees_what_the_relay_itself_answers(self, site: Site) -> None:
        """A refusal, and that there is nothing, where the settings name its origin, whatever it shows."""
        unknown = {"last-event-id": "st_" + "x" * 22 + ".1"}
        told = [
            ("POST", "/web/chat/x", {**ALICE, **unknown}, 404),
            ("POST", "/api/x/runs", {**KEY, **unknown}, 404),
            ("POST", "/api/x/runs", {**KEY, "relay-stream-name": ""}, 400),
            ("GET", "/web/chat/none/stream", ALICE, 204),
        ]
        for method, path, headers, status in told:
            for origin in (SECOND, "https://evil.example"):
                with open_stream(site.one.url + path, method, {**headers, "origin": origin}) as answer:
                    assert (path, answer.status) == (path, status)
                    found = {name: v for name, v in answer.headers.items() if name.startswith("access-control-allow-")}
                    page = {"access-control-allow-origin": SECOND, "access-control-allow-credentials": "true"}
                    assert found == (page if origin == SECOND else {})

    def test_what_the_application_answers_is_its_own_to_allow(self, site: Site) -> None:
        for script in (stream(A), json_response(429, {"own": "refusal"}), json_response(200, {})):
            with ask(site.one, site.play(*script, under="/api/"), {**KEY, "origin": SECOND}) as answer:
                answer.read()
                assert not [name for name in answer.headers if name.startswith("access-control-")]

    def test_a_page_of_the_relays_own_list_is_given_no_credentials(self, site: Site) -> None:
        """What the application allows its pages holds on its own paths."""
        allows = {"access-control-allow-origin": "*", "access-control-allow-credentials": "true"}
        answer = ask(site.one, site.play(*stream(A, headers=allows)), ALICE)
        whole(answer)
        page = {**ALICE, "origin": "https://relay.example"}
        with get(site.two, f"/streams/{answer.headers['relay-stream-id']}", page) as foreign:
            assert foreign.headers["access-control-allow-origin"] == "https://relay.example"
            assert "access-control-allow-credentials" not in foreign.headers


def socket_of(relay: RelayProcess, path: str, headers: dict[str, str], body: object) -> socket.socket:
    """A request whose answer nobody reads yet."""
    parts = urlsplit(relay.url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), 10)
    payload = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", f"host: {parts.netloc}", f"content-length: {len(payload)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + payload)
    return connection
