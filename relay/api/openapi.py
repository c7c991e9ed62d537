"""The relay's own surface as an OpenAPI 3.1 description, served at `/openapi.json`.

It is built once at the start, from the names that the code itself has: dialects, error tree, stream headers, ticket
scopes. Promises: every path of the router is in it and no other, every code of a refusal stands at its status, and it
tells nothing of this deployment: no version, no upstream, no setting.

What an API's own request and answer hold is that API's business: here they are objects, with the fields that the relay
reads.
"""

from __future__ import annotations

import hashlib
from typing import get_args

import orjson

from relay.api import event_ids
from relay.api.delivery import stream_headers
from relay.api.joining import LONGEST_KEY
from relay.api.openapi_schemas import Json, ref, schemas
from relay.api.pages import CLIENT_MODULES, File
from relay.config import TicketSettings
from relay.config.applications import LONGEST_NAME
from relay.protocol.apis import BY_PATH
from relay.protocol.errors import ApiError

# What every path may answer, and what those do that read a stream from the log.
_ALWAYS = (400, 405, 408, 426, 431, 500)
_OF_STREAMS = (401, 403, 404, 410, 421, 429, 503)
_OF_UPSTREAM = (401, 403, 404, 413, 421, 429, 502, 503, 504)

_HEADERS = {
    "cache-control": "Keeps proxies from changing or keeping it.",
    "incremental": "Asks proxies to hand on what comes as it comes (RFC 10036).",
    "content-type": "",  # said by `content`
    "relay-heartbeat": "The longest silence of a connection that lives, in seconds (`streams.heartbeat`).",
    "relay-resumable": "`false`: this stream cannot be resumed: it has no log and no event ids, or was begun without a "
    "credential and has no ticket.",
    "relay-stream-id": "The stream's id, for `/streams/{id}`.",
    "x-accel-buffering": "Keeps nginx from buffering.",
}
_STREAM_URL = "The stream's address with a ticket for it alone, for clients without a credential."
_NAME = {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME}
_OF_READERS = ("Relay-Event-Ids", "Relay-Abandon-After")
_OF_STARTS = ("Last-Event-ID", "Idempotency-Key", "Prefer", *_OF_READERS, "Relay-Ticket", "Relay-Stream-Name")
_RETRY = {409, 429, 503}


def codes() -> dict[int, list[str]]:
    """Every code of a refusal by its status."""
    found: dict[int, set[str]] = {}
    kinds: list[type[ApiError]] = [ApiError]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        found.setdefault(kind.status, set()).update((kind.code, *vars(kind).get("further_codes", ())))
    return {status: sorted(found[status]) for status in sorted(found)}


def file() -> File:
    content = orjson.dumps(description())
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    # It is for everybody, and holds no secret: tools that run in a page may read it.
    head = [(b"etag", etag.encode()), (b"cache-control", b"no-cache"), (b"x-content-type-options", b"nosniff")]
    return File(content, b"application/json", etag, head)


def description() -> Json:
    return {
        "openapi": "3.1.0",
        # The surface's version and not the relay's: whoever reads it need not learn which faults this one has.
        "info": {
            "title": "Relay",
            "version": "1",
            "description": "A resumable relay between LLM clients and LLM APIs.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}, {}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
                "ticket": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "ticket",
                    "description": "From `Relay-Stream-Url`: opens one stream, for a while.",
                },
            },
            "parameters": _parameters(),
            "headers": {name: _header(text) for name, text in _HEADERS.items() if text}
            | {
                "relay-stream-url": _header(_STREAM_URL),
                "retry-after": _header("Seconds to wait before the next try.", "integer"),
                "request-id": _header("The request's id, which is in the relay's log."),
            },
            "schemas": schemas(),
            "responses": _refusals(),
        },
    }


# -- paths ------------------------------------------------------------------------------------------------------------


def _paths() -> Json:
    upstream = _OF_UPSTREAM
    paths: Json = {path: {"post": _generate(dialect.name)} for path, dialect in BY_PATH.items()}
    paths["/v1/responses/{id}"] = {
        "parameters": [_any_id("The response's id.")],
        "get": {
            "summary": "Retrieve a response; with `stream=true`, one that the relay streamed comes from its log",
            "parameters": [
                _query("stream", {"type": "boolean"}, "`true`: as events."),
                _query(
                    "starting_after",
                    {"type": "integer", "minimum": 0},
                    "Only what follows the event with this `sequence_number`.",
                ),
            ],
            "responses": {
                "200": _stream("The response, or its events.", also=_json({"type": "object"})),
                "204": _empty("The stream has ended, and nothing of it is missing.", of_stream=True),
                **_refused("openai", *upstream, 410, passed=True),
            },
        },
    }
    paths["/v1/responses/{id}/cancel"] = {
        "parameters": [_any_id("The response's id.")],
        "post": {
            "summary": "Stop a response's generation; one that the relay does not have is the upstream's",
            "responses": {
                "200": {"description": "The response as far as it came.", "content": _json({"type": "object"})},
                **_refused("openai", *upstream, 410, 415, passed=True),
            },
        },
    }
    paths["/streams"] = {
        "get": {
            "summary": "The newest stream of a name; with `Accept: application/json` the list of the owner's streams",
            "parameters": [
                _query("name", _NAME, "What its owner calls it; needed for events."),
                _query("live", {"type": "boolean"}, "`true`: only streams that have not ended."),
                *({"$ref": f"#/components/parameters/{name}"} for name in ("Last-Event-ID", *_OF_READERS)),
            ],
            "responses": {
                "200": _stream("Replay, then live.", also=_json(ref("schemas", "Streams"))),
                "204": {"description": "There is none, or nothing of it is missing."},
                **_refused("openai", *_OF_STREAMS),
            },
        }
    }
    paths["/streams/{id}/ticket"] = {
        "parameters": [{"$ref": "#/components/parameters/stream"}],
        "post": {
            "summary": "A ticket for a stream, for its owner to hand on",
            "parameters": [{"$ref": "#/components/parameters/Relay-Ticket"}],
            "responses": {
                "200": {"description": "Its address.", "content": _json(ref("schemas", "Ticket"))},
                **_refused("openai", *_OF_STREAMS),
            },
        },
    }
    paths["/streams/{id}"] = {
        "parameters": [{"$ref": "#/components/parameters/stream"}],
        "get": {
            "summary": "Read a stream from its start or after a position; with `Accept: application/json`, its status",
            "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}, {"ticket": []}, {}],
            "parameters": [
                {"$ref": "#/components/parameters/Last-Event-ID"},
                *({"$ref": f"#/components/parameters/{name}"} for name in _OF_READERS),
                _query("last_event_id", {"$ref": "#/components/schemas/EventId"}, "For clients that set no header."),
            ],
            "responses": {
                "200": _stream("Replay, then live.", also=_json({"$ref": "#/components/schemas/Stream"})),
                "204": _empty("The stream has ended, and nothing of it is missing.", of_stream=True),
                **_refused("openai", *_OF_STREAMS),
            },
        },
        "delete": {
            "summary": "Stop a generation, on any replica",
            "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}, {"ticket": []}, {}],
            "responses": {"204": _empty("It has stopped, or had ended."), **_refused("openai", *_OF_STREAMS)},
        },
    }
    health = {"description": "It is.", "content": _json({"type": "object", "properties": {"status": {"const": "ok"}}})}
    open_to_all: Json = {"security": [{}]}
    paths["/livez"] = {
        "get": {"summary": "Is it alive?", **open_to_all, "responses": {"200": health, **_refused("openai")}}
    }
    paths["/readyz"] = {
        "get": {
            "summary": "Does it take clients?",
            "description": "Without the parameter also one whose store is away does: streams begin by `store.outage`.",
            **open_to_all,
            "parameters": [
                {
                    "name": "store",
                    "in": "query",
                    "schema": {"const": "required"},
                    "description": "503 as well while the relay cannot use its store.",
                }
            ],
            "responses": {"200": health, **_refused("openai", 400, 503)},
        }
    }
    hello = {"description": "It is here.", "content": _json({"type": "object"})}
    paths["/api/hello"] = {
        "get": {
            "summary": "Is the API there? Some agents ask, with HEAD, before anything else",
            **open_to_all,
            "responses": {"200": hello, **_refused("openai")},
        }
    }
    for name, what in CLIENT_MODULES.items():
        paths[f"/client/{name}"] = _served("text/javascript", {"type": "string"}, what)
    paths["/openapi.json"] = _served("application/json", {"type": "object"}, "This description.")
    paths["/v1/{path}"] = {
        "parameters": [{**_any_id("Anything, with `/` in it too."), "name": "path"}],
        **{
            method: {
                "summary": "Passed through both ways, streamed, status and body unchanged",
                **({"requestBody": {"content": {"*/*": {}}}} if method in ("post", "put", "patch") else {}),
                "responses": {
                    "default": {"description": "The upstream's answer.", "content": {"*/*": {}}},
                    **_refused("openai", *upstream, 415, passed=True),
                },
            }
            for method in ("get", "post", "put", "patch", "delete")
        },
    }
    return paths


def _generate(api: str) -> Json:
    shape = "messages" if api == "messages" else "openai"
    return {
        "summary": "Generate; with `stream: true` as a stream that can be resumed",
        "description": "With `Last-Event-ID` it resumes: the body is ignored and nothing goes upstream. Without "
        "`stream: true` it is passed through, and the answer is the upstream's.",
        "parameters": [
            {"$ref": f"#/components/parameters/{name}"}
            for name in (
                "Last-Event-ID",
                "Idempotency-Key",
                "Prefer",
                *_OF_READERS,
                "Relay-Ticket",
                "Relay-Stream-Name",
            )
        ],
        "requestBody": {"required": True, "content": _json({"$ref": "#/components/schemas/Request"})},
        "responses": {
            "200": _stream("Events as they come, or the upstream's whole answer.", also=_json({"type": "object"})),
            "202": {
                "description": "It runs without a reader (`Prefer: respond-async`).",
                "headers": {
                    "location": _header("Where to read it.", required=True),
                    "preference-applied": _header("`respond-async`", required=True),
                    "relay-stream-url": {"$ref": "#/components/headers/relay-stream-url"},
                },
                "content": _json({"$ref": "#/components/schemas/Accepted"}),
            },
            "204": _empty("The stream has ended, and nothing of it is missing.", of_stream=True),
            "default": {"description": "The upstream's own refusal, as it is.", "content": {"*/*": {}}},
            **_refused(shape, *_OF_UPSTREAM, 409, 410, 415, 422, passed=True),
        },
    }


def _served(kind: str, schema: Json, summary: str) -> Json:
    answered = {
        "304": {"description": "The copy that `If-None-Match` names still holds."},
        **_refused("openai"),
    }
    whole = {
        "description": summary,
        "headers": {"etag": _header("For `If-None-Match`.", required=True)},
        "content": {kind: {"schema": schema}},
    }
    bare = {key: value for key, value in whole.items() if key != "content"}
    return {
        "get": {"summary": summary, "security": [{}], "responses": {"200": whole, **answered}},
        "head": {"summary": "Its headers.", "security": [{}], "responses": {"200": bare, **answered}},
    }


# -- answers ----------------------------------------------------------------------------------------------------------


def _refused(shape: str, *statuses: int, passed: bool = False) -> Json:
    """`passed`: the upstream's own refusals come the same way, in whatever form it has."""
    suffix = "_or_upstreams" if passed else ""
    return {
        str(status): {"$ref": f"#/components/responses/{shape}_{status}{suffix}"}
        for status in sorted({*_ALWAYS, *statuses})
    }


def _refusals() -> Json:
    found: Json = {}
    for shape, schema in (("openai", "OpenAIError"), ("messages", "MessagesError")):
        for status, allowed in codes().items():
            error: Json = {
                "allOf": [
                    {"$ref": f"#/components/schemas/{schema}"},
                    {"properties": {"error": {"properties": {"code": {"enum": allowed}}}}},
                ]
            }
            head: Json = {"request-id" if shape == "messages" else "x-request-id": ref("headers", "request-id")}
            if status in _RETRY:
                head["retry-after"] = ref("headers", "retry-after")
            text = "The relay refuses: " + ", ".join(f"`{code}`" for code in allowed) + "."
            if shape == "openai":
                found[f"{shape}_{status}"] = {"description": text, "headers": head, "content": _json(error)}
            found[f"{shape}_{status}_or_upstreams"] = {
                "description": text + " Or the upstream does, in its own words.",
                "headers": head,
                "content": _json({"anyOf": [error, {}]}) | {"*/*": {}},
            }
    return found


def _stream(text: str, *, also: Json) -> Json:
    return {
        "description": text,
        "headers": _stream_headers(),
        "content": {"text/event-stream": {"schema": ref("schemas", "Events")}, **also},
    }


def _empty(text: str, *, of_stream: bool = False) -> Json:
    return {"description": text, **({"headers": _stream_headers()} if of_stream else {})}


def _stream_headers() -> Json:
    names = [name.decode() for name, _ in stream_headers("", 15, resumable=True)]
    return {name: ref("headers", name) for name in [*names, "relay-stream-url"] if _HEADERS.get(name, "-")}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


# -- parameters -------------------------------------------------------------------------------------------------------


def _parameters() -> Json:
    scopes = list(get_args(TicketSettings.model_fields["scope"].annotation))
    headers = {
        "Last-Event-ID": (
            ref("schemas", "EventId"),
            "The last id that arrived; `<stream id>.0` for the start. One that ends in `e` is that of an end which the "
            "relay told.",
        ),
        "Idempotency-Key": (
            {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY},
            "The same credential, key and body join the generation instead of making another.",
        ),
        "Prefer": ({"type": "string"}, "`respond-async`: run without a reader."),
        "Relay-Event-Ids": ({"enum": list(event_ids.WORDS)}, "Whether the frames have their ids."),
        "Relay-Abandon-After": (
            {"type": "string", "examples": ["0s", "15m"]},
            "How long the generation goes on unread after this reader, at most `streams.abandon_limit`.",
        ),
        "Relay-Stream-Name": (_NAME, "What its owner calls the stream, for `/streams?name=…`."),
        "Relay-Ticket": ({"enum": scopes}, "What the ticket in `Relay-Stream-Url` lets its holder do."),
    }
    found: Json = {
        name: {"name": name, "in": "header", "schema": schema, "description": text}
        for name, (schema, text) in headers.items()
    }
    found["stream"] = {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": ref("schemas", "StreamId"),
        "description": "The value of `Relay-Stream-Id`.",
    }
    return found


def _any_id(text: str) -> Json:
    return {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "description": text}


def _query(name: str, schema: Json, text: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _header(text: str, kind: str = "string", *, required: bool = False) -> Json:
    return {"description": text, "schema": {"type": kind}} | ({"required": True} if required else {})
