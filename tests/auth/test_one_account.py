"""With keys of the relay's own all callers are one account upstream: what they may name there, and what steers it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from tests.auth.keyed import ENV, UPSTREAM_KEY, bearer, code, config, get, issued
from tests.support.processes import RelayProcess
from tests.support.scripted import ScriptedUpstream, json_response, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.streams import FIRST_TOKENS, PATHS

pytestmark = pytest.mark.slow

KEY, A = issued("team-a")
FOREIGN, B = issued("team-b")
SOME, C = issued("team-c", models=["mine", "vendor/mine*"])
OPEN, D = issued("team-d", paths=["/v1/files/*", "/v1/responses/*", "/v1/vector_stores/vs_mine", "/v1/odd"])


class Relay:
    def __init__(self, process: RelayProcess, upstream: ScriptedUpstream) -> None:
        self.process = process
        self.upstream = upstream

    def post(self, key: str, body: Any, path: str = PATHS["responses"], **headers: str) -> RawStream:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return open_stream(self.process.url + path, headers={**bearer(key), **named}, body=body)


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    with ScriptedUpstream() as upstream:
        events = FIRST_TOKENS["responses-text"].events
        for model in ("m", "mine"):
            upstream.on(model, *json_response(200, {"id": "resp_whole"}))
        upstream.on("streamed", *stream(*events))
        for path in ("mine", "vendor%2Fmine-1", "vendor%2Fother", "ft:a:b"):
            upstream.on_path(f"GET /v1/models/{path}", *json_response(200, {"id": path}))
        upstream.on_path("POST /v1/odd", *json_response(200, {}))
        with RelayProcess(config(upstream, A, B, C, D), ENV) as process:
            yield Relay(process, upstream)


STATE: list[dict[str, Any]] = [
    {"previous_response_id": "resp_of_another"},
    {"Previous_Response_ID": "resp_of_another"},
    {"previous_response_id\0x": "resp_of_another"},
    {"conversation": {"id": "conv_1"}},
    {"prompt": {"id": "pmpt_1"}},
    {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
    {"input": [{"type": "item_reference", "id": "msg_1"}]},
    {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
    {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]},
    {"container": "container_1"},
    {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
    {"extra_body": {"thread_id": "t_1"}},
    {"brand_new_thing_id": "x_1"},
    {"api_base": "http://elsewhere.test"},
    {"Base-URL": "http://elsewhere.test"},
    {"extra_headers": {"openai-organization": "org_1"}},
    {"extra_body": {"api_key": "sk-other"}},
    {"fallbacks": [{"model": "m", "custom_llm_provider": "other"}]},
]


@pytest.mark.parametrize("path", [*PATHS.values(), "/v1/responses/compact", "/v1/embeddings"])
def test_what_a_body_names_of_the_shared_account_is_refused(relay: Relay, path: str) -> None:
    before = len(relay.upstream.calls)
    for named in STATE:
        for streamed in (True, False):
            with relay.post(KEY, {"model": "m", "stream": streamed, **named}, path) as answer:
                assert answer.status == 403, (named, answer.read())
                error = answer.json["error"]
                assert error["code"] == "path_not_allowed"
                assert "`paths`" in error["message"]
                assert next(iter(named)) in error["message"] or "'" in error["message"]
    assert len(relay.upstream.calls) == before


def test_the_key_s_paths_open_it(relay: Relay) -> None:
    opened: list[dict[str, Any]] = [
        {"previous_response_id": "resp_of_another"},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
        {"tools": [{"type": "file_search", "vector_store_ids": ["vs_mine"]}]},
    ]
    for named in opened:
        assert code(relay.post(OPEN, {"model": "m", **named})) == (200, ""), named
    for named in ({"conversation": "c"}, {"tools": [{"vector_store_ids": ["vs_mine", "vs_other"]}]}):
        assert code(relay.post(OPEN, {"model": "m", **named})) == (403, "path_not_allowed")


def test_what_only_sounds_like_it_goes_through(relay: Relay) -> None:
    """A tool's schema, or an MCP server's own address and headers, choose nothing of the relay's account."""
    parameters = {"type": "object", "properties": {"api_key": {"type": "string"}}}
    tools = [
        {"type": "function", "name": "f", "parameters": parameters},
        {"type": "mcp", "server_url": "https://mcp.test", "headers": {"x": "y"}, "authorization": "t"},
    ]
    assert code(relay.post(KEY, {"model": "m", "tools": tools, "metadata": {"api_base": "x"}})) == (200, "")


def test_a_chain_of_the_owner_s_own_streamed_responses_goes_on_and_is_no_other_owner_s(relay: Relay) -> None:
    with relay.post(KEY, {"model": "streamed", "stream": True, "input": "a"}) as first:
        first.read()
    for streamed, model in ((False, "m"), (True, "streamed")):
        body = {"model": model, "stream": streamed, "previous_response_id": "resp_1", "input": "b"}
        assert code(relay.post(KEY, body)) == (200, "")
        assert relay.upstream.calls[-1].json["previous_response_id"] == "resp_1"
        told = []
        for name in ("resp_1", "resp_9"):  # foreign is answered as unknown
            with relay.post(FOREIGN, {**body, "previous_response_id": name}, x_request_id="same") as answer:
                told.append((answer.status, answer.read()))
        assert told[0] == told[1]
        assert told[0][0] == 403


def test_what_stands_twice_in_a_body_is_sent_as_it_was_checked(relay: Relay) -> None:
    for body in (
        b'{"model":"m","previous_response_id":"resp_of_another","previous_response_id":null}',
        b'{"model":"m","conversation":"c","conversation":null}',
    ):
        for path in ("/v1/responses", "/v1/embeddings"):
            before = len(relay.upstream.calls)
            status, _ = code(relay.post(KEY, body, path))
            sent = [call.body for call in relay.upstream.calls[before:]]
            assert (status, len(sent)) in ((200, 1), (400, 0))
            assert not [each for each in sent if b"another" in each or b'"c"' in each]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_read_goes_no_further(relay: Relay, kind: str) -> None:
    """Upstreams may read it as JSON all the same."""
    before = len(relay.upstream.calls)
    body = b'{"model":"m","previous_response_id":"resp_of_another"}'
    for key in (KEY, SOME):
        answer = relay.post(key, body, "/v1/responses/compact", content_type=kind)
        assert code(answer) == (415, "unsupported_media_type")
    assert len(relay.upstream.calls) == before
    assert code(relay.post(OPEN, body, "/v1/odd", content_type=kind)) == (200, "")


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "application/json; charset=utf-7",
        "Application/JSON;charset=utf-16",
        "",
    ],
)
@pytest.mark.parametrize("connection", ["keep-alive", "content-type"])
def test_what_was_read_as_json_is_nothing_else_upstream(relay: Relay, kind: str, connection: str) -> None:
    """Some servers read a form, or another charset, where the kind says so: these are other models there."""
    for body in (
        b'{"model":"mine","input":"&model=other&previous_response_id=resp_of_another&x="}',
        b'{"model":"mine","input":"+ACIALAAi-model+ACIAOgAi-other"}',
    ):
        for path in (PATHS["chat"], PATHS["responses"], "/v1/embeddings"):
            before = len(relay.upstream.calls)
            status, refused = code(relay.post(SOME, body, path, content_type=kind, connection=connection))
            sent = relay.upstream.calls[before:]
            assert (status, len(sent)) == (200, 1) or (refused, len(sent)) == ("unsupported_media_type", 0)
            for call in sent:
                kinds = [value for name, value in call.headers if name.lower() == "content-type"]
                assert kinds == ["application/json"]
                assert call.body == body


@pytest.mark.parametrize("query", ["previous_response_id=resp_1x", "conversation%5Fid=c", "after=batch_1", "FILE_ID=f"])
def test_nor_does_what_a_query_names(relay: Relay, query: str) -> None:
    for path in (PATHS["chat"], "/v1/embeddings"):
        assert code(relay.post(KEY, {"model": "m"}, f"{path}?{query}")) == (403, "path_not_allowed")


OTHERS: list[dict[str, Any]] = [
    {"models": ["mine", "other"]},
    {"fallbacks": ["other"]},
    {"fallbacks": [{"model": "other"}]},
    {"fallbacks": [{"mine": ["other"]}]},
    {"tools": [{"type": "image_generation", "model": "other"}]},
    {"extra_body": {"model": "other"}},
    {"Model": "other"},
    {" model": "other"},
    {"model\0x": "other"},
    {"mo\u0064el_": "other"},
    {"plugins": [{"id": "web", "model": "other"}]},
    {"default_model": "other"},
]


@pytest.mark.parametrize("path", [PATHS["chat"], PATHS["messages"], "/v1/embeddings"])
def test_the_patterns_of_models_hold_at_every_depth(relay: Relay, path: str) -> None:
    before = len(relay.upstream.calls)
    for more in OTHERS:
        assert code(relay.post(SOME, {"model": "mine", **more}, path)) == (404, "model_not_found"), more
    for query in ("model=other", "Models[]=other", "fallbacks=other"):
        assert code(relay.post(SOME, {"model": "mine"}, f"{path}?{query}")) == (404, "model_not_found")
    assert len(relay.upstream.calls) == before
    schema = {"type": "object", "properties": {"model": {"type": "string", "default": "other"}}, "required": ["model"]}
    content: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": '{"model":"other"}'}], "metadata": {"model": "other"}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]},
        {"tools": [{"name": "f", "input_schema": schema}, {"type": "image_generation", "model": "vendor/mine-2"}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {"model": "other"}}]}]},
    ]
    for more in content:
        assert code(relay.post(SOME, {"model": "mine", **more}, path)) == (200, ""), more


def test_a_model_is_one_plain_segment(relay: Relay) -> None:
    for path in ("mine", "vendor%2Fmine-1"):
        assert code(get(relay.process, SOME, f"/v1/models/{path}")) == (200, "")
    for path in ("vendor%2Fother", "other"):
        assert code(get(relay.process, SOME, f"/v1/models/{path}")) == (404, "model_not_found")
    assert code(get(relay.process, KEY, "/v1/models/ft:a:b")) == (200, "")
    for path in ("a/b", "a/permissions/1", "a%252fb", "a;b", "a%5Cb", "a%3Bb", "a%20b", "a/"):
        assert code(get(relay.process, KEY, f"/v1/models/{path}"))[0] in (400, 403), path


class TestWhatSteersTheAccount:
    HEADERS: ClassVar = {
        "openai-organization": "theirs",
        "openai-project": "theirs",
        "anthropic-beta": "theirs",
        "x-portkey-custom-host": "theirs",
        "x-portkey-provider": "theirs",
        "x-goog-api-key": "theirs",
        "x-anything": "theirs",
    }
    ALONG: ClassVar = {
        "user-agent": "agent/1",
        "session-id": "s-1",
        "x-stainless-lang": "js",
        "x-claude-code-session-id": "c-1",
    }
    QUERY = "beta=true&key=theirs&api_key=theirs&sig=theirs&%61ccess_token=theirs&code=theirs&x-amz-signature=theirs"

    @pytest.mark.parametrize("streamed", [True, False])
    @pytest.mark.parametrize("path", [*PATHS.values(), "/v1/embeddings"])
    def test_no_header_and_no_credential_of_the_query_goes_along(self, relay: Relay, path: str, streamed: bool) -> None:
        headers = {**bearer(KEY), **self.HEADERS, **self.ALONG}
        body = {"model": "m", "stream": streamed}
        with open_stream(f"{relay.process.url}{path}?{self.QUERY}", headers=headers, body=body) as answer:
            answer.read()
        call = relay.upstream.calls[-1]
        assert "theirs" not in repr(call)
        assert call.path.endswith(f"{path}?beta=true")
        assert {name: call.header(name) for name in self.ALONG} == self.ALONG
        assert UPSTREAM_KEY in (call.header("authorization") or "")

    def test_nor_does_the_relay_s_own_key_in_any_place(self, relay: Relay) -> None:
        with relay.post(KEY, {"model": "m"}, f"{PATHS['chat']}?note=is%20{KEY}&beta=true") as answer:
            answer.read()
        assert KEY not in repr(relay.upstream.calls[-1])

    def test_what_the_upstream_s_headers_name_goes_along(self, upstream: ScriptedUpstream) -> None:
        upstream.on("m", *json_response(200, {}))
        settings = config(upstream, A)
        settings["upstreams"][0]["headers"] = ["anthropic-beta"]
        headers = {**bearer(KEY), **self.HEADERS}
        with (
            RelayProcess(settings, ENV) as process,
            open_stream(process.url + PATHS["messages"], headers=headers, body={"model": "m"}) as answer,
        ):
            answer.read()
        assert [name for name, value in upstream.calls[-1].headers if value == "theirs"] == ["anthropic-beta"]


def test_a_body_keeps_its_members_in_their_order(relay: Relay) -> None:
    body = {"z": 1, "model": "m", "a": {"c": [1.5, None], "b": "\u00fc"}}
    relay.post(KEY, body, PATHS["chat"]).read()
    assert json.dumps(relay.upstream.calls[-1].json) == json.dumps(body)
