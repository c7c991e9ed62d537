"""The real agents, where `python tests/agents/install.py` has put them: a turn each, uncut and cut, behind a relay.

They are not installed in CI. The whole table, with the figures of `deploy/agents`, is `make agents`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agents.cutter import Plan
from tests.agents.install import binary
from tests.agents.rig import Case, Rig, rigged
from tests.agents.running import AGENTS, WITH_TOOLS


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with rigged("one relay", {}) as rig:
        yield rig


@pytest.mark.parametrize("plan", [Plan(), Plan("in text", "rst")], ids=["uncut", "cut"])
@pytest.mark.parametrize("agent", AGENTS)
def test_a_turn(rig: Rig, agent: str, plan: Plan) -> None:
    if binary(agent) is None:
        pytest.skip(f"{agent} is not installed: python tests/agents/install.py")
    tool = agent in WITH_TOOLS
    result = rig.play(agent, "one relay", Case(tool, "", plan))
    assert (result.outcome, result.unstreamed) == ("complete", 0)
    assert result.tool_runs == tool


@pytest.mark.parametrize("agent", ["codex", "claude-code"])
@pytest.mark.parametrize("trouble", ["breaks", "is silent"])
def test_what_befalls_the_upstream(rig: Rig, agent: str, trouble: str) -> None:
    if binary(agent) is None:
        pytest.skip(f"{agent} is not installed: python tests/agents/install.py")
    case = Case(False, "", Plan(), trouble="breaks" if trouble == "breaks" else "is silent")
    result = rig.play(agent, "one relay", case)
    assert (result.outcome, result.unstreamed) == ("complete", 0)
    assert result.calls == (2 if trouble == "breaks" else 1)
