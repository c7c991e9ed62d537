"""The relay that several modules of this folder ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.scene import Scene, two_upstreams


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with two_upstreams(tmp_path_factory.mktemp("store")) as found:
        yield found
