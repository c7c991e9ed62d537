"""Files for browsers: the client's modules, always; the playground, where `playground` is on.

They hold no secret and ask for no credential. The playground's policy lets nothing in that is not served here, lets no
text become markup, and lets the page speak to its own relay and to `playground_replicas` only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.config import Settings
from relay.protocol.errors import MethodNotAllowed
from relay.protocol.headers import Headers

CLIENT_MODULES = {
    "resuming-fetch.js": "A `fetch` that comes back.",
    "events.js": "An `EventSource` for any request, which comes back.",
    "ai.js": "A transport for the AI SDK's `useChat`, which comes back.",
}
"""What pages import without a build. They import nothing but each other, and `ai.js` the page's own AI SDK."""
_PACKAGE = Path(__file__).resolve().parents[1]
_PLAYGROUND = _PACKAGE / "playground"
_KINDS = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".json": b"application/json",
    ".svg": b"image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class File:
    """What is served at one path, or with a `location` where it is. `head` goes with a 200 and a 304 alike."""

    content: bytes
    kind: bytes
    etag: str
    head: Headers
    location: bytes | None = None


def files(settings: Settings) -> dict[str, File]:
    """Path to file, read once: a wheel's files do not change under a relay that runs."""
    modules = [_PACKAGE / "client" / "js" / name for name in CLIENT_MODULES]
    found = {f"/client/{module.name}": _file(module.suffix, module.read_bytes(), []) for module in modules}
    if settings.playground:
        control = settings.playground_control
        policy = _policy([*settings.playground_replicas, *([control] if control else [])])
        for path in (path for path in _PLAYGROUND.iterdir() if path.suffix in _KINDS):
            name = "/playground" if path.name == "index.html" else f"/playground/{path.name}"
            found[name] = _file(path.suffix, path.read_bytes(), policy)
        replicas = orjson.dumps({"replicas": settings.playground_replicas, "control": control})
        found["/playground/replicas.json"] = _file(".json", replicas, policy)
        found["/"] = replace(found["/playground"], location=b"playground")
    return found


async def answer(services: Services, exchange: Exchange, *, file: File) -> None:
    if exchange.method not in ("GET", "HEAD"):
        raise MethodNotAllowed("Use GET or HEAD.", headers={"allow": "GET, HEAD"})
    await exchange.discard_body()
    if file.location is not None:
        await exchange.answer(302, b"", [(b"location", file.location)])
        return
    if _names(exchange.header(b"if-none-match") or "", file.etag):
        await exchange.start(304, file.head)
    else:
        length = b"%d" % len(file.content)
        await exchange.start(200, [(b"content-type", file.kind), (b"content-length", length), *file.head])
        if exchange.method == "GET":
            await exchange.sender()(file.content)
    await exchange.end()


def _file(suffix: str, content: bytes, headers: Headers) -> File:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    head: Headers = [
        (b"etag", etag.encode()),
        # The addresses stay the same from version to version: a browser has to ask whether its copy still holds.
        (b"cache-control", b"no-cache"),
        (b"x-content-type-options", b"nosniff"),
        *headers,
    ]
    return File(content, _KINDS[suffix], etag, head)


def _policy(replicas: list[str]) -> Headers:
    rules = (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        " ".join(("connect-src 'self'", *replicas)),
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return [(b"content-security-policy", "; ".join(rules).encode()), (b"referrer-policy", b"no-referrer")]


def _names(listed: str, etag: str) -> bool:
    """Does `If-None-Match` name the file's version (RFC 9110, section 13.1.2)?"""
    return listed.strip() == "*" or etag in (item.strip().removeprefix("W/") for item in listed.split(","))
