"""`/openapi.json` describes what is served: the router's paths, the code's refusals, and answers as they come."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from relay.api import joining, openapi, openapi_schemas
from relay.api.app import create_app
from relay.api.services import Services
from relay.auth.gate import Gate
from relay.config import Settings
from relay.metrics import Metrics
from relay.protocol import errors, ids
from tests.support import scripted
from tests.support.processes import RelayProcess
from tests.support.scripted import ScriptedUpstream, stream
from tests.support.sseclient import open_stream
from tests.support.streams import FIRST_TOKENS, Answer
from tests.support.waiting import wait_until

RELAY = Path(openapi.__file__).parents[1]
SPEC = openapi.description()
AUTH = {"authorization": "Bearer sk-openapi"}
# Headers that only some streams have.
SOMETIMES = ("relay-stream-url", "relay-continued")


def test_it_is_of_the_standard() -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator  # takes a second, of every worker that only collects

    assert list(OpenAPIV31SpecValidator(SPEC).iter_errors()) == []


def test_its_paths_are_the_router_s() -> None:
    settings = Settings()
    # Routes are made of the settings alone; the rest is for requests.
    replica = Services(settings, None, None, Metrics(), Gate(settings.limits, None), None)  # type: ignore[arg-type]
    routed = {route.path_format for route in create_app(replica).routes if isinstance(route, Route)}
    assert set(SPEC["paths"]) == routed


def test_its_codes_are_those_that_the_code_raises() -> None:
    """Every class of the error tree, and every `code=` that is given to one of them anywhere."""
    tree = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.ApiError)}
    raised: dict[int, set[str]] = {}
    for name in tree:
        kind = getattr(errors, name)
        raised.setdefault(kind.status, set()).add(kind.code)
    for path in RELAY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in tree:
                for word in node.keywords:
                    if word.arg == "code":
                        assert isinstance(word.value, ast.Constant), f"{path.name}:{node.lineno}: name the code there"
                        raised[getattr(errors, node.func.id).status].add(str(word.value.value))
    assert {status: set(listed) for status, listed in openapi.codes().items()} == raised


def test_its_codes_are_in_the_drawn_tree() -> None:
    drawn = errors.__doc__ or ""
    missing = {
        code
        for status, listed in openapi.codes().items()
        for code in listed
        if status != 500 and not re.search(rf"\b{code}\b", drawn)
    }
    assert missing == set()


def test_its_forms_are_those_of_the_code() -> None:
    for stream_id in (ids.new_stream_id(), ids.new_stream_id(logged=False)):
        assert re.fullmatch(openapi_schemas.STREAM_ID, stream_id)
        changed = [stream_id[:at] + chr(code) + stream_id[at + 1 :] for at in range(27) for code in range(128)]
        for other in (*changed, stream_id[:-1], stream_id + "a", stream_id + "_u", "é" + stream_id[1:], ""):
            assert bool(re.fullmatch(openapi_schemas.STREAM_ID, other)) == ids.is_stream_id(other), other
        for good in ("0", "17", "0e", "17e"):
            assert re.fullmatch(openapi_schemas.EVENT_ID, f"{stream_id}.{good}")
        for bad in ("017", "e", "17E", "17e1"):
            assert not re.fullmatch(openapi_schemas.EVENT_ID, f"{stream_id}.{bad}")
    key = SPEC["components"]["parameters"]["Idempotency-Key"]["schema"]
    assert key["maxLength"] == joining.LONGEST_KEY
    scopes = SPEC["components"]["parameters"]["Relay-Ticket"]["schema"]["enum"]
    assert scopes == ["off", "read", "read+stop"]


def test_it_tells_nothing_of_the_deployment() -> None:
    text = json.dumps(SPEC)
    assert SPEC["info"]["version"] == "1"
    assert not re.search(r"(?i)python|hypercorn|starlette|127\.0\.0\.1|localhost|redis|valkey", text)


# -- as it is served --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[RelayProcess, ScriptedUpstream]]:
    with ScriptedUpstream() as upstream:
        config = {"upstreams": [{"name": "u", "base_url": upstream.url}], "playground": True}
        with RelayProcess(config) as relay:
            yield relay, upstream


def test_it_is_served_to_everybody_and_asked_for_again_cheaply(site: tuple[RelayProcess, ScriptedUpstream]) -> None:
    address = f"{site[0].url}/openapi.json"
    with open_stream(address, "GET") as answer:
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert json.loads(answer.read()) == SPEC
        etag = answer.headers["etag"]
    with open_stream(address, "GET", {"if-none-match": etag}) as answer:
        assert (answer.status, answer.read()) == (304, b"")
    with open_stream(address, "POST") as answer:
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def checked(status: int, headers: Any, body: bytes, path: str, method: str) -> Any:
    """The answer, found in the description and of its form."""
    response = SPEC["paths"][path][method]["responses"][str(status)]
    if "$ref" in response:
        response = SPEC["components"]["responses"][response["$ref"].rpartition("/")[2]]
    kind = headers.get("content-type", "").partition(";")[0]
    for name, header in response.get("headers", {}).items():
        if header.get("required") or (name not in SOMETIMES and kind != "application/json"):
            assert name in headers, f"{method} {path} {status}: {name}"
    if not body:
        return None
    if status >= 400:
        assert {"request-id", "x-request-id"} & set(headers) & set(response["headers"])
    schema = response["content"][kind]["schema"]
    if status >= 400:  # the relay's own, where an upstream's would do, too
        schema = schema.get("anyOf", [schema])[0]
    if kind != "application/json":
        return body
    found = json.loads(body)
    import jsonschema

    jsonschema.Draft202012Validator({**schema, "components": SPEC["components"]}).validate(found)
    return found


def status_of(relay: RelayProcess, target: str) -> int:
    with open_stream(relay.url + target, "GET", AUTH) as answer:
        return answer.status


@pytest.mark.parametrize(
    "streamed", [FIRST_TOKENS["chat-content"], FIRST_TOKENS["messages-text"], FIRST_TOKENS["responses-text"]]
)
def test_answers_are_as_described(site: tuple[RelayProcess, ScriptedUpstream], streamed: Answer) -> None:
    relay, upstream = site
    path = streamed.path
    upstream.on("m", *stream(*streamed.events))
    body = json.dumps({"model": "m", "stream": True, "messages": []}).encode()

    def ask(target: str, method: str, described: str, expected: int, sent: bytes | None = None, **headers: str) -> Any:
        given = {**AUTH, **{name.replace("_", "-"): value for name, value in headers.items()}}
        with open_stream(relay.url + target, method, given, sent) as answer:
            assert answer.status == expected
            return answer.headers, checked(expected, answer.headers, answer.read(), described, method.lower())

    headers, frames = ask(path, "POST", path, 200, body)
    name = headers["relay-stream-id"]
    assert frames.startswith(f"id: {name}.1\n".encode())
    last = re.findall(rf"id: ({name}\.\d+)\n", frames.decode())[-1]
    ask(path, "POST", path, 204, b"", last_event_id=last)
    ask(path, "POST", path, 202, body, prefer="respond-async")
    ask(path, "POST", path, 400, b"no json")
    ask(path, "POST", path, 400, b"", last_event_id="7")
    ask(path, "POST", path, 404, b"", last_event_id=f"{ids.new_stream_id()}.1")
    ask(path, "POST", path, 415, body, content_encoding="br")
    ask(path, "POST", path, 200, body, idempotency_key=streamed.api)
    ask(path, "POST", path, 422, body + b" ", idempotency_key=streamed.api)
    one = f"/streams/{name}"
    ask(one, "GET", "/streams/{id}", 200)
    ask(one, "GET", "/streams/{id}", 204, last_event_id=last)
    _, status = ask(one, "GET", "/streams/{id}", 200, accept="application/json")
    assert (status["state"], status["last_event_id"]) == ("ended", last)
    _, content = ask(f"{one}?content=true", "GET", "/streams/{id}", 200, accept="application/json")
    assert content["usage"]
    ask(f"{one}?ticket=1.r.0", "GET", "/streams/{id}", 403)
    ask("/streams/x", "GET", "/streams/{id}", 400)
    unfinished: list[tuple[tuple[str | scripted.Step, ...], int]] = [
        ((*streamed.before, scripted.Gate(streamed.api)), 202),
        ((streamed.events[0],), 424),
    ]
    for steps, expected in unfinished:
        upstream.on("m", *stream(*steps))
        headers, _ = ask(path, "POST", path, 202, body, prefer="respond-async")
        other = f"/streams/{headers['relay-stream-id']}?content=true"
        wait_until(lambda: status_of(relay, other) == expected, 10, f"{expected}")  # noqa: B023
        ask(other, "GET", "/streams/{id}", expected, accept="application/json")
    upstream.open(streamed.api)
    ask(one, "DELETE", "/streams/{id}", 204)
    ask(one, "GET", "/streams/{id}", 431, x_long="x" * 33000)
