"""What SDKs show of a near relay's streams while the line to the far one is cut again and again: in Python, in Node.js.

    SDK → (a proxy that cuts →) near relay → a proxy that cuts → two far replicas on one store → upstream

As they ship they see nothing of those cuts. With this project's clients in them, the line to the near relay may be cut
as often. What a user sees is an uncut run's, and the upstream is asked once.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.client import test_survival as python
from tests.client.scripts import script
from tests.client_js import test_sdks as node
from tests.client_js.conftest import Bench
from tests.client_js.install import is_installed as node_is_installed
from tests.sdk.install import is_installed
from tests.support.cutting_http import BEFORE_HEAD, Asked, CuttingProxy, Fate
from tests.support.processes import needs
from tests.support.stores import Store
from tests.upstream.chain import Chain, chained

pytestmark = pytest.mark.slow

SDK = "py-new"

each_way = pytest.mark.parametrize("resuming", [False, True], ids=["as they ship", "with the clients"])


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with chained(2, "500ms") as made:
        yield made


def often(seed: int, most: int, servers: int) -> Callable[[Asked], Fate]:
    """The answer to each first request ends within `most` bytes, in one of the ways, from any of the servers, and that
    to every second of those that come back."""
    dice = random.Random(seed)

    def fate(asked: Asked) -> Fate:
        if asked.model.startswith("warm") or ("last-event-id" in asked.headers and dice.random() < 0.5):
            return Fate(to=dice.randrange(servers))
        at = BEFORE_HEAD if dice.random() < 0.1 else dice.randrange(most)
        return Fate(at, dice.choice(("fin", "rst", "clean")), to=dice.randrange(servers))

    return fate


def through_cuts(chain: Chain, most: int, resuming: bool, read: Callable[[str], Any]) -> tuple[Any, int, int]:
    """What is read from this address, and how many requests came over the line to the near relay and the one behind."""
    with ExitStack() as stack:
        front = stack.enter_context(CuttingProxy(chain.near.url))
        front.fate = often(1, most, 1) if resuming else front.fate
        before = len(chain.line.asked())
        chain.line.fate = often(2, most, len(chain.far))
        try:
            seen = read(front.url)
        finally:
            chain.line.fate = chain.fate
        return seen, len(front.asked()), len(chain.line.asked()) - before


def in_python(chain: Chain, url: str, run: str, transport: str) -> list[Any]:
    jobs = python.jobs_of(SDK, run)
    for api, model, _ in [*jobs, ("chat", "warm-up-chat", ""), ("messages", "warm-up-messages", "")]:
        chain.upstream.on(model, *script(api))
    seen = [python.shown(each) for each in python.finish(python.start(SDK, url, jobs, transport))]
    assert [len(chain.upstream.calls_of(model)) for _, model, _ in jobs] == [1] * len(jobs)
    return seen


@pytest.fixture(scope="module")
def uncut_in_python(chain: Chain) -> list[Any]:
    needs(is_installed(SDK), f"the SDKs of {SDK}: run tests/sdk/install.py")
    seen = in_python(chain, chain.far[0].url, "uncut", "plain")
    assert [each["error"] for each in seen] == [None] * len(seen)
    return seen


@each_way
def test_python(chain: Chain, uncut_in_python: list[Any], resuming: bool) -> None:
    transport = "resuming" if resuming else "plain"
    seen, front, behind = through_cuts(chain, 6000, resuming, lambda url: in_python(chain, url, transport, transport))
    assert seen == uncut_in_python
    assert behind > len(seen) + 4
    assert (front > len(seen) + 4) == resuming


def in_node(chain: Chain, url: str, run: str, resuming: bool) -> list[Any]:
    bench = Bench(chain.upstream, Store("", []), (chain.far[0], chain.far[1]))
    seen = node.play(bench, url, run, resume=resuming)[run]
    names = [model for _, _, model in node.models(run)]
    assert [len(chain.upstream.calls_of(name)) for name in names] == [1] * len(names)
    return list(seen.values())


@pytest.fixture(scope="module")
def uncut_in_node(chain: Chain) -> list[Any]:
    needs(shutil.which("node") and node_is_installed(), "Node.js, and its packages: run tests/client_js/install.py")
    seen = in_node(chain, chain.far[0].url, "uncut", False)
    assert [each["error"] for each in seen] == [None] * len(seen)
    return seen


@each_way
def test_node(chain: Chain, uncut_in_node: list[Any], resuming: bool) -> None:
    run = "resuming" if resuming else "plain"
    seen, front, behind = through_cuts(chain, 1500, resuming, lambda url: in_node(chain, url, run, resuming))
    assert seen == uncut_in_node
    assert behind > len(seen) + 4
    assert (front > len(seen) + 4) == resuming
