"""Each upstream is started once for this folder, with two relays in front of it that share a store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.processes import RelayProcess
from tests.support.stores import valkey_server
from tests.upstream.servers import START, Upstream


@dataclass(frozen=True)
class Pair:
    """Two relay processes on one store."""

    first: RelayProcess
    second: RelayProcess
    store_url: str


@pytest.fixture(scope="session", params=list(START))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    with START[request.param](tmp_path_factory.mktemp("upstream")) as upstream:
        yield upstream


@pytest.fixture(scope="session")
def pair(server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with valkey_server(tmp_path_factory.mktemp("store"), unix=True) as store:
        config = {"upstreams": server.settings(), "store": {"url": store.url}}
        with RelayProcess(config) as first, RelayProcess(config) as second:
            yield Pair(first, second, store.url)
