"""The objects of the relay's own surface, for `relay.api.openapi`."""

from __future__ import annotations

from typing import Any

from relay.protocol.apis import DIALECTS

Json = dict[str, Any]

STREAM_ID = "st_[A-Za-z0-9_-]{22}(?:_u)?"
EVENT_ID = rf"{STREAM_ID}\.(?:0|[1-9][0-9]{{0,14}})e?"


def ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def schemas() -> Json:
    text = {"type": "string"}
    whole = {"type": "integer", "minimum": 0}
    name = {"name": {"type": ["string", "null"]}}
    usage = {"type": "object", "properties": {"input_tokens": whole, "output_tokens": whole}}
    return {
        "StreamId": {"type": "string", "pattern": f"^{STREAM_ID}$"},
        "EventId": {"type": "string", "pattern": f"^{EVENT_ID}$"},
        "Events": {
            "description": "Server-sent events: each as an object, or all as they are written.",
            "type": ["object", "string"],
            "properties": {"id": ref("schemas", "EventId"), "event": text, "data": text, "retry": whole},
        },
        "Request": {
            "type": "object",
            "description": "The API's own request. It goes upstream as it is.",
            "required": ["model"],
            "properties": {"model": {"type": "string", "minLength": 1}, "stream": {"type": "boolean"}},
        },
        "Accepted": _object(id=ref("schemas", "StreamId"), object={"const": "relay.stream"}, location=text),
        "Stream": _object(
            id=ref("schemas", "StreamId"),
            object={"const": "relay.stream"},
            api={"enum": list(DIALECTS)},
            state={"enum": ["live", "ended"]},
            outcome={"type": ["string", "null"]},
            last_event_id={**ref("schemas", "EventId"), "description": "Who has this one has all of it by now."},
            events=whole,
            created_at={"type": "number"},
            ended_at={"type": ["number", "null"]},
            usage={"anyOf": [usage, {"type": "null"}]},
        ),
        "Streams": _object(
            object={"const": "list"},
            data={"type": "array", "items": {"allOf": [ref("schemas", "Stream"), {"properties": name}]}},
        ),
        "Ticket": _object(
            object={"const": "relay.ticket"},
            stream=ref("schemas", "StreamId"),
            url=text,
            scope={"enum": ["read", "read+stop"]},
            expires_at=whole,
        ),
        "OpenAIError": _object(
            error=_object(message=text, type=text, param={"type": "null"}, code=text),
        ),
        "MessagesError": _object(
            type={"const": "error"}, error=_object(type=text, message=text, code=text), request_id=text
        ),
    }


def _object(**fields: Json) -> Json:
    return {"type": "object", "required": list(fields), "properties": fields}
