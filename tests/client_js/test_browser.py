"""The module as it is, without a build, in a real browser: a page streams through cuts as Node.js does.

From the relay's own origin, as behind a reverse proxy, and from another one that `cors.origins` names.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.client_js.conftest import Bench, node, replicas
from tests.client_js.scripts import FRAMES, script
from tests.client_js.test_fetch import ids
from tests.support.cutting_http import BEFORE_HEAD, Asked, CuttingProxy, Fate
from tests.support.processes import needs
from tests.support.streams import PATHS

pytestmark = pytest.mark.slow

CLIENT = Path(__file__).resolve().parents[2] / "relay" / "client" / "js"
PAGE = Path(__file__).with_name("page.html")


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    needs(found, "Chromium: apt-get install chromium")
    return str(found)


@pytest.fixture(scope="module")
def pages() -> Iterator[CuttingProxy]:
    """An origin that has the page and the module, and no relay."""
    with CuttingProxy(fate=served(lambda asked: Fate())) as server:
        yield server


@pytest.fixture(scope="module")
def bench(pages: CuttingProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with replicas(tmp_path_factory.mktemp("valkey"), origins=[pages.url]) as found:
        yield found


def served(fate: Callable[[Asked], Fate]) -> Callable[[Asked], Fate]:
    """The page and the module, in front of what has fates; preflights, which have no body, get through."""

    def file(asked: Asked) -> Fate:
        if asked.path in PATHS.values():
            return fate(asked) if asked.body else Fate()
        path = PAGE if asked.path == "/" else CLIENT / Path(asked.path).name
        kind = "text/html" if asked.path == "/" else "text/javascript"
        content = path.read_bytes()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}; charset=utf-8\r\ncontent-length: {len(content)}\r\n"
        return Fate(instead=f"{head}connection: close\r\n\r\n".encode() + content)

    return file


def visit(browser: str, profile: Path, origin: str, jobs: list[dict[str, Any]], resume: bool) -> Any:
    url = f"{origin}/#{quote(json.dumps({'jobs': jobs, 'resume': resume}))}"
    found = node("page.mjs", {"url": url, "browser": browser, "profile": str(profile)})
    assert found["errors"] == []
    return found["seen"]


def jobs(bench: Bench, base: str, name: str) -> list[dict[str, Any]]:
    found = []
    for api, path in PATHS.items():
        model = f"{name}-{api}"
        bench.upstream.on(model, *script(api))
        body = {"model": model, "messages": [], "input": "", "stream": True}
        found.append({"url": base + path, "body": body})
    return found


@pytest.mark.parametrize("where", ["same-origin", "cross-origin"])
def test_a_page_reads_through_cuts(bench: Bench, pages: CuttingProxy, browser: str, tmp_path: Path, where: str) -> None:
    dice = random.Random("browser")
    first = f"{where}-chat"

    def fate(asked: Asked) -> Fate:
        nth = len([one for one in proxy.asked(asked.model) if one.body])
        if nth == 1 and asked.model != first:  # the first stream tells the page that this is a relay
            return Fate(BEFORE_HEAD, "rst")
        if nth > 12:
            return Fate()
        return Fate(dice.randrange(100, 1200), dice.choice(("fin", "rst", "clean")), to=dice.randrange(2))

    with CuttingProxy(*bench.urls, fate=served(fate)) as proxy:
        # An address of the page's own origin may be relative.
        origin, base = (proxy.url, "") if where == "same-origin" else (pages.url, proxy.url)
        seen = visit(browser, tmp_path, origin, jobs(bench, base, where), resume=True)
        preflights = [asked for asked in proxy.asked() if "access-control-request-method" in asked.headers]
        for (api, path), one in zip(PATHS.items(), seen, strict=True):
            assert one["error"] is None
            assert one["url"] == proxy.url + path
            assert [int(i.rpartition(".")[2]) for i in ids(one["text"])] == list(range(1, len(FRAMES[api]) + 1))
            assert len(proxy.asked(f"{where}-{api}")) > 2
            assert len(bench.upstream.calls_of(f"{where}-{api}")) == 1
    assert bool(preflights) == (where == "cross-origin")


def test_a_page_without_it_breaks(bench: Bench, pages: CuttingProxy, browser: str, tmp_path: Path) -> None:
    with CuttingProxy(*bench.urls, fate=served(lambda asked: Fate(700))) as proxy:
        seen = visit(browser, tmp_path, pages.url, jobs(bench, proxy.url, "bare-page"), resume=False)
    assert [one["error"]["name"] for one in seen] == ["TypeError"] * 3


def test_a_page_whose_network_is_back_comes_back_at_once(
    bench: Bench, pages: CuttingProxy, browser: str, tmp_path: Path
) -> None:
    """The connection that it had is silent, and would be for a minute."""
    bench.upstream.on("page-wakes", *script("chat"))
    body = {"model": "page-wakes", "messages": [], "stream": True}
    fates = iter([Fate(700, "hang")])
    with CuttingProxy(*bench.urls, fate=served(lambda asked: next(fates, Fate()))) as proxy:
        job = {"url": proxy.url + PATHS["chat"], "body": body, "wakeAfter": 500}
        (seen,) = visit(browser, tmp_path, pages.url, [job], resume=True)
        assert proxy.asked("page-wakes")[0].gone.wait(10)
    assert seen["error"] is None
    assert [int(i.rpartition(".")[2]) for i in ids(seen["text"])] == list(range(1, len(FRAMES["chat"]) + 1))


def test_a_page_that_aborts_hangs_up(bench: Bench, pages: CuttingProxy, browser: str, tmp_path: Path) -> None:
    bench.upstream.on("page-abort", *script("chat", "page-abort"))
    body = {"model": "page-abort", "messages": [], "stream": True}
    with CuttingProxy(*bench.urls, fate=served(lambda asked: Fate())) as proxy:
        job = {"url": proxy.url + PATHS["chat"], "body": body, "leaveAfter": 700}
        (seen,) = visit(browser, tmp_path, pages.url, [job], resume=True)
        assert proxy.asked("page-abort")[0].gone.wait(10)
    bench.upstream.open("page-abort")
    assert seen["error"]["message"] == "enough"
