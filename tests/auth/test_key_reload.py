"""Keys come and go while streams run: no restart, no dropped stream, and a broken file changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from relay.auth.keyring import Keyring
from relay.config.auth import KeySettings
from relay.protocol.keys import new_key
from tests.auth.keyed import ENV, Entry, ask, code, config, finished, get, issued, whole
from tests.conftest import Relays
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, ScriptedUpstream
from tests.support.waiting import until, wait_until


def write(path: Path, content: list[Entry] | str) -> None:
    """Replaced as a whole, as careful programs do it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    fresh.replace(path)


def from_file(upstream: ScriptedUpstream, path: Path, **more: Any) -> dict[str, Any]:
    return config(upstream, **more) | {"auth": {"mode": "keys", "keys_file": str(path)}}


def works(relay: RelayProcess, key: str) -> bool:
    """Is it let in? Nothing goes upstream."""
    status, _ = code(get(relay, key, "/streams/st_" + "a" * 22))
    assert status in (401, 404)
    return status == 404


def test_a_key_that_is_taken_out_stops_at_once_and_its_streams_run_on(
    upstream: ScriptedUpstream, relays: Relays, tmp_path: Path
) -> None:
    (old, a), (new, b) = issued("team-a"), issued("team-a")
    path = tmp_path / "keys.yaml"
    write(path, [a])
    upstream.on("held", *whole(Gate("end")))
    upstream.on("m", *whole())
    relay = relays.start(from_file(upstream, path), ENV)
    with ask(relay, old, "held") as held:
        held.events(1)
        name = held.headers["relay-stream-id"]
        assert not works(relay, new)
        write(path, [b])
        wait_until(lambda: works(relay, new), 10, "the new key")
        assert code(ask(relay, old)) == (401, "invalid_api_key")
        assert code(get(relay, old, f"/streams/{name}")) == (401, "invalid_api_key")
        assert code(get(relay, old, f"/streams/{name}", "DELETE")) == (401, "invalid_api_key")
        with get(relay, new, f"/streams/{name}") as again:  # of the same owner
            upstream.open("end")
            assert again.events()[-1].data == "[DONE]"
        assert held.events()[-1].data == "[DONE]"
    assert "keys read again" in relay.log()


def test_a_broken_file_leaves_the_keys_as_they_were_and_is_told_without_quoting_it(
    upstream: ScriptedUpstream, relays: Relays, tmp_path: Path
) -> None:
    key, entry = issued("team-a")
    secret = new_key()
    path = tmp_path / "keys.yaml"
    write(path, [entry])
    relay = relays.start(from_file(upstream, path), ENV)
    broken = ["", "hello", "- {owner: team-a", "- {owner: team-a}", f"- hash: {secret}\n  owner: a", f"- {secret}"]
    for number, content in enumerate(broken, 1):
        write(path, content)
        wait_until(lambda n=number: relay.log().count("cannot be read again") == n, 10, f"the complaint of {content!r}")
        assert works(relay, key), content
    path.unlink()
    wait_until(lambda: relay.log().count("cannot be read again") == len(broken) + 1, 10, "the complaint of no file")
    assert works(relay, key)
    assert str(path) in relay.log()
    assert secret not in relay.log()
    later, b = issued("team-a")
    write(path, [entry, b])
    wait_until(lambda: works(relay, later), 10, "the mended file")
    assert relay.log().count("cannot be read again") == len(broken) + 1, "each once"


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    """Neither after the first reading nor after a change has been taken: a look comes at least once a second."""
    path = tmp_path / "keys.yaml"
    path.write_text("[]")
    reads: list[Path] = []

    def read() -> list[KeySettings]:
        reads.append(path)
        return []

    async def watched() -> None:
        watching = asyncio.create_task(Keyring(read, [path]).watch())
        await asyncio.sleep(2)
        assert len(reads) == 1
        path.write_text("[ ]")
        await until(lambda: len(reads) == 2, 10, "the change to be read")
        await asyncio.sleep(2)
        watching.cancel()

    asyncio.run(watched())
    assert len(reads) == 2


def test_kubernetes_way_of_changing_a_secret_is_seen(
    upstream: ScriptedUpstream, relays: Relays, tmp_path: Path
) -> None:
    """The file is a link through a link to a folder, and only the latter link changes."""
    (old, a), (new, b) = issued("team-a"), issued("team-b")
    for name, entry in (("..1", a), ("..2", b)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys.json").write_text(json.dumps([entry]))
        os.utime(tmp_path / name / "keys.json", (1, 1))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys.json").symlink_to("..data/keys.json")
    relay = relays.start(from_file(upstream, tmp_path / "keys.json"), ENV)
    assert works(relay, old)
    (tmp_path / "..tmp").symlink_to("..2")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    wait_until(lambda: works(relay, new), 10, "the new key")
    assert not works(relay, old)


def test_keys_in_the_settings_file_itself_are_read_again_and_nothing_else_of_it(
    upstream: ScriptedUpstream, relays: Relays, tmp_path: Path
) -> None:
    (old, a), (new, b) = issued("team-a"), issued("team-b")
    upstream.on("m", *whole())
    settings = config(upstream, a)
    relay = relays.start(settings, ENV)
    path = relay._folder / "relay.yaml"
    changed = relay.config | {"auth": {"mode": "keys", "keys": [b]}, "limits": {"resume_rate": "1/h"}}
    write(path, yaml.safe_dump(changed))
    wait_until(lambda: works(relay, new), 10, "the new key")
    assert not works(relay, old)
    assert works(relay, new)
    write(path, yaml.safe_dump(relay.config | {"auth": {"mode": "passthrough"}}))
    wait_until(lambda: "cannot be read again" in relay.log(), 10, "the complaint")
    assert not works(relay, "anything"), "a relay with keys has become one without"
    assert works(relay, new)


def test_every_worker_reads_them_again(upstream: ScriptedUpstream, relays: Relays, tmp_path: Path) -> None:
    (old, a), (new, b) = issued("team-a"), issued("team-b")
    path = tmp_path / "keys.yaml"
    write(path, [a])
    relay = relays.start(from_file(upstream, path, workers=2), ENV)
    assert works(relay, old)
    write(path, [b])
    wait_until(lambda: relay.log().count("keys read again") == 2, 15, "both workers")
    assert [works(relay, new) for _ in range(8)] == [True] * 8
    assert [works(relay, old) for _ in range(8)] == [False] * 8


def test_a_key_s_last_moment_needs_no_reading(upstream: ScriptedUpstream, relays: Relays, tmp_path: Path) -> None:
    key, entry = issued("team-a")
    path = tmp_path / "keys.yaml"
    write(path, [entry])
    upstream.on("m", *whole())
    relay = relays.start(from_file(upstream, path), ENV)
    name = finished(relay, key)
    at = datetime.now(UTC) + timedelta(seconds=6)
    write(path, [entry | {"expires": at.isoformat()}])
    wait_until(lambda: "keys read again" in relay.log(), 5, "the expiry to be read")
    assert works(relay, key)
    wait_until(lambda: not works(relay, key), 15, "the expiry")
    assert datetime.now(UTC) >= at
    assert code(get(relay, key, f"/streams/{name}")) == (401, "invalid_api_key")
    assert code(ask(relay, key)) == (401, "invalid_api_key")
    assert relay.log().count("keys read again") == 1


def test_limits_in_use_outlive_the_reading(upstream: ScriptedUpstream, relays: Relays, tmp_path: Path) -> None:
    (key, a), (new, b) = issued("team-a", rate="5/h", concurrency=1), issued("team-b")
    path = tmp_path / "keys.yaml"
    write(path, [a])
    upstream.on("m", *whole(Gate("end")))
    relay = relays.start(from_file(upstream, path), ENV)
    with ask(relay, key) as held:
        held.events(1)
        write(path, [a, b])
        wait_until(lambda: works(relay, new), 10, "the new key")
        assert code(ask(relay, key)) == (429, "too_many_streams")
