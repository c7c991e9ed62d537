"""An application behind a relay that has keys of its own, or lends one: who may ask it, and which pages may."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.auth.keyed import ENV, UPSTREAM_KEY, bearer, code, config, issued
from tests.support.processes import RelayProcess
from tests.support.scripted import ScriptedUpstream, stream
from tests.support.sseclient import RawStream, open_stream

PAGE = "https://page.example"
ALICE = {"authorization": "", "cookie": "session=alice"}


@dataclass(frozen=True)
class Site:
    """A relay in front of an application with a key of the relay's (`/keyed`) and of one that judges itself
    (`/own`)."""

    relay: RelayProcess
    app: ScriptedUpstream
    key: str
    other: str

    def ask(self, path: str, headers: dict[str, str], method: str = "POST", body: Any = None) -> RawStream:
        return open_stream(self.relay.url + path, method, headers, body={"id": "c1"} if body is None else body)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    key, entry = issued("team-a", paths=["/keyed/*"])
    other, narrow = issued("team-b")
    with ScriptedUpstream() as app:
        for path in ("/keyed/chat", "/own/chat"):
            app.on_path(f"POST {path}", *stream("data: a\n\n"))
        common: dict[str, Any] = {"base_url": app.url, "apis": ["sse"], "stream_name": "$.id"}
        applications = [
            {"name": "keyed", **common, "paths": ["/keyed/*"], "api_key_env": "UP_KEY"},
            {"name": "own", **common, "paths": ["/own/*"], "owner": ["cookie:session"], "cookies": True},
        ]
        settings = config(app, entry, narrow, cors={"origins": [PAGE]})
        settings["upstreams"] = [*settings["upstreams"], *applications]
        with RelayProcess(settings, ENV) as relay:
            yield Site(relay, app, key, other)


def test_where_the_relay_has_the_key_its_own_keys_say_who_may_ask(site: Site) -> None:
    assert code(site.ask("/keyed/chat", {"authorization": ""})) == (401, "invalid_api_key")
    assert code(site.ask("/keyed/chat", bearer(site.other))) == (403, "path_not_allowed")
    with site.ask("/keyed/chat", bearer(site.key)) as answer:
        assert [event.data for event in answer.events()] == ["a"]
    call = site.app.calls[-1]
    assert call.header("authorization") == f"Bearer {UPSTREAM_KEY}"
    assert site.key not in str(call.headers)
    with site.ask("/streams?name=c1", bearer(site.key), "GET") as again:
        assert [event.data for event in again.events()] == ["a"]
    with site.ask("/streams?name=c1", bearer(site.other), "GET") as foreign:
        assert foreign.status == 204
    assert code(site.ask("/streams?name=c1", {"authorization": ""}, "GET")) == (401, "invalid_api_key")


def test_an_application_with_owners_judges_itself(site: Site) -> None:
    with site.ask("/own/chat", ALICE) as answer:
        assert [event.data for event in answer.events()] == ["a"]
    with site.ask("/streams?name=c1", ALICE, "GET") as again:
        assert again.headers["relay-stream-id"] == answer.headers["relay-stream-id"]
        again.read()
    with site.ask("/own/chat", {"authorization": ""}) as nobody:  # whatever it answers is the application's to say
        assert (nobody.status, nobody.headers["relay-resumable"]) == (200, "true")
        assert "relay-stream-url" in nobody.headers  # by its ticket alone
        nobody.read()
    stream_path = f"/streams/{nobody.headers['relay-stream-id']}"
    assert code(site.ask(stream_path, {**ALICE, "cookie": "session=bob"}, "GET")) == (404, "stream_not_found")


@pytest.mark.parametrize(("origin", "status"), [(PAGE, 204), ("https://other.example", 401)])
def test_where_the_relay_has_the_key_its_own_list_says_which_pages_may(site: Site, origin: str, status: int) -> None:
    asked = {"authorization": "", "origin": origin, "access-control-request-method": "POST"}
    calls = len(site.app.calls)
    with open_stream(site.relay.url + "/keyed/chat", "OPTIONS", asked) as preflight:
        assert preflight.status == status
        allowed = preflight.headers.get("access-control-allow-origin")
        assert allowed == (PAGE if status == 204 else None)
    assert len(site.app.calls) == calls
