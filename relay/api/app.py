"""Which path goes where. A bare Starlette Router: the application class wraps every `send` twice."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.routing import Route, Router

from relay.api import openapi, pages, responses, resume
from relay.api.exchange import Endpoint, Exchange
from relay.api.generate import generate
from relay.api.passthrough import any_path
from relay.api.services import Replica
from relay.protocol.apis import DIALECTS, api_label
from relay.protocol.cors import Cors
from relay.protocol.dialect import Dialect
from relay.protocol.errors import ApiError, NotFound, StoreUnavailable, Unavailable

logger = logging.getLogger(__name__)


def public(replica: Replica) -> Router:
    """The application on the public address."""

    cors = Cors(replica.settings.cors.origins)

    def on(handler: Callable[[Replica, Exchange], Awaitable[None]]) -> Endpoint:
        return Endpoint(partial(handler, replica), cors, refused)

    def known(handler: Callable[[Replica, Exchange], Awaitable[None]]) -> Endpoint:
        """For callers whom the gate lets in, and before anything else is looked at."""

        async def enter(replica: Replica, exchange: Exchange) -> None:
            exchange.caller = replica.gate.caller(exchange.headers)
            exchange.headers = exchange.caller.onward(exchange.headers)
            await handler(replica, exchange)

        return on(enter)

    def refused(exchange: Exchange, error: ApiError) -> None:
        replica.metrics.refusals.labels(api_label(exchange.scope["path"]), error.code).inc()
        fields = {"code": error.code, "status": error.status, "request_id": exchange.request_id}
        logger.log(logging.WARNING if error.status >= 500 else logging.DEBUG, "refused", extra={"fields": fields})

    apis = [Route(d.path, known(partial(_api, dialect=d))) for d in DIALECTS.values()]
    return Router(
        [
            *apis,
            Route("/v1/responses/{id}", known(responses.retrieve)),
            Route("/v1/responses/{id}/cancel", known(responses.cancel)),
            Route("/streams/{id}", on(resume.streams)),  # a ticket will do, too
            Route("/livez", on(_livez)),
            Route("/readyz", on(_readyz)),
            Route("/openapi.json", on(partial(pages.answer, file=openapi.file()))),
            *[Route(path, on(partial(pages.answer, file=f))) for path, f in pages.files(replica.settings).items()],
            Route("/v1/{path:path}", known(any_path)),
        ],
        redirect_slashes=False,
        default=on(_nowhere),
    )


async def _api(replica: Replica, exchange: Exchange, *, dialect: Dialect) -> None:
    if exchange.method == "POST":
        await generate(replica, exchange, dialect)
    else:
        await any_path(replica, exchange)


async def _livez(replica: Replica, exchange: Exchange) -> None:
    await exchange.answer(200, b'{"status":"ok"}')


async def _readyz(replica: Replica, exchange: Exchange) -> None:
    if replica.registry.draining:
        raise Unavailable("This relay is shutting down. Use another one.", code="draining")
    if replica.store_lost():
        raise StoreUnavailable
    await exchange.answer(200, b'{"status":"ok"}')


async def _nowhere(replica: Replica, exchange: Exchange) -> None:
    raise NotFound(
        f"Nothing is served at {exchange.target[:200]}. The relay serves /v1/… , /streams/{{id}}, /livez and "
        "/readyz; give clients the relay's address with /v1 where the API's SDK wants it."
    )
