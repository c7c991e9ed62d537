"""Who can write to the store, and has a credential of his own, gets at no answer of anybody else's with
`store.encryption_env`, and makes no part of an answer look like the whole.

Each attack is played on two deployments: on one without encryption it succeeds, so that it is an attack.
"""

from __future__ import annotations

import hmac
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.encryption import Cipher
from tests.conftest import Relays
from tests.security.test_at_rest import NEW, OLD, OWNER, Site
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import valkey_server
from tests.support.streams import FIRST_TOKENS, PATHS, chat
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ATTACKER = {"authorization": "Bearer sk-attacker"}
CANARY = "canary-93ad"
WORDS = [chat({"content": f"{CANARY} {n}"}) for n in range(1, 5)]
DONE = "data: [DONE]\n\n"


class Place:
    """A deployment of two replicas, and whoever writes to its store."""

    def __init__(self, site: Site, *, sealed: bool) -> None:
        self.site = site
        self.sealed = sealed
        self.one, self.two = (site.relay(OLD if sealed else None) for _ in range(2))
        self.ask = site.store.servers[0].command
        own, _ = self.begun(ATTACKER, (WORDS[0], DONE))
        self.attacker = str(site.field(own, "owner"))

    def begun(
        self, who: dict[str, str], steps: tuple[Any, ...], api: str = "chat", **headers: str
    ) -> tuple[str, bytes]:
        """A stream that the first replica has produced to its end: its id, and what its client was sent."""
        with self.post(who, steps, api, **headers) as answer:
            return answer.headers["relay-stream-id"], answer.read()

    def post(self, who: dict[str, str], steps: tuple[Any, ...], api: str = "chat", **headers: str) -> RawStream:
        model = f"m-{secrets.token_hex(4)}"
        self.site.upstream.on(model, *stream(*steps))
        body = {"model": model, "stream": True, "messages": [], "input": "x"}
        answer = open_stream(self.one.url + PATHS[api], headers={**who, **headers}, body=body)
        assert answer.status in (200, 202), answer.read()
        return answer

    def claims_of(self, name: str) -> list[str]:
        """The keys of the claims that lead to a stream; lists of owners' streams are no hashes."""
        claims = [key for key in self.ask("KEYS", "relay:name:*") if self.ask("TYPE", key) == "hash"]
        return [key for key in claims if self.ask("HGET", key, "stream") == name]

    def write(self, name: str, **fields: Any) -> None:
        self.ask("HSET", f"relay:{{{name}}}:meta", *(part for item in fields.items() for part in item))

    def forget(self, name: str, *fields: str) -> None:
        self.ask("HDEL", f"relay:{{{name}}}:meta", *fields)


@pytest.fixture(scope="module", params=["sealed", "plain"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    relays = Relays()
    with ScriptedUpstream() as upstream, valkey_server(tmp_path_factory.mktemp("store")) as store:
        try:
            yield Place(Site(upstream, relays, store), sealed=request.param == "sealed")
        finally:
            relays.stop_all()


def get(relay: RelayProcess, name: str, after: int = 0, who: dict[str, str] = OWNER) -> RawStream:
    return open_stream(f"{relay.url}/streams/{name}", "GET", {**who, "last-event-id": f"{name}.{after}"})


def status(relay: RelayProcess, name: str, who: dict[str, str] = OWNER) -> RawStream:
    return open_stream(f"{relay.url}/streams/{name}", "GET", {**who, "accept": "application/json"})


def resume(relay: RelayProcess, name: str, api: str = "chat", who: dict[str, str] = OWNER) -> RawStream:
    return open_stream(relay.url + PATHS[api], headers={**who, "last-event-id": f"{name}.0"}, body={})


def told(answer: RawStream) -> str:
    """All that a client is sent, whether it ends well or not."""
    with answer:
        if answer.status != 200 or "event-stream" not in answer.headers.get("content-type", ""):
            return answer.read().decode()
        return b"".join(event.raw for event in answer.events()).decode()


def looks_whole(answer: RawStream) -> bool:
    """Would a client take what it has for the whole answer?"""
    with answer:
        if answer.status != 200:
            return answer.status == 204
        events = answer.events()
        return answer.ended in ("zero-chunk", "length") and not any(b"error" in event.raw for event in events)


class TestWhoMakesHimselfTheOwner:
    @pytest.mark.parametrize("after", [0, 1, 4, 5])
    def test_of_a_stream_that_has_ended(self, place: Place, after: int) -> None:
        name, _ = place.begun(OWNER, (*WORDS, DONE))
        place.write(name, owner=place.attacker)
        for relay in (place.one, place.two):
            said = told(get(relay, name, after, ATTACKER))
            assert (CANARY in said) is (not place.sealed and after < 4)

    def test_by_a_post(self, place: Place) -> None:
        name, _ = place.begun(OWNER, (*WORDS, DONE))
        place.write(name, owner=place.attacker)
        assert (CANARY in told(resume(place.two, name, who=ATTACKER))) is not place.sealed

    def test_of_its_status(self, place: Place) -> None:
        name, _ = place.begun(OWNER, (*WORDS, DONE))
        place.write(name, owner=place.attacker)
        with status(place.two, name, ATTACKER) as answer:
            assert answer.status == (410 if place.sealed else 200)

    def test_between_the_look_and_the_reading(self, place: Place) -> None:
        """The hash is right again when the log is read: it counts for whom the reader was let in."""
        name, _ = place.begun(OWNER, (*(WORDS * 40), DONE))
        victim = place.site.field(name, "owner")
        heard = set()
        for _ in range(20):
            place.write(name, owner=place.attacker)
            answer = get(place.two, name, 0, ATTACKER)
            place.write(name, owner=victim)
            heard.add(CANARY in told(answer))
        assert (True in heard) is not place.sealed

    def test_of_one_that_another_reader_follows(self, place: Place) -> None:
        """What a replica has decrypted for its owner's readers is in its memory."""
        with place.post(OWNER, (*WORDS[:2], Gate("more"), *WORDS[2:], Gate("never"))) as live:
            live.events(2)
            name = live.headers["relay-stream-id"]
            with get(place.two, name) as along:
                along.events(2)
                place.site.upstream.open("more")
                along.events(2)
                place.write(name, owner=place.attacker)
                answer = get(place.two, name, 0, ATTACKER)
                if place.sealed:
                    assert CANARY not in told(answer)
                else:
                    with answer:
                        assert CANARY in str(answer.events(4)[0].raw)

    def test_of_one_that_was_read_a_moment_ago(self, place: Place) -> None:
        """Full pages are kept for readers who come together."""
        name, said = place.begun(OWNER, (*(WORDS * 70), DONE))
        with get(place.two, name) as answer:
            assert answer.read() == said
        place.write(name, owner=place.attacker)
        assert (CANARY in told(get(place.two, name, 0, ATTACKER))) is not place.sealed

    def test_before_its_first_event(self, place: Place) -> None:
        with place.post(OWNER, (": wait\n\n", Gate("first"), *WORDS, Gate("never")), prefer="respond-async") as answer:
            name = answer.headers["relay-stream-id"]
            wait_until(lambda: place.site.field(name, "top") == "0", 20, "the stream")
            place.write(name, owner=place.attacker)
            early = get(place.two, name, 0, ATTACKER)
            place.site.upstream.open("first")
            if place.sealed:
                assert CANARY not in told(early)
            else:
                with early:
                    assert CANARY in str(early.events(1)[0].raw)

    def test_nobody_else_is_hurt_for_long(self, place: Place) -> None:
        name, said = place.begun(OWNER, (*WORDS, DONE))
        victim = place.site.field(name, "owner")
        place.write(name, owner=place.attacker)
        told(get(place.two, name, 0, ATTACKER))
        place.write(name, owner=victim)
        with get(place.two, name) as answer:
            assert answer.read() == said


class TestWhatTheHashSays:
    def cut(self, place: Place, name: str, kept: int) -> None:
        """Only so many events are left in the log, and no end."""
        place.site.put(name, place.site.entries(name)[:kept])

    @pytest.mark.parametrize("how", ["live", "failed", "shortened", "shortened before its end", "to nothing"])
    def test_a_part_does_not_look_like_the_whole(self, place: Place, how: str) -> None:
        if how == "live":
            with place.post(OWNER, (*WORDS[:2], Gate("never"))) as live:
                live.events(2)
                name = live.headers["relay-stream-id"]
                place.write(name, end="completed")
                assert looks_whole(get(place.two, name, 2)) is not place.sealed
                return
        name, _ = place.begun(OWNER, tuple(WORDS) if how == "failed" else (*WORDS, DONE))
        end = place.site.entries(name)[-1:]
        top = {"failed": 4, "to nothing": 0}.get(how, 2)
        if how != "failed":
            self.cut(place, name, max(top, 1))
        if how == "shortened before its end":
            place.site.put(name, [*place.site.entries(name), (f"{top}-1", end[0][1])])
        place.write(name, end="completed", top=top)
        for relay in (place.one, place.two):
            assert looks_whole(get(relay, name, top)) is (not place.sealed)

    def test_nor_when_its_key_comes_again(self, place: Place) -> None:
        key = secrets.token_hex(8)
        model = f"m-{key}"
        place.site.upstream.on(model, *stream(*WORDS, DONE))

        def ask() -> RawStream:
            body = {"model": model, "stream": True, "messages": []}
            return open_stream(place.two.url + PATHS["chat"], headers={**OWNER, "idempotency-key": key}, body=body)

        with ask() as first:
            first.read()
            name = first.headers["relay-stream-id"]
        place.write(name, top=0)
        assert looks_whole(ask()) is not place.sealed

    def test_nor_where_a_replica_is_made_to_end_it(self, place: Place) -> None:
        """A lost producer's: only the event at the very place of the end can say that the answer was whole."""
        name, _ = place.begun(OWNER, (*WORDS, DONE))
        self.cut(place, name, 2)
        place.write(name, top=2, lease=1)
        place.forget(name, "end")
        with get(place.two, name) as answer:
            assert "producer_lost" in told(answer)

    def test_what_was_used(self, place: Place) -> None:
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        last = f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
        name, _ = place.begun(OWNER, (*WORDS, last, DONE))
        place.write(name, usage="1000000/1000000")
        with status(place.two, name) as answer:
            assert answer.json["usage"]["input_tokens"] == (3 if place.sealed else 1000000)

    def test_how_it_ended(self, place: Place) -> None:
        name, _ = place.begun(OWNER, tuple(WORDS))
        place.write(name, end="completed")
        with status(place.two, name) as answer:
            assert answer.json["outcome"] == ("upstream_disconnected" if place.sealed else "completed")

    @pytest.mark.parametrize("api", ["messages", "no API"])
    def test_which_api_it_is_of(self, place: Place, api: str) -> None:
        name, _ = place.begun(OWNER, (*WORDS, DONE))
        place.write(name, api=api)
        asked = resume(place.two, name, "messages") if api in PATHS else get(place.two, name)
        assert (CANARY in told(asked)) is (not place.sealed and api in PATHS)

    def test_which_headers_it_keeps(self, place: Place) -> None:
        name, _ = place.begun(OWNER, (*WORDS, DONE))
        place.write(name, headers="x-request-id:forged")
        with get(place.two, name) as answer:
            assert ("forged" in str(answer.header_list)) is not place.sealed


class TestFurtherNames:
    def response(self, place: Place, text: str) -> tuple[str, str]:
        """A response: its id and its stream's."""
        streamed = FIRST_TOKENS["responses-text"]
        name_of = f"resp_{secrets.token_hex(8)}"
        created = {"type": "response.created", "response": {"id": name_of, "instructions": text}}
        first = f"event: response.created\ndata: {json.dumps(created)}\n\n"
        steps = (first, *streamed.before[1:], streamed.token, *streamed.rest)
        return name_of, place.begun(OWNER, steps, "responses")[0]

    def retrieve(self, place: Place, response: str, who: dict[str, str] = OWNER) -> str:
        return told(open_stream(f"{place.two.url}/v1/responses/{response}?stream=true", "GET", who))

    def test_a_response_leads_to_no_other(self, place: Place) -> None:
        """Not to an older one of the same owner's, either: two answers in one."""
        mine, _ = self.response(place, "mine")
        _, older = self.response(place, CANARY)
        (key,) = [key for key in place.ask("KEYS", "relay:name:*") if mine in key]
        assert "mine" in self.retrieve(place, mine)
        place.ask("HSET", key, "stream", older)
        assert (CANARY in self.retrieve(place, mine)) is not place.sealed

    def test_nor_does_one_that_is_made_up(self, place: Place) -> None:
        _, theirs = self.response(place, CANARY)
        place.ask("HSET", f"relay:name:{{response:{place.attacker}:resp_x}}", "stream", theirs)
        place.write(theirs, owner=place.attacker)
        assert (CANARY in self.retrieve(place, "resp_x", ATTACKER)) is not place.sealed

    @pytest.mark.parametrize("led", [False, True], ids=["by itself", "with a stream"])
    def test_nor_is_one_his_for_being_ambiguous(self, place: Place, led: bool) -> None:
        """A response that two streams were given is its owner's, whichever it is: upstream a key may go on from it."""
        name, theirs = self.response(place, CANARY)
        key = f"relay:name:{{response:{place.attacker}:{name}}}"
        place.ask("HSET", key, "ambiguous", "1", *(("stream", theirs) if led else ()))
        assert ("response_id_ambiguous" in self.retrieve(place, name, ATTACKER)) is (led and not place.sealed)

    def test_an_idempotency_key_leads_to_no_other_answer(self, place: Place) -> None:
        model = f"m-{secrets.token_hex(4)}"
        place.site.upstream.on(model, *stream(WORDS[0], DONE))

        def ask() -> RawStream:
            body = {"model": model, "stream": True, "messages": []}
            return open_stream(place.two.url + PATHS["chat"], headers={**OWNER, "idempotency-key": model}, body=body)

        with ask() as first:
            first.read()
            name = first.headers["relay-stream-id"]
        other, _ = place.begun(OWNER, (chat({"content": "another question's"}), DONE))
        (key,) = place.claims_of(name)
        place.ask("HSET", key, "stream", other)
        with ask() as again:
            assert b"another question's" not in again.read()
            assert again.status == 422

    def test_nor_to_the_answer_of_another_key(self, place: Place) -> None:
        """Of the same request, with which both claims are bound to their streams."""
        model = f"m-{secrets.token_hex(4)}"
        body = {"model": model, "stream": True, "messages": []}
        keys: list[str] = []

        def ask(key: str) -> RawStream:
            return open_stream(place.two.url + PATHS["chat"], headers={**OWNER, "idempotency-key": key}, body=body)

        for said in ("the first", "the second"):
            place.site.upstream.on(model, *stream(chat({"content": said}), DONE))
            with ask(said) as answer:
                assert said.encode() in answer.read()
                name = answer.headers["relay-stream-id"]
            keys += place.claims_of(name)
        first, second = keys
        for field in ("stream", "digest"):
            place.ask("HSET", second, field, place.ask("HGET", first, field))
        with ask("the second") as again:
            assert b"the first" not in again.read()
            assert again.status == 422


def ticket(secret: bytes, name: str) -> str:
    expiry = str(int(time.time()) + 600)
    parts = (b"ticket", name.encode(), expiry.encode(), b"rs")
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return f"{expiry}.rs.{hmac.digest(secret, bytes(2) + message, 'sha256').hex()}"


class TestTheSecret:
    @pytest.fixture
    def site(self, upstream: ScriptedUpstream, relays: Relays, tmp_path: Path) -> Iterator[Site]:
        with valkey_server(tmp_path) as store:
            yield Site(upstream, relays, store)

    @staticmethod
    def raw(site: Site, key: str) -> bytes:
        source = "return (redis.call('GET', KEYS[1]) or ''):gsub('.', function(c) return ('%02x'):format(c:byte()) end)"
        return bytes.fromhex(str(site.store.servers[0].command("EVAL", source, 1, key)))

    @staticmethod
    def put(site: Site, key: str, value: bytes) -> None:
        source = "local v = ARGV[1]:gsub('..', function(h) return string.char(tonumber(h, 16)) end) "
        site.store.servers[0].command("EVAL", source + "redis.call('SET', KEYS[1], v)", 1, key, value.hex())

    @pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])
    def test_who_reads_the_store_forges_no_ticket(self, site: Site, sealed: bool) -> None:
        relay = site.relay(OLD if sealed else None)
        name, said = site.said(relay)
        keys = list(site.store.servers[0].command("KEYS", "relay:secret*"))
        assert keys == (["relay:secret:sealed"] if sealed else ["relay:secret"])
        held = self.raw(site, keys[0])
        with open_stream(f"{relay.url}/streams/{name}?ticket={ticket(held, name)}", "GET", {}) as answer:
            assert (answer.status == 200 and answer.read() == said) is not sealed

    @pytest.mark.parametrize("key", ["relay:secret", "relay:secret:sealed"])
    def test_nobody_else_chooses_it_for_a_replica_that_starts_alone(self, site: Site, key: str) -> None:
        chosen = b"\0" * 8 + b"c" * 24
        self.put(site, key, chosen)
        relay = site.relay()
        name, _ = site.said(relay)
        with open_stream(f"{relay.url}/streams/{name}?ticket={ticket(chosen, name)}", "GET", {}) as answer:
            assert answer.status == 403

    @pytest.mark.parametrize("key", ["relay:secret", "relay:secret:sealed"])
    def test_nobody_else_chooses_it(self, site: Site, key: str) -> None:
        """Not for replicas that run, nor for one that starts: the older a secret is, the more it counts."""
        chosen = b"\0" * 8 + b"c" * 24
        one = site.relay()
        name, said = site.said(one)
        for gone in ("relay:secret", "relay:secret:sealed"):
            site.store.servers[0].command("DEL", gone)
        self.put(site, key, chosen)
        two = site.relay()
        for relay in (one, two):
            with open_stream(f"{relay.url}/streams/{name}?ticket={ticket(chosen, name)}", "GET", {}) as answer:
                assert answer.status == 403

        def found() -> bool:
            with get(two, name) as answer:
                return answer.status == 200 and answer.read() == said

        wait_until(found, 20, "the secret that the first replica has")

    def test_it_is_kept_where_encryption_is_switched_on_and_keys_change(self, site: Site) -> None:
        before = site.relay(None)
        name, said = site.said(before)
        old = self.raw(site, "relay:secret")
        for keys in (f"none,{OLD}", f"{OLD},none", f"{OLD},none"):
            before.stop()
            before = site.relay(keys)
            with get(before, name) as answer:
                assert answer.read() == said
        only = site.relay()
        wait_until(lambda: self.raw(site, "relay:secret") == b"", 20, "the plain one to be gone")
        assert old not in self.raw(site, "relay:secret:sealed")
        sealed, words = site.said(only)
        for running in (before, only):  # one that writes under the old key would go on sealing under it
            running.stop()
        for keys in (f"{OLD},{NEW}", f"{NEW},{OLD}"):
            last = site.relay(keys)
            with get(last, sealed) as answer:
                assert answer.read() == words
            if keys.startswith(OLD):
                last.stop()
        mark = b"\x01" + bytes.fromhex(Cipher(NEW).names[0])
        wait_until(lambda: self.raw(site, "relay:secret:sealed").startswith(mark), 20, "the new key")
        with get(site.relay(NEW), sealed) as answer:  # its owner is known, and that its entries are under another key
            assert answer.status == 503


def test_a_stream_of_version_0_1_can_still_be_read(place: Place) -> None:
    """Its entries are bound to the stream alone, under a key with another name."""
    if not place.sealed:
        pytest.skip("nothing is encrypted there")
    import base64

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    name, said = place.begun(OWNER, (*WORDS, DONE))
    frames = said.replace(b"\n\n", b"\n\n\0").split(b"\0")
    server_key = base64.b64decode(OLD)
    old = AESGCM(HKDF(SHA256(), 32, None, b"relay log " + name.encode()).derive(server_key))
    key_name = HKDF(SHA256(), 32, None, b"relay key name").derive(server_key)[:4]
    entries = []
    for entry, pair in place.site.entries(name):
        ((field, digits),) = pair.items()
        content = bytes.fromhex(digits)
        n, mark = map(int, entry.split("-"))
        nonce = content[5:13] + (2 * n + mark).to_bytes(4, "big")
        text = b"completed" if mark else frames[n - 1]
        again = b"\x01" + key_name + content[5:13] + old.encrypt(nonce, text, field.encode())
        entries.append((entry, {field: again.hex()}))
    place.site.put(name, entries)
    place.write(name, usage="5/6")
    with get(place.two, name) as answer:
        assert answer.read() == said
    with get(place.two, name, 5) as answer:
        assert answer.status == 204
    with status(place.two, name) as answer:
        assert answer.json["usage"] == {"input_tokens": 5, "output_tokens": 6}
