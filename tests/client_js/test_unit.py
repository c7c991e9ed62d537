"""What needs no server: how bytes become events, and what each event does to the stream (node/unit.mjs)."""

from __future__ import annotations

import re

import pytest

from tests.client_js.conftest import node
from tests.client_js.install import NODE

CASES = re.findall(r"^  (?:async )?(\w+)\(\) \{$", (NODE / "unit.mjs").read_text(), re.MULTILINE)


def test_every_case_is_listed() -> None:
    assert node("unit.mjs", "names") == CASES


@pytest.mark.parametrize("case", CASES)
def test_unit(case: str) -> None:
    assert node("unit.mjs", case) is True
