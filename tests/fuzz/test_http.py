"""The HTTP surface, asked at random by its own description: no fault, nothing undescribed, and the relay lives on."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from relay.api import openapi
from tests.support.processes import RelayProcess
from tests.support.scripted import ScriptedUpstream, json_response, stream
from tests.support.sseclient import open_stream
from tests.support.streams import FIRST_TOKENS, PATHS

EXAMPLES = 40
AUTH = {"authorization": "Bearer sk-fuzz"}
load_all_checks()
CHECKED = CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    ]
)
SCHEMA = schemathesis.openapi.from_dict(openapi.description())
_FOUND: list[Any] = list(SCHEMA.get_all_operations())
OPERATIONS = {
    f"{operation.method.upper()} {operation.path}": operation for operation in (found.ok() for found in _FOUND)
}
REACHED = {"GET /streams/{id}": {200}, "DELETE /streams/{id}": {204}, "GET /v1/responses/{id}": {200}} | {
    f"POST {path}": {200} for path in PATHS.values()
}


# Many streams are given the upstream's one response id, which is nobody's then; this is one stream's.
RESPONSES = ["resp_1", "resp_once"]


@dataclass(frozen=True)
class Site:
    relay: RelayProcess
    upstream: ScriptedUpstream
    streams: list[str]
    """Ids of streams that are there."""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with (
        ScriptedUpstream() as upstream,
        RelayProcess({"upstreams": [{"name": "u", "base_url": upstream.url}]}) as relay,
    ):

        def begun(path: str) -> str:
            with open_stream(relay.url + path, "POST", AUTH, {"model": "m", "stream": True}) as answer:
                assert answer.read()
                return answer.headers["relay-stream-id"]

        upstream.on(
            "m", *stream(*(frame.replace("resp_1", "resp_once") for frame in FIRST_TOKENS["responses-text"].events))
        )
        streams = [begun(PATHS["responses"])]
        upstream.on("m", *json_response(200, {"object": "list", "data": []}))
        for case in ("chat-content", "messages-text", "responses-text"):
            upstream.on_path(f"POST {FIRST_TOKENS[case].path}", *stream(*FIRST_TOKENS[case].events))
        yield Site(relay, upstream, streams + [begun(path) for path in PATHS.values()])


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_request_finds_a_fault_or_an_answer_that_is_not_described(site: Site, name: str) -> None:
    operation = OPERATIONS[name]
    asked: set[int] = set()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def ask(data: st.DataObject) -> None:
        mode = data.draw(st.sampled_from(GenerationMode))
        case = data.draw(operation.as_strategy(generation_mode=mode))
        there = {
            "/streams/{id}": site.streams,
            "/v1/responses/{id}": RESPONSES,
            "/v1/responses/{id}/cancel": RESPONSES,
        }
        if operation.path in there and data.draw(st.booleans()):
            case.path_parameters = {"id": data.draw(st.sampled_from(there[operation.path]))}
            if data.draw(st.booleans()):  # nothing beside it that would have it refused
                case.headers.clear()
                case.query.clear()
        if name == "GET /v1/responses/{id}" and data.draw(st.booleans()):
            case.path_parameters = {"id": data.draw(st.sampled_from(RESPONSES))}
            after = data.draw(st.sampled_from(["1", "x", "-1", "9" * 30]))
            case.query = {"stream": "true", "starting_after": after}
        if isinstance(case.body, dict) and data.draw(st.booleans()):
            case.body = {**case.body, "model": "m", "stream": data.draw(st.booleans())}
        response = case.call(base_url=site.relay.url, headers=AUTH, timeout=20)
        asked.add(response.status_code)
        case.validate_response(response, checks=CHECKED)

    ask()
    assert REACHED.get(name, set()) <= asked, "what it is for was never asked"
    assert site.relay.returncode is None
    with urllib.request.urlopen(f"{site.relay.url}/readyz", timeout=10) as answer:
        assert answer.status == 200
    assert "a fault of the relay's own" not in site.relay.log()
