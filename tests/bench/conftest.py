"""A load generator and its paced upstream, which every test of this folder may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relay.bench.measure import Bench


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench() as running:
        yield running
