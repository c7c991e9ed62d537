"""The embedded store's supervisor: a store that has ended comes back; why it does not is told once, and seen by all."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from relay.store import embedded, supervisor
from relay.store.embedded import EmbeddedStore
from relay.store.supervisor import StoreSupervisor
from tests.store.test_embedded import damage, get, kill_server, put
from tests.support.waiting import wait_until


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path / "data") as running:
        put(running, "one")
        yield running


@pytest.fixture
def watched(store: EmbeddedStore) -> Iterator[StoreSupervisor]:
    watching = StoreSupervisor(store)
    watching.start()
    yield watching
    watching.stop()


def answers(store: EmbeddedStore) -> str | None:
    try:
        return get(store)
    except redis.RedisError:
        return None


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "does not come back" in message]


def test_a_killed_store_is_back_with_its_data(store: EmbeddedStore, watched: StoreSupervisor) -> None:
    for _ in range(2):
        kill_server(store)
        wait_until(lambda: answers(store) == "one", 10)


def test_a_store_that_cannot_start_is_told_once_and_tried_less_and_less(
    store: EmbeddedStore, watched: StoreSupervisor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []
    real = store.start

    def counted(*arguments: object) -> None:
        starts.append(arguments)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "start", counted)
    caplog.set_level(logging.INFO)
    kill_server(store)
    repair = damage(store.data_dir)
    wait_until(lambda: watched.lost, 10)
    wait_until(lambda: len(starts) == 4, 20)
    (reason,) = told(caplog)
    assert "Bad file format" in reason
    assert "\n" not in reason
    repair()
    wait_until(lambda: not watched.lost, 20)
    assert len(starts) <= 5
    assert get(store) == "one"
    assert caplog.messages[-1] == "the embedded store runs again"


def test_each_reason_is_told(
    store: EmbeddedStore, watched: StoreSupervisor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is taken by a server that an earlier relay has left behind, and then its file is damaged."""
    monkeypatch.setattr(supervisor, "_START_TIMEOUT", 0.1)
    monkeypatch.setattr(supervisor, "_RETRY_MAX", 0.1)
    kill_server(store)
    repair = damage(store.data_dir)
    with (store.data_dir / "valkey.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write("4711 ")
        lock.flush()
        wait_until(lambda: len(told(caplog)) == 1, 10)
        assert "held by an earlier relay's Valkey, pid 4711" in told(caplog)[0]
        assert "--data-dir" in told(caplog)[0]
        monkeypatch.setattr(supervisor, "_START_TIMEOUT", 10)
    wait_until(lambda: len(told(caplog)) == 2, 10)
    assert "Bad file format" in told(caplog)[1]
    repair()
    wait_until(lambda: not watched.lost, 10)
    assert get(store) == "one"


def test_its_folder_stays_taken_while_it_is_down(store: EmbeddedStore, watched: StoreSupervisor) -> None:
    kill_server(store)
    damage(store.data_dir)
    wait_until(lambda: watched.lost, 10)
    with (store.data_dir / "lock").open() as lock:
        assert not embedded._try_lock(lock.fileno())


def test_a_stop_does_not_wait_for_the_next_try(store: EmbeddedStore, watched: StoreSupervisor) -> None:
    kill_server(store)
    damage(store.data_dir)
    wait_until(lambda: watched.lost, 10)
    watched._pause = 600.0
    watched.stop()
    assert store.pid is None


def test_forked_processes_see_that_it_is_lost(store: EmbeddedStore, watched: StoreSupervisor) -> None:
    child = os.fork()
    if child == 0:
        try:
            wait_until(lambda: watched.lost, 20)
            os._exit(0)
        finally:
            os._exit(1)
    try:
        kill_server(store)
        damage(store.data_dir)
    finally:
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
