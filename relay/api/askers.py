"""Who asks for a stream: to the API that began it by a credential, to an application by what its settings name.

One request may be several askers at once: a page sends its cookie, and perhaps a key. Which of them counts the stream
decides, that is its owner. Where it is nobody's of them, it is answered as one that does not exist.
"""

from __future__ import annotations

from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.auth.gate import Caller


async def of_stream(services: Services, exchange: Exchange, stream: str) -> Caller:
    """The one who owns the stream, else any. The store is asked only where several may. Raises InvalidApiKey,
    StoreUnavailable."""
    callers = services.gate.callers(exchange.headers, exchange.query)
    if len(callers) > 1:
        registry = services.registry
        local = registry.local(stream)
        for caller in callers:
            owner = await registry.owners.of_credential(caller.identity)
            owned = local is not None and local.owner == owner
            if owned or (local is None and await registry.log.get_status(stream, owner=owner) is not None):
                return caller
    return callers[0]
