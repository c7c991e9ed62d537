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
from relay.api.joining import LONGEST_KEY
from relay.api.openapi_parts import HEADERS, NAME, as_json, header
from relay.api.openapi_paths import paths
from relay.api.openapi_schemas import Json, ref, schemas
from relay.api.pages import File
from relay.config import TicketSettings
from relay.protocol.errors import ApiError

_STREAM_URL = "The stream's address with a ticket for it alone, for clients without a credential."
_CONTINUED = "How many further calls have gone on with this answer so far (`upstreams[].continue`)."
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
        "paths": paths(),
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
            "headers": {name: header(text) for name, text in HEADERS.items() if text}
            | {
                "relay-stream-url": header(_STREAM_URL),
                "relay-continued": header(_CONTINUED, "integer"),
                "retry-after": header("Seconds to wait before the next try.", "integer"),
                "request-id": header("The request's id, which is in the relay's log."),
            },
            "schemas": schemas(),
            "responses": _refusals(),
        },
    }


# -- answers -----------------------------------------------------------------------------------------------------------


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
                found[f"{shape}_{status}"] = {"description": text, "headers": head, "content": as_json(error)}
            found[f"{shape}_{status}_or_upstreams"] = {
                "description": text + " Or the upstream does, in its own words.",
                "headers": head,
                "content": as_json({"anyOf": [error, {}]}) | {"*/*": {}},
            }
    return found


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
        "Relay-Stream-Name": (NAME, "What its owner calls the stream, for `/streams?name=…`."),
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
