"""`relay streams`: what an operator is told is what happened, whatever store it is, and nothing of an answer but by
`tail`."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import redis
import yaml

from relay.cli import main
from relay.inspection import view
from tests.auth.keyed import ENV, bearer, issued
from tests.auth.keyed import config as keyed
from tests.conftest import Relays
from tests.support.cutting_http import CuttingProxy, Fate
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import Store, valkey_cluster, valkey_sentinel, valkey_server
from tests.support.streams import PATHS, chat, data
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

TOKEN = chat({"content": "canary-of-an-answer"})
END = (chat({}, "stop"), data("[DONE]"))
WAIT = 15.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path / "store") as server:
        yield server


def plain(upstream: ScriptedUpstream, store: Store | None, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "upstreams": [{"name": "up", "base_url": upstream.url}],
        "log": {"format": "json"},
        "drain": {"timeout": "0s"},
        **more,
    }
    return settings if store is None else settings | {"store": {"url": store.url}}


class Operator:
    """Somebody with the settings of a relay, and without its port."""

    def __init__(self, folder: Path, relay: RelayProcess, env: dict[str, str] | None = None) -> None:
        self._file = folder / "operator.yaml"
        self._file.write_text(yaml.safe_dump({**relay.config, "bind": "127.0.0.1:1", "metrics_bind": "127.0.0.1:1"}))
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")} | (env or {})

    def start(self, *words: str) -> subprocess.Popen[str]:
        action, *rest = words
        command = [sys.executable, "-m", "relay", "streams", action, "--config", str(self._file), *rest]
        return subprocess.Popen(command, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *words: str, status: int = 0) -> str:
        """What the command says, or complains of. In this process: a start of Python is a second of a busy machine."""
        action, *rest = words
        said, complained = io.StringIO(), io.StringIO()
        with patch.dict(os.environ, self._env, clear=True), redirect_stdout(said), redirect_stderr(complained):
            ended = main(["streams", action, "--config", str(self._file), *rest])
        assert ended == status, (said.getvalue(), complained.getvalue())
        return complained.getvalue() if status else said.getvalue()

    def ask(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*words, "--json").splitlines()]

    def show(self, stream: str) -> dict[str, Any]:
        (shown,) = self.ask("show", stream)
        return shown

    def told(self, stream: str) -> list[str]:
        return [line["what"] for line in self.show(stream)["story"]]


def ask(relay: RelayProcess, headers: dict[str, str] | None = None, model: str = "m") -> RawStream:
    body = {"model": model, "stream": True, "messages": []}
    return open_stream(relay.url + PATHS["chat"], headers=headers, body=body)


def name_of(answer: RawStream) -> str:
    return answer.headers["relay-stream-id"]


@contextmanager
def embedded(_: Path) -> Iterator[None]:
    yield None


@pytest.mark.parametrize(
    "form",
    [valkey_server, valkey_sentinel, valkey_cluster, embedded],
    ids=["valkey", "sentinel", "cluster", "embedded"],
)
def test_every_command_on_every_kind_of_store(
    form: Callable[[Path], AbstractContextManager[Store | None]],
    tmp_path: Path,
    upstream: ScriptedUpstream,
    relays: Relays,
) -> None:
    upstream.on("m", *stream(TOKEN, TOKEN, Gate("never")))
    upstream.on("whole", *stream(TOKEN, *END))
    with form(tmp_path / "store") as store:
        relay = relays.start(plain(upstream, store, streams={"lease": "1s"}))
        operator = Operator(tmp_path, relay)
        with ask(relay, {"authorization": "Bearer sk-1"}) as answer, ask(relay, model="whole") as whole:
            live = name_of(answer)
            answer.events(2)
            whole.read()
            listed = {line["id"]: line for line in operator.ask("ls")}
            assert listed.keys() == {live, name_of(whole)}
            assert (listed[live]["state"], listed[name_of(whole)]["state"]) == ("live", "completed")
            told = listed[live]
            assert (told["model"], told["upstream"], told["api"], told["events"]) == ("m", "up", "chat", 2)
            assert list(told["readers"].values()) == [1]
            (top,) = operator.ask("top", "--count", "1")
            assert (top["streams"], [line["id"] for line in top["busiest"]]) == (1, [live])
            assert operator.told(live) == ["begun"]
            tail = operator.start("tail", live)
            assert operator.run("stop", live) == f"{live}  ended: stopped\n"
            answer.read()
            said, complained = tail.communicate(timeout=30)
            assert said.count("canary-of-an-answer") == 2
            assert "ended by the relay: stopped" in complained
        stopping = ["begun", "stop asked for", "ended"]
        wait_until(lambda: operator.told(live) == stopping, WAIT, "the stop to be told")
        # When its end is older than a lease it is no stream of its replica's any more.
        wait_until(
            lambda: (
                {line["id"]: line["state"] for line in operator.ask("ls", "--state", "ended")}
                == {live: "stopped", name_of(whole): "completed"}
            ),
            WAIT,
            "both to be among those that have ended",
        )
        assert operator.ask("ls", "--state", "live") == []
        relay.stop()


def test_a_scripted_incident(upstream: ScriptedUpstream, store: Store, relays: Relays, tmp_path: Path) -> None:
    """A user's stream is cut by a proxy, resumed, its producer killed; another is stopped by an operator. The story
    that `show` tells, and that which grep finds in the logs, are what happened."""
    upstream.on("m", *stream(TOKEN, TOKEN, Gate("on"), TOKEN, Gate("never")))
    key, entry = issued("team-a", name="ci")
    settings = keyed(
        upstream,
        entry,
        store={"url": store.url},
        log={"format": "json"},
        streams={"lease": "1s", "heartbeat": "200ms"},
    )
    one, two = relays.start(settings, ENV), relays.start(settings, ENV)
    operator = Operator(tmp_path, two, ENV)
    with CuttingProxy(one.url, fate=lambda _: Fate(cut_at=300, how="rst")) as proxy:
        body = {"model": "m", "stream": True, "messages": []}
        asked = {**bearer(key), "x-request-id": "req-of-the-user"}
        with open_stream(proxy.url + PATHS["chat"], headers=asked, body=body) as cut:
            user_s = name_of(cut)
            last = cut.events(1)[-1].id or ""
            with suppress(OSError):
                cut.read()
    wait_until(lambda: "reader gone" in operator.told(user_s), WAIT, "the cut to be told")
    resumed = {**bearer(key), "last-event-id": last, "x-request-id": "req-again"}
    with open_stream(f"{two.url}/streams/{user_s}", "GET", resumed) as again:
        again.events(1)
        upstream.open("on")
        again.events(1)
        wait_until(lambda: "reader came" in operator.told(user_s), WAIT, "the resume to be told")
        (replica,) = {line["replica"] for line in operator.ask("ls", "--state", "live")}
        assert {name: number for name, number in operator.show(user_s)["readers"].items() if name != replica} != {}
        one.kill()
        error, _ = again.events()
        assert error.json["error"]["code"] == "producer_lost"
    with ask(two, bearer(key)) as other:
        stopped = name_of(other)
        other.events(1)
        operator.run("stop", stopped)
        other.read()
    whole = ["begun", "ended", "ended for its producer", "reader came", "reader gone", "reader gone"]
    wait_until(lambda: sorted(operator.told(user_s)) == whole, WAIT, "all of it to be told")

    shown = operator.show(user_s)
    assert (shown["owner"], shown["key"], shown["request_id"]) == ("team-a", "ci", "req-of-the-user")
    assert shown["state"] == "producer_lost"
    begun, gone, came, *rest = shown["story"]
    assert (begun["what"], begun["request"]) == ("begun", "req-of-the-user")
    assert (gone["what"], gone["why"], gone["request"]) == ("reader gone", "left", "req-of-the-user")
    assert (came["what"], came["after"], came["request"]) == ("reader came", 1, "req-again")
    assert gone["on"] == begun["on"] != came["on"]
    ends = {line["what"]: line for line in rest}
    assert ends.keys() == {"ended", "ended for its producer", "reader gone"}
    assert (ends["ended"]["outcome"], ends["ended"]["events"]) == ("producer_lost", 3)
    assert ends["ended for its producer"]["producer"] == begun["on"]
    assert (ends["reader gone"]["position"], ends["reader gone"]["why"]) == (3, "finished")
    stopping = ["begun", "stop asked for", "ended"]
    wait_until(lambda: operator.told(stopped) == stopping, WAIT, "the stop to be told")
    assert operator.show(stopped)["story"][1]["by"] == "operator"

    def logged() -> list[dict[str, Any]]:
        logs = [json.loads(line) for relay in (one, two) for line in relay.log().splitlines() if user_s in line]
        return [line for line in sorted(logs, key=lambda line: line["time"]) if "stream" in line]

    wait_until(lambda: len(logged()) >= 4, WAIT, "its lines in the logs")
    grep = logged()
    assert [line["message"] for line in grep] == ["stream begun", "reader gone", "stream resumed", "stream ended"]
    assert grep[1]["why"] == "left"
    assert (grep[2]["after"], grep[2]["owner"]) == (1, "team-a")
    assert (grep[3]["cause"], grep[3]["owner"]) == ("producer_lost", "team-a")

    def stops() -> list[str]:
        return [line for line in two.log().splitlines() if stopped in line and "stop asked" in line]

    wait_until(stops, WAIT, "the stop in the log")
    assert [json.loads(line)["by"] for line in stops()] == ["operator"]
    assert key not in one.log() + two.log() + operator.run("show", user_s)
    assert "canary" not in operator.run("ls") + operator.run("show", user_s) + operator.run("show", stopped)


def test_a_stop_by_a_client_is_told_with_its_key(
    upstream: ScriptedUpstream, store: Store, relays: Relays, tmp_path: Path
) -> None:
    upstream.on("m", *stream(TOKEN, Gate("never")))
    key, entry = issued("team-a", name="ci")
    relay = relays.start(keyed(upstream, entry, store={"url": store.url}), ENV)
    operator = Operator(tmp_path, relay, ENV)
    with ask(relay, bearer(key)) as answer:
        mine = name_of(answer)
        with open_stream(f"{relay.url}/streams/{mine}", "DELETE", bearer(key)) as done:
            assert done.status == 204
    with ask(relay, bearer(key) | {"relay-ticket": "read+stop"}) as answer:
        by_ticket = name_of(answer)
        with open_stream(relay.url + answer.headers["relay-stream-url"], "DELETE") as done:
            assert done.status == 204

    def said(stream: str) -> dict[str, Any]:
        return next((line for line in operator.show(stream)["story"] if line["what"] == "stop asked for"), {})

    wait_until(lambda: said(by_ticket), WAIT, "the stop to be told")
    assert (said(mine)["by"], said(mine)["key"], said(mine)["owner"]) == ("credential", "ci", "team-a")
    assert (said(by_ticket)["by"], "owner" in said(by_ticket)) == ("ticket", False)


def test_a_list_is_narrowed(upstream: ScriptedUpstream, store: Store, relays: Relays, tmp_path: Path) -> None:
    for model in ("gpt-4o", "gpt-5", "claude"):
        upstream.on(model, *stream(TOKEN, *END))
    upstream.on("slow", *stream(TOKEN, Gate("never")))
    keys = {owner: issued(owner) for owner in ("team-a", "team-b")}
    settings = keyed(upstream, *(entry for _, entry in keys.values()), store={"url": store.url})
    relay = relays.start(settings, ENV)
    operator = Operator(tmp_path, relay, ENV)
    ids = {}
    for owner, model in (("team-a", "gpt-4o"), ("team-a", "claude"), ("team-b", "gpt-5")):
        with ask(relay, bearer(keys[owner][0]), model) as answer:
            answer.read()
            ids[owner, model] = name_of(answer)
    with ask(relay, bearer(keys["team-b"][0]), "slow") as live:
        live.events(1)

        def found(*words: str) -> list[str]:
            return [line["model"] for line in operator.ask("ls", *words)]

        assert found() == ["slow", "gpt-5", "claude", "gpt-4o"]
        assert found("--owner", "team-a") == ["claude", "gpt-4o"]
        assert found("--model", "gpt-*") == ["gpt-5", "gpt-4o"]
        assert found("--to", "other") == []
        assert found("--state", "live") == ["slow"]
        assert found("--state", "completed", "--limit", "2") == ["gpt-5", "claude"]
        assert found("--state", "ended", "--since", "1ms") == []
        assert found("--state", "failed") == []
        finished = ids["team-a", "claude"]
        for given in (f"/streams/{finished}", f"{relay.url}/streams/{finished}?ticket=x", f"{finished}.1"):
            assert operator.run("show", given).startswith(finished)
        table = operator.run("ls", "--owner", "team-b").splitlines()
        assert table[0].split()[:4] == ["STREAM", "STATE", "OWNER", "UPSTREAM"]
        assert [line.split()[:5] for line in table[1:]] == [
            [name_of(live), "live", "team-b", "up", "slow"],
            [ids["team-b", "gpt-5"], "completed", "team-b", "up", "gpt-5"],
        ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ls", "--state", "faild"), "Did you mean failed?"),
        (("ls", "--state", "nope"), "there is no state 'nope'. The states: all, live,"),
        (("ls", "--limit", "0"), "'0' is no whole number above 0"),
        (("top", "--count", "-1"), "'-1' is no whole number above 0"),
        (("show", "/streams/x"), "is no stream's id"),
    ],
)
def test_what_cannot_be_meant_is_told(words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["streams", *words])
    except SystemExit as end:
        status = int(str(end.code))
    assert status > 0
    assert told in capsys.readouterr().err


def test_top_refreshes_and_ends_at_an_interrupt(
    upstream: ScriptedUpstream, store: Store, relays: Relays, tmp_path: Path
) -> None:
    upstream.on("m", *stream(TOKEN, Gate("on"), *[TOKEN] * 50, Gate("never")))
    relay = relays.start(plain(upstream, store))
    operator = Operator(tmp_path, relay)
    with ask(relay) as answer:
        answer.events(1)
        top = operator.start("top", "--interval", "100ms", "--json")
        assert top.stdout is not None
        first = json.loads(top.stdout.readline())
        assert first["busiest"][0]["events"] == 1
        upstream.open("on")
        answer.events(50)
        rates: list[dict[str, Any]] = []
        while not rates or rates[-1]["busiest"][0]["events"] < 51:
            rates.append(json.loads(top.stdout.readline()))
        assert max(look["events_per_second"] for look in rates) > 10
        top.send_signal(signal.SIGINT)
        assert (top.wait(15), top.communicate()[1]) == (0, "")


def test_an_encrypted_answer_is_shown_with_the_key_alone(
    upstream: ScriptedUpstream, store: Store, relays: Relays, tmp_path: Path
) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    env = {"KEYS": base64.b64encode(os.urandom(32)).decode()}
    relay = relays.start({**plain(upstream, None), "store": {"url": store.url, "encryption_env": "KEYS"}}, env)
    with ask(relay) as answer:
        answer.read()
        name = name_of(answer)
    assert "canary-of-an-answer" in Operator(tmp_path, relay, env).run("tail", name)
    other = Operator(tmp_path, relay, {"KEYS": base64.b64encode(os.urandom(32)).decode()})
    refused = other.run("tail", name, status=1)
    assert "is encrypted under key" in refused
    assert other.told(name) == ["begun", "ended"]
    relay.config["store"].pop("encryption_env")
    assert "store.encryption_env" in Operator(tmp_path, relay).run("tail", name, status=1)


def test_a_tail_begins_where_it_is_told_to(
    upstream: ScriptedUpstream, store: Store, relays: Relays, tmp_path: Path
) -> None:
    upstream.on("m", *stream(*(chat({"content": f"word-{n}"}) for n in range(4)), *END))
    relay = relays.start(plain(upstream, store))
    operator = Operator(tmp_path, relay)
    with ask(relay) as answer:
        answer.read()
        name = name_of(answer)
    events = operator.ask("tail", f"{name}.2")
    assert [event["id"] for event in events] == [f"{name}.{n}" for n in range(3, 7)]
    assert [re.findall("word-.", event["data"]) for event in events] == [["word-2"], ["word-3"], [], []]
    redis.Redis.from_url(store.url).delete(f"relay:{{{name}}}:log")
    assert "not in the store any more" in operator.run("tail", name, status=1)


def test_nothing_that_a_client_or_the_store_says_reaches_the_terminal_as_a_command(
    upstream: ScriptedUpstream, store: Store, relays: Relays, tmp_path: Path
) -> None:
    wicked = "m\x1b]0;canary\x07\x9b2J"
    upstream.on(wicked, *stream('data: {"choices":[{"delta":{"content":"\x9b2J"}}]}\n\n', *END))
    relay = relays.start(plain(upstream, store))
    operator = Operator(tmp_path, relay)
    with ask(relay, model=wicked) as answer:
        answer.read()
        name = name_of(answer)
    client = redis.Redis.from_url(store.url)
    client.hset(f"relay:{{{name}}}:meta", "story", '{"at":1,"what":"\\u001b[2J","on\\u001b":"\\u001b"}\n')
    client.hset(f"relay:{{{name}}}:meta", "replica", "\x1b[2J-1")
    for words in (["ls"], ["show", name], ["tail", name]):
        said = operator.run(*words)
        assert not set(said) & {"\x1b", "\x07", "\x9b"}, words
        assert "2J" in said


def test_what_cannot_be_done_is_said_with_what_to_do(
    upstream: ScriptedUpstream, store: Store, relays: Relays, tmp_path: Path
) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    relay = relays.start(plain(upstream, store))
    operator = Operator(tmp_path, relay)
    with ask(relay) as answer:
        answer.read()
        name = name_of(answer)
    assert operator.run("stop", name) == f"{name}  had ended: completed\n"
    unknown = f"st_{'a' * 22}"
    for words, wanted in (
        (("show", "nonsense"), "use the value of Relay-Stream-Id"),
        (("show", f"{unknown}_u"), "without a log"),
        (("show", unknown), "streams.tombstone"),
        (("stop", unknown), "streams.tombstone"),
        (("tail", f"{unknown}.3"), "streams.tombstone"),
        (("ls", "--since", "soon"), "--since"),
        (("top", "--interval", "soon"), "--interval"),
    ):
        refused = operator.run(*words, status=1)
        assert wanted in refused, words
        assert "Traceback" not in refused
    with redirect_stdout(io.StringIO()) as said:  # who only looks needs no upstream
        assert main(["streams", "ls", "--store", store.url]) == 0
    assert name in said.getvalue()
    store.servers[0].kill()
    assert "--config" in operator.run("ls", status=1)


def test_a_stop_that_nobody_takes_is_said(
    upstream: ScriptedUpstream, store: Store, relays: Relays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "_STOP_TIMEOUT", 0.2)
    upstream.on("m", *stream(TOKEN, Gate("never")))
    relay = relays.start(plain(upstream, store, streams={"lease": "60s"}))
    operator = Operator(tmp_path, relay)
    with ask(relay) as answer:
        name = name_of(answer)
        answer.events(1)
        relay.signal(signal.SIGSTOP)
        try:
            assert "did not answer" in operator.run("stop", name, status=1)
        finally:
            relay.signal(signal.SIGCONT)
        answer.read()  # it hears of it when it goes on
