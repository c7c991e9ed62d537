"""The rig that the real agents run in: it cuts where it says, and counts what was made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.agents import pages
from tests.agents.answering import AFTER_CALL, BEFORE_CALL, BREAKS_AFTER, MAIN, TEXT, Answering, Trouble
from tests.agents.cutter import PARTS, WORDS, Cutter, How, Place, Plan
from tests.agents.install import VERSIONS
from tests.agents.running import WITH_TOOLS
from tests.support.sseclient import ConnectionEnded, RawStream, open_stream
from tests.support.streams import APIS, PATHS, Api

pytestmark = pytest.mark.slow

TOOL = {"type": "object", "properties": {"command": {"type": "string"}}}
ENDS = {"chat": "[DONE]", "messages": "message_stop", "responses": "response.completed"}
_CALLS = {"chat": '"finish_reason": "tool_calls"', "messages": '"index": 1}', "responses": '"type": "function_call"'}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Answering]:
    with Answering(0.002) as upstream:
        yield upstream


@contextmanager
def cutting(upstream: Answering, plan: Plan, *, tool: bool, trouble: Trouble | None = None) -> Iterator[Cutter]:
    upstream.begin(tool=tool, trouble=trouble)
    with Cutter(upstream.url) as cutter:
        cutter.begin(plan)
        yield cutter


def asked(cutter: Cutter, api: Api, *, model: str = MAIN, **more: Any) -> RawStream:
    tool: dict[str, Any] = {"name": "bash", "parameters": TOOL, "input_schema": TOOL}
    tools = [{"type": "function", "function": tool} if api == "chat" else {"type": "function", **tool}]
    return open_stream(cutter.url + PATHS[api], body={"model": model, "stream": True, "tools": tools, **more})


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("tool", [False, True], ids=["text", "tool"])
def test_an_answer_that_nothing_befalls(upstream: Answering, api: Api, tool: bool) -> None:
    with cutting(upstream, Plan(), tool=tool) as cutter, asked(cutter, api) as answer:
        parts = list(answer)
        assert answer.ended == "zero-chunk"
    assert upstream.wait_idle(10)
    (generation,) = upstream.generations
    assert generation.made == generation.whole
    assert generation.made > len(BEFORE_CALL) if tool else generation.made == len(TEXT)
    assert ENDS[api] in parts[-1].raw.decode()


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize(
    "place", ["before the head", "in the first event", "in text", "in the call", "after the call", "at the end"]
)
def test_a_cut_is_where_it_was_planned_and_only_once(upstream: Answering, api: Api, place: Place, how: How) -> None:
    with cutting(upstream, Plan(place, how), tool=True) as cutter:
        if place == "before the head":
            with pytest.raises(ConnectionEnded):
                asked(cutter, api)
        else:
            with asked(cutter, api) as answer:
                list(answer)
                assert answer.ended == ("reset" if how == "rst" else "fin")
                body = answer.raw_body.decode()
            words, parts = body.count('"t0'), body.count('"partial_json"') or body.count("arguments.delta\ndata")
            if place == "in the first event":
                assert "\n\n" not in body
            if place == "in text":
                assert words == WORDS
            if place == "in the call":
                assert api == "chat" or parts == PARTS
                assert _CALLS[api] not in body.partition("arguments")[2] or api == "responses"
            if place in ("after the call", "at the end"):
                assert _CALLS[api] in body
                assert (ENDS[api] not in body, words >= len(BEFORE_CALL)) == (True, True)
        with asked(cutter, api) as again:
            list(again)
            assert again.ended == "zero-chunk"
        assert cutter.asked == 2


def test_who_hangs_up_ends_the_generation(upstream: Answering) -> None:
    with cutting(upstream, Plan(), tool=False) as cutter:
        with asked(cutter, "messages") as answer:
            next(iter(answer))
        assert upstream.wait_idle(10)
    assert upstream.generations[0].made < len(TEXT)


def test_a_tool_s_result_is_answered_and_a_title_is_not_counted(upstream: Answering) -> None:
    with cutting(upstream, Plan(), tool=True) as cutter:
        with asked(cutter, "chat", messages=[{"role": "tool", "tool_call_id": "call_rig_1"}]) as answer:
            assert answer.read().decode().count('"d0') == len(AFTER_CALL)
        with asked(cutter, "chat", model="small") as title:
            title.read()
        assert cutter.asked == len(upstream.generations) == 1


@pytest.mark.parametrize("api", APIS)
def test_troubles_befall_the_first_call(upstream: Answering, api: Api) -> None:
    with cutting(upstream, Plan(), tool=False, trouble="breaks") as cutter:
        for ended, made in (("reset", BREAKS_AFTER), ("zero-chunk", len(TEXT))):
            with asked(cutter, api) as answer:
                list(answer)
                assert answer.ended == ended
            assert upstream.wait_idle(10)
            assert upstream.generations[-1].made == made


def test_a_page_has_a_row_for_each_turn_and_a_cell_for_each_setup() -> None:
    common = {"agent": "codex", "turn": "tool", "fault": "in text, rst", "requests": 3, "made": 72, "unstreamed": 0}
    rows = [
        {**common, "setup": "direct", "outcome": "failed", "calls": 3, "waste": 26, "tool_runs": 0},
        {
            **common,
            "setup": "one relay",
            "outcome": "complete",
            "calls": 1,
            "waste": 0,
            "tool_runs": 1,
            "unstreamed": 1,
        },
    ]
    assert pages.table(rows).splitlines()[2] == (
        "| tool | in text, rst | **failed**: 3 calls, 26 of 72 wasted, tool ran 0× "
        "| 1 call, 0 of 72 wasted, 1 without streaming, tool ran 1× |"
    )


@pytest.mark.parametrize("agent", VERSIONS)
def test_each_agent_has_a_page_of_its_version(agent: str) -> None:
    page = (pages.FOLDER / f"{agent}.md").read_text(encoding="utf-8")
    assert VERSIONS[agent] in page
    for mark in ("measured", *(["outages"] if agent in WITH_TOOLS else [])):
        assert page.count(f"<!-- {mark} -->") == page.count(f"<!-- /{mark} -->") == 1


def test_a_page_has_a_row_for_each_outage() -> None:
    row = {"outage": "half-open", "outcome": "no end", "calls": 2, "made": 46, "waste": 3, "tool_runs": 1}
    assert pages.outages([{**row, "asked_again": 0, "seconds": 39.6}]).splitlines()[2] == (
        "| **no end**: half-open | 2 | 3 of 46 | 1× | 0× | 40 s |"
    )
    assert pages.outages([]) == ""
