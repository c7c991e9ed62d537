"""The EventSource of the client by itself (node/events.mjs). A browser's pages are in test_examples.py."""

from __future__ import annotations

import re

import pytest

from tests.client_js.conftest import node
from tests.client_js.install import NODE

CASES = re.findall(r"^  async (\w+)\(\) \{$", (NODE / "events.mjs").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def played() -> dict[str, str | None]:
    found: dict[str, str | None] = node("events.mjs", None, quiet=False)
    return found


@pytest.mark.parametrize("case", CASES)
def test_events(played: dict[str, str | None], case: str) -> None:
    assert played.keys() == set(CASES)
    assert played[case] is None, played[case]
