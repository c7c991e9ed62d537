"""The example applications in a real browser: a user sees what one sees whom nobody disturbs, and the tool runs once.

Their backends have no line for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.examples.conftest import BROKEN, Chat, Site, site, the_runner
from tests.playground.browser import Browser
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Phases:
    """What the messages hold from each phase on, to the end."""

    call: str
    result: str
    text: str
    end: str


PHASES = {
    "ai-sdk": Phases('"city":"Zürich"', '"run":1', "In Zürich it", "a hat."),
    "fastapi": Phases('"running"', '"run": 1', "High water is", "half past."),
    "langgraph": Phases('"Chur"}', "(run 1)", "Three trains", "dining car."),
}
ENDED = ("ready", "done", "stopped")


@pytest.fixture(scope="module", params=the_runner().EXAMPLES)
def example(
    request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with site(request.param, browser, tmp_path_factory.mktemp("example")) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(example: Site) -> str:
    chat = example.fresh()
    chat.page.click("send")
    is_whole(example, chat)
    assert example.browser.troubles() == []
    return chat.messages


def is_whole(example: Site, chat: Chat) -> None:
    chat.until_text(PHASES[example.name].end)
    chat.until_status(*ENDED)
    assert chat.error == ""


def begun(example: Site) -> int:
    """How many answers pages have asked for."""
    return len([one for one in example.proxy.asked() if one.body and "last-event-id" not in one.headers])


def outcome(chat: Chat) -> str | None:
    """How the newest stream of this page's user has ended."""
    asked = "fetch('/streams', { headers: { accept: 'application/json' } })"
    return str(chat.page.js(f"{asked}.then((answer) => answer.json()).then(({{ data }}) => data[0].outcome)"))


def test_a_page_that_is_loaded_again_in_every_phase_has_the_same_messages(example: Site, undisturbed: str) -> None:
    phases, before = PHASES[example.name], begun(example)
    chat = example.fresh()
    chat.page.click("send")
    wait_until(lambda: begun(example) > before, 20, "the question is on its way")
    chat.reload()  # before the first token
    for phase in (phases.call, phases.result, phases.text, phases.end):
        chat.until_text(phase)
        chat.reload()
    is_whole(example, chat)
    assert chat.messages == undisturbed
    assert begun(example) == before + 1


def test_a_second_tab_reads_along_and_its_stop_ends_the_answer_for_both(example: Site) -> None:
    phases = PHASES[example.name]
    first = example.fresh()
    first.page.click("send")
    first.until_text(phases.call)
    second = example.second_tab()
    for tab in (first, second):
        tab.until_text(phases.text)
    second.page.click("stop")
    for tab in (first, second):
        tab.until_status(*ENDED)
    wait_until(lambda: outcome(first) == "stopped", 20, "the answer is stopped")
    first.reload()
    first.until_text(phases.text)
    first.until_status(*ENDED)
    for tab in (first, second):
        assert phases.end not in tab.messages
        assert tab.error == ""


def test_replicas_are_killed(example: Site, undisturbed: str) -> None:
    """The one that a page reads from costs nothing. With the one that reads the backend the answer is over: a backend
    that knows nothing of resuming cannot be read on. So the page is told, and keeps what there was."""
    phases, before = PHASES[example.name], begun(example)
    chat = example.fresh()
    chat.page.click("send")
    chat.until_text(phases.call)
    chat.reload()
    chat.until_text(phases.call)
    example.others_to = 0
    example.replicas[1].kill()
    is_whole(example, chat)
    assert chat.messages == undisturbed
    assert begun(example) == before + 1

    example.replicas[1].start()
    example.others_to = 1
    chat = example.fresh()
    chat.page.click("send")
    chat.until_text(phases.call)
    chat.reload()
    chat.until_text(phases.call)
    example.replicas[0].kill()
    chat.until("document.getElementById('error').textContent.includes('is gone')")
    assert phases.call in chat.messages
    assert phases.end not in chat.messages
    assert example.browser.troubles(*BROKEN) == []
