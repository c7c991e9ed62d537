"""The example of `relay/api/README.md` for plain `EventSource`, as it stands there, in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.playground.answers import TEXT, answer
from tests.playground.conftest import Scene
from tests.support.scripted import Cut, Gate, Step, stream
from tests.support.sseclient import open_stream
from tests.support.streams import APIS, FIRST_TOKENS, PATHS, Api

pytestmark = pytest.mark.slow

README = Path(__file__).resolve().parents[2] / "relay" / "api" / "README.md"


def example() -> str:
    (found,) = re.findall(r"```js\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def until(condition: str) -> str:
    """Waits for it, 20 s at most."""
    look = f"() => {condition} ? resolve() : Date.now() > end ? reject('time is up') : setTimeout(look, 20)"
    return f"new Promise((resolve, reject) => {{ const end = Date.now() + 20000, look = {look}; look() }})"


def read(scene: Scene, api: Api, *steps: Step) -> dict[str, Any]:
    """What a page has of a stream once nothing more comes."""
    scene.bench.upstream.on(scene.model, *steps)
    relay = scene.bench.urls[0]
    body = {"model": scene.model, "stream": True, "messages": [], "input": ""}
    with open_stream(relay + PATHS[api], body=body) as first:
        url = first.headers["relay-stream-url"]
        first.events(1)
        scene.page.open(f"{relay}/livez")
        scene.page.js(
            f"""(() => {{
                const [api, relay, url] = {[api, relay, url]!r}, seen = window.seen = {{ shown: [], failed: [] }}
                const show = (text) => seen.shown.push(text), fail = (error) => seen.failed.push(error)
                {example()}
                seen.events = events
            }})()"""
        )
        scene.page.js(until("seen.events.readyState === EventSource.OPEN"))
        scene.go_on()
        first.read()
    # It comes back for what it may have missed, and the relay says that there is nothing.
    scene.page.js(until("seen.events.readyState === EventSource.CLOSED"))
    found: dict[str, Any] = scene.page.js("({ shown: seen.shown.join(''), failed: seen.failed })")
    return found


@pytest.mark.parametrize("api", APIS)
def test_a_page_has_the_text_of_every_api_once_and_ends_at_its_end(scene: Scene, api: Api) -> None:
    assert read(scene, api, *answer(api, scene.model)) == {"shown": TEXT, "failed": []}
    assert len(scene.calls) == 1


@pytest.mark.parametrize("case", ["chat-content", "messages-text", "responses-text"])
def test_a_page_is_told_of_a_failure(scene: Scene, case: str) -> None:
    begun = FIRST_TOKENS[case]
    found = read(scene, begun.api, *stream(*begun.before, begun.token, Gate(scene.model), Cut()))
    assert found["shown"] == "a"
    (error,) = found["failed"]
    assert "upstream_disconnected" in str(error)
