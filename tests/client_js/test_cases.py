"""The JavaScript client plays the table of scripts that the Python clients play (tests/client/cases.py)."""

from __future__ import annotations

import pytest

from tests.client.cases import PATH, load
from tests.client_js.conftest import node

CASES = load()


@pytest.fixture(scope="module")
def played() -> dict[str, str | None]:
    found: dict[str, str | None] = node("cases.mjs", str(PATH), quiet=False)
    return found


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_case(played: dict[str, str | None], name: str) -> None:
    assert played[name] is None, played[name]
