"""What most tests stand on: a scripted upstream with one relay in front of it, or with two on one store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.processes import RelayProcess
from tests.support.replicas import Replicas, two_replicas
from tests.support.scripted import ScriptedUpstream


@dataclass(frozen=True)
class Site:
    """One relay."""

    upstream: ScriptedUpstream
    relay: RelayProcess


@dataclass(frozen=True)
class PairSite:
    """Two relays on one store."""

    upstream: ScriptedUpstream
    replicas: Replicas


@dataclass(frozen=True)
class BeatingSite:
    """Two relays that differ in how often they send heartbeats into a silent stream."""

    upstream: ScriptedUpstream
    often: RelayProcess
    """Beats every half second."""
    seldom: RelayProcess
    """Beats every minute."""


def served_by(upstream: ScriptedUpstream) -> dict[str, Any]:
    """The setting under which a relay asks this upstream for everything."""
    return {"upstreams": [{"name": "scripted", "base_url": upstream.url}]}


@contextmanager
def one_relay(**config: Any) -> Iterator[Site]:
    """`config` are the relay's settings beside its upstream."""
    with ScriptedUpstream() as upstream, RelayProcess({**served_by(upstream), **config}) as relay:
        yield Site(upstream, relay)


@contextmanager
def pair_of_relays(streams: Mapping[str, Any], **config: Any) -> Iterator[PairSite]:
    """`streams` are the `streams` settings of both."""
    with ScriptedUpstream() as upstream, two_replicas({**served_by(upstream), **config}, streams, streams) as replicas:
        yield PairSite(upstream, replicas)


@contextmanager
def beating_relays() -> Iterator[BeatingSite]:
    with (
        ScriptedUpstream() as upstream,
        RelayProcess({**served_by(upstream), "streams": {"heartbeat": "500ms"}}) as often,
        RelayProcess({**served_by(upstream), "streams": {"heartbeat": "60s"}}) as seldom,
    ):
        yield BeatingSite(upstream, often, seldom)
