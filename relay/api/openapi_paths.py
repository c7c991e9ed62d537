"""The paths of the relay's own surface, for `relay.api.openapi`."""

from __future__ import annotations

from relay.api.openapi_parts import NAME, any_id, as_json, empty, events, header, query, refused
from relay.api.openapi_schemas import Json, ref
from relay.api.pages import CLIENT_MODULES
from relay.protocol.apis import BY_PATH

# What those may answer that read a stream from the log, and those that go upstream.
_OF_STREAMS = (401, 403, 404, 410, 421, 429, 503)
_OF_UPSTREAM = (401, 403, 404, 413, 421, 429, 502, 503, 504)

_OF_READERS = ("Relay-Event-Ids", "Relay-Abandon-After")
_OF_STARTS = ("Last-Event-ID", "Idempotency-Key", "Prefer", *_OF_READERS, "Relay-Ticket", "Relay-Stream-Name")


def paths() -> Json:
    upstream = _OF_UPSTREAM
    found: Json = {path: {"post": _generate(dialect.name)} for path, dialect in BY_PATH.items()}
    found["/v1/responses/{id}"] = {
        "parameters": [any_id("The response's id.")],
        "get": {
            "summary": "Retrieve a response; with `stream=true`, one that the relay streamed comes from its log",
            "parameters": [
                query("stream", {"type": "boolean"}, "`true`: as events."),
                query(
                    "starting_after",
                    {"type": "integer", "minimum": 0},
                    "Only what follows the event with this `sequence_number`.",
                ),
            ],
            "responses": {
                "200": events("The response, or its events.", also=as_json({"type": "object"})),
                "204": empty("The stream has ended, and nothing of it is missing.", of_stream=True),
                **refused("openai", *upstream, 410, passed=True),
            },
        },
    }
    found["/v1/responses/{id}/cancel"] = {
        "parameters": [any_id("The response's id.")],
        "post": {
            "summary": "Stop a response's generation; one that the relay does not have is the upstream's",
            "responses": {
                "200": {"description": "The response as far as it came.", "content": as_json({"type": "object"})},
                **refused("openai", *upstream, 410, 415, passed=True),
            },
        },
    }
    found["/streams"] = {
        "get": {
            "summary": "The newest stream of a name; with `Accept: application/json` the list of the owner's streams",
            "parameters": [
                query("name", NAME, "What its owner calls it; needed for events."),
                query("live", {"type": "boolean"}, "`true`: only streams that have not ended."),
                query("last_event_id", {"$ref": "#/components/schemas/EventId"}, "For clients that set no header."),
                *({"$ref": f"#/components/parameters/{name}"} for name in ("Last-Event-ID", *_OF_READERS)),
            ],
            "responses": {
                "200": events("Replay, then live.", also=as_json(ref("schemas", "Streams"))),
                "204": {"description": "There is none, or nothing of it is missing."},
                **refused("openai", *_OF_STREAMS),
            },
        }
    }
    found["/streams/{id}/ticket"] = {
        "parameters": [{"$ref": "#/components/parameters/stream"}],
        "post": {
            "summary": "A ticket for a stream, for its owner to hand on",
            "parameters": [{"$ref": "#/components/parameters/Relay-Ticket"}],
            "responses": {
                "200": {"description": "Its address.", "content": as_json(ref("schemas", "Ticket"))},
                **refused("openai", *_OF_STREAMS),
            },
        },
    }
    found["/streams/{id}"] = {
        "parameters": [{"$ref": "#/components/parameters/stream"}],
        "get": {
            "summary": "Read a stream from its start or after a position; with `Accept: application/json`, its status "
            "or its finished answer",
            "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}, {"ticket": []}, {}],
            "parameters": [
                {"$ref": "#/components/parameters/Last-Event-ID"},
                *({"$ref": f"#/components/parameters/{name}"} for name in _OF_READERS),
                query("last_event_id", {"$ref": "#/components/schemas/EventId"}, "For clients that set no header."),
                query(
                    "content",
                    {"type": "boolean"},
                    "`true`: the answer as its API's own object that is not streamed (`chat.completion`, `message`, "
                    "`response`; a list of events for other streams).",
                ),
            ],
            "responses": {
                "200": events(
                    "Replay, then live; how it stands; or the answer.", also=as_json(ref("schemas", "Found"))
                ),
                "202": {
                    "description": "With `content=true`: it goes on. What has come of it so far.",
                    "headers": {"retry-after": ref("headers", "retry-after")},
                    "content": as_json(ref("schemas", "SoFar")),
                },
                "204": empty("The stream has ended, and nothing of it is missing.", of_stream=True),
                "424": {
                    "description": "With `content=true`: it failed, or was abandoned. Its code, and what had come.",
                    "headers": {"x-request-id": ref("headers", "request-id")},
                    "content": as_json(ref("schemas", "Failed")),
                },
                **refused("openai", *_OF_STREAMS),
            },
        },
        "delete": {
            "summary": "Stop a generation, on any replica",
            "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}, {"ticket": []}, {}],
            "responses": {"204": empty("It has stopped, or had ended."), **refused("openai", *_OF_STREAMS)},
        },
    }
    health = {
        "description": "It is.",
        "content": as_json({"type": "object", "properties": {"status": {"const": "ok"}}}),
    }
    open_to_all: Json = {"security": [{}]}
    found["/livez"] = {
        "get": {"summary": "Is it alive?", **open_to_all, "responses": {"200": health, **refused("openai")}}
    }
    found["/readyz"] = {
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
            "responses": {"200": health, **refused("openai", 400, 503)},
        }
    }
    hello = {"description": "It is here.", "content": as_json({"type": "object"})}
    found["/api/hello"] = {
        "get": {
            "summary": "Is the API there? Some agents ask, with HEAD, before anything else",
            **open_to_all,
            "responses": {"200": hello, **refused("openai")},
        }
    }
    for name, what in CLIENT_MODULES.items():
        found[f"/client/{name}"] = _served("text/javascript", {"type": "string"}, what)
    found["/openapi.json"] = _served("application/json", {"type": "object"}, "This description.")
    found["/v1/{path}"] = {
        "parameters": [{**any_id("Anything, with `/` in it too."), "name": "path"}],
        **{
            method: {
                "summary": "Passed through both ways, streamed, status and body unchanged",
                **({"requestBody": {"content": {"*/*": {}}}} if method in ("post", "put", "patch") else {}),
                "responses": {
                    "default": {"description": "The upstream's answer.", "content": {"*/*": {}}},
                    **refused("openai", *upstream, 415, passed=True),
                },
            }
            for method in ("get", "post", "put", "patch", "delete")
        },
    }
    return found


def _generate(api: str) -> Json:
    shape = "messages" if api == "messages" else "openai"
    return {
        "summary": "Generate; with `stream: true` as a stream that can be resumed",
        "description": "With `Last-Event-ID` it resumes: the body is ignored and nothing goes upstream. Without "
        "`stream: true` it is passed through, and the answer is the upstream's.",
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in _OF_STARTS],
        "requestBody": {"required": True, "content": as_json({"$ref": "#/components/schemas/Request"})},
        "responses": {
            "200": events("Events as they come, or the upstream's whole answer.", also=as_json({"type": "object"})),
            "202": {
                "description": "It runs without a reader (`Prefer: respond-async`).",
                "headers": {
                    "location": header("Where to read it.", required=True),
                    "preference-applied": header("`respond-async`", required=True),
                    "relay-stream-url": {"$ref": "#/components/headers/relay-stream-url"},
                },
                "content": as_json({"$ref": "#/components/schemas/Accepted"}),
            },
            "204": empty("The stream has ended, and nothing of it is missing.", of_stream=True),
            "default": {"description": "The upstream's own refusal, as it is.", "content": {"*/*": {}}},
            **refused(shape, *_OF_UPSTREAM, 409, 410, 415, 422, passed=True),
        },
    }


def _served(kind: str, schema: Json, summary: str) -> Json:
    answered = {
        "304": {"description": "The copy that `If-None-Match` names still holds."},
        **refused("openai"),
    }
    whole = {
        "description": summary,
        "headers": {"etag": header("For `If-None-Match`.", required=True)},
        "content": {kind: {"schema": schema}},
    }
    bare = {key: value for key, value in whole.items() if key != "content"}
    return {
        "get": {"summary": summary, "security": [{}], "responses": {"200": whole, **answered}},
        "head": {"summary": "Its headers.", "security": [{}], "responses": {"200": bare, **answered}},
    }
