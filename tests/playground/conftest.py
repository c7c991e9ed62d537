"""Two real relays on one Valkey with the playground on, a scripted upstream behind them, and Chromium in front."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.client_js.install import is_installed
from tests.playground.answers import TEXT, WORDS, answer
from tests.playground.browser import Browser, Page
from tests.support.processes import RelayProcess, free_port, needs
from tests.support.scripted import Call, ScriptedUpstream
from tests.support.stores import valkey_server
from tests.support.streams import Api

UNLOGGED = "without_a_log"  # in a test's name: its stream is relayed without one


@dataclass(frozen=True)
class Bench:
    upstream: ScriptedUpstream
    replicas: tuple[RelayProcess, RelayProcess]

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self.replicas]

    @property
    def shown(self) -> list[str]:
        """The addresses as the page shows them."""
        return [replica.config["bind"] for replica in self.replicas]


@dataclass(frozen=True)
class Scene:
    """One prompt on the page of replica one. Its answer waits in the middle until the test lets it go on."""

    bench: Bench
    browser: Browser
    page: Page
    model: str

    @property
    def calls(self) -> list[Call]:
        return self.bench.upstream.calls_of(self.model)

    def open(self) -> Page:
        self.page.open(f"{self.bench.urls[0]}/playground")
        self.page.until_state("idle")
        return self.page

    def send(self, api: Api = "chat", words: Sequence[str] = WORDS, key: str = "sk-playground") -> Page:
        """Returns when the half has arrived."""
        self.bench.upstream.on(self.model, *answer(api, self.model, words))
        page = self.open()
        page.fill(api=api, model=self.model, key=key, prompt="Say something.")
        page.click("send")
        page.until_text(words[len(words) // 2 - 1])
        return page

    def go_on(self) -> None:
        self.bench.upstream.open(self.model)

    def is_whole(self, page: Page, text: str = TEXT) -> None:
        """The page has the whole text of the only generation, each event once."""
        page.until_state("complete")
        assert page.text("text") == text
        rows = "[...document.querySelectorAll('#rows tr:not(.mark, .beat) td:first-child')]"
        assert page.js(f"{rows}.map((cell) => Number(cell.textContent))") == list(
            range(1, int(page.text("events")) + 1)
        )
        assert page.text("problem") == ""
        assert len(self.calls) == 1


@contextmanager
def two_replicas(upstream: ScriptedUpstream, folder: Path) -> Iterator[Bench]:
    binds = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    with valkey_server(folder) as store:
        configs = [
            {
                "bind": own,
                "upstreams": [
                    {"name": "unlogged", "base_url": upstream.url, "models": [f"*{UNLOGGED}*"], "buffer": False},
                    {"name": "scripted", "base_url": upstream.url},
                ],
                "store": {"url": store.url},
                "streams": {"heartbeat": "200ms", "lease": "2s"},
                "drain": {"timeout": "1s"},
                "playground": True,
                "playground_replicas": [f"http://{other}"],
                "cors": {"origins": [f"http://{other}"]},
            }
            for own, other in (binds, binds[::-1])
        ]
        with RelayProcess(configs[0]) as first, RelayProcess(configs[1]) as second:
            yield Bench(upstream, (first, second))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ScriptedUpstream() as upstream, two_replicas(upstream, tmp_path_factory.mktemp("valkey")) as found:
        yield found


@pytest.fixture(scope="session")
def chromium() -> str:
    needs(shutil.which("node"), "Node.js")
    needs(is_installed(), "the browser driver: run tests/client_js/install.py")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    needs(found, "Chromium: apt-get install chromium")
    return str(found)


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(chromium, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def scene(request: pytest.FixtureRequest, bench: Bench, browser: Browser) -> Scene:
    """A page of its own, and a model that no other test asks for."""
    return Scene(bench, browser, browser.fresh(), model=request.node.name)
