"""With a key of the relay's own: may its request name what it names?

Upstream all keys are one account. What a body or a query names there by its id is looked up as a retrieve is where it
is a response, whose owner the log knows, and else is for keys whose `paths` open it.
"""

from __future__ import annotations

import asyncio

from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.protocol import named
from relay.protocol.dialect import JsonObject
from relay.protocol.errors import BadRequest, PathNotAllowed, ResponseIdAmbiguous, StreamExpired, StreamNotFound
from relay.protocol.members import STEERING
from relay.store.log import Status
from relay.streams.learning import response_name

_LONGEST_ID = 256
_MOST_RESPONSES = 8


async def stream_of(services: Services, asking: bytes, response: str) -> Status | None:
    """The stream of a response, where its owner asks and the log still knows it. Raises StreamNotFound, StreamExpired,
    ResponseIdAmbiguous, StoreUnavailable."""
    registry = services.registry
    owner = await registry.owners.of_credential(asking)
    stream: str | None = await registry.directory.resolve_alias(response_name(owner, response))
    return None if stream is None else await registry.lookup.status(stream, owner)


async def look(exchange: Exchange, body: JsonObject) -> list[named.Kept]:
    """What a body and the query name of the one account: none where it is the caller's own. The body may be let go of
    then. Raises ModelNotFound, BadRequest."""
    caller = exchange.caller
    if caller.key is None:
        return []
    found = named.of_query(exchange.query, exchange.scope["path"]) if exchange.query else named.Named([], [])
    try:
        for _ in named.look(body, found):
            await asyncio.sleep(0)
    except named.TooManyNamed:
        raise BadRequest(
            f"The request names more than {named.MOST} models, files or the like. Send several smaller requests."
        ) from None
    caller.check_models(found.models)
    return list(dict.fromkeys(found.kept))


async def check(services: Services, exchange: Exchange, kept: list[named.Kept]) -> None:
    """Raises PathNotAllowed, TooManyRequests, StoreUnavailable."""
    key = exchange.caller.key
    if key is None:
        return
    # A request goes on from one response: who names many has the store asked for as many.
    if len({item.response for item in kept if item.response is not None}) > _MOST_RESPONSES:
        raise BadRequest(f"The request names more than {_MOST_RESPONSES} responses. Send one as previous_response_id.")
    for item in kept:
        if key.may_use(item.path) or (item.response is not None and await _is_own(services, exchange, item.response)):
            continue
        if item.path == STEERING:
            raise PathNotAllowed(
                f"This key may not send {item.member[:64]!r}: to some upstreams it chooses the host, the account or "
                "the credential, which are the relay's own. Leave it out, or ask the relay's operator to allow "
                "everything (`*`) with the key's `paths`."
            )
        raise PathNotAllowed(
            f"This key may not name {item.member[:64]!r} in a request: upstream all keys of this relay are one "
            f"account, and this relay does not know it for its owner's. {_advice(item)}"
        )


def _advice(item: named.Kept) -> str:
    opened = item.path.rpartition("/")[0]
    opens = f"or ask the relay's operator to allow {opened[:100]}/* with the key's `paths`."
    if item.response is not None:
        return f"Go on from a response that was streamed through this relay and is still kept here, {opens}"
    if item.member == "item_reference":
        return f"Send the item itself (of reasoning its `encrypted_content`, which `include` asks for), {opens}"
    return f"Send what it stands for in the request itself, {opens}"


async def _is_own(services: Services, exchange: Exchange, response: str) -> bool:
    if len(response) > _LONGEST_ID:
        return False
    services.gate.charge_resume(exchange.caller.identity)
    try:
        return await stream_of(services, exchange.caller.identity, response) is not None
    except StreamNotFound:
        return False
    except (ResponseIdAmbiguous, StreamExpired):
        return True  # whichever answer it is, it is the caller's
