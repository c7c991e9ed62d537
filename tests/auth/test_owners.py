"""A stream is its owner's: to everybody else it is as if it were not there, whatever they look at or measure."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from relay.auth.owners import Owners, Use
from relay.protocol.credentials import shown
from relay.protocol.ids import new_stream_id
from relay.store import scripts
from tests.conftest import Relays
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import Store, valkey_server
from tests.support.streams import FIRST_TOKENS, PATHS, chat

MINE, THEIRS = "Bearer canary-mine-81d2", "Bearer canary-theirs-93e4"
SECRET = "canary-secret-" + "5e" * 16
HOW = ("post", "get", "status", "stop", "post-far", "post-other-api")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path) as server:
        yield server


def config(upstream: ScriptedUpstream, store: Store | None = None, **more: Any) -> dict[str, Any]:
    settings = {"upstreams": [{"name": "up", "base_url": upstream.url}], "drain": {"timeout": "0s"}, **more}
    return settings if store is None else {**settings, "store": {"url": store.url}}


def begin(relay: RelayProcess, model: str, credential: str = MINE, api: str = "chat") -> RawStream:
    body = {"model": model, "stream": True, "messages": []}
    answer = open_stream(relay.url + PATHS[api], headers={"authorization": credential}, body=body)
    assert answer.status == 200, answer.read()
    answer.events(1)
    return answer


def reach(relay: RelayProcess, how: str, stream_id: str, credential: str) -> RawStream:
    headers = {"authorization": credential, "x-request-id": "same"}
    if how in ("post", "post-far", "post-other-api"):
        path = PATHS["messages" if how == "post-other-api" else "chat"]
        last = {"last-event-id": f"{stream_id}.{99999 if how == 'post-far' else 0}"}
        return open_stream(relay.url + path, headers={**headers, **last}, body={})
    method = "DELETE" if how == "stop" else "GET"
    accept = {"accept": "application/json"} if how == "status" else {}
    return open_stream(f"{relay.url}/streams/{stream_id}", method, {**headers, **accept})


def seen(answer: RawStream, stream_id: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """All that a client gets, without the time of day."""
    with answer:
        head = [(name, value) for name, value in answer.header_list if name.lower() != "date"]
        body = b"" if answer.status == 200 else answer.read()  # a live stream does not end by itself
        return answer.status, head, body.replace(stream_id.encode(), b"ID")


class TestDigests:
    """What stands for one thing stands for nothing else."""

    OWNERS = Owners(None, SECRET.encode())  # type: ignore[arg-type]

    def test_each_use_has_digests_of_its_own(self) -> None:
        parts = (b"one", b"two")
        found = [self.OWNERS.digest(use, *parts) for use in Use]
        assert len(set(found)) == len(list(Use))

    @pytest.mark.parametrize("parts", [(b"ab", b""), (b"a", b"b"), (b"", b"ab"), (b"ab",), (b"a\0b",), (b"a\0", b"b")])
    def test_each_list_of_parts_has_one_of_its_own(self, parts: tuple[bytes, ...]) -> None:
        others = [(b"ab", b""), (b"a", b"b"), (b"", b"ab"), (b"ab",), (b"a\0b",), (b"a\0", b"b")]
        found = self.OWNERS.digest(Use.TICKET, *parts)
        assert [other for other in others if self.OWNERS.digest(Use.TICKET, *other) == found] == [parts]

    def test_no_credential_makes_an_owner_of_one(self) -> None:
        """Whatever several headers say: what was signed as a ticket, before, was such a list with NULs between."""

        async def owner(identity: bytes) -> str:
            return await self.OWNERS.of_credential(identity)

        text = b"st_x", b"1700000000", b"r"
        signed = self.OWNERS.digest(Use.TICKET, *text)
        for identity in (
            b"\0".join((b"ticket", *text)),
            b"ticket",
            shown([(b"x-api-key", b"a"), (b"api-key", b"b")]),
        ):
            assert asyncio.run(owner(identity)) != signed
            assert not identity.startswith(b"\0\0")

    def test_owners_are_those_of_version_0_1(self) -> None:
        async def owner() -> str:
            return await self.OWNERS.of_credential(b"sk-one")

        assert asyncio.run(owner()) == hmac.digest(SECRET.encode(), b"sk-one", "sha256").hex()

    def test_digests_are_those_of_replicas_of_earlier_versions(self) -> None:
        parts = b"st_x", b"", b"r"
        for use in Use:
            said = b"".join(len(part).to_bytes(8) + part for part in (use.value.encode(), *parts))
            expected = hmac.digest(SECRET.encode(), b"\0\0" + said, "sha256").hex()
            assert self.OWNERS.digest(use, *parts) == expected


class TestForeignIsUnknown:
    @pytest.fixture
    def replicas(
        self, upstream: ScriptedUpstream, relays: Relays, store: Store
    ) -> Iterator[tuple[RelayProcess, RelayProcess, dict[str, str]]]:
        """Two replicas, and streams in every state, all run by the first."""
        upstream.on("live", *stream(chat({"content": "a"}), Gate("never")))
        upstream.on("over", *stream(chat({"content": "a"}), "data: [DONE]\n\n"))
        upstream.on("unlogged", *stream(chat({"content": "a"}), Gate("never")))
        settings = config(upstream, store)
        settings["upstreams"].insert(
            0, {**settings["upstreams"][0], "name": "no", "models": ["unlogged"], "buffer": False}
        )
        one, two = relays.start(settings), relays.start(settings)
        states = ("live", "over", "unlogged")
        with ExitStack() as held:
            answers = [held.enter_context(begin(one, model)) for model in states]
            answers[1].read()
            streams = [answer.headers["relay-stream-id"] for answer in answers]
            yield one, two, dict(zip(states, streams, strict=True))

    def test_in_every_byte(
        self, replicas: tuple[RelayProcess, RelayProcess, dict[str, str]], upstream: ScriptedUpstream
    ) -> None:
        one, two, streams = replicas
        for how, relay, model in itertools.product(HOW, (one, two), streams):
            nothing = new_stream_id(logged=model != "unlogged")
            unknown = seen(reach(relay, how, nothing, THEIRS), nothing)
            assert seen(reach(relay, how, streams[model], THEIRS), streams[model]) == unknown, (how, model)
            assert unknown[0] == (404 if model != "unlogged" else 400)
        with reach(one, "status", streams["live"], MINE) as own:
            assert own.json["state"] == "live"  # nobody has stopped it
        assert not any(call.cancelled for call in upstream.calls)

    def test_in_what_the_store_is_asked(
        self, replicas: tuple[RelayProcess, RelayProcess, dict[str, str]], store: Store
    ) -> None:
        """Round trips are what a client could measure: the same commands in the same number."""
        one, two, streams = replicas
        nothing = new_stream_id()

        def asked(relay: RelayProcess, how: str, stream_id: str) -> list[str]:
            return commands(store, stream_id, lambda: seen(reach(relay, how, stream_id, THEIRS), stream_id))

        for how, relay in itertools.product(HOW, (one, two)):
            unknown = asked(relay, how, nothing)
            assert [command.count("HEX") for command in unknown[:1]] == [2], "the store was asked, for this owner"
            for model in ("live", "over"):
                assert asked(relay, how, streams[model]) == unknown, (how, model)

    def test_in_what_the_store_answers(
        self, replicas: tuple[RelayProcess, RelayProcess, dict[str, str]], store: Store
    ) -> None:
        """Also where a reader has come, who would be noted in a stream of his own."""
        ask = store.servers[0].command
        for stream_id, come in itertools.product((replicas[2]["live"], new_stream_id()), ("0", "1")):
            meta, log = (f"relay:{{{stream_id}}}:{part}" for part in ("meta", "log"))
            assert (
                ask("EVALSHA", scripts.STATUS.sha, 2, meta, log, "replica" if come == "1" else "", come, "1", "0" * 64)
                is None
            )
            assert not {"r:replica", "visits", "abandon"} & set(ask("HGETALL", meta))

    @pytest.mark.parametrize("bad", ["st_short", "nothing", "st_" + "a" * 22 + "x", "st_" + "é" * 22])
    def test_what_is_no_id_is_told_without_a_look_who_asks(
        self, upstream: ScriptedUpstream, relays: Relays, store: Store, bad: str
    ) -> None:
        """The form of an id says nothing about what is there: the same answer to everybody, and no question asked."""
        relay = relays.start(config(upstream, store))
        answers = {str(seen(reach(relay, "post", bad, who), bad)) for who in (MINE, THEIRS)}
        assert len(answers) == 1
        assert "invalid_last_event_id" in answers.pop()
        assert commands(store, bad, lambda: seen(reach(relay, "post", bad, MINE), bad)) == []


def commands(store: Store, stream_id: str, act: Callable[[], object]) -> list[str]:
    """What the store is asked about a stream meanwhile, scripts' own commands among it, but for its lease."""
    client = store.servers[0].client()
    found: list[str] = []
    renewing = False
    with client.monitor() as monitor:  # type: ignore[no-untyped-call]
        act()
        client.echo("done")
        while "ECHO done" not in (command := str((said := monitor.next_command())["command"])):
            renewing = scripts.RENEW.sha in command or (renewing and said["client_type"] == "lua")
            if stream_id in command and not renewing:
                found.append(re.sub("[0-9a-f]{40,}", "HEX", command.replace(stream_id, "ID")))
    return found


class TestWhatStandsForACredential:
    def test_no_credential_is_in_the_store(self, upstream: ScriptedUpstream, relays: Relays, store: Store) -> None:
        streamed = FIRST_TOKENS["responses-text"]
        upstream.on("m", *stream(*streamed.events))
        relay = relays.start(config(upstream, store))
        body = {"model": "m", "stream": True, "input": "x"}
        for more in ({"idempotency-key": "canary-idem"}, {"session-id": "canary-session"}):
            headers = {"authorization": MINE, **more}
            with open_stream(relay.url + PATHS["responses"], headers=headers, body=body) as answer:
                answer.read()
        held = contents(store)
        assert len(held) > 500
        assert "resp_1" in held
        credential = MINE.split()[1]
        for told in (credential, credential.encode().hex(), hashlib.sha256(credential.encode()).hexdigest()):
            assert told not in held
        assert "canary-idem" not in held
        assert "canary-session" not in held

    def test_it_takes_the_deployment_s_secret_to_derive_it(
        self, upstream: ScriptedUpstream, relays: Relays, tmp_path: Path
    ) -> None:
        upstream.on("m", *stream(chat({"content": "a"}), "data: [DONE]\n\n"))
        owners = set()
        for name in ("one", "two"):
            with valkey_server(tmp_path / name) as store:
                relay = relays.start(config(upstream, store))
                owners.add(owner_of(store, begin(relay, "m")))
                relay.stop()
        assert len(owners) == 2, "two deployments derive the same owner from a credential"

    def test_with_secret_env_it_is_not_in_the_store_and_outlives_it(
        self, upstream: ScriptedUpstream, relays: Relays, tmp_path: Path
    ) -> None:
        upstream.on("m", *stream(chat({"content": "a"}), "data: [DONE]\n\n"))
        owners, urls = [], []
        for name in ("one", "two"):
            with valkey_server(tmp_path / name) as store:
                relay = relays.start(config(upstream, store, auth={"secret_env": "MY_SECRET"}), {"MY_SECRET": SECRET})
                answer = begin(relay, "m")
                owners.append(owner_of(store, answer))
                urls.append(relay.url + answer.headers["relay-stream-url"])
                with open_stream(urls[-1], "GET") as page:
                    assert page.status == 200
                assert store.servers[0].command("EXISTS", "relay:secret") == 0
                assert SECRET not in contents(store)
                relay.stop()
                assert SECRET not in relay.log()
        assert owners[0] == owners[1]

    def test_replicas_with_the_same_secret_know_each_other_s_streams_and_tickets(
        self, upstream: ScriptedUpstream, relays: Relays, store: Store
    ) -> None:
        upstream.on("m", *stream(chat({"content": "a"}), "data: [DONE]\n\n"))
        settings = config(upstream, store, auth={"secret_env": "MY_SECRET"})
        one, two = (relays.start(settings, {"MY_SECRET": SECRET}) for _ in range(2))
        other = relays.start(settings, {"MY_SECRET": SECRET[::-1]})
        with begin(one, "m") as answer:
            answer.read()
        for relay, status in ((two, 200), (other, 404)):
            with reach(relay, "get", answer.headers["relay-stream-id"], MINE) as again:
                assert again.status == status
        for relay, status in ((two, 200), (other, 403)):
            with open_stream(relay.url + answer.headers["relay-stream-url"], "GET") as page:
                assert page.status == status


def owner_of(store: Store, answer: RawStream) -> str:
    with answer:
        answer.read()
    owner = store.servers[0].command("HGET", f"relay:{{{answer.headers['relay-stream-id']}}}:meta", "owner")
    assert re.fullmatch("[0-9a-f]{64}", owner)
    return str(owner)


def contents(store: Store) -> str:
    """Everything in the store, as text."""
    read = {"string": ("GET",), "hash": ("HGETALL",), "set": ("SMEMBERS",), "zset": ("ZRANGE", 0, -1)}
    ask = store.servers[0].command
    ask("DEL", "relay:secret")  # random bytes are no text
    found = []
    for key in ask("KEYS", "*"):
        if (kind := ask("TYPE", key)) == "none":
            continue  # a lease that ran out since
        command, *rest = ("XRANGE", "-", "+") if kind == "stream" else read[kind]
        found.append(f"{key} {ask(command, key, *rest)}")
    return "\n".join(found)
