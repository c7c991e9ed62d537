"""One line per stream at its end, and nothing of what people wrote in any line, metric, traceback or key name."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay import logs
from relay.config import LogSettings, SettingsError, load
from tests.conftest import Relays
from tests.observe.scraped import scrape, scrape_text, until
from tests.support.processes import RelayProcess
from tests.support.scripted import Cut, Gate, Head, Reset, ScriptedUpstream, Send, Step, json_response, stream
from tests.support.sseclient import open_stream
from tests.support.stores import Store, valkey_server
from tests.support.streams import FIRST_TOKENS, PATHS, chat, data
from tests.support.waiting import wait_until

PROMPT, COMPLETION, KEY, RELAY_KEY = (f"canary-{word}-7f3a9c" for word in ("prompt", "completion", "key", "relaykey"))
AUTH = {"authorization": f"Bearer {KEY}"}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TOKEN = chat({"content": COMPLETION})
END = (chat({}, "stop"), data("[DONE]"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path) as server:
        yield server


def config(upstream: ScriptedUpstream, form: str = "json", **more: Any) -> dict[str, Any]:
    streams = {"heartbeat": "100ms", "lease": "1s", **more.pop("streams", {})}
    log = {"level": "debug", "format": form}
    return {"upstreams": [{"name": "up", "base_url": upstream.url}], "streams": streams, "log": log, **more}


def ends(relay: RelayProcess) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in relay.log().splitlines()]
    return [line for line in lines if line["message"] == "stream ended"]


def told(relay: RelayProcess, message: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in relay.log().splitlines()]
    return [line for line in lines if line["message"] == message]


def until_ended(relay: RelayProcess, n: int = 1) -> list[dict[str, Any]]:
    wait_until(lambda: len(ends(relay)) >= n, 15, f"{n} lines")
    return ends(relay)


class TestStory:
    @pytest.mark.parametrize("case", ["chat-content", "messages-text", "responses-text"])
    def test_a_stream_s_line_tells_its_story(
        self, upstream: ScriptedUpstream, relays: Relays, store: Store, case: str
    ) -> None:
        streamed = FIRST_TOKENS[case]
        upstream.on("m", *stream(*streamed.before, streamed.token, Gate("end"), *streamed.rest))
        shared = config(upstream, store={"url": store.url})
        one, two = relays.start(shared), relays.start(shared)
        headers = {**AUTH, "x-request-id": "mine-1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        body = {"model": "m", "stream": True, "messages": []}
        with open_stream(one.url + streamed.path, headers=headers, body=body) as answer:
            stream_id = answer.headers["relay-stream-id"]
            answer.take(len(streamed.before))
        url = f"/streams/{stream_id}"
        with open_stream(one.url + url, "GET", AUTH) as here, open_stream(two.url + url, "GET", AUTH) as there:
            here.events(1)
            there.events(1)
            visits = ("HGET", f"relay:{{{stream_id}}}:meta", "visits")
            wait_until(lambda: str(store.servers[0].command(*visits)) in ("1", "b'1'"), 10, "the visit to be counted")
            upstream.open("end")
            here.events()
            there.events()
        (line,) = until_ended(one)
        owner = line.pop("owner")
        assert len(owner) == 12
        times = {name: line.pop(name) for name in ("first_token_seconds", "duration_seconds", "time")}
        assert 0 < times["first_token_seconds"] <= times["duration_seconds"]
        assert line == {
            "level": "info",
            "logger": "relay.access",
            "message": "stream ended",
            "stream": stream_id,
            "api": streamed.api,
            "upstream": "up",
            "model": "m",
            "outcome": "completed",
            "events": len(streamed.events),
            "resumable": True,
            "input_tokens": 11,
            "output_tokens": 7,
            "readers": 3,
            "resumes": 2,
            "request_id": "mine-1",
            "trace_id": TRACE,
        }
        assert ends(two) == []
        for relay in (one, two):
            wait_until(lambda at=relay: "stream resumed" in at.log(), 10, "the line")  # type: ignore[misc]
            resumed = [json.loads(line) for line in relay.log().splitlines() if "stream resumed" in line]
            assert [(r["stream"], r["after"], r["result"]) for r in resumed] == [(stream_id, 0, "live")]
        (call,) = upstream.calls
        assert call.header("x-request-id") == "mine-1"
        assert call.header("traceparent") == headers["traceparent"]

    def test_a_failure_names_its_cause_and_text_holds_the_same(
        self, upstream: ScriptedUpstream, relays: Relays
    ) -> None:
        upstream.on('a b="c"', *stream(TOKEN, Cut()))
        relay = relays.start(config(upstream, "text"))
        body = {"model": 'a b="c"', "stream": True, "messages": []}
        with open_stream(relay.url + PATHS["chat"], headers=AUTH, body=body) as answer:
            answer.read()
        wait_until(lambda: "stream ended" in relay.log(), 10, "the line")
        (line,) = [line for line in relay.log().splitlines() if "stream ended" in line]
        assert " WARNING relay.access stream ended stream=" + answer.headers["relay-stream-id"] in line
        assert ' model="a b=\\"c\\"" outcome=failed cause=upstream_disconnected events=1 ' in line
        (call,) = upstream.calls
        assert f" request_id={call.header('x-request-id')}" in line  # the relay's own went upstream

    def test_a_lost_producer_s_stream_has_its_line_where_it_was_ended(
        self, upstream: ScriptedUpstream, relays: Relays, store: Store
    ) -> None:
        upstream.on("m", *stream(TOKEN, Gate("never")))
        shared = config(upstream, store={"url": store.url})
        one, two = relays.start(shared), relays.start(shared)
        body = {"model": "m", "stream": True, "messages": []}
        with open_stream(one.url + PATHS["chat"], headers=AUTH, body=body) as answer:
            answer.events(1)
            one.kill()
        (line,) = until_ended(two)
        assert (line["stream"], line["cause"]) == (answer.headers["relay-stream-id"], "producer_lost")
        assert (line["upstream"], line["model"], line["events"], line["level"]) == ("up", "*", 1, "warning")
        (begun,) = told(one, "stream begun")
        assert line["owner"] == begun["owner"]
        assert line["producer"]


def _scenes() -> dict[str, tuple[Step, ...]]:
    words = f"{COMPLETION} and {PROMPT}"
    return {
        "whole": stream(TOKEN, *END),
        "cut": stream(TOKEN, Cut()),
        "reset": stream(TOKEN, Reset()),
        "error": stream(TOKEN, data({"error": {"message": words}})),
        "no-json": stream(TOKEN, data(f"{{{words}")),
        "no-object": stream(TOKEN, data(json.dumps([words]))),
        "no-utf-8": stream(TOKEN, b'data: {"' + words.encode() + b'\xff"}\n\n'),
        "refused": json_response(400, {"error": {"message": words}}),
        "json-200": json_response(200, {"choices": [words]}),
        "redirect": (Head(302, {"location": f"http://127.0.0.1:1/{COMPLETION}"}, framing="length"),),
        "no-http": (Head(200, {"content-type": f"text/event-stream\r\n{words} \x01: x"}), Send(TOKEN.encode())),
        "bad-header": (Head(200, {COMPLETION: "a\x00b"}), Send(TOKEN.encode())),
        "slow": stream(TOKEN, Gate("never")),
    }


class TestCanaries:
    @pytest.mark.parametrize("form", ["text", "json"])
    def test_nothing_of_prompt_completion_or_credentials_is_found_anywhere(
        self, upstream: ScriptedUpstream, relays: Relays, store: Store, form: str
    ) -> None:
        streams, drain = {"upstream_idle_timeout": "1s"}, {"timeout": "60s"}
        settings = config(upstream, form, store={"url": store.url}, streams=streams, drain=drain)
        settings["upstreams"].insert(
            0, {"name": "keyed", "base_url": upstream.url, "models": ["keyed-*"], "api_key_env": "UP_KEY"}
        )
        one, two = (relays.start(settings, {"UP_KEY": RELAY_KEY}) for _ in range(2))
        for name, steps in _scenes().items():
            upstream.on(name, *steps)
            upstream.on(f"keyed-{name}", *steps)
        paths: dict[str, dict[str, Any]] = {
            PATHS["chat"]: {"messages": [{"role": "user", "content": PROMPT}]},
            PATHS["messages"]: {"messages": [{"role": "user", "content": PROMPT}], "system": PROMPT},
            PATHS["responses"]: {"input": PROMPT},
        }
        seen: set[str] = set()
        for number, name in enumerate(name for name in _scenes() for _ in range(2)):
            for path, prompt in paths.items():
                model = name if number % 2 else f"keyed-{name}"
                by_key = {"x-api-key": KEY} if path == PATHS["messages"] else AUTH
                headers = {**by_key, "idempotency-key": f"{KEY}-{number}-{path}", "x-session-id": KEY}
                body = {"model": model, "stream": name != "json-200", **prompt}
                with open_stream(one.url + path, headers=headers, body=body) as answer:
                    seen.add(answer.read().decode(errors="replace"))
                stream_id = answer.headers.get("relay-stream-id")
                if stream_id is not None:
                    with open_stream(f"{two.url}/streams/{stream_id}", "GET", by_key) as replay:
                        replay.read()
        for wrong in ({"model": PROMPT}, [PROMPT], {"model": "whole", "stream": True, "messages": PROMPT}):
            with open_stream(one.url + PATHS["chat"], headers=AUTH, body=wrong) as answer:
                answer.read()
        with open_stream(f"{one.url}/streams/{PROMPT}?key={KEY}", "GET", AUTH) as answer:
            answer.read()
        store.servers[0].kill()
        with open_stream(one.url + PATHS["chat"], headers=AUTH, body={"model": "whole", "stream": True}) as answer:
            answer.read()
        store.servers[0].start()
        until(one, lambda s: s.value("relay_store_up") == 1, "the store")
        with open_stream(one.url + PATHS["chat"], headers=AUTH, body={"model": "slow", "stream": True}) as answer:
            answer.events(1)
            keys = store.servers[0].command("KEYS", "*")
            one.signal(signal.SIGTERM)
            metrics = scrape_text(one) + scrape_text(two)
        one.signal(signal.SIGTERM)  # the second one ends its drain
        two.stop()
        # The words of an upstream's error, which may quote anything, stand in the log at debug alone.
        lines = (one.log() + two.log()).splitlines()
        log = "\n".join(line for line in lines if "the upstream's error: " not in line)
        assert len(lines) > log.count("\n") + 1
        assert any(COMPLETION in text for text in seen), "the canary must have come through"
        assert len(keys) > 3
        assert "relay:" in str(keys[0])
        assert log.count("stream ended") > 40
        for canary in (PROMPT, COMPLETION, KEY, RELAY_KEY):
            for spelled in (canary, base64.b64encode(canary.encode()).decode()[:-3], canary.encode().hex()):
                for place, text in (("log", log), ("metrics", metrics), ("keys", str(keys))):
                    assert spelled not in text, f"{spelled} in the {place}"

    @pytest.mark.parametrize("form", ["text", "json"])
    def test_a_traceback_says_where_and_what_kind_and_quotes_nothing(
        self, form: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        handlers, level = list(logging.root.handlers), logging.root.level
        try:
            logs.configure(LogSettings(level="debug", format=form))
            log = logging.getLogger("relay.anything")
            try:
                try:
                    raise KeyError(PROMPT)
                except KeyError as error:
                    raise ValueError(COMPLETION) from error
            except ValueError:
                log.exception("a fault")
            logging.getLogger("some.library").debug(KEY)
            logging.getLogger("some.library").info(KEY)

            async def unheard() -> None:
                logs.watch_loop(asyncio.get_running_loop())
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "Task exception was never retrieved", "exception": ValueError(PROMPT), "task": KEY}
                )

            asyncio.run(unheard())
        finally:
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            logging.getLogger("relay").setLevel(logging.NOTSET)
        said = capsys.readouterr().err
        assert "test_logs.py" in said
        assert "builtins.KeyError" in said
        assert "builtins.ValueError" in said
        assert "Task exception was never retrieved" in said
        assert "canary" not in said

    def test_a_wrong_store_url_is_not_shown(self) -> None:
        with pytest.raises(SettingsError) as refused:
            load(
                flags={
                    "store": {"url": f"http://user:{KEY}@host"},
                    "upstreams": [{"name": "a", "base_url": "http://a"}],
                }
            )
        assert "store.url" in str(refused.value)
        assert KEY not in str(refused.value)


def test_no_stream_ends_twice_in_the_log(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    relay = relays.start(config(upstream))
    body = {"model": "m", "stream": True, "messages": []}
    for _ in range(30):
        with open_stream(relay.url + PATHS["chat"], headers=AUTH, body=body) as answer:
            answer.read()
    lines = until_ended(relay, 30)
    assert len({line["stream"] for line in lines}) == len(lines) == 30
    assert scrape(relay).value("relay_streams_total") == 30
