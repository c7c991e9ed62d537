"""Events of some megabytes: nothing of an upstream's holds up the replica's other streams for long."""

from __future__ import annotations

import gc
from typing import Any

import orjson
import pytest

from relay.protocol.apis import DIALECTS
from relay.protocol.ends import TOKEN
from relay.protocol.outcomes import Cause, StreamFailure
from relay.protocol.sse import Event

APIS = ("chat", "messages", "responses")
DELTA = {
    "chat": b'"choices":[{"index":0,"delta":{"content":"x"}}]',
    "messages": b'"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}',
    "responses": b'"type":"response.output_text.delta","delta":"x"',
}


def event(api: str, filling: bytes) -> Event:
    return Event(b"", b"{" + DELTA[api] + b',"x":' + filling + b"}")


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("filling", [b"[" + b"[]," * 1_000_000 + b"[]]", b"[" + b"{}," * 1_000_000 + b"{}]"])
def test_more_arrays_and_objects_than_an_answer_has_are_not_parsed(
    api: str, filling: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("relay.protocol.dialect.orjson.loads", lambda data: asked.append(len(data)))
    with pytest.raises(StreamFailure) as failure:
        DIALECTS[api].watch().see(event(api, filling))
    assert failure.value.cause is Cause.UPSTREAM_MALFORMED
    assert asked == []


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "filling", [b'"' + b"{[" * 300_000 + b'"', b"[" + b"[]," * 200_000 + b"[]]", b'"' + b"x" * 3_000_000 + b'"']
)
def test_a_large_event_is_parsed_while_nothing_is_collected(
    api: str, filling: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    collects: list[bool] = []

    def loads(data: bytes, parse: Any = orjson.loads) -> Any:
        collects.append(gc.isenabled())
        return parse(data)

    monkeypatch.setattr("relay.protocol.dialect.orjson.loads", loads)
    assert DIALECTS[api].watch().see(event(api, filling)) & TOKEN
    assert collects == [False]
    assert gc.isenabled()


@pytest.mark.parametrize("api", APIS)
def test_the_collector_goes_on_after_an_event_that_cannot_be_parsed(api: str) -> None:
    with pytest.raises(StreamFailure):
        DIALECTS[api].watch().see(Event(b"", b"{" + b"[" * 400_000))
    assert gc.isenabled()
