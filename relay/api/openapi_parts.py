"""What the paths of the relay's own surface are made of, for `relay.api.openapi`: headers, parameters, answers."""

from __future__ import annotations

from relay.api.delivery import stream_headers
from relay.api.openapi_schemas import Json, ref
from relay.config.applications import LONGEST_NAME

# What every path may answer.
_ALWAYS = (400, 405, 408, 426, 431, 500)

HEADERS = {
    "cache-control": "Keeps proxies from changing or keeping it.",
    "incremental": "Asks proxies to hand on what comes as it comes (RFC 10036).",
    "content-type": "",  # said by `content`
    "relay-heartbeat": "The longest silence of a connection that lives, in seconds (`streams.heartbeat`).",
    "relay-resumable": "`false`: this stream cannot be resumed: it has no log and no event ids, or was begun without a "
    "credential and has no ticket.",
    "relay-stream-id": "The stream's id, for `/streams/{id}`.",
    "x-accel-buffering": "Keeps nginx from buffering.",
}
NAME = {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME}


def refused(shape: str, *statuses: int, passed: bool = False) -> Json:
    """`passed`: the upstream's own refusals come the same way, in whatever form it has."""
    suffix = "_or_upstreams" if passed else ""
    return {
        str(status): {"$ref": f"#/components/responses/{shape}_{status}{suffix}"}
        for status in sorted({*_ALWAYS, *statuses})
    }


def events(text: str, *, also: Json) -> Json:
    return {
        "description": text,
        "headers": _stream_headers(),
        "content": {"text/event-stream": {"schema": ref("schemas", "Events")}, **also},
    }


def empty(text: str, *, of_stream: bool = False) -> Json:
    return {"description": text, **({"headers": _stream_headers()} if of_stream else {})}


def _stream_headers() -> Json:
    names = [name.decode() for name, _ in stream_headers("", 15, resumable=True)]
    told = [*names, "relay-stream-url", "relay-continued"]
    return {name: ref("headers", name) for name in told if HEADERS.get(name, "-")}


def as_json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def any_id(text: str) -> Json:
    return {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "description": text}


def query(name: str, schema: Json, text: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def header(text: str, kind: str = "string", *, required: bool = False) -> Json:
    return {"description": text, "schema": {"type": kind}} | ({"required": True} if required else {})
