"""What the store holds is closed to whoever reads it, and no way into a client's answer to whoever writes to it."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from relay.config import SettingsError, load
from relay.protocol.compact import Restorer
from tests.conftest import Relays
from tests.support.ids import end_ids, event_ids
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, ScriptedUpstream, Step, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import Store, valkey_server
from tests.support.streams import FIRST_TOKENS, PATHS, chat
from tests.support.waiting import wait_until

HEARTBEAT = b": hb\n"
OWNER = {"authorization": "Bearer sk-one"}
CANARY = "canary-7be1"
ENV = "EVENT_KEYS"


def new_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


OLD, NEW = new_key(), new_key()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path) as server:
        yield server


def key_of(name: str, owner: str, api: str = "chat", server_key: str = OLD) -> bytes:
    parts = b"".join(len(part).to_bytes(4, "big") + part.encode() for part in ("entries", name, owner, api))
    return HKDF(SHA256(), 32, None, b"relay bound " + parts).derive(base64.b64decode(server_key))


class Site:
    """Replicas on one store, each with keys of its own."""

    def __init__(self, upstream: ScriptedUpstream, relays: Relays, store: Store) -> None:
        self.upstream = upstream
        self.store = store
        self._relays = relays

    def relay(self, keys: str | None = OLD, *, secret: str = "") -> RelayProcess:
        settings: dict[str, Any] = {
            "upstreams": [{"name": "up", "base_url": self.upstream.url}],
            "streams": {"lease": "2s", "heartbeat": "200ms"},
            "drain": {"timeout": "0s"},
            "store": {"url": self.store.url},
        }
        if keys is None:
            return self._relays.start(settings)
        settings["store"]["encryption_env"] = ENV
        if secret:
            settings["auth"] = {"secret_env": "SECRET"}
        return self._relays.start(settings, {ENV: keys, "SECRET": secret})

    def said(self, relay: RelayProcess, words: tuple[str, ...] = ("one", "two", "three")) -> tuple[str, bytes]:
        """A finished chat stream: its id and its bytes."""
        self.upstream.on("m", *stream(*(chat({"content": word}) for word in words), "data: [DONE]\n\n"))
        with post(relay) as answer:
            return answer.headers["relay-stream-id"], answer.read()

    def entries(self, name: str) -> list[tuple[str, dict[str, str]]]:
        """As hex digits, for any bytes may be in them."""
        source = "local o = redis.call('XRANGE', KEYS[1], '-', '+') for _, e in ipairs(o) do "
        source += "e[2][2] = (e[2][2]:gsub('.', function(c) return ('%02x'):format(c:byte()) end)) end return o"
        found = self.store.servers[0].command("EVAL", source, 1, f"relay:{{{name}}}:log")
        return [(entry, dict([tuple(pair)])) for entry, pair in found]

    def field(self, name: str, field: str) -> object:
        """One of a stream's hash."""
        return self.store.servers[0].command("HGET", f"relay:{{{name}}}:meta", field)

    def put(self, name: str, entries: list[tuple[str, dict[str, str]]]) -> None:
        """Give a stream another log, of the same age."""
        unhex = "(ARGV[i + 2]:gsub('..', function(h) return string.char(tonumber(h, 16)) end))"
        source = f"redis.call('DEL', KEYS[1]) for i = 1, #ARGV, 3 do local v = {unhex} "
        source += "redis.call('XADD', KEYS[1], ARGV[i], ARGV[i + 1], v) end"
        flat = [part for entry, pair in entries for part in (entry, *next(iter(pair.items())))]
        self.store.servers[0].command("EVAL", source, 1, f"relay:{{{name}}}:log", *flat)


@pytest.fixture
def site(upstream: ScriptedUpstream, relays: Relays, store: Store) -> Site:
    return Site(upstream, relays, store)


def post(relay: RelayProcess, api: str = "chat", model: str = "m") -> RawStream:
    body = {"model": model, "stream": True, "input": CANARY, "messages": [{"role": "user", "content": CANARY}]}
    answer = open_stream(relay.url + PATHS[api], headers=OWNER, body=body)
    assert answer.status == 200, answer.read()
    return answer


def again(relay: RelayProcess, name: str, after: int = 0) -> RawStream:
    return open_stream(f"{relay.url}/streams/{name}", "GET", {**OWNER, "last-event-id": f"{name}.{after}"})


def dump(store: Store) -> str:
    """Every byte of every key, in hex digits."""
    store.servers[0].command("CONFIG", "SET", "rdbcompression", "no")
    hexed = "local t = {} for _, k in ipairs(redis.call('KEYS', '*')) do "
    hexed += "t[#t + 1] = (redis.call('DUMP', k):gsub('.', function(c) return ('%02x'):format(c:byte()) end)) end "
    return str(store.servers[0].command("EVAL", hexed + "return table.concat(t)", 0))


class TestReading:
    @pytest.mark.parametrize("keys", [OLD, None], ids=["sealed", "plain"])
    def test_nothing_that_was_said_is_in_the_store(self, site: Site, keys: str | None) -> None:
        """The responses API repeats the request's words in its events. Without keys they are found."""
        relay = site.relay(keys)
        streamed = FIRST_TOKENS["responses-text"]
        created = {"type": "response.created", "response": {"id": "resp_1", "instructions": CANARY}}
        first = f"event: response.created\ndata: {json.dumps(created)}\n\n"
        site.upstream.on("m", *stream(first, *streamed.before[1:], streamed.token, *streamed.rest))
        with post(relay, "responses") as answer:
            assert CANARY in answer.read().decode()
        wanted = keys is None
        held = dump(site.store)
        assert (CANARY.encode().hex() in held) is wanted
        assert (b"response.created".hex() in held) is wanted
        assert (b"completed".hex() in held) is True  # how it ended is in its hash: no secret
        if keys is not None:
            assert base64.b64decode(keys).hex() not in held
            assert keys not in relay.log()

    def test_equal_words_do_not_look_equal(self, site: Site) -> None:
        relay = site.relay()
        one, _ = site.said(relay, ("same",) * 3)
        two, _ = site.said(relay, ("same",) * 3)
        contents = [content for name in (one, two) for _, pair in site.entries(name) for content in pair.values()]
        texts = [content[26:] for content in contents]  # behind version, key and salt
        assert len(contents) == 2 * 5  # three words, [DONE], the end
        assert len(set(texts)) == len(texts)

    def test_it_is_what_the_format_says(self, site: Site) -> None:
        """Opened by hand: AES-256-GCM, keys by HKDF-SHA256 of stream, owner and API, the position in the nonce, the
        field authenticated; with what differs alone the number of the base as well."""
        name, said = site.said(site.relay(), ("one", "two", "three", "four", "five", "six"))
        key = key_of(name, str(site.field(name, "owner")))
        server_key = base64.b64decode(OLD)
        compact = b"\x01" + HKDF(SHA256(), 32, None, b"relay compact key name").derive(server_key)[:4]
        opened = b""
        bases = []
        for entry, pair in site.entries(name):
            n, mark = map(int, entry.split("-"))
            ((field, digits),) = pair.items()
            content = bytes.fromhex(digits)
            if content.startswith(compact):
                base, nonce = content[5:9], content[9:17] + (2 * n).to_bytes(4, "big")
                text = AESGCM(key).decrypt(nonce, content[17:], b"compact" + base)
                bases.append(int.from_bytes(base, "big"))
                restorer = Restorer(name)
                frame_of = [b"", *opened.replace(b"\n\n", b"\n\n\0").split(b"\0")].__getitem__
                opened += restorer.restore(n, b"\x01\0\0\0\0" + base + text, frame_of)
                continue
            nonce = content[5:13] + (2 * n + mark).to_bytes(4, "big")
            text = AESGCM(key).decrypt(nonce, content[13:], field.encode())
            if mark:
                assert (field, text) == ("end", b"\ncompleted")  # without usage
            else:
                opened += text
        assert opened == said
        assert set(bases) == {5}  # the first after those that are in full

    def test_a_request_with_a_key_of_its_own_cannot_be_guessed(self, site: Site) -> None:
        relay = site.relay()
        site.upstream.on("m", *stream(chat({"content": "a"}), "data: [DONE]\n\n"))
        body = {"model": "m", "stream": True, "messages": []}
        headers = {**OWNER, "idempotency-key": "k"}
        with open_stream(relay.url + PATHS["chat"], headers=headers, body=body) as answer:
            answer.read()
        call = site.upstream.calls[0]
        guess = hashlib.sha256(PATHS["chat"].encode() + b"\0" + call.body).hexdigest()
        store = site.store.servers[0]
        claims = [key for key in store.command("KEYS", "relay:name:*") if store.command("TYPE", key) == "hash"]
        (kept,) = [store.command("HGET", key, "digest") for key in claims]
        assert len(kept) == 64
        assert kept != guess

    def test_every_way_to_read_gives_the_same_bytes(self, site: Site) -> None:
        one, two = site.relay(), site.relay()
        site.upstream.on("m", *stream(chat({"content": "a"}), chat({"content": "b"}), Gate("more"), "data: [DONE]\n\n"))
        with post(one) as live:
            live.events(2)
            name = live.headers["relay-stream-id"]
            with again(two, name) as joined, again(two, name, 1) as later:
                joined.events(2)
                later.events(1)
                site.upstream.open("more")
                whole = live.read()
                assert joined.read() == whole
                assert whole.endswith(later.read())
        with again(one, name) as own, again(two, name) as other:
            assert own.read() == other.read() == whole

    def test_a_stream_of_a_replica_that_died_is_ended_by_another(self, site: Site) -> None:
        one, two = site.relay(), site.relay()
        site.upstream.on("m", *stream(chat({"content": "a"}), Gate("never")))
        with post(one) as live:
            live.events(1)
            one.kill()
        name = live.headers["relay-stream-id"]
        with again(two, name) as answer:
            events = answer.events()
            assert answer.ended == "zero-chunk"
        assert [event.id for event in events] == [*event_ids(name, 1), *end_ids(name, 1, 2)]
        assert b"producer_lost" in events[1].raw
        assert [(entry, list(pair)) for entry, pair in site.entries(name)] == [("1-0", ["f"]), ("1-1", ["end"])]
        assert b"producer_lost".hex() not in str(site.entries(name))
        # Two writers may encrypt other words at the same place: never with the same nonce.
        salts = [content[10:26] for _, pair in site.entries(name) for content in pair.values()]
        assert salts[0] != salts[1]


Change = Callable[[list[tuple[str, dict[str, str]]], list[tuple[str, dict[str, str]]]], None]


def _swap(mine: list[Any], other: list[Any]) -> None:
    (a, x), (b, y) = mine[1], mine[2]
    mine[1], mine[2] = (a, y), (b, x)


def _from_another_stream(mine: list[Any], other: list[Any]) -> None:
    mine[1] = other[1]


def _one_bit(mine: list[Any], other: list[Any]) -> None:
    ((field, content),) = mine[1][1].items()
    mine[1] = (mine[1][0], {field: content[:-1] + format(int(content[-1], 16) ^ 1, "x")})


def _another_field(mine: list[Any], other: list[Any]) -> None:
    ((_, content),) = mine[1][1].items()
    mine[1] = (mine[1][0], {"end": content})


def _written_by_hand(mine: list[Any], other: list[Any]) -> None:
    frame = chat({"content": "forged"}).encode()
    mine[1] = (mine[1][0], {"f": frame.hex()})


def _ended_early(mine: list[Any], other: list[Any]) -> None:
    mine[1:] = [("1-1", {"end": b"completed".hex()})]


def _end_moved(mine: list[Any], other: list[Any]) -> None:
    mine[1:] = [("1-1", mine[-1][1])]


def _last_event_gone(mine: list[Any], other: list[Any]) -> None:
    del mine[1:-1]  # the end is in its place, what stood before it is not


def _cut_to_nothing(mine: list[Any], other: list[Any]) -> None:
    ((field, content),) = mine[1][1].items()
    mine[1] = (mine[1][0], {field: content[:20]})


class TestWriting:
    CHANGES = (
        _swap,
        _from_another_stream,
        _one_bit,
        _another_field,
        _written_by_hand,
        _ended_early,
        _end_moved,
        _last_event_gone,
        _cut_to_nothing,
    )

    @pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
    def test_an_event_that_no_relay_put_there_reaches_nobody(self, site: Site, change: Change) -> None:
        """What stands before it does, and then the connection is cut: nothing looks complete."""
        relay = site.relay()
        name, said = site.said(relay)
        other, _ = site.said(relay, ("four", "five", "six"))
        mine, theirs = site.entries(name), site.entries(other)
        change(mine, theirs)
        site.put(name, mine)
        with again(relay, name) as answer:
            events = answer.events()
            assert [event.id for event in events] == [f"{name}.1"]
            assert answer.ended not in ("zero-chunk", "length")
            assert said.startswith(events[0].raw)
            assert answer.raw_body.replace(HEARTBEAT, b"") == events[0].raw
        with again(relay, name, 1) as answer:
            assert (answer.status, answer.json["error"]["code"]) == (410, "position_unknown")
        if change is not _last_event_gone:
            wait_until(lambda: f"stream {name}: entry " in relay.log(), 10, "the line")

    def test_nor_who_reads_along_on_another_replica(self, site: Site) -> None:
        one, two = site.relay(), site.relay()
        site.upstream.on("m", *stream(chat({"content": "a"}), Gate("more"), chat({"content": "b"}), Gate("never")))
        with post(one) as live:
            live.events(1)
            name = live.headers["relay-stream-id"]
            with again(two, name) as along:
                along.events(1)
                store = site.store.servers[0]
                frame = f"id: {name}.2\n" + chat({"content": "forged"})
                store.command("XADD", f"relay:{{{name}}}:log", "2-0", "f", frame)
                store.command("SPUBLISH", f"relay:{{{name}}}:log", "")
                assert [event for event in along if not event.is_heartbeat] == []
                assert along.ended not in ("zero-chunk", "length")
        one.kill()  # it would try for seconds to end the log that another has written to


class TestRotation:
    def held(self, relay: RelayProcess, name: str, said: bytes) -> None:
        with again(relay, name) as answer:
            assert (answer.status, answer.read()) == (200, said)

    def refused(self, relay: RelayProcess, name: str) -> None:
        with again(relay, name) as answer:
            assert (answer.status, answer.json["error"]["code"]) == (503, "store_unavailable")
            assert answer.headers["retry-after"]

    def test_from_one_key_to_the_next(self, site: Site) -> None:
        before, both, turned = (site.relay(keys) for keys in (OLD, f"{OLD},{NEW}", f"{NEW}, {OLD}"))
        old, new = site.said(before), site.said(turned)
        for relay in (before, both, turned):
            self.held(relay, *old)
        for relay in (both, turned):
            self.held(relay, *new)
        before.stop()
        both.stop()
        after = site.relay(NEW)

        def knows() -> bool:
            with again(after, new[0]) as answer:
                return answer.status == 200

        # Until the replica that has turned says it again, the secret may be as the two before have last sealed it.
        wait_until(knows, 20, "the secret to be sealed under the new key")
        self.held(after, *new)
        self.refused(after, old[0])
        key = site.entries(old[0])[0][1]["f"][2:10]
        wait_until(lambda: f"encrypted under key {key}; give this replica that key" in after.log(), 10, "the line")

    def test_switched_on_without_a_stop(self, site: Site) -> None:
        never, ready, on, only = (site.relay(keys) for keys in (None, f"none,{NEW}", f"{NEW},none", NEW))
        plain, still_plain, sealed = site.said(never), site.said(ready), site.said(on)
        for relay in (ready, on):
            for held in (plain, still_plain, sealed):
                self.held(relay, *held)
        self.held(only, *sealed)
        self.refused(never, sealed[0])
        assert f"id: {still_plain[0]}.1".encode().hex() in str(site.entries(still_plain[0]))
        with again(only, plain[0]) as answer:  # it may as well be a forged one
            assert (answer.status, answer.read()) == (200, b"") or answer.status == 410

    def test_a_reader_of_a_live_stream_is_not_left_waiting_for_a_key(self, site: Site) -> None:
        one, two = (site.relay(key, secret="s" * 32) for key in (OLD, NEW))
        steps: list[str | Step] = [chat({"content": "a"}), Gate("more"), chat({"content": "b"}), Gate("never")]
        site.upstream.on("m", *stream(*steps))
        with post(one) as live:
            live.events(1)
            name = live.headers["relay-stream-id"]
            with again(two, name, 1) as along:
                assert along.status == 200
                site.upstream.open("more")
                assert along.events() == []
                assert along.ended not in ("zero-chunk", "length")

    def test_who_has_not_the_key_can_still_end_what_was_left_behind(self, site: Site) -> None:
        one, two = site.relay(OLD), site.relay(NEW)
        site.upstream.on("m", *stream(chat({"content": "a"}), Gate("never")))
        with post(one) as live:
            live.events(1)
            name = live.headers["relay-stream-id"]
            one.kill()
        meta = f"relay:{{{name}}}:meta"
        wait_until(lambda: site.store.servers[0].command("HGET", meta, "end") == "producer_lost", 20, "the end")
        assert two.returncode is None


class TestKeys:
    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            ("", "key 1 is not 32 bytes in base64"),
            ("secret-word", "key 1 is not 32 bytes in base64"),
            (f"{OLD},{base64.b64encode(b'short').decode()}", "key 2 is not 32 bytes in base64"),
            (f"{OLD},", "key 2 is not 32 bytes in base64"),
            (f"{OLD},{NEW},{OLD}", "key 3 is there twice"),
        ],
        ids=["empty", "a word", "too short", "one too many commas", "twice"],
    )
    def test_what_is_no_key_is_told_without_showing_it(
        self, monkeypatch: pytest.MonkeyPatch, keys: str, words: str
    ) -> None:
        monkeypatch.setenv(ENV, keys)
        store = {"url": "redis://:pass-word@127.0.0.1:1", "encryption_env": ENV}
        with pytest.raises(SettingsError) as error:
            load(flags={"upstreams": [{"name": "up", "base_url": "http://127.0.0.1:1"}], "store": store})
        assert words in str(error.value)
        assert ENV in str(error.value)
        for secret in (OLD, NEW, "secret-word", "pass-word"):
            assert secret not in str(error.value)

    def test_a_variable_of_the_settings_own_cannot_hold_them(self) -> None:
        store = {"encryption_env": "RELAY_KEYS"}
        with pytest.raises(SettingsError, match="does not begin with RELAY_"):
            load(flags={"upstreams": [{"name": "up", "base_url": "http://127.0.0.1:1"}], "store": store})


def test_deployments_with_prefixes_of_their_own_share_a_server(
    upstream: ScriptedUpstream, relays: Relays, store: Store
) -> None:
    upstream.on("m", *stream(chat({"content": "a"}), "data: [DONE]\n\n"))
    settings = {"upstreams": [{"name": "up", "base_url": upstream.url}], "drain": {"timeout": "0s"}}
    one, beside, other = (
        relays.start({**settings, "store": {"url": store.url, "prefix": prefix}}) for prefix in ("a:", "a:", "b/x.")
    )
    with post(one) as answer:
        said, name = answer.read(), answer.headers["relay-stream-id"]
    with again(beside, name) as held:
        assert held.read() == said
    with again(other, name) as unknown:
        assert unknown.status == 404
    wait_until(lambda: "b/x.replicas" in store.servers[0].command("KEYS", "*"), 10, "the other's sign of life")
    keys = store.servers[0].command("KEYS", "*")
    assert {f"a:{{{name}}}:log", f"a:{{{name}}}:meta", "a:secret", "a:replicas", "b/x.secret"} <= set(keys)
    assert [key for key in keys if not key.startswith(("a:", "b/x."))] == []
