"""The stores that every test of the log runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from relay.config import StreamSettings
from relay.store.topology import Topology, connect
from tests.store.benches import SETTINGS, STORES, Bench, FakeTopology, Play, Story
from tests.support.stores import valkey_cluster, valkey_server


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Topology]]:
    folder = tmp_path_factory.mktemp(str(request.param))
    if request.param == "fakeredis":
        fake: Any = FakeTopology()
        yield lambda: fake
    elif request.param == "valkey":
        with valkey_server(folder) as server:
            yield lambda: connect(server.url)
    else:
        with valkey_cluster(folder) as cluster:
            yield lambda: connect(cluster.url)


@pytest.fixture
def play(store: Callable[[], Topology]) -> Play:
    def run(story: Story, settings: StreamSettings = SETTINGS) -> None:
        async def scene() -> None:
            topology = store()
            try:
                await topology.refresh()
                await story(Bench(topology, settings))
            finally:
                await topology.close()

        asyncio.run(scene())

    return run
