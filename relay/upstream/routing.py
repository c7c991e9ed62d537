"""Which upstream a request goes to."""

from __future__ import annotations

from dataclasses import dataclass

from relay.config import UpstreamSettings
from relay.protocol.errors import ModelNotFound, NotFound
from relay.upstream.addresses import join


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes: the upstream, the model's name there, and the pattern that names it in metrics."""

    upstream: UpstreamSettings
    model: str
    pattern: str

    def url(self, path_and_query: str) -> str:
        anthropic = path_and_query.startswith("/v1/messages") or self.upstream.apis == ["messages"]
        return join(self.upstream.base_url, path_and_query, anthropic=anthropic)


def route_model(upstreams: list[UpstreamSettings], api: str | None, model: str) -> Route:
    """The first upstream that speaks the API (None: any) and whose patterns match. Raises ModelNotFound."""
    for upstream in upstreams:
        pattern = upstream.matches(api, model)
        if pattern is not None:
            return Route(upstream, model.removeprefix(upstream.strip_prefix), pattern)
    raise ModelNotFound(
        f"No upstream of this relay serves the model {model[:200]!r} here. "
        "Ask GET /v1/models, or check `upstreams` in the relay's settings."
    )


def route_path(upstreams: list[UpstreamSettings], path: str, *, anthropic: bool) -> Route:
    """Where a request without a model goes: the first upstream that speaks the API of its path, or of its
    headers (`anthropic-version`); for other paths the first upstream. Raises NotFound."""
    if path.startswith("/v1/messages") or (anthropic and not path.startswith(("/v1/chat", "/v1/responses"))):
        apis: tuple[str, ...] = ("messages",)
    elif path.startswith("/v1/responses"):
        apis = ("responses",)
    else:
        apis = ("chat", "responses", "messages")
    for api in apis:
        for upstream in upstreams:
            if api in upstream.apis:
                return Route(upstream, "", "other")
    raise NotFound(f"No upstream of this relay serves {path[:200]}. Check `upstreams` in the relay's settings.")
