"""The real agents beside `relay connect`, where `python tests/agents/install.py` has put them: a whole turn with a call
of a tool, while the line to the far relay is cut every 2 s, half-open, or away for 30 s, or the far replica that
generates is killed. It ends as an uncut one, and no agent retries anything. `python -m tests.connect.outages` has
longer outages, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agents.install import binary
from tests.agents.running import WITH_TOOLS
from tests.connect.outages import KILLED, play

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("outage", ["cut every 2 s", "half-open", "away for 30 s", KILLED])
@pytest.mark.parametrize("agent", WITH_TOOLS)
def test_a_turn(agent: str, outage: str, tmp_path: Path) -> None:
    if binary(agent) is None:
        pytest.skip(f"{agent} is not installed: python tests/agents/install.py")
    played = play(agent, outage, tmp_path)
    assert (played.outcome, played.output) == ("complete", "")
    assert (played.calls, played.waste, played.tool_runs, played.asked_again) == (2, 0, 1, 0)
