"""Which path goes where. A bare Starlette Router: the application class wraps every `send` twice."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import parse_qs

from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import Receive, Scope, Send

from relay.api import application, listing, openapi, pages, responses, resume, told
from relay.api.endpoint import Endpoint
from relay.api.exchange import Exchange
from relay.api.generate import generate
from relay.api.passthrough import any_path
from relay.api.services import Services
from relay.auth.gate import Caller, takes_json
from relay.auth.owners import NOBODY
from relay.config import UpstreamSettings
from relay.protocol import guard
from relay.protocol.apis import BY_PATH, api_label
from relay.protocol.cors import Cors
from relay.protocol.errors import ApiError, BadRequest, MethodNotAllowed, NotFound, StoreUnavailable, Unavailable

logger = logging.getLogger(__name__)


class _ResponseId(Convertor[str]):
    """A response's id by its form: a path of words under `/v1/responses/` (`compact`, `input_tokens`) is none."""

    regex = r"(?:resp[_-][^/]+|[^/]*[0-9A-Z][^/]*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("response", _ResponseId())


class _App(Router):
    """A path with a slash at its end is the path without it; upstream it is so where the relay itself knows it. `apis`
    are found without trying one route after the other."""

    def __init__(self, routes: list[BaseRoute], apis: dict[str, Endpoint], default: Endpoint) -> None:
        super().__init__(routes, redirect_slashes=False, default=default)
        self._apis = apis

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if (api := self._apis.get(path)) is not None:
            await api(scope, receive, send)
            return
        if path.endswith("/") and path != "/":
            plain = path[:-1]
            scope["path"] = plain
            if plain in BY_PATH or plain.startswith("/v1/responses/"):
                scope["raw_path"] = scope["raw_path"].removesuffix(b"/")
        await super().__call__(scope, receive, send)


class _Application(BaseRoute):
    """The paths of an application, as they were sent."""

    def __init__(self, upstream: UpstreamSettings, endpoint: Endpoint) -> None:
        self._upstream = upstream
        self._endpoint = endpoint

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope["raw_path"].decode("latin-1") if scope["type"] == "http" else ""
        return (Match.FULL if self._upstream.serves(path) else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoint(scope, receive, send)


def create_app(services: Services) -> Router:
    """The application on the public address."""

    settings = services.settings
    cors = Cors(settings.cors.origins)
    lends = guard.Guard(guard.hosts_of(settings.bind, settings.hosts)) if settings.lent else None

    def endpoint(handler: Callable[[Services, Exchange], Awaitable[None]]) -> Endpoint:
        return Endpoint(partial(handler, services), cors, on_refusal)

    def authenticated(handler: Callable[[Services, Exchange], Awaitable[None]]) -> Endpoint:
        """For callers whom the gate lets in, and before anything else is looked at."""

        async def enter(services: Services, exchange: Exchange) -> None:
            if lends is not None:
                check_page(exchange, lends)
            enters(exchange, services.gate.caller(exchange.headers, exchange.query))
            await handler(services, exchange)

        return endpoint(enter)

    def enters(exchange: Exchange, caller: Caller) -> None:
        """The gate has let this one in; a key of the relay's goes no further."""
        exchange.caller = caller
        if caller.key is not None:
            exchange.take_headers(caller.onward(exchange.headers))

    def check_page(exchange: Exchange, lends: guard.Guard) -> None:
        """Where whoever reaches the address spends a key, a browser's request has to be of a page that may. Raises
        HostNotAllowed, OriginNotAllowed, UnsupportedMediaType."""
        lends.check(exchange.headers, allowed=bool(exchange.answer_headers))
        posts = exchange.method in ("POST", "PUT", "PATCH") and exchange.has_body()
        if posts and exchange.header(b"last-event-id") is None:
            json = takes_json(exchange.method, exchange.scope["path"])
            guard.check_kind(exchange.header(b"content-type") or "", json=json)

    async def own(
        services: Services, exchange: Exchange, *, handler: Callable[[Services, Exchange], Awaitable[None]]
    ) -> None:
        """Paths of the relay's own, which look for who asks themselves."""
        if lends is not None:
            lends.check(exchange.headers, allowed=bool(exchange.answer_headers))
        await handler(services, exchange)

    def on_refusal(exchange: Exchange, error: ApiError) -> None:
        services.metrics.refusals.labels(api_label(exchange.scope["path"]), error.code).inc()
        told.refused(services, exchange, error)

    async def asked(services: Services, exchange: Exchange, upstream: UpstreamSettings) -> None:
        if upstream.api_key_env:
            if lends is not None:
                check_page(exchange, lends)
        elif Cors.is_preflight(exchange.method, exchange.headers):  # a browser shows nothing with it
            exchange.caller = Caller(NOBODY, b"")
            await application.serve(services, exchange, upstream)
            return
        else:
            exchange.own_headers = cors.allow_own(exchange.headers)
        enters(exchange, services.gate.caller_of(upstream, exchange.headers, exchange.query))
        await application.serve(services, exchange, upstream)

    def of_application(upstream: UpstreamSettings) -> Endpoint:
        """What a page may ask an application it says itself, unless the relay has the key to it."""
        of_pages = cors if upstream.api_key_env else Cors([])
        return Endpoint(partial(partial(asked, services), upstream=upstream), of_pages, on_refusal)

    applications = [_Application(u, of_application(u)) for u in settings.upstreams if u.paths]
    apis = {d.path: authenticated(partial(generate, dialect=d)) for d in BY_PATH.values()}
    return _App(
        [
            *[Route(path, api) for path, api in apis.items()],
            Route("/v1/responses/{id:response}", authenticated(responses.retrieve)),
            Route("/v1/responses/{id:response}/cancel", authenticated(responses.cancel)),
            Route("/streams", endpoint(partial(own, handler=listing.streams))),
            Route("/streams/{id}", endpoint(partial(own, handler=resume.streams))),
            Route("/streams/{id}/ticket", endpoint(partial(own, handler=resume.ticket))),
            Route("/livez", endpoint(_livez)),
            Route("/readyz", endpoint(_readyz)),
            *applications,
            Route("/api/hello", endpoint(_hello)),
            Route("/openapi.json", endpoint(partial(pages.answer, file=openapi.file()))),
            *[
                Route(path, endpoint(partial(pages.answer, file=f)))
                for path, f in pages.files(services.settings).items()
            ],
            Route("/v1/{path:path}", authenticated(any_path)),
        ],
        apis,
        endpoint(_nowhere),
    )


async def _hello(services: Services, exchange: Exchange) -> None:
    """An agent looks whether its API is there before it asks (Claude Code, with HEAD)."""
    if exchange.method not in ("GET", "HEAD"):
        raise MethodNotAllowed("Use GET or HEAD.", headers={"allow": "GET, HEAD"})
    await exchange.answer(200, b'{"message":"hello"}' if exchange.method == "GET" else b"")


async def _livez(services: Services, exchange: Exchange) -> None:
    await exchange.answer(200, b'{"status":"ok"}')


async def _readyz(services: Services, exchange: Exchange) -> None:
    if services.registry.draining:
        raise Unavailable("This relay is shutting down. Use another one.", code="draining")
    if services.store_lost() or (_requires_store(exchange) and services.store_fault() is not None):
        raise StoreUnavailable
    await exchange.answer(200, b'{"status":"ok"}')


def _requires_store(exchange: Exchange) -> bool:
    """`?store=required`: a relay is of no use to who asks unless it has its store. A word that is none would be a probe
    that finds nothing."""
    asked = parse_qs(exchange.query, keep_blank_values=True).get("store")
    if asked not in (None, ["required"]):
        raise BadRequest("The one value of /readyz?store= is `required`. Write that, or leave the parameter out.")
    return asked is not None


async def _nowhere(services: Services, exchange: Exchange) -> None:
    raise NotFound(
        f"Nothing is served at {exchange.target[:200]}. The relay serves /v1/… , /streams/{{id}}, /livez and "
        "/readyz; give clients the relay's address with /v1 where the API's SDK wants it."
    )
