"""Stores that every test of this folder may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stores import ClusterStore, Server, valkey_cluster, valkey_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with valkey_server(tmp_path) as store:
        yield store.servers[0]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterStore]:
    """Shared: no test kills its servers, and each has streams of its own."""
    with valkey_cluster(tmp_path_factory.mktemp("cluster")) as store:
        assert isinstance(store, ClusterStore)
        yield store
