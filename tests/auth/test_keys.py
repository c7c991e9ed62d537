"""`auth.mode: keys`: only the relay's own keys are good, they go no further, and each does what its entry says."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from relay import server
from relay.config import load
from relay.protocol.keys import hash_of, new_key
from tests.auth.keyed import ENV, UPSTREAM_KEY, ask, bearer, code, config, finished, get, issued, whole
from tests.conftest import Relays
from tests.observe.scraped import scrape_text
from tests.support.scripted import Gate, ScriptedUpstream, json_response, stream
from tests.support.sseclient import open_stream
from tests.support.stores import valkey_server
from tests.support.streams import FIRST_TOKENS, PATHS
from tests.support.waiting import wait_until

PAST, FUTURE = "2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"
ENDPOINTS = [
    *[("POST", path) for path in PATHS.values()],
    ("GET", "/streams/st_" + "a" * 22),
    ("DELETE", "/streams/st_" + "a" * 22),
    ("GET", "/v1/responses/resp_1?stream=true"),
    ("POST", "/v1/responses/resp_1/cancel"),
    ("GET", "/v1/models"),
    ("POST", "/v1/embeddings"),
    ("DELETE", "/v1/files/x"),
]


def typo(key: str) -> str:
    return key[:10] + ("a" if key[10] != "a" else "b") + key[11:]


class TestWhoIsLetIn:
    def test_what_is_no_good_key_is_refused_alike_everywhere_and_nothing_goes_upstream(
        self, upstream: ScriptedUpstream, relays: Relays
    ) -> None:
        good, entry = issued("team-a", expires=FUTURE)
        late, expired = issued("team-a", expires=PAST)
        relay = relays.start(config(upstream, entry, expired), ENV)
        unlike: list[dict[str, str]] = [
            {},
            bearer(late),
            bearer(new_key()),
            bearer(typo(good)),
            bearer(good[:-1]),
            bearer(good + "A"),
            bearer(hash_of(good)),
            bearer(UPSTREAM_KEY),
            {"authorization": good[3:]},
            {"authorization": "Basic " + base64.b64encode(f"{good}:".encode()).decode()},
            {"x-api-key": f"Bearer {good}"},
            {**bearer(good), "x-api-key": new_key()},
            {"cookie": f"authorization={good}"},
        ]
        for method, path in ENDPOINTS:
            answers = set()
            for headers in unlike:
                body = b'{"model":"m"}' if method == "POST" else None
                with open_stream(relay.url + path, method, {**headers, "x-request-id": "same"}, body) as answer:
                    head = str([item for item in answer.header_list if item[0] != "date"])
                    answers.add((answer.status, head, answer.read()))
            assert len(answers) == 1, (path, answers)
            status, head, told = answers.pop()
            assert status == 401
            assert "('www-authenticate', 'Bearer')" in head
            error = json.loads(told)["error"]
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
            assert (json.loads(told).get("type") == "error") == (path == PATHS["messages"])
        assert upstream.calls == []
        for path in ("/livez", "/readyz"):
            with open_stream(relay.url + path, "GET") as answer:
                assert answer.status == 200

    def test_a_good_one_is_taken_wherever_clients_put_it_and_only_the_upstream_s_own_goes_on(
        self, upstream: ScriptedUpstream, relays: Relays
    ) -> None:
        streamed = FIRST_TOKENS["messages-text"]
        upstream.on("m", *stream(*streamed.events))
        upstream.on("n", *json_response(200, {}))
        upstream.on_path("GET /v1/models", *json_response(200, {"data": []}))
        key, entry = issued("team-a")
        relay = relays.start(config(upstream, entry), ENV)
        places: list[dict[str, str]] = [
            bearer(key),
            {"authorization": f"BEARER  {key}"},
            {"x-api-key": key},
            {"api-key": key},
            {"x-api-key": key, **bearer(key)},
        ]
        for place in places:
            headers = {**place, "anthropic-version": "2023-06-01", "x-other-api-key": f"k={key}"}
            for model in ("m", "n"):
                body: dict[str, Any] = {"model": model, "stream": model == "m", "messages": []}
                with open_stream(relay.url + PATHS["messages"], headers=headers, body=body) as answer:
                    assert answer.status == 200, place
                    answer.read()
            with open_stream(relay.url + "/v1/models", "GET", headers) as answer:
                assert answer.status == 200
        assert len(upstream.calls) == 3 * len(places)
        for call in upstream.calls:
            assert call.header("x-api-key") == UPSTREAM_KEY
            assert key not in str(call)
            assert entry["hash"].removeprefix("sha256:") not in str(call)

    def test_an_upstream_that_would_need_the_client_s_credential_stops_the_start(
        self, upstream: ScriptedUpstream, tmp_path: Path
    ) -> None:
        settings = config(upstream, issued("team-a")[1])
        del settings["upstreams"][0]["api_key_env"]
        path = tmp_path / "relay.yaml"
        path.write_text(json.dumps(settings))
        done = subprocess.run(
            [sys.executable, "-m", "relay", "serve", "--config", str(path)], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 2
        assert "upstreams.up.api_key_env: is missing" in done.stderr

    @pytest.mark.parametrize(("bind", "pages"), [("0.0.0.0:1", True), ("[::]:1", True), ("[::1]:1", False)])
    def test_without_keys_whoever_comes_spends_the_relay_s_credential_and_the_log_says_so(
        self, bind: str, pages: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        served = {"name": "up", "base_url": "http://up", "api_key_env": "HOME"}
        server._warn(load(flags={"bind": bind, "upstreams": [served]}, environ={}))
        assert ("spends the keys of the upstreams up" in caplog.text, "`hosts`" in caplog.text) == (True, pages)
        caplog.clear()
        server._warn(load(flags={"bind": bind, "upstreams": [{"name": "up", "base_url": "http://up"}]}, environ={}))
        assert caplog.text == ""


class TestOwners:
    def test_keys_of_one_owner_share_streams_and_others_do_not_see_them(
        self, upstream: ScriptedUpstream, relays: Relays
    ) -> None:
        (one, a), (two, b), (foreign, c) = issued("team-a"), issued("team-a"), issued("team-b")
        upstream.on("m", *whole())
        upstream.on("held", *whole(Gate("never")))
        relay = relays.start(config(upstream, a, b, c), ENV)
        name = finished(relay, one)
        assert code(get(relay, two, f"/streams/{name}")) == (200, "")
        assert code(get(relay, foreign, f"/streams/{name}")) == (404, "stream_not_found")
        with ask(relay, one, "held") as held:
            path = f"/streams/{held.headers['relay-stream-id']}"
            assert code(get(relay, foreign, path, "DELETE")) == (404, "stream_not_found")
            assert code(get(relay, two, path, "DELETE")) == (204, "")
            assert held.events()[-1].data == "[DONE]"

    def test_an_idempotency_key_is_the_owner_s(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        (one, a), (two, b), (foreign, c) = issued("team-a"), issued("team-a"), issued("team-b")
        upstream.on("m", *whole())
        relay = relays.start(config(upstream, a, b, c), ENV)
        body = {"model": "m", "stream": True, "messages": []}
        names = []
        for key in (one, two, foreign):
            headers = {**bearer(key), "idempotency-key": "mine"}
            with open_stream(relay.url + PATHS["chat"], headers=headers, body=body) as answer:
                answer.read()
                names.append(answer.headers["relay-stream-id"])
        assert names[0] == names[1] != names[2]

    def test_a_ticket_needs_no_key(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        key, entry = issued("team-a")
        upstream.on("m", *whole())
        relay = relays.start(config(upstream, entry), ENV)
        with ask(relay, key) as answer:
            answer.read()
        with open_stream(relay.url + answer.headers["relay-stream-url"], "GET") as page:
            assert page.status == 200


class TestModels:
    def test_another_model_is_refused_as_one_that_nobody_serves(
        self, upstream: ScriptedUpstream, relays: Relays
    ) -> None:
        some, a = issued("team-a", models=["gpt-*", "exactly"])
        every, b = issued("team-a")
        upstream.on("other", *whole())
        upstream.on("gpt-5", *whole())
        settings = config(upstream, a, b)
        settings["upstreams"][0]["models"] = ["gpt-*", "other", "exactly"]
        relay = relays.start(settings, ENV)
        for api in PATHS:
            told = []
            for key, model in ((some, "other"), (every, "nobody-serves-it")):
                with ask(relay, key, model, api) as answer:
                    assert answer.status == 404
                    told.append(answer.json["error"])
                    assert told[-1]["code"] == "model_not_found"
            assert told[0]["message"].replace("other", "") == told[1]["message"].replace("nobody-serves-it", "")
        for key, model in ((some, "gpt-5"), (every, "other")):
            assert code(ask(relay, key, model))[0] == 200
        assert [call.json["model"] for call in upstream.calls] == ["gpt-5", "other"]

    def test_what_goes_upstream_names_no_other_in_any_way(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        key, entry = issued("team-a", models=["mine"])
        upstream.on("mine", *json_response(200, {}))
        relay = relays.start(config(upstream, entry), ENV)
        for path, (body, status) in itertools.product(("/v1/chat/completions", "/v1/embeddings"), self.BODIES.items()):
            before = len(upstream.calls)
            with open_stream(relay.url + path, headers=bearer(key), body=body) as answer:
                assert answer.status == status, (path, body, answer.read())
            sent = [call.body for call in upstream.calls[before:]]
            assert len(sent) == (status == 200)
            assert not any(b"other" in body for body in sent)

    BODIES: ClassVar = {
        b'{"model":"other","model":"mine"}': 400,
        b'{"model":"mine","model":"other"}': 400,
        rb'{"model":"mine","mod\u0065l":"other"}': 400,
        b'{"model":"mine","tools":[{"x":"mine","x":"other"}]}': 400,
        rb'{"mod\u0065l":"mine","x":1.0}': 200,
        b'{"model":"mine","Model":"other"}': 404,
        b'{"model":"mine","models":["mine","other"]}': 404,
        b'{"model":"mine","models":["mine"]}': 200,
        b'{"model":null}': 400,
        b'{"input":"no model"}': 400,
    }

    def test_a_body_in_which_no_model_can_be_read_is_refused(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        key, entry = issued("team-a", models=["mine"])
        relay = relays.start(config(upstream, entry), ENV)
        headers = {**bearer(key), "content-type": "text/plain"}
        with open_stream(relay.url + "/v1/embeddings", headers=headers, body=b'{"model":"other"}') as answer:
            assert answer.status == 415
        assert upstream.calls == []

    def test_the_list_of_models_is_sifted(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        some, a = issued("team-a", models=["gpt-*", "local/b"])
        every, b = issued("team-a")
        listed = [{"id": name, "object": "model"} for name in ("gpt-5", "b", "c")]
        upstream.on_path("GET /v1/models", *json_response(200, {"object": "list", "data": listed}))
        for name in ("gpt-5", "c"):
            upstream.on_path(f"GET /v1/models/{name}", *json_response(200, {"id": name}))
        settings = config(upstream, a, b)
        settings["upstreams"][0]["strip_prefix"] = "local/"
        relay = relays.start(settings, ENV)
        with get(relay, some, "/v1/models") as answer:
            assert [item["id"] for item in answer.json["data"]] == ["gpt-5", "local/b"]
        with get(relay, every, "/v1/models") as answer:
            assert [item["id"] for item in answer.json["data"]] == ["gpt-5", "b", "c"]
        assert code(get(relay, some, "/v1/models/gpt-5")) == (200, "")
        assert code(get(relay, some, "/v1/models/c")) == (404, "model_not_found")


class TestOneAccountUpstream:
    STATEFUL = (
        ("GET", "/v1/files"),
        ("GET", "/v1/files/file_1/content"),
        ("DELETE", "/v1/files/file_1"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/v1/messages/batches"),
        ("GET", "/v1/models/..%252ffiles"),
        ("DELETE", "/v1/models/ft-1"),
        ("DELETE", "/v1/responses/resp_x"),
        ("GET", "/v1/responses/resp_x"),
        ("GET", "/v1/responses/resp_x?stream=true"),
        ("GET", "/v1/responses/resp_x/input_items"),
        ("POST", "/v1/responses/resp_x/cancel"),
    )

    def test_what_is_kept_there_for_others_is_out_of_reach(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        key, entry = issued("team-a")
        relay = relays.start(config(upstream, entry), ENV)
        for method, path in self.STATEFUL:
            assert code(get(relay, key, path, method)) in ((403, "path_not_allowed"), (404, "not_found")), path
        for path in ("/v1/files", "/v1/batches", "/v1/fine_tuning/jobs"):
            with open_stream(relay.url + path, headers=bearer(key), body={"model": "m"}) as answer:
                assert answer.status == 403
        assert upstream.calls == []

    def test_the_key_s_paths_open_it(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        key, entry = issued("team-a", paths=["/v1/files", "/v1/responses/*"])
        for path in ("/v1/files", "/v1/files/1", "/v1/responses/resp_x"):
            upstream.on_path(f"GET {path}", *json_response(200, {}))
        relay = relays.start(config(upstream, entry), ENV)
        assert code(get(relay, key, "/v1/files")) == (200, "")
        assert code(get(relay, key, "/v1/files/1")) == (403, "path_not_allowed")
        assert code(get(relay, key, "/v1/responses/resp_x")) == (200, "")

    def test_the_owner_s_own_response_is_to_be_had(self, upstream: ScriptedUpstream, relays: Relays) -> None:
        (key, a), (foreign, b) = issued("team-a"), issued("team-b")
        streamed = FIRST_TOKENS["responses-text"]
        upstream.on("m", *stream(*streamed.events))
        upstream.on_path("GET /v1/responses/resp_1", *json_response(200, {"id": "resp_1"}))
        relay = relays.start(config(upstream, a, b), ENV)
        with ask(relay, key, "m", "responses") as answer:
            answer.read()
        for query in ("", "?stream=true"):
            assert code(get(relay, key, f"/v1/responses/resp_1{query}")) == (200, "")
            assert code(get(relay, foreign, f"/v1/responses/resp_1{query}")) == (404, "not_found")
        assert len(upstream.calls) == 2


class TestConcurrency:
    @pytest.mark.parametrize("api", PATHS)
    def test_streams_in_progress_are_counted_until_their_end(
        self, upstream: ScriptedUpstream, relays: Relays, api: str
    ) -> None:
        key, entry = issued("team-a", concurrency=1)
        other, b = issued("team-a")
        streamed = FIRST_TOKENS[
            {"chat": "chat-content", "messages": "messages-text", "responses": "responses-text"}[api]
        ]
        upstream.on("m", *stream(*streamed.before, streamed.token, Gate("end"), *streamed.rest))
        relay = relays.start(config(upstream, entry, b), ENV)
        first = ask(relay, key, api=api)
        first.take(1)  # its reader leaves, the generation goes on
        with ask(relay, key, api=api) as refused:
            assert (refused.status, refused.headers["retry-after"]) == (429, "1")
            error = refused.json["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "too_many_streams")
        assert code(ask(relay, key, api=api, streamed=False))[0] == 429
        with ask(relay, other, api=api) as unhindered:
            assert unhindered.status == 200
        assert code(get(relay, key, f"/streams/{first.headers['relay-stream-id']}", "DELETE")) == (204, "")
        upstream.open("end")
        wait_until(lambda: code(ask(relay, key, api=api))[0] == 200, 10, "the stream's end to be counted")

    @pytest.mark.parametrize("how", ["refused", "not-streamed", "cut", "unknown-model"])
    def test_a_request_that_comes_to_nothing_is_counted_no_longer(
        self, upstream: ScriptedUpstream, relays: Relays, how: str
    ) -> None:
        key, entry = issued("team-a", concurrency=1)
        upstream.on("refused", *json_response(400, {"error": {"message": "no"}}))
        upstream.on("not-streamed", *json_response(200, {}))
        upstream.on("cut", Gate("never"))
        upstream.on("m", *whole())
        relay = relays.start(config(upstream, entry), ENV)
        if how == "cut":
            asked = http.client.HTTPConnection(relay.url.removeprefix("http://"))
            asked.request("POST", PATHS["chat"], json.dumps({"model": how, "stream": True}), bearer(key))
            upstream.wait_reached("never")
            asked.close()
        else:
            ask(relay, key, how, streamed=how != "not-streamed").read()
        wait_until(lambda: code(ask(relay, key))[0] == 200, 10, "room")


def test_nothing_of_a_key_is_told_anywhere(upstream: ScriptedUpstream, relays: Relays, tmp_path: Path) -> None:
    key, entry = issued("team-a", models=["m"], rate="3/h", concurrency=5)
    late, expired = issued("team-a", expires=PAST)
    wrong = typo(key)
    upstream.on("m", *whole())
    with valkey_server(tmp_path) as store:
        settings = config(upstream, entry, expired, store={"url": store.url}, log={"level": "debug", "format": "json"})
        relay = relays.start(settings, ENV)
        told = ""
        for shown in (key, late, wrong):
            for model in ("m", "other", "m", "m", "m"):
                with ask(relay, shown, model) as answer:
                    told += str(answer.header_list) + answer.read().decode()
            with get(relay, shown, f"/streams/{shown}?last_event_id={shown}") as answer:
                told += answer.read().decode()
        assert "rate_limit_exceeded" in told
        client = store.servers[0].client()
        held = "".join(f"{name!s} {client.dump(name)!r}" for name in client.keys("*") if name != "relay:secret")
        assert held.count("relay:") > 2
        places: dict[str, Any] = {"answers": told, "metrics": scrape_text(relay), "store": held, "log": relay.log()}
        assert "stream ended" in places["log"]
        for place, text in places.items():
            for secret in (key, late, wrong):
                for spelled in (secret, secret[3:20], hash_of(secret)[7:], hash_of(secret)[7:19]):
                    assert spelled not in text, f"{spelled} in the {place}"
            assert UPSTREAM_KEY not in text
