"""The torture's short form: one seed for each topology, with everything judged. `make torture` is the long one."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from tests.torture.report import failures, figures, table
from tests.torture.run import Options, run


@pytest.mark.timeout(240)
@pytest.mark.parametrize("topology", ["standalone", "sentinel", "cluster"])
def test_the_promise_holds(topology: str) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(run(Options(seed=1, seconds=15.0, topology=topology, sessions=12)))
    print(table(figures(outcome)))
    assert not outcome.found, failures(outcome)
    assert outcome.events > 1000
