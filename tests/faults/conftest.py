"""What every fault's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.asking import answers


@pytest.fixture(autouse=True)
def _hang_up() -> Iterator[None]:
    yield
    while answers:
        answers.pop().close()
