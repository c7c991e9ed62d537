"""Which upstream a request goes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay.config import UpstreamSettings
from relay.metrics import Meter, Metrics
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

    def meter(self, metrics: Metrics, api: str) -> Meter:
        """What counts the requests that go this way."""
        return metrics.meter(api, self.upstream.name, metrics.models.of(self.pattern, self.model))

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


def name_for(
    upstreams: list[UpstreamSettings],
    upstream: UpstreamSettings,
    model: str,
    apis: Sequence[str],
    may_ask_for: Callable[[str], bool],
) -> str | None:
    """The name by which a client asks for what an upstream calls `model`, over one of these APIs; None where no request
    for it gets there."""
    for name in dict.fromkeys((model, upstream.strip_prefix + model)):
        if (upstream.model or name.removeprefix(upstream.strip_prefix)) == model and may_ask_for(name):
            for api in apis:
                if next((u for u in upstreams if u.matches(api, name) is not None), None) is upstream:
                    return name
    return None


def named_in_settings(upstreams: list[UpstreamSettings], upstream: UpstreamSettings, apis: Sequence[str]) -> list[str]:
    """The models that the settings themselves name for an upstream, without a pattern."""
    names = [name for name in upstream.models if not set("*?[") & set(name)]
    return [
        name
        for name in names
        if any(next((u for u in upstreams if u.matches(api, name) is not None), None) is upstream for api in apis)
    ]


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
