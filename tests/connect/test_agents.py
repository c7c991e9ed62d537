"""The real agents beside `relay connect`, where `python tests/agents/install.py` has put them: a whole turn with a call
of a tool, while the line to the far relay is cut every 2 s, or away for 30 s. It ends as an uncut one, and no agent
retries anything."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.agents.answering import AFTER_CALL, Answering
from tests.agents.install import binary
from tests.agents.running import WITH_TOOLS, run
from tests.support.cutting_http import CuttingBalancer
from tests.support.near import NearRelay
from tests.support.processes import RelayProcess
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

PAUSE = 0.2
"""Between two words: 20 before the call, and 20 after it."""
# The rig's agents give a silent stream up after 5 s, where they are told to; by themselves they wait for 300 s.
ENV = {"RELAY_STREAMS__HEARTBEAT": "2s", "RELAY_LOG__LEVEL": "info"}


def cut(line: CuttingBalancer, upstream: Answering, over: threading.Event, how: str) -> None:
    while not upstream.generations and not over.wait(0.05):
        pass
    while not over.wait(2.0):
        if how == "cut":
            line.cut_all()
        else:
            line.run(line.closing())
            line.cut_all()
            over.wait(30)
            line.run(line.listen())
            return


@pytest.mark.parametrize("how", ["cut", "away"])
@pytest.mark.parametrize("agent", WITH_TOOLS)
def test_a_turn(agent: str, how: str, tmp_path: Path) -> None:
    if binary(agent) is None:
        pytest.skip(f"{agent} is not installed: python tests/agents/install.py")
    over = threading.Event()
    with Answering(PAUSE) as upstream:
        upstream.begin(tool=True)
        with RelayProcess({"upstreams": [{"name": "rig", "base_url": upstream.url}]}) as far:
            port = urlsplit(far.url).port
            assert port is not None
            with CuttingBalancer(port) as line, NearRelay(f"http://127.0.0.1:{line.port}", **ENV) as near:
                wait_until(lambda: "is a relay" in near.log(), 15, "the far relay to be found")
                cutting = threading.Thread(target=cut, args=(line, upstream, over, how))
                cutting.start()
                try:
                    ran = run(agent, near.url, tmp_path / "agent")
                finally:
                    over.set()
                    cutting.join()
                assert upstream.wait_idle(30)
                joined = near.log().count("stream resumed")
    assert ran.code == 0, ran.output
    assert re.sub(r"\s+", " ", "".join(AFTER_CALL)).strip() in re.sub(r"\s+", " ", ran.output)
    assert ran.tool_runs == 1
    assert [each.made for each in upstream.generations] == [each.whole for each in upstream.generations]
    assert len(upstream.generations) == 2
    assert joined == 0, "the agent has asked for something again"
