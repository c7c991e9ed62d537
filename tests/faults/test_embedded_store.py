"""A relay whose embedded store ends, and does not come back: what it says, answers, and does when it is back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import Relays
from tests.store.test_embedded import damage, fill, small_disk
from tests.support.oracle import check
from tests.support.processes import RelayProcess, children
from tests.support.replicas import paced, post
from tests.support.scripted import ScriptedUpstream
from tests.support.sseclient import open_stream
from tests.support.waiting import wait_until


def config(upstream: ScriptedUpstream, data: Path, **more: object) -> dict[str, object]:
    return {
        "upstreams": [{"name": "scripted", "base_url": upstream.url}],
        "store": {"url": "embedded", "data_dir": str(data)},
        **more,
    }


def kill_store(relay: RelayProcess) -> None:
    (store,) = (pid for pid in children(relay.pid) if "valkey" in Path(f"/proc/{pid}/cmdline").read_text())
    os.kill(store, signal.SIGKILL)


def ready(relay: RelayProcess) -> str:
    """Of each worker, as it were: every connection may reach another."""
    with open_stream(f"{relay.url}/readyz", "GET", timeout=5) as answer:
        return str(answer.json["status"] if answer.status == 200 else (answer.status, answer.json["error"]["code"]))


def resumable(relay: RelayProcess) -> bool:
    with post(relay, "m") as answer:
        assert check(answer.events()) == (5, "done")
        return answer.headers["relay-resumable"] == "true"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_that_does_not_come_back_makes_the_relay_unready_and_is_told_once(
    upstream: ScriptedUpstream, relays: Relays, tmp_path: Path, workers: int
) -> None:
    upstream.on("m", *paced(5, 0))
    relay = relays.start(config(upstream, tmp_path / "data", workers=workers))
    with post(relay, "m") as answer:
        stream = answer.headers["relay-stream-id"]
        whole = answer.events()
    kill_store(relay)
    repair = damage(tmp_path / "data")
    wait_until(lambda: "does not come back" in relay.log(), 20, "the reason")
    assert {ready(relay) for _ in range(8)} == {"(503, 'store_unavailable')"}
    with open_stream(f"{relay.url}/livez", "GET") as alive:
        assert alive.status == 200
    assert not resumable(relay)
    reasons = [line for line in relay.log().splitlines() if "does not come back" in line]
    assert len(reasons) == 1
    assert "Bad file format" in reasons[0]
    assert "A damaged file" in reasons[0]
    repair()
    wait_until(lambda: {ready(relay) for _ in range(8)} == {"ok"}, 40, "the store's return")
    assert relay.log().count("does not come back") == 1
    wait_until(lambda: resumable(relay), 10, "a logged stream")
    with post(relay, "m", f"{stream}.0") as replay:
        assert [event.raw for event in replay.events()] == [event.raw for event in whole]


def test_a_store_that_is_killed_and_comes_back_leaves_the_relay_ready(
    upstream: ScriptedUpstream, relays: Relays, tmp_path: Path
) -> None:
    upstream.on("m", *paced(5, 0))
    relay = relays.start(config(upstream, tmp_path / "data"))
    kill_store(relay)
    wait_until(lambda: "the embedded store runs again" in relay.log(), 20, "the store's return")
    assert ready(relay) == "ok"
    wait_until(lambda: resumable(relay), 10, "a logged stream")


def test_a_full_disk_costs_new_streams_their_log_for_as_long_as_it_is_full(
    upstream: ScriptedUpstream, relays: Relays, tmp_path: Path
) -> None:
    upstream.on("m", *paced(5, 0))
    with small_disk(tmp_path / "disk") as disk:
        relay = relays.start(config(upstream, disk / "data"))
        with post(relay, "m") as answer:
            stream = answer.headers["relay-stream-id"]
            whole = answer.events()
        fill(disk / "filler")
        wait_until(lambda: not resumable(relay), 30, "a disk with no room for a stream")
        with post(relay, "m", f"{stream}.0") as replay:
            assert replay.status == 200, replay.read()
            assert [event.raw for event in replay.events()] == [event.raw for event in whole]
        (disk / "filler").unlink()
        wait_until(lambda: resumable(relay), 30, "a logged stream")
        relay.stop()


def test_a_folder_that_another_relay_has_is_refused(upstream: ScriptedUpstream, relays: Relays, tmp_path: Path) -> None:
    first = relays.start(config(upstream, tmp_path / "data"))
    second = RelayProcess(config(upstream, tmp_path / "data"))
    with pytest.raises(AssertionError, match=rf"exited with 1\n.*in use by the relay with pid {first.pid}.*--data-dir"):
        second.start()
    assert ready(first) == "ok"
