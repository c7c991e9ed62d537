"""A real Prometheus, and a mixed load for it to see: every metric of the relay gets something to count.

The load asserts what it is told, so that a dashboard that shows it shows what happened. Used by the tests here and by
grafana/pictures.py.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.support.processes import RelayProcess, free_port
from tests.support.samples import SAMPLES
from tests.support.scripted import Cut, Gate, Head, Pause, ScriptedUpstream, Step, json_response, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import Server
from tests.support.streams import Api, answer
from tests.support.waiting import wait_until

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
TOKEN = "sk-load"
UNKNOWN = f"st_{'A' * 22}.7"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_TEXT = "The lamp of the lighthouse turns, and every ship that passes counts its beats in the dark. " * 3

# A model's name at the client: its API, seconds to the first token, seconds between tokens, words.
MODELS: dict[str, tuple[Api, float, float, int]] = {
    "gpt-5-mini": ("chat", 0.08, 0.012, 40),
    "gpt-5-large": ("chat", 0.35, 0.03, 30),
    "o-deep": ("responses", 0.6, 0.02, 30),
    "claude-haiku": ("messages", 0.12, 0.015, 40),
    "claude-opus": ("messages", 0.4, 0.04, 25),
    "edge-small": ("chat", 0.03, 0.01, 20),
}


def settings(upstream: str, store: str) -> dict[str, Any]:
    """Of a relay under this load: quick to see that nobody reads, or that an upstream is silent."""
    return {
        "store": {"url": store},
        "upstreams": [
            {"name": "openai", "base_url": upstream, "models": ["gpt-5-mini*", "gpt-5-large*", "o-*"]},
            {
                "name": "anthropic",
                "base_url": upstream,
                "models": ["claude-haiku*", "claude-opus*"],
                "malformed": "end",
                "resume": "last-event-id",
            },
            {"name": "edge", "base_url": upstream, "models": ["edge-*"], "buffer": False, "continue": "prefill"},
        ],
        "streams": {"heartbeat": "200ms", "upstream_idle_timeout": "2s", "abandon_after": "500ms"},
        "drain": {"timeout": "60s"},
        "webhook": {"url": f"{upstream}/hook", "secret_env": "HOOK_SECRET", "proxy": "off"},
    }


ENV = {"HOOK_SECRET": "whsec_" + "A" * 32}
"""What such a relay needs in its environment."""


class Load:
    """Clients of two relays that share a store, and the upstream behind them. Each scenario asserts its outcome.
    `drain` needs a third relay, which nothing else asks."""

    def __init__(self, relays: Sequence[RelayProcess], upstream: ScriptedUpstream, seed: int = 0) -> None:
        self.relays = relays
        self.upstream = upstream
        self.streams: set[str] = set()
        """The ids of all streams that were made."""
        self._random = Random(seed)
        self.upstream.on_path("POST /hook", Head(204, {}, framing="length"))
        self.vary(1.0)

    def vary(self, slowness: float) -> None:
        """Script the upstream anew; pauses are as long as `MODELS` says, times `slowness`, and a little by lot."""
        for model, (api, first, gap, count) in MODELS.items():
            words = _TEXT.split()[: max(2, int(count * self._random.uniform(0.7, 1.2)))]
            whole = answer(api, words, prompt_tokens=120)
            paced: list[str | bytes | Step] = [*whole.before, Pause(first * slowness * self._random.uniform(0.6, 1.8))]
            for event in whole.words + whole.after:
                paced += [event, Pause(gap * slowness * self._random.uniform(0.5, 1.5))]
            self.upstream.on(model, *stream(*paced))
            half = paced[: len(paced) // 2]
            self.upstream.on(f"{model}-cut", *stream(*half)[:-1], Cut())
            self.upstream.on(f"{model}-malformed", *stream(*half, "data: {not json\n\n"))
            self.upstream.on(f"{model}-silent", *stream(*half, Pause(30)))
            error = json.dumps({"error": {"message": "overloaded", "type": "server_error", "code": "overloaded"}})
            self.upstream.on(f"{model}-error", *stream(*half, f"event: error\ndata: {error}\n\n"))
            slow = [step for event in whole.events for step in (event, Pause(0.08))]
            self.upstream.on(f"{model}-slow", *stream(*slow))
            self.upstream.on(f"{model}-plain", *json_response(200, {"id": "x", "choices": []}))
            self.upstream.on(f"{model}-429", *json_response(429, {"error": {"message": "quota"}}, {"retry-after": "1"}))
            self.upstream.on(f"{model}-500", Head(500, {}, framing="length"))

    def scenarios(self) -> list[Callable[[], None]]:
        """Everything once, and completed streams of every model."""
        return [
            *(lambda m=model: self.completed(m) for model in MODELS),
            *(lambda w=word: self.failed(*w) for word in _FAILURES),
            self.stopped,
            self.abandoned,
            self.resumed_live,
            self.resumed_after_the_end,
            self.joined,
            self.came_back_upstream,
            self.continued,
            self.missed,
            self.not_logged,
            self.passed_through,
            self.refused,
            self.detached,
        ]

    def round(self, scenarios: Sequence[Callable[[], None]] | None = None) -> None:
        """All at once, each on a thread; the first that fails is raised."""
        jobs = self.scenarios() if scenarios is None else scenarios
        with ThreadPoolExecutor(len(jobs), "load") as pool:
            for job in [pool.submit(scenario) for scenario in jobs]:
                job.result(60)

    def post(
        self,
        model: str,
        *,
        relay: int | None = None,
        after: str | None = None,
        streams: bool = True,
        more: Mapping[str, str] | None = None,
    ) -> RawStream:
        """`relay`: which one, else by lot; `after`: a Last-Event-ID; `more`: headers."""
        sample = SAMPLES[_api_of(model)]
        headers = sample.headers(TOKEN) | ({"last-event-id": after} if after else {}) | dict(more or {})
        at = self.relays[self._random.randrange(2) if relay is None else relay]
        answer = open_stream(at.url + sample.path, headers=headers, body=sample.body(model, stream=streams))
        if "relay-stream-id" in answer.headers:
            self.streams.add(answer.headers["relay-stream-id"])
        return answer

    def completed(self, model: str) -> None:
        with self.post(model) as answer:
            assert answer.status == 200
            events = answer.events()
            assert events
            assert not [event for event in events if event.data != "[DONE]" and event.json.get("error")]

    def failed(self, model: str, code: str) -> None:
        with self.post(model) as answer:
            assert code in str([event.data for event in answer.events()[-2:]])

    def stopped(self) -> None:
        with self.post("claude-opus-slow", relay=0) as answer:
            answer.events(3)
            stream_id = answer.headers["relay-stream-id"]
            url = f"{self.relays[1].url}/streams/{stream_id}"
            with open_stream(url, "DELETE", {"x-api-key": TOKEN}) as gone:
                assert gone.status == 204
            answer.read()

    def abandoned(self) -> None:
        with self.post("gpt-5-large-slow", relay=1) as answer:
            answer.events(3)
            logged = answer.headers["relay-resumable"] == "true"
        assert logged, "during an outage of the store there is no state to ask for"
        stream_id = answer.headers["relay-stream-id"]
        wait_until(lambda: self.status(stream_id).get("outcome") == "abandoned", 10, "the end of an unread stream")

    def resumed_live(self) -> None:
        with self.post("gpt-5-mini-slow", relay=0) as first:
            last = first.events(4)[-1].id
        with self.post("gpt-5-mini-slow", relay=1, after=last) as second:
            assert second.status == 200
            assert second.events()[-1].data == "[DONE]"

    def resumed_after_the_end(self) -> None:
        with self.post("gpt-5-mini", relay=1) as first:
            ids = [event.id for event in first.events()]
        with self.post("gpt-5-mini", relay=0, after=ids[5]) as replay:
            assert len(replay.events()) == len(ids) - 6
        with self.post("gpt-5-mini", relay=0, after=ids[-1]) as complete:
            assert complete.status == 204

    def joined(self) -> None:
        """A retry with the key of a request that is being answered."""
        key = self._key()
        with self.post("gpt-5-large-slow", relay=0, more=key) as first:
            assert len(first.events(2)) == 2
            with self.post("gpt-5-large-slow", relay=1, more=key) as second:
                assert second.headers["relay-stream-id"] == first.headers["relay-stream-id"]
                assert second.events()[-1].data == "[DONE]"

    def came_back_upstream(self) -> None:
        """An answer that breaks off, of an upstream that goes on with it."""
        model = f"claude-haiku-{self._random.random()}"
        frames = [f"id: {n}\n{event}" for n, event in enumerate(answer("messages", ["One ", "two."]).events, 1)]
        self.upstream.on(model, *stream(*frames[:4], Gate(model), Cut()))
        with self.post(model) as read:
            self.upstream.wait_reached(model)
            self.upstream.on(model, *stream(*frames[4:]))
            self.upstream.open(model)
            assert len(read.events()) == len(frames)

    def continued(self) -> None:
        """An answer that breaks off, of an upstream that goes on with a text."""
        model = f"edge-{self._random.random()}"
        first, rest = answer("chat", ["One"]), answer("chat", [" two."])
        self.upstream.on(model, *stream(*first.before, *first.words, Gate(model), Cut()))
        with self.post(model) as read:
            self.upstream.wait_reached(model)
            self.upstream.on(model, *stream(*rest.events))
            self.upstream.open(model)
            assert len(read.events()) == 2 + len(rest.events) - 1

    def missed(self) -> None:
        with self.post("gpt-5-mini", relay=1) as first:
            first.read()
        beyond = f"{first.headers['relay-stream-id']}.9999"
        for after, status in ((beyond, 410), (UNKNOWN, 404), ("msg_of_another_world", 400)):
            with self.post("gpt-5-mini", after=after) as answer:
                assert answer.status == status

    def not_logged(self) -> None:
        with self.post("edge-small", relay=0) as answer:
            stream_id = answer.headers["relay-stream-id"]
            answer.read()
        with self.post("edge-small", relay=0, after=f"{stream_id}.3") as answer:
            assert answer.status == 400

    def passed_through(self) -> None:
        with self.post("gpt-5-mini-plain", streams=False) as answer:
            assert answer.status == 200

    def refused(self) -> None:
        for model, status in (("gpt-5-large-429", 429), ("claude-haiku-500", 500), ("nobody-serves-this", 404)):
            with self.post(model) as answer:
                assert answer.status == status

    def detached(self) -> None:
        """A generation of whose end the webhook is told."""
        with self.post("gpt-5-mini", more={"prefer": "respond-async"}) as answer:
            assert answer.status == 202
        stream_id = answer.headers["relay-stream-id"]

        def told() -> bool:
            hooks = [call for call in self.upstream.calls if call.path == "/hook"]
            return any(call.json["data"]["id"] == stream_id for call in hooks)

        wait_until(told, 20, "the webhook to be told")

    def outage(self, store: Server, prometheus: Prometheus) -> None:
        """The store ends and comes back, empty, after Prometheus has seen it. A stream in flight goes on, and its
        appends fail meanwhile; streams that began meanwhile cannot be resumed."""
        with self.post("gpt-5-mini-slow", relay=0) as running:
            running.events(3)
            self._outage(store, prometheus)
            assert running.events()[-1].data == "[DONE]"

    def _outage(self, store: Server, prometheus: Prometheus) -> None:
        store.stop()
        wait_until(lambda: all(self._resumable(n) == "false" for n in (0, 1)), 30, "streams without a log")
        wait_until(lambda: prometheus.values("max(relay_store_up)") == [0], 30, "a store that is known to be away")
        store.start()
        wait_until(lambda: all(self._resumable(n) == "true" for n in (0, 1)), 30, "streams with a log again")
        # Later: whose keys and streams the store has lost says so first.
        wait_until(lambda: all(self._resumable(n, self._key()) == "true" for n in (0, 1)), 30, "free keys again")
        wait_until(lambda: all(self._unknown(n) == 404 for n in (0, 1)), 30, "streams that nobody knows again")

    def drain(self, prometheus: Prometheus) -> None:
        """The third relay ends, after Prometheus has seen it drain; its stream is told to the end."""
        with self.post("gpt-5-mini-slow", relay=2) as running:
            running.events(3)
            self.relays[2].signal(signal.SIGTERM)
            wait_until(lambda: prometheus.values("max(relay_draining)") == [1], 30, "a relay that is known to drain")
            assert running.events()[-1].data == "[DONE]"

    def _resumable(self, relay: int, more: Mapping[str, str] | None = None) -> str | None:
        with self.post("gpt-5-mini", relay=relay, more=more) as answer:
            answer.read()
            return answer.headers.get("relay-resumable")

    def _unknown(self, relay: int) -> int:
        with self.post("gpt-5-mini", relay=relay, after=UNKNOWN) as answer:
            return answer.status

    def _key(self) -> dict[str, str]:
        return {"idempotency-key": f"key-{self._random.random()}"}

    def status(self, stream_id: str) -> dict[str, Any]:
        """What GET /streams/{id} says; the error where it says no."""
        headers = {"authorization": f"Bearer {TOKEN}", "accept": "application/json"}
        with open_stream(f"{self.relays[0].url}/streams/{stream_id}", "GET", headers) as answer:
            told: dict[str, Any] = answer.json
            return told


_FAILURES = (
    ("gpt-5-large-cut", "upstream_disconnected"),
    ("claude-haiku-malformed", "upstream_malformed"),
    ("gpt-5-mini-malformed", "upstream_disconnected"),  # it is forwarded there, and the body ends too early
    ("gpt-5-mini-error", "overloaded"),
    ("o-deep-silent", "upstream_timeout"),
)


def _api_of(model: str) -> Api:
    return next((entry[0] for name, entry in MODELS.items() if model.startswith(name)), "chat")


class Prometheus:
    """A Prometheus server that runs; `ask` is its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str | float) -> Any:
        """The `data` of an answer of /api/v1. Raises HTTPError."""
        query = urllib.parse.urlencode(parameters)
        with _DIRECT.open(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def values(self, expression: str) -> list[float]:
        """Of an instant query."""
        return [float(sample["value"][1]) for sample in self.ask("query", query=expression)["result"]]

    def wait_scrapes(self, count: int) -> None:
        """Return after so many more scrapes of every target."""
        expression = "min(count_over_time(up[1h]))"
        goal = (self.values(expression) or [0.0])[0] + count
        wait_until(lambda: (self.values(expression) or [0.0])[0] >= goal, 30, f"{count} more scrapes")

    def ready(self) -> bool:
        try:
            with _DIRECT.open(f"{self.url}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def prometheus_server(
    folder: Path, targets: Sequence[Mapping[str, Any]], interval: str = "500ms"
) -> Iterator[Prometheus]:
    """`targets` are static_configs. The shipped rules are loaded as they are."""
    for rules in RULES.glob("*.rules.yaml"):
        shutil.copy(rules, folder)
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": ["*.rules.yaml"],
        "scrape_configs": [{"job_name": "relay", "static_configs": list(targets)}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--enable-feature=exemplar-storage",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        server = Prometheus(f"http://{address}")
        wait_until(lambda: process.poll() is not None or server.ready(), 30, "Prometheus")
        if process.poll() is not None:
            raise RuntimeError(f"Prometheus has ended:\n{(folder / 'prometheus.log').read_text()[-2000:]}")
        yield server
    finally:
        process.terminate()
        process.wait(20)
