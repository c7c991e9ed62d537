"""One gateway and one relay for each module; a module that needs other settings defines `settings`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.seeds.gateway")  # its assertions then say what was different

from tests.seeds.gateway import Gateway  # noqa: E402
from tests.support.processes import RelayProcess  # noqa: E402
from tests.support.scripted import ScriptedUpstream  # noqa: E402


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def settings(scripted: ScriptedUpstream) -> dict[str, Any]:
    return {"upstreams": [{"name": "gateway", "base_url": scripted.url}]}


@pytest.fixture(scope="module")
def running(scripted: ScriptedUpstream, settings: dict[str, Any]) -> Iterator[RelayProcess]:
    with RelayProcess(settings) as relay:
        yield relay
        # pytest captures this and shows it with a failure only.
        print(f"--- relay at {relay.url}, end of its log:\n{relay.log()[-4000:]}")


@pytest.fixture
def gateway(scripted: ScriptedUpstream, running: RelayProcess) -> Gateway:
    return Gateway(scripted, running)
