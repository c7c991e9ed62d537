"""A relay with keys of its own: what its settings hold, and how clients show them."""

from __future__ import annotations

from typing import Any

from relay.protocol.keys import hash_of, new_key
from tests.observe.frames import PATHS, chat, data
from tests.support.processes import RelayProcess
from tests.support.scripted import ScriptedUpstream, Step, stream
from tests.support.sseclient import RawStream, open_stream

UPSTREAM_KEY = "canary-upstream-key-52c1"
ENV = {"UP_KEY": UPSTREAM_KEY}
TOKEN = chat({"content": "a"})
END = (chat({}, "stop"), data("[DONE]"))
Entry = dict[str, Any]


def issued(owner: str, **limits: Any) -> tuple[str, Entry]:
    """A fresh key and its entry in the settings."""
    key = new_key()
    return key, {"hash": hash_of(key), "owner": owner, **limits}


def config(upstream: ScriptedUpstream, *entries: Entry, **more: Any) -> dict[str, Any]:
    served = {"name": "up", "base_url": upstream.url, "api_key_env": "UP_KEY"}
    auth = {"mode": "keys", "keys": list(entries)}
    return {"upstreams": [served], "auth": auth, "drain": {"timeout": "0s"}, **more}


def whole(*before: str | Step) -> tuple[Step, ...]:
    """A chat stream; what stands before its end may be gates."""
    return stream(TOKEN, *before, *END)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask(relay: RelayProcess, key: str, model: str = "m", api: str = "chat", *, streamed: bool = True) -> RawStream:
    body = {"model": model, "stream": streamed, "messages": []}
    return open_stream(relay.url + PATHS[api], headers=bearer(key), body=body)


def get(relay: RelayProcess, key: str, path: str, method: str = "GET") -> RawStream:
    return open_stream(relay.url + path, method, bearer(key))


def code(answer: RawStream) -> tuple[int, str]:
    """The status and, of a refusal, its code."""
    with answer:
        return answer.status, "" if answer.status < 400 else answer.json["error"]["code"]


def finished(relay: RelayProcess, key: str, model: str = "m") -> str:
    """The id of a stream that has run to its end."""
    with ask(relay, key, model) as answer:
        assert answer.status == 200, answer.read()
        answer.read()
        return answer.headers["relay-stream-id"]
