"""Which upstream a request goes to."""

from __future__ import annotations

from dataclasses import dataclass

from relay.config import UpstreamSettings
from relay.protocol.errors import ModelNotFound, NotFound
from relay.upstream.addresses import join


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes: the upstream, the model's name there, and the pattern that names it in metrics; `next` is
    where it may go on to when that upstream refuses it."""

    upstream: UpstreamSettings
    model: str
    pattern: str
    next: Route | None = None

    @property
    def settled(self) -> bool:
        """Is the request sent once, whatever the answer?"""
        return not self.upstream.next_on or (self.next is None and not self.upstream.wait)

    def url(self, path_and_query: str) -> str:
        anthropic = path_and_query.startswith("/v1/messages") or self.upstream.apis == ["messages"]
        upstream = self.upstream
        return join(upstream.base_url, path_and_query, anthropic=anthropic, path_map=upstream.path_map)


def route_model(upstreams: list[UpstreamSettings], api: str | None, model: str, *, bound: bool = False) -> Route:
    """The first upstream that speaks the API (None: any) and whose patterns match, with those that come next. A `bound`
    request names what that upstream keeps, and has no other. Raises ModelNotFound."""
    matching = [(upstream, pattern) for upstream in upstreams if (pattern := upstream.matches(api, model)) is not None]
    route = None
    for upstream, pattern in reversed(matching[:1] if bound else matching):
        name = upstream.model or model.removeprefix(upstream.strip_prefix)
        route = Route(upstream, name, pattern, route if upstream.next_on else None)
    if route is not None:
        return route
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
