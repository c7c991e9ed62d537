"""A request's way through a handler: its refusals become answers, its faults a 500 without detail, and nothing of it is
left, whatever way it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.types import Receive, Scope, Send

from relay.api.exchange import ClientGone, Exchange
from relay.http.contract import ConnectionCut
from relay.protocol.cors import Cors
from relay.protocol.errors import ApiError

logger = logging.getLogger(__name__)

Handler = Callable[[Exchange], Awaitable[None]]


class Endpoint:
    """An ASGI application around a handler."""

    def __init__(self, handler: Handler, cors: Cors, on_refusal: Callable[[Exchange, ApiError], None]) -> None:
        self._handler = handler
        self._cors = cors
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            exchange.answer_headers = self._cors.allow(exchange.headers)
            exchange.check_head()
            if exchange.answer_headers:
                if self._cors.is_preflight(exchange.method, exchange.headers):
                    exchange.answer_headers = [*exchange.answer_headers, *self._cors.preflight(exchange.headers)]
                    await exchange.answer(204, b"", [])
                    return
                # Some upstreams refuse pages that they do not know: this one has been let in here.
                exchange.take_headers([item for item in exchange.headers if item[0] != b"origin"])
            await self._handler(exchange)
            if exchange.rest is not None:
                rest, exchange.rest = exchange.rest(), None
                exchange.forget_head()
                await rest
        except ApiError as error:
            self._on_refusal(exchange, error)
            await exchange.refuse(error)
        except ClientGone:
            raise ConnectionCut from None
        except ConnectionCut:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            await self._fault(exchange)  # nobody has cancelled this request, but something that it waited for
        except Exception:
            await self._fault(exchange)
        finally:
            if (charge := exchange.take_charge()) is not None:
                charge.release()

    async def _fault(self, exchange: Exchange) -> None:
        """Answer a fault of the relay's own; to be called where its exception is handled."""
        logger.exception("a fault of the relay's own", extra={"fields": {"request_id": exchange.request_id}})
        if exchange.started:
            raise ConnectionCut from None
        fault = ApiError("The relay failed. Try again; if it lasts, look into its log for this request id.")
        self._on_refusal(exchange, fault)
        await exchange.refuse(fault)
