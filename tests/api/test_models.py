"""`GET /v1/models` has what its caller may ask for, of every upstream, and tells none of them another's secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.auth.keyed import bearer, issued
from tests.conftest import Relays
from tests.support.processes import free_port
from tests.support.scripted import Cut, Gate, Head, ScriptedUpstream, Send, Step, json_response
from tests.support.sseclient import open_stream

pytestmark = pytest.mark.slow

ANTHROPIC = {"anthropic-version": "2023-06-01", "x-api-key": "sk-client"}


@pytest.fixture
def second() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


def lists(upstream: ScriptedUpstream, *ids: str, **more: Any) -> None:
    data = [{"id": name, "object": "model", "created": 7, "owned_by": "them", **more} for name in ids]
    upstream.on_path("GET /v1/models", *json_response(200, {"object": "list", "data": data}))


def models(url: str, headers: dict[str, str] | None = None, query: str = "") -> Any:
    with open_stream(f"{url}/v1/models{query}", "GET", headers or {"authorization": "Bearer sk-client"}) as answer:
        assert answer.status == 200, answer.read()
        return answer.json


def shown(url: str, headers: dict[str, str] | None = None) -> list[tuple[str, str]]:
    return [(item["id"], item["relay_upstream"]) for item in models(url, headers)["data"]]


def two(first: ScriptedUpstream, second: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    entries = [
        {"name": "one", "base_url": first.url, "models": ["a-*"]},
        {"name": "two", "base_url": second.url, "models": ["local/*", "sure"], "strip_prefix": "local/", **more},
    ]
    return {"upstreams": entries}


def test_they_are_those_of_all_upstreams_by_the_names_that_clients_use_and_marked(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relays: Relays
) -> None:
    lists(upstream, "a-1", "a-2", "of-nobody", context_length=9)
    lists(second, "b", "sure")
    relay = relays.start(two(upstream, second))
    listed = models(relay.url)
    common = {"object": "model", "created": 7, "owned_by": "them"}
    assert listed["object"] == "list"
    assert listed["data"] == [
        {"id": "a-1", **common, "context_length": 9, "relay_upstream": "one"},
        {"id": "a-2", **common, "context_length": 9, "relay_upstream": "one"},
        {"id": "local/b", **common, "relay_upstream": "two"},
        {"id": "sure", **common, "relay_upstream": "two"},
    ]
    second.on_path("GET /v1/models/b", *json_response(200, {"id": "b"}))
    for name in ("local/b", "local%2Fb"):
        with open_stream(f"{relay.url}/v1/models/{name}", "GET") as answer:
            assert (answer.status, answer.json) == (200, {"id": "b"})


def test_a_clients_credential_goes_where_it_went_before_and_to_no_other_host(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relays: Relays
) -> None:
    lists(upstream, "a-1")
    lists(second, "b", "c")
    settings = two(upstream, second)
    settings["upstreams"].append(
        {"name": "three", "base_url": f"{second.url}/keyed", "models": ["c*"], "api_key_env": "KEY_THREE"}
    )
    second.on_path("GET /keyed/v1/models", *json_response(200, {"data": [{"id": "c2"}]}))
    secrets = {"authorization": "Bearer canary-1", "x-portkey-api-key": "canary-2", "x-api-key": "canary-3"}
    url = relays.start(settings, {"KEY_THREE": "sk-three"}).url
    with open_stream(f"{url}/v1/models?api_key=canary-4", "GET", secrets) as answer:
        ids = [item["id"] for item in answer.json["data"]]
    assert ids == ["a-1", "local/b", "local/c", "c2"]
    (own,) = upstream.calls
    assert all(value in repr(own.headers) + own.path for value in ("canary-1", "canary-2", "canary-3", "canary-4"))
    assert len(second.calls) == 2
    for call in second.calls:
        assert "canary" not in repr(call.headers) + call.path
        assert ("sk-three" in repr(call.headers)) == call.path.startswith("/keyed")


REFUSED: dict[str, tuple[Step, ...]] = {
    "refuses": json_response(401, {"error": {"message": "no"}}),
    "has-none": json_response(404, {}),
    "in-another-form": json_response(200, {"models": []}),
    "breaks-off": (Head(200, {"content-type": "application/json"}), Send(b'{"data":[{"id":"b"}'), Cut()),
    "is-empty": (Head(200, {"content-type": "application/json"}, "length"),),
    "is-no-http": (Head(200, {}, "close"), Send(b"<html>"), Cut()),
    "is-endless": (Head(200, {"content-type": "application/json"}), *(Send(b'{"data":[' + b" " * (1 << 20)),) * 10),
}


@pytest.mark.parametrize("way", [*REFUSED, "is-not-there"])
@pytest.mark.parametrize("which", ["first", "second"])
def test_one_that_fails_does_not_spoil_the_others(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relays: Relays, way: str, which: str
) -> None:
    lists(upstream, "a-1")
    lists(second, "b")
    failing = upstream if which == "first" else second
    settings = two(upstream, second)
    if way == "is-not-there":
        settings["upstreams"][0 if which == "first" else 1]["base_url"] = f"http://127.0.0.1:{free_port()}"
    else:
        failing.on_path("GET /v1/models", *REFUSED[way])
    url = relays.start(settings).url
    if which == "second":  # what the settings name stays
        assert shown(url) == [("a-1", "one"), ("sure", "two")]
    elif way == "in-another-form":
        assert models(url) == {"models": []}
    else:
        assert shown(url) == [("local/b", "two")]


def test_a_slow_one_is_not_waited_for_without_end(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relays: Relays
) -> None:
    lists(upstream, "a-1")
    second.on_path("GET /v1/models", Gate("never"), *json_response(200, {}))
    assert shown(relays.start(two(upstream, second)).url) == [("a-1", "one"), ("sure", "two")]
    (call,) = second.calls
    assert call.ended.wait(10), "the slow one is still waited for"
    assert call.cancelled


def test_where_all_refuse_the_refusal_is_the_answer(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relays: Relays
) -> None:
    for each in (upstream, second):
        each.on_path("GET /v1/models", *json_response(401, {"error": {"message": f"no, says {each.url}"}}))
    settings = two(upstream, second)
    settings["upstreams"][1]["models"] = ["local/*"]
    with open_stream(f"{relays.start(settings).url}/v1/models", "GET") as answer:
        assert (answer.status, answer.json) == (401, {"error": {"message": f"no, says {upstream.url}"}})


def test_a_key_sees_what_it_may_ask_for(upstream: ScriptedUpstream, second: ScriptedUpstream, relays: Relays) -> None:
    lists(upstream, "a-1", "a-2")
    lists(second, "b", "c")
    some, entry = issued("team", models=["a-1", "local/c"])
    settings = two(upstream, second, api_key_env="KEY")
    settings["upstreams"][0]["api_key_env"] = "KEY"
    relay = relays.start({**settings, "auth": {"mode": "keys", "keys": [entry]}}, {"KEY": "sk"})
    assert shown(relay.url, bearer(some)) == [("a-1", "one"), ("local/c", "two")]
    assert some not in repr([call.headers for call in (*upstream.calls, *second.calls)])


def test_a_client_of_anthropics_has_its_own_form(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relays: Relays
) -> None:
    lists(upstream, "a-1")
    data = [{"type": "model", "id": f"c-{n}", "display_name": f"C {n}"} for n in range(3)]
    second.on_path("GET /v1/models", *json_response(200, {"data": data, "has_more": False}))
    second.on_path("GET /v1/models?limit=1000", *json_response(200, {"data": data, "has_more": False}))
    settings = two(upstream, second, apis=["messages"])
    settings["upstreams"][0]["apis"] = ["chat"]
    settings["upstreams"][1] |= {"models": ["*"], "strip_prefix": ""}
    url = relays.start(settings).url
    listed = models(url, ANTHROPIC)
    assert [item["id"] for item in listed["data"]] == ["c-0", "c-1", "c-2"]
    assert upstream.calls == []
    assert [item["id"] for item in models(url)["data"]] == ["a-1", "c-0", "c-1", "c-2"]
    (call,) = [call for call in second.calls if call.header("x-api-key") is None]
    assert call.header("anthropic-version") == "2023-06-01"


@pytest.mark.parametrize(
    ("query", "ids", "more"),
    [
        ("?limit=2", ["c-0", "c-1"], True),
        ("?limit=2&after_id=c-1", ["c-2", "c-3"], False),
        ("?limit=2&before_id=c-3", ["c-1", "c-2"], True),
        ("?before_id=c-1", ["c-0"], False),
        ("?limit=x&after_id=gone", ["c-0", "c-1", "c-2", "c-3"], False),
        ("?after_id=c-3", [], False),
    ],
)
def test_a_client_of_anthropics_has_pages(
    upstream: ScriptedUpstream, relays: Relays, query: str, ids: list[str], more: bool
) -> None:
    lists(upstream, *(f"c-{n}" for n in range(4)))
    settings = {"upstreams": [{"name": "one", "base_url": upstream.url, "models": ["c-*"]}]}
    listed = models(relays.start(settings).url, ANTHROPIC, query)
    assert ([item["id"] for item in listed["data"]], listed["has_more"]) == (ids, more)
    assert (listed["first_id"], listed["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))


def test_of_one_upstream_without_patterns_it_is_what_that_says_byte_for_byte(
    upstream: ScriptedUpstream, relays: Relays
) -> None:
    said = b'{ "data" :[{"id":"m"}],  "own": 1.50}'
    upstream.on_path("GET /v1/models", Head(200, {"etag": '"7"'}), Send(said))
    relay = relays.start({"upstreams": [{"name": "one", "base_url": upstream.url}]})
    with open_stream(f"{relay.url}/v1/models", "GET", {"if-none-match": '"6"'}) as answer:
        assert (answer.read(), answer.headers["etag"]) == (said, '"7"')
    assert upstream.calls[0].header("if-none-match") == '"6"'


def test_one_account_at_one_address_is_asked_once(upstream: ScriptedUpstream, relays: Relays) -> None:
    lists(upstream, "a-1", "b-1")
    entries = [{"name": n, "base_url": upstream.url, "models": [f"{n}-*"]} for n in ("a", "b")]
    assert shown(relays.start({"upstreams": entries}).url) == [("a-1", "a"), ("b-1", "b")]
    assert len(upstream.calls) == 1
