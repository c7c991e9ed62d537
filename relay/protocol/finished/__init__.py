"""A stream's finished answer: the object that its API gives where nothing is streamed, put together from the events.

One file for each API; what has none is a list of its events. An `Assembly` takes the events of one stream in their
order and has, at any time, what they make up so far. Promises: work is linear in the bytes of the events; text is not
joined before it is written (`relay.protocol.finished.parts`), so that writing a large answer can take turns; an event
that is not of the format adds nothing, as it adds nothing for the clients of the API.

A new dialect adds a class and a row in `ASSEMBLIES`.
"""

from __future__ import annotations

from collections.abc import Callable

from relay.protocol.finished.assembly import Assembly
from relay.protocol.finished.chat import ChatCompletion
from relay.protocol.finished.events import EventList
from relay.protocol.finished.messages import Message
from relay.protocol.finished.responses import Response

ASSEMBLIES: dict[str, Callable[[], Assembly]] = {
    "chat": ChatCompletion,
    "messages": Message,
    "responses": Response,
}


def assembly_of(api: str) -> Assembly:
    """What makes an answer of the events of one stream of that API; a list of them where it knows no better."""
    return ASSEMBLIES.get(api, EventList)()
