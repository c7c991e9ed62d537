"""Fixtures that every test may use. Markers, time limits and warnings are set in pyproject.toml."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.asking import answers
from tests.support.processes import RelayProcess
from tests.support.scripted import ScriptedUpstream

# How fast a machine that other work shares draws its examples says nothing about them.
settings.register_profile("relay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("relay")

# Of a run under nohup, what is started here would ignore it too, and outlive a terminal that is closed.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# Folders whose every test needs large servers or several SDKs; other files say `pytestmark = pytest.mark.slow`.
_SLOW = ("agents", "auth", "client_js", "deploy", "faults", "helm", "observe", "sdk", "security", "seeds", "torture")
# Files that take half a minute or more come first, the longest at the top: begun last, one of them would keep one
# worker busy and the others idle. Most of them wait; `test_bodies` computes, so its neighbours here do not.
_LONGEST = (
    "faults/test_store_away.py",
    "faults/test_replicas.py",
    "security/test_bodies.py",
    "deploy/test_silence.py",
    "faults/test_takeover.py",
    "connect/test_line.py",
    "sdk/test_parity.py",
    "api/test_attaching.py",
    "torture/test_short.py",
    "faults/test_store.py",
    "security/test_unread.py",
    "agents/test_facts.py",
    "observe/test_metrics.py",
    "streams/test_leaving.py",
    "client/test_survival.py",
    "upstream/test_coming_back.py",
    "store/test_topologies.py",
    "deploy/test_replicas_behind_proxies.py",
    "security/test_at_rest.py",
    "examples/test_examples.py",
    "faults/test_bounds.py",
    "playground/test_page.py",
    "faults/test_drain.py",
    "streams/test_webhooks.py",
    "observe/test_logs.py",
    "upstream/test_going_on.py",
    "auth/test_owners.py",
    "api/test_models.py",
    "api/test_keys_in_flight.py",
    "upstream/test_chain_of_clients.py",
    "api/test_slow_readers.py",
    "deploy/test_envoy.py",
    "model/test_stream_model.py",
    "observe/test_prometheus.py",
    "faults/test_early_signals.py",
    "resume/test_outcomes.py",
    "api/test_upstream_failures.py",
    "security/test_limits.py",
    "deploy/test_vanished_relays.py",
    "api/test_tickets.py",
    "client/test_edges.py",
    "upstream/test_producer_killed.py",
    "streams/test_abandon_after.py",
    "recipes/test_running.py",
    "security/test_store_access.py",
    "connect/test_command.py",
    "auth/test_key_reload.py",
    "store/test_commands.py",
    "inspection/test_streams.py",
    "client_js/test_sdks.py",
    "sdk/test_mcp.py",
    "observe/test_access.py",
    "model/test_claims_model.py",
    "upstream/test_streams.py",
    "deploy/test_container.py",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make quick` does not even import the files of which it would run no test: that takes each worker seconds."""
    if config.option.markexpr != "not slow":
        return None
    folder = collection_path.parent.name if collection_path.suffix else collection_path.name
    slow = folder in _SLOW or (
        collection_path.suffix == ".py" and "\npytestmark = pytest.mark.slow\n" in collection_path.read_text()
    )
    return True if slow else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in _SLOW:
            item.add_marker("slow")
    rank = {here / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """What was collected lives as long as the run, 760,000 objects: a collector that walks them again and again, for a
    second or two each time, holds up the upstreams and clients that are threads of this process."""
    gc.collect()
    gc.freeze()


class Relays:
    """Starts relay processes and stops all of them."""

    def __init__(self) -> None:
        self._started: list[RelayProcess] = []

    def start(self, config: dict[str, Any], env: dict[str, str] | None = None) -> RelayProcess:
        relay = RelayProcess(config, env)
        self._started.append(relay)
        return relay.start()

    def stop_all(self) -> None:
        for relay in reversed(self._started):
            relay.stop()
            # pytest captures this and shows it with a failure only.
            print(f"--- relay at {relay.url}, end of its log:\n{relay.log()[-4000:]}")


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture
def relays(request: pytest.FixtureRequest) -> Iterator[Relays]:
    """Its relays end before their store: one that cannot tell it the ends of its streams waits for seconds."""
    for name in {"store", "server"} & set(request.fixturenames):
        request.getfixturevalue(name)
    factory = Relays()
    yield factory
    factory.stop_all()


@pytest.fixture(autouse=True)
def _hang_up() -> Iterator[None]:
    """Close what `tests.support.asking.ask` has opened."""
    yield
    while answers:
        answers.pop().close()
