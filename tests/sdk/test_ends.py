"""Each generation of the SDKs reads every end and every error of the relay's.

They are tables, end × API × client, that are in the documents.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.sdk.ends import CASES, SDKS, Seen, bench, tables
from tests.sdk.install import is_installed
from tests.support.processes import needs

README = Path(__file__).parents[2] / "relay/protocol/README.md"
Ends = dict[str, dict[tuple[str, str], Seen]]


@pytest.fixture(scope="module")
def by_sdk() -> Ends:
    needs(shutil.which("node"), "Node.js")
    for sdk in SDKS:
        needs(is_installed(sdk), f"the SDKs of {sdk}: run tests/sdk/install.py")
    with bench() as made:
        return made.play()


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize(("api", "name"), CASES)
def test_an_end_that_is_no_whole_answer_is_told(by_sdk: Ends, sdk: str, api: str, name: str) -> None:
    seen, case = by_sdk[sdk][api, name], CASES[api, name]
    error = seen.transcript["error"]
    assert (error is None) == (not case.words)
    assert [word for word in case.words if word not in json.dumps(error)] == []
    # A stop raises nothing, and looks like no whole answer either.
    assert (seen.told() == "an answer") == name.startswith("complete")
    assert seen.requests >= 1
    assert seen.calls == case.asks * seen.requests


def test_the_tables_are_in_the_documents(by_sdk: Ends) -> None:
    assert tables(by_sdk) in README.read_text(encoding="utf-8")
