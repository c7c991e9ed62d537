"""The body of a request to an application: any bytes, held once and within bounds, as they were sent.

With a key of the relay's own what it names is checked as on every other path that is passed through.
"""

from __future__ import annotations

from relay.api import kept
from relay.api.bodies import Charge
from relay.api.exchange import Exchange
from relay.api.json_body import too_large
from relay.api.outgoing import RequestBody, is_name
from relay.api.services import Services
from relay.protocol.json_edit import Parts
from relay.upstream.routing import Route


class ApplicationBody:
    """The bytes for whichever upstream gets them; it asks none for usage."""

    __slots__ = ("_charge", "_raw")

    def __init__(self, raw: bytes, charge: Charge | None) -> None:
        self._raw = raw
        self._charge = charge

    def asks(self, route: Route) -> bool:
        return False

    def written_for(self, route: Route) -> RequestBody:
        return RequestBody(*self._parts(), lender=self)

    def sent_once(self, route: Route) -> RequestBody:
        parts, charge = self._parts(), self.take_charge()
        self.let_go()
        return RequestBody(*parts, charge=charge)

    def _parts(self) -> Parts:
        return [self._raw]

    def take_charge(self) -> Charge | None:
        """The place is another's to give back from now on."""
        charge, self._charge = self._charge, None
        return charge

    def let_go(self) -> None:
        """It is not sent again."""
        self._raw = b""
        charge = self.take_charge()
        if charge is not None:
            charge.release()


async def read(services: Services, exchange: Exchange) -> tuple[bytes, ApplicationBody]:
    """The bytes, and what has them to send. Raises PathNotAllowed, BadRequest, UnsupportedMediaType, ModelNotFound,
    BodiesFull, ContentTooLarge, ClientGone."""
    raw = await (_raw(services, exchange) if exchange.caller.key is None else _checked(services, exchange))
    return raw, ApplicationBody(raw, exchange.take_charge())


async def _checked(services: Services, exchange: Exchange) -> bytes:
    caller, path = exchange.caller, exchange.scope["path"]
    caller.check_path(exchange.method, path, exchange.target)
    kind = (exchange.header(b"content-type") or "").split(";")[0].strip().lower()
    if exchange.has_body() and kind == "application/json":
        raw, body = await exchange.json(services.bodies, empty=True)
        named = await kept.look(exchange, body)
        model = body.get("model")
        if is_name(model):
            caller.check_models([model])
        else:
            caller.check_unnamed(path)
        del body
        await kept.check(services, exchange, named)
        return raw
    await kept.check(services, exchange, await kept.look(exchange, {}))
    if exchange.method not in ("GET", "DELETE"):
        if exchange.has_body():
            caller.check_unread(path)
        caller.check_unnamed(path)
    return await _raw(services, exchange)


async def _raw(services: Services, exchange: Exchange) -> bytes:
    if not exchange.has_body():
        await exchange.discard_body()
        return b""
    bodies = services.bodies
    told = exchange.header(b"content-length") or ""
    length = int(told) if told.isascii() and told.isdigit() and len(told) < 19 else 0
    if length > bodies.limit:
        raise too_large(bodies.limit)
    charge = exchange.charge = bodies.open(exchange.caller.identity, length)
    pieces: list[bytes] = []
    async for chunk in exchange.chunks(bodies.limit):
        charge.add(len(chunk))
        pieces.append(chunk)
    charge.coming = False
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
