"""The store as `deploy/redis` guards it: the relay's user may do what the relay does, and nothing else; who has no
certificate gets no further than TLS."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.conftest import Relays
from tests.support.guarded import PASSWORD, SHIPPED, Guard, guarded_server, login, valkey_with_users
from tests.support.processes import RelayProcess, free_port
from tests.support.scripted import Gate, ScriptedUpstream, json_response, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import SentinelStore, Server, Store, valkey_cluster, valkey_sentinel
from tests.support.waiting import wait_until

PATH = "/v1/chat/completions"
AUTH = {"authorization": "Bearer sk-one"}
WORDS = [f'data: {{"id":"c","choices":[{{"index":0,"delta":{{"content":"{n}"}}}}]}}\n\n' for n in range(4)]
END = ['data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n', "data: [DONE]\n\n"]


def as_client(url: str) -> redis.Redis:
    """One that says at once what it is told."""
    return redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0))


def settings(store: Store, upstream: ScriptedUpstream) -> dict[str, Any]:
    return {
        "store": {"url": store.url},
        "upstreams": [{"name": "scripted", "base_url": upstream.url}],
        "streams": {"heartbeat": "200ms", "lease": "1s"},
    }


def post(relay: RelayProcess, model: str, **headers: str) -> RawStream:
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"model": model, "stream": True, "messages": []}
    return open_stream(relay.url + PATH, headers={**AUTH, **said}, body=body)


def check(folder: Path, url: str, upstream: ScriptedUpstream) -> subprocess.CompletedProcess[str]:
    config = folder / "relay.yaml"
    config.write_text(
        yaml.safe_dump({"store": {"url": url}, "upstreams": [{"name": "scripted", "base_url": upstream.url}]})
    )
    command = [sys.executable, "-m", "relay", "check", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def used(server: Server) -> set[str]:
    """The commands that the server has run, those in scripts among them."""
    return {name.removeprefix("cmdstat_") for name in server.client().info("commandstats")}


def turned_away(store: Store) -> list[Any]:
    return [entry for server in store.servers for entry in server.command("ACL", "LOG")]


def live_and_resumed(
    one: RelayProcess, two: RelayProcess, upstream: ScriptedUpstream, server: Server | None = None
) -> None:
    """A stream on the one, from its second event on the other: live, and when it is over."""
    upstream.on("live", *stream(*WORDS[:3], Gate("on"), *WORDS[3:], *END))
    with post(one, "live") as first:
        seen = first.events(3)
        assert [f"data: {event.data}\n\n" for event in seen] == WORDS[:3]
        with post(two, "live", last_event_id=str(seen[0].id)) as second:
            assert second.events(2) == seen[1:]
            if server is not None:  # a renewal of the lease has counted that reader
                wait_until(lambda: "hgetall" in used(server), 10, "a renewal")
            upstream.open("on")
            rest = first.events()
            assert second.events() == rest
    assert [f"data: {event.data}\n\n" for event in seen + rest] == WORDS + END
    with post(two, "live", last_event_id=str(seen[0].id)) as later:
        assert later.events() == seen[1:] + rest


def stopped_elsewhere(one: RelayProcess, two: RelayProcess, upstream: ScriptedUpstream) -> None:
    upstream.on("stopped", *stream(WORDS[0], Gate("never")))
    with post(one, "stopped") as first:
        name = first.headers["relay-stream-id"]
        (event,) = first.events(1)
        with post(two, "stopped", last_event_id=f"{name}.0") as reader:
            assert reader.events(1) == [event]  # and leaves while it is live
        with open_stream(f"{two.url}/streams/{name}", "DELETE", AUTH) as answer:
            assert answer.status == 204
        first.events()
    assert upstream.calls[-1].ended.wait(5)
    assert upstream.calls[-1].cancelled


def joined(one: RelayProcess, two: RelayProcess, upstream: ScriptedUpstream) -> None:
    """A key that was given back, is claimed and joined; an agent that was cut off, and comes again."""
    upstream.on("refused", *json_response(500, {"error": {"message": "no"}}))
    with post(one, "refused", idempotency_key="refused") as refusal:
        assert refusal.status == 500
    upstream.on("keyed", *stream(WORDS[0], Gate("keyed"), *WORDS[1:], *END))
    with post(one, "keyed", idempotency_key="k") as first, post(two, "keyed", idempotency_key="k") as again:
        assert again.headers["relay-stream-id"] == first.headers["relay-stream-id"]
        upstream.open("keyed")
        assert again.events() == first.events()
    upstream.on("retried", *stream(WORDS[0], Gate("retried"), *WORDS[1:], *END))
    with post(one, "retried", session_id="s") as first:
        first.events(1)
    with post(two, "retried", session_id="s") as again:
        assert again.headers["relay-stream-id"] == first.headers["relay-stream-id"]
        upstream.open("retried")
        assert len(again.events()) == 6
    with post(one, "retried", session_id="s") as new:
        assert new.headers["relay-stream-id"] != first.headers["relay-stream-id"]
    assert len([call for call in upstream.calls if call.json["model"] in ("keyed", "retried")]) == 3


def ended_by_another(one: RelayProcess, two: RelayProcess, upstream: ScriptedUpstream, server: Server) -> None:
    """The streams of a replica that was killed: one with a reader, one that only the sweep finds."""
    upstream.on("lost", *stream(WORDS[0], Gate("never")))
    with post(one, "lost") as first, post(one, "lost") as other:
        (event,) = first.events(1)
        other.events(1)
        with post(two, "lost", last_event_id=f"{first.headers['relay-stream-id']}.0") as reader:
            assert reader.events(1) == [event]
            one.kill()
            error, _ = reader.events()
            assert error.json["error"]["code"] == "producer_lost"
    wait_until(lambda: "zrem" in used(server), 10, "the sweep of the replica that was killed")
    with open_stream(f"{two.url}/streams/{other.headers['relay-stream-id']}", "GET", AUTH) as swept:
        assert swept.events()[1].json["error"]["code"] == "producer_lost"


@pytest.mark.parametrize("form", [valkey_with_users, guarded_server], ids=["valkey", "redis-tls"])
def test_the_relays_user_may_do_what_the_relay_does_and_no_more(
    form: Callable[[Path], AbstractContextManager[Store]], tmp_path: Path, upstream: ScriptedUpstream, relays: Relays
) -> None:
    with form(tmp_path) as store:
        server = store.servers[0]
        server.command("CONFIG", "RESETSTAT")
        one, two = (relays.start(settings(store, upstream)) for _ in range(2))
        live_and_resumed(one, two, upstream, server)
        stopped_elsewhere(one, two, upstream)
        joined(one, two, upstream)
        ended_by_another(one, two, upstream, server)
        checked = check(tmp_path, store.url, upstream)
        assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
        assert turned_away(store) == []
        assert "permission" not in one.log() + two.log()
        (line,) = (x for x in (SHIPPED / "users.acl").read_text().splitlines() if x.startswith("user relay "))
        allowed = {word[1:] for word in line.split() if word[0] == "+"}
        elsewhere = {"cluster|slots", "asking"} | (set() if form is valkey_with_users else {"select"})
        assert allowed - used(server) == elsewhere  # a database is named for the one, a Cluster is another test's


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with valkey_with_users(tmp_path_factory.mktemp("users")) as store:
        store.servers[0].command("SET", "other:key", "secret")
        store.servers[0].command("SET", "relay:key", "own")
        yield store


FOREIGN = [
    "GET other:key",
    "SET other:key x",
    "DEL other:key",
    "XADD other:log * f x",
    "KEYS *",
    "SCAN 0",
    "RANDOMKEY",
    "COPY relay:key other:key",
    "RENAME relay:key other:key",
    "DUMP relay:key",
    "FLUSHALL",
    "FLUSHDB",
    "CONFIG GET *",
    "CONFIG SET maxmemory-policy allkeys-lru",
    "ACL LIST",
    "ACL SETUSER relay +@all",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "MONITOR",
    "SUBSCRIBE news",
    "PSUBSCRIBE *",
    "PUBLISH relay:news x",
    "SSUBSCRIBE other:log",
    "SPUBLISH other:log x",
    "EVAL return 0",
    "SCRIPT FLUSH",
    "FUNCTION FLUSH",
    "REPLICAOF 127.0.0.1 1",
    "MODULE LIST",
    "DEBUG SLEEP 0",
    "SHUTDOWN NOW",
    "SWAPDB 0 1",
    "CLUSTER RESET",
]


@pytest.mark.parametrize("command", FOREIGN)
def test_the_relays_user_may_do_nothing_else(guarded: Store, command: str) -> None:
    with as_client(guarded.url) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split())


def test_nor_by_a_script(guarded: Store) -> None:
    with as_client(guarded.url) as client:
        for body in ("return redis.call('GET', KEYS[1])", "return redis.call('GET', 'other:key')"):
            sha = client.script_load(body)
            with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission"):
                client.evalsha(sha, 1, "other:key")
        assert client.evalsha(client.script_load("return redis.call('GET', KEYS[1])"), 1, "relay:key") == b"own"


def test_nobody_gets_in_without_a_password(guarded: Store) -> None:
    with (
        as_client(f"redis://127.0.0.1:{guarded.servers[0].port}") as client,
        pytest.raises(redis.exceptions.AuthenticationError, match="required"),
    ):
        client.ping()


def test_nobody_gets_in_by_the_users_as_they_are_shipped(tmp_path: Path) -> None:
    """The file names no password: one that were known would be left in place."""
    users = (SHIPPED / "users.acl").read_text().split("\n")
    names = [line.split()[1] for line in users if line]
    port = free_port()
    server = Server(tmp_path, {"aclfile": str(SHIPPED / "users.acl")}, port=port)
    try:
        server.start(wait=False)

        def refused(name: str, password: str) -> bool:
            try:
                with as_client(f"redis://{login(name, password)}127.0.0.1:{port}") as client:
                    client.ping()
                return False
            except redis.exceptions.AuthenticationError:
                return True

        def listening() -> bool:
            try:
                return refused("relay", "wrong")
            except redis.exceptions.ConnectionError:
                return False

        wait_until(listening, 10, "the server")
        assert names == ["default", "relay", "operator", "replica", "sentinel"]
        for name in names:
            assert all(refused(name, password) for password in ("", "0", "0" * 64, PASSWORD, name)), name
    finally:
        server.close()


@pytest.mark.parametrize("form", ["single", "sentinel", "cluster"])
def test_client_certificates(form: str, tmp_path: Path, upstream: ScriptedUpstream, relays: Relays) -> None:
    """Through all the forms of a URL: with one, streams go on at another replica; without, both `relay check` and the
    start say what is missing."""
    makes: dict[str, Callable[[], AbstractContextManager[Store]]] = {
        "single": lambda: guarded_server(tmp_path),
        "sentinel": lambda: valkey_sentinel(tmp_path, Guard(tmp_path)),
        "cluster": lambda: valkey_cluster(tmp_path, Guard(tmp_path)),
    }
    with makes[form]() as store:
        one, two = (relays.start(settings(store, upstream)) for _ in range(2))
        live_and_resumed(one, two, upstream)
        if isinstance(store, SentinelStore):
            store.failover()
            store.wait_settled()
            live_and_resumed(two, one, upstream)
        if form == "cluster":
            assert "cluster|slots" in set().union(*(used(server) for server in store.servers))
        # A replica's own bookkeeping is not the relay's.
        assert [e for e in turned_away(store) if "relay" in str(e)] == []
        assert check(tmp_path, store.url, upstream).returncode == 0
        without = store.url.partition("&ssl_certfile")[0]
        checked = check(tmp_path, without, upstream)
        assert checked.returncode == 1
        assert "?ssl_certfile=FILE&ssl_keyfile=FILE" in checked.stdout
        assert PASSWORD not in checked.stdout + checked.stderr
        bare = relays.start(settings(Store(without), upstream))
        wait_until(lambda: "?ssl_certfile=FILE&ssl_keyfile=FILE" in bare.log(), 5, "the warning")
        assert PASSWORD not in bare.log()


def test_the_shipped_settings_are_the_servers(tmp_path: Path) -> None:
    wanted = {"port": "0", "tls-auth-clients": "yes", "tls-replication": "yes", "tls-cluster": "yes"}
    wanted |= {"protected-mode": "yes", "appendonly": "yes", "appendfsync": "everysec", "save": ""}
    wanted |= {"maxmemory-policy": "noeviction"}
    with guarded_server(tmp_path) as store:
        assert store.servers[0].client().config_get(*wanted) == wanted


def test_a_certificate_is_asked_for_before_a_password(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    server = guard.server(tmp_path / "server", {}, port=free_port())
    try:
        server.start()
        address = f"127.0.0.1:{server.port}"
        with as_client(guard.url(address, "operator")) as client:
            assert client.ping()
        refused = [
            guard.url(address, "operator", certificate=False),
            Guard(tmp_path / "others").url(address, "operator").replace("/others/ca.pem", "/ca.pem"),
            f"redis://{login('operator')}{address}",
        ]
        for url in refused:
            with as_client(url) as client, pytest.raises(redis.exceptions.ConnectionError) as raised:
                client.ping()
            assert not isinstance(raised.value, redis.exceptions.AuthenticationError)
    finally:
        server.close()
