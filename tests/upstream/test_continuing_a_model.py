"""The real llama.cpp server goes on with what a cut has left of its answer: the text is that of an uncut one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.support.cutting_http import Asked, CuttingProxy, Fate
from tests.support.processes import RelayProcess
from tests.support.sseclient import RawEvent, open_stream
from tests.support.streams import PATHS, Api, credential
from tests.upstream.formats import is_whole, request
from tests.upstream.servers import Upstream

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("server", ["llama.cpp"], indirect=True)]

PROMPT = "Count to ten."
TOKENS = 10


@dataclass
class Cut:
    """A relay whose line to the model cuts the first answer for each model's name."""

    relay: RelayProcess
    line: CuttingProxy
    model: Upstream
    at: int | None = None
    uncut: dict[Api, list[RawEvent]] = field(default_factory=dict)

    def fate(self, asked: Asked) -> Fate:
        at, self.at = self.at, None
        return Fate(cut_at=at)

    def whole(self, api: Api) -> list[RawEvent]:
        """An answer that nothing cuts."""
        if api not in self.uncut:
            self.uncut[api] = self.read(api)
        return self.uncut[api]

    def read(self, api: Api, at: int | None = None) -> list[RawEvent]:
        """An answer whose first connection ends after so many bytes."""
        self.at = at
        body = request(api, self.model.model, PROMPT) | {"max_tokens": TOKENS}
        with open_stream(self.relay.url + PATHS[api], headers=credential(api, "sk"), body=body, timeout=100) as read:
            return [event for event in read if not event.is_heartbeat]


@pytest.fixture(scope="module")
def cut(server: Upstream) -> Iterator[Cut]:
    with CuttingProxy(server.url) as line:
        upstream = {"name": "llama", "base_url": line.url, "continue": "prefill"}
        with RelayProcess({"upstreams": [upstream]}) as relay:
            made = Cut(relay, line, server)
            line.fate = made.fate
            yield made


def text_of(api: Api, events: list[RawEvent]) -> str:
    parts = [event.json for event in events if event.data != "[DONE]"]
    if api == "messages":
        return "".join(part["delta"]["text"] for part in parts if part["type"] == "content_block_delta")
    return "".join(choice["delta"].get("content") or "" for part in parts for choice in part["choices"])


@pytest.mark.parametrize(("api", "words"), [("chat", 1), ("chat", 5), ("chat", 8), ("messages", 5)])
def test_the_joined_text_is_that_of_an_uncut_answer(cut: Cut, api: Api, words: int) -> None:
    whole = cut.whole(api)
    assert is_whole(api, whole)
    before = 1 if api == "chat" else 2
    asked = len(cut.line.asked())
    # The model's own frames, without the relay's ids; the cut comes within the event after the last word.
    length = sum(len(event.raw.split(b"\n", 1)[1]) for event in whole[: before + words]) + 20
    events = cut.read(api, length)
    assert text_of(api, events) == text_of(api, whole)
    assert is_whole(api, events)
    assert len(cut.line.asked()) == asked + 2
    if api == "chat":
        assert len({event.json["id"] for event in events[:-1]}) == 1
        assert [event.json["choices"][0]["finish_reason"] for event in events[:-2]][-1] == "length"
