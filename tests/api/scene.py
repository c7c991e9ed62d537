"""A relay in front of two upstreams, for tests that compare streams byte for byte with what the samples say."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import redis

from tests.support.processes import RelayProcess
from tests.support.samples import SAMPLES, Sample, masked
from tests.support.scripted import Call, Head, ScriptedUpstream, Step
from tests.support.sseclient import RawEvent, RawStream
from tests.support.stores import valkey_server
from tests.support.streams import APIS, Api

each_api = pytest.mark.parametrize("api", APIS)
logged_or_not = pytest.mark.parametrize("prefix", ["", "unlogged-"])

SSE_HEAD = Head(200, {"content-type": "text/event-stream"})
UNREADABLE = Head(200, {"content-type": "text/event-stream", "content-encoding": "br"})
KEY = "sk-of-the-relay"
_numbers = itertools.count()


@dataclass(frozen=True)
class Scene:
    """A relay in front of two upstreams, with heartbeats every 50 ms and a patience of 700 ms."""

    relay: RelayProcess
    main: ScriptedUpstream
    other: ScriptedUpstream
    store: redis.Redis

    def play(self, *steps: Step, prefix: str = "") -> str:
        """The name of a model that answers so."""
        model = f"{prefix}model-{next(_numbers)}"
        self.main.on(model, *steps)
        return model

    def call(self, model: str) -> Call:
        """The only call for a model."""
        (call,) = self.main.calls_of(model)
        return call


@contextmanager
def two_upstreams(folder: Path) -> Iterator[Scene]:
    with (
        ScriptedUpstream() as main,
        ScriptedUpstream() as other,
        valkey_server(folder, unix=True) as store,
    ):
        config = {
            "upstreams": [
                {"name": "main", "base_url": main.url, "models": ["model-*"], "malformed": "end"},
                {
                    "name": "other",
                    "base_url": f"{other.url}/base",
                    "models": ["other/*"],
                    "strip_prefix": "other/",
                    "api_key_env": "OTHER_UPSTREAM_KEY",
                },
                {"name": "unlogged", "base_url": main.url, "models": ["unlogged-*"], "buffer": False},
                {"name": "observed", "base_url": main.url, "models": ["observe-*"], "usage": "observe"},
                {"name": "first", "base_url": main.url, "models": ["first-*"], "next_on": [503]},
                {"name": "next", "base_url": other.url, "models": ["first-*"]},
                {"name": "always", "base_url": main.url, "models": ["always-*"], "usage": "always"},
            ],
            "store": {"url": store.url},
            "streams": {"heartbeat": "50ms", "patience": "700ms"},
            "drain": {"timeout": "0s"},
        }
        with RelayProcess(config, {"OTHER_UPSTREAM_KEY": KEY}) as relay:
            yield Scene(relay, main, other, store.servers[0].client())


def plain(event: RawEvent) -> bytes:
    """An event's bytes without its id, and without the retry hint that the first one carries."""
    if event.id is None:
        return event.raw
    assert (b"\nretry: " in event.raw) == event.id.endswith(".1")
    return masked(event.raw).partition(b"\n")[2].removeprefix(b"retry: NNNN\n")


def sample_of(api: Api, prefix: str) -> Sample:
    """Without ids an upstream's own ping cannot be told from a heartbeat: such samples have none."""
    sample = SAMPLES[api]
    if prefix == "":
        return sample
    return replace(sample, events=tuple(event for event in sample.events if event.kind != "ping"))


def bodies(sample: Sample, upto: int | None = None) -> list[bytes]:
    return [event.to_client(None) for event in sample.events[:upto]]


def beats(answer: RawStream, count: int) -> list[bytes]:
    """The next parts of the body, which must all be heartbeats."""
    found = list(itertools.islice(answer, count))
    assert [part.id for part in found] == [None] * count
    return [part.raw for part in found]
