"""Every end and every error that a client of a relay can meet, and relays with an upstream at which SDKs meet them.

One process of each SDK plays all of it at once; a proxy in front of the relays counts what it asks.

    python -m tests.sdk.ends prints the documents' tables.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tests.auth.keyed import ENV, issued
from tests.sdk import scenarios_chat, scenarios_messages, scenarios_responses
from tests.sdk.install import NODE, PYTHON_GENERATIONS, python_generation
from tests.support.cutting_http import Asked, CuttingProxy, Fate
from tests.support.processes import RelayProcess, free_port
from tests.support.scripted import (
    Cut,
    End,
    Gate,
    Head,
    Pause,
    Reset,
    ScriptedUpstream,
    Send,
    Step,
    json_response,
)
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import valkey_server
from tests.support.streams import PATHS
from tests.support.waiting import wait_until

SDKS = (*(name for name in PYTHON_GENERATIONS if name.startswith("py-")), "node")
PLAIN = {
    "chat": scenarios_chat.PLAIN,
    "messages": scenarios_messages.PLAIN,
    "responses": scenarios_responses.frames(*scenarios_responses.PLAIN),
}
RETRIES = 2
"""The default of every SDK."""
# Credentials that the drivers use: the owner of a stream that an SDK is to read.
AUTH = {
    "chat": {"authorization": "Bearer sk-test"},
    "messages": {"x-api-key": "sk-ant-test"},
    "responses": {"authorization": "Bearer sk-test"},
}
HEAD = Head(200, {"content-type": "text/event-stream"})
BUSY = b'data: {"error": {"message": "Busy", "code": "503"}}\n\n'
REFUSED = json_response(429, {"error": {"message": "Busy", "type": "rate_limit_error"}})
NOWHERE = f"http://127.0.0.1:{free_port()}"
GOOD_KEY, GOOD = issued("good")
FULL_KEY, FULL = issued("full", concurrency=1)

Relay = Literal["main", "keys", "lost", "survivor", "storeless", "short", "stopping"]
Table = Literal["the upstream", "the relay", "the relay refuses"]
Transcript = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One end: what the upstream does, and what is set of it."""

    table: Table
    name: str
    script: tuple[Step, ...] = ()
    upstream: Mapping[str, Any] = field(default_factory=dict)
    relay: Relay = "main"
    model: str = ""
    """Asked for in place of the one that stands for this end."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the driver's job."""
    get: bool = False
    """A path is asked for and no stream."""
    prepared: str = ""
    """The model of a stream that is read from its start."""
    key: str = ""
    """An Idempotency-Key is sent, one of each SDK's and API's own; the requests with it share a model."""
    says: str = ""
    """Words of the error that the SDK raises, beside those in code spans of the name; none where it raises none."""
    asks: int = 1
    """How often each request of an SDK reaches the upstream."""

    @property
    def words(self) -> list[str]:
        return [self.says, *re.findall("`([a-z_]+)`", self.name)] if self.says else []


def cases(api: str) -> tuple[Case, ...]:
    sent = [Send(frame.encode()) for frame in PLAIN[api]]
    begun: tuple[Step, ...] = (HEAD, *sent[:4])
    last = PLAIN[api][-1].encode().rstrip(b"\n")
    silent = Gate("never")
    own: Table = "the relay"
    no: Table = "the relay refuses"
    return (
        Case("the upstream", "complete", (HEAD, *sent, End())),
        Case("the upstream", "complete, without its last line", (HEAD, *sent[:-1], Send(last), End())),
        Case("the upstream", "cut", (*begun, Cut()), says="upstream_disconnected"),
        Case("the upstream", "an end too early", (*begun, End()), says="upstream_disconnected"),
        Case("the upstream", "an error of another API", (*begun, Send(BUSY), End()), says="Busy"),
        Case("the upstream", "an error as text", (*begun, Send(b"data: error: Busy\n\n"), End()), says="Busy"),
        Case("the upstream", "an error first", (HEAD, Send(BUSY), End()), says="Busy"),
        Case(
            "the upstream",
            "a malformed event, `malformed: end`",
            (*begun, Send(b"data: {torn\n\n"), *sent[4:], End()),
            says="upstream_malformed",
        ),
        Case("the upstream", "a late refusal", (Pause(2.5), *REFUSED), says="Busy"),
        Case("the upstream", "no event at all", (HEAD, End()), says="upstream_disconnected"),
        Case(own, "a stop", (*begun, silent), options={"stop_after": 2, "headers": AUTH[api]}),
        Case(
            own,
            "`upstream_idle_timeout`",
            (*begun, silent),
            {"upstream_idle_timeout": "1s"},
            says="upstream_timeout",
        ),
        Case(
            own,
            "`upstream_stall_timeout`",
            (*begun, *(Send(b": busy\n\n"), Pause(0.1)) * 30),
            {"upstream_stall_timeout": "1s"},
            says="upstream_timeout",
        ),
        Case(
            own,
            "`first_token_timeout`, late",
            (HEAD, silent),
            {"first_token_timeout": "2500ms"},
            says="upstream_timeout",
        ),
        Case(
            own,
            "`upstream_answer_timeout`, late",
            (silent,),
            {"upstream_answer_timeout": "2500ms"},
            says="upstream_timeout",
        ),
        Case(
            own,
            "`event_too_large`",
            (*begun, Send(b'data: {"x": "%b"}\n\n' % (b"x" * 20_000)), silent),
            says="event_too_large",
        ),
        Case(
            own,
            "`stream_too_large`",
            (*begun, *[sent[3]] * (40_000 // len(sent[3].data)), silent),
            says="stream_too_large",
        ),
        Case(own, "`max_duration`", (*begun, silent), relay="short", says="max_duration"),
        Case(own, "`shutdown`", (*begun, Gate("shutdown")), relay="stopping", says="shutdown"),
        Case(own, "`producer_lost`, read by a resume", relay="survivor", prepared="lost", asks=0, says="producer_lost"),
        Case(own, "`abandoned`, read by a resume", relay="survivor", prepared="abandoned", asks=0, says="abandoned"),
        Case(no, "400 `missing_model`", options={"body": {"model": 5}}, asks=0, says="missing_model"),
        Case(no, "401 `invalid_api_key`", relay="keys", asks=0, says="invalid_api_key"),
        Case(
            no,
            "403 `path_not_allowed`",
            relay="keys",
            options={"key": GOOD_KEY},
            get=True,
            asks=0,
            says="path_not_allowed",
        ),
        Case(no, "404 `model_not_found`", model="nobody's", asks=0, says="model_not_found"),
        Case(
            no,
            "409 `idempotency_key_in_flight`",
            relay="storeless",
            model=f"{api}-held",
            key="held",
            asks=0,
            says="idempotency_key_in_flight",
        ),
        Case(
            no,
            "413 `request_too_large`",
            options={"body": {"metadata": {"x": "x" * 20_000}}},
            asks=0,
            says="request_too_large",
        ),
        Case(
            no,
            "415 `unsupported_encoding`",
            options={"headers": {"content-encoding": "br"}},
            asks=0,
            says="unsupported_encoding",
        ),
        Case(no, "429 `too_many_streams`", relay="keys", options={"key": FULL_KEY}, asks=0, says="too_many_streams"),
        Case(no, "502 `upstream_unreachable`", upstream={"base_url": NOWHERE}, asks=0, says="upstream_unreachable"),
        Case(no, "502 `upstream_disconnected`", (Reset(),), says="upstream_disconnected"),
        Case(no, "503 `store_unavailable`", relay="storeless", key="new", asks=0, says="store_unavailable"),
        Case(
            no,
            "504 `upstream_timeout`, no answer",
            (silent,),
            {"upstream_answer_timeout": "100ms"},
            says="upstream_timeout",
        ),
        Case(
            no,
            "504 `upstream_timeout`, no output",
            (HEAD, silent),
            {"first_token_timeout": "100ms"},
            says="upstream_timeout",
        ),
    )


CASES = {(api, case.name): case for api in PLAIN for case in cases(api)}


@dataclass(frozen=True)
class Seen:
    """What one SDK made of one end, and how often it and the relay asked for it."""

    transcript: Transcript
    requests: int
    calls: int

    def told(self) -> str:
        error = self.transcript["error"]
        if error is None:
            return f"an answer{self._finish()}"
        status = error.get("status_code") or error.get("status")
        times = f", asks {self.requests} times" if self.requests > 1 else ""
        return f"{error['class']}{f' {status}' if status and status != 200 else ''}{times}"

    def _finish(self) -> str:
        """How an answer that is not whole says so."""
        found = []
        for event in self.transcript["events"]:
            if event.get("relay"):
                response, delta, choices = (event.get(name) for name in ("response", "delta", "choices"))
                found += [f"`status: {response['status']}`"] if response else []
                found += [f"`stop_reason: {delta['stop_reason']}`"] if delta else []
                found += [f"`finish_reason: {choices[0]['finish_reason']}`"] if choices else []
        return "".join(f", {said}" for said in found)


class Bench:
    """Relays, and the proxy through which the SDKs ask them."""

    def __init__(self, stack: ExitStack) -> None:
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-ends-")))
        self.upstream = stack.enter_context(ScriptedUpstream())
        self._lost = stack.enter_context(valkey_server(self._folder / "lost")).servers[0]
        shared = stack.enter_context(valkey_server(self._folder / "shared"))
        served = self._served()
        limits = {"limits": {"body": "16KiB"}}
        streams = {
            "patience": "1500ms",
            "patience_limit": "1500ms",
            "lease": "1s",
            "max_event_bytes": "16KiB",
            "max_stream_bytes": "32KiB",
        }
        base = {"upstreams": served, "streams": streams, "store": {"url": shared.url}, "drain": {"timeout": "0s"}}
        keyed = [{**upstream, "api_key_env": "UP_KEY"} for upstream in served]
        settings: dict[Relay, dict[str, Any]] = {
            "main": {**base, **limits},
            "keys": {**base, "upstreams": keyed, "auth": {"mode": "keys", "keys": [GOOD, FULL]}},
            "lost": base,
            "survivor": {**base, "streams": {**streams, "abandon_after": "0s"}},
            # What this one is asked for first has to be under way when its store is lost.
            "storeless": {**base, "streams": {**streams, "patience": "20s"}, "store": {"url": self._lost.url}},
            "short": {**base, "streams": {**streams, "max_duration": "3s"}},
            "stopping": base,
        }
        relays = {name: stack.enter_context(_Closing(RelayProcess(given, ENV))) for name, given in settings.items()}
        with ThreadPoolExecutor(2) as pool:  # more at once would start no sooner, each against its own deadline
            list(pool.map(RelayProcess.start, relays.values()))
        self._relays = relays
        self._numbers = {name: number for number, name in enumerate(relays)}
        self._proxy = stack.enter_context(CuttingProxy(*(relay.url for relay in relays.values()), fate=self._fate))
        self._held = stack.enter_context(
            self._post("keys", "chat", "chat-kept", {"authorization": f"Bearer {FULL_KEY}"})
        )
        self._prepared = {api: self._prepare(api) for api in PLAIN}

    def _served(self) -> list[dict[str, Any]]:
        """The upstreams of all relays: one for each end that has settings of its own, and one for the others."""
        own: dict[int, dict[str, Any]] = {}
        for api in PLAIN:
            for number, case in enumerate(cases(api)):
                self.upstream.on(f"{api}-{number}", *case.script)
                if case.upstream:
                    own[number] = {"base_url": self.upstream.url, **case.upstream}
            begun: tuple[Step, ...] = (HEAD, *(Send(frame.encode()) for frame in PLAIN[api][:4]))
            self.upstream.on(f"{api}-held", Gate("claimed"), *begun, Gate("held"))
            for model in ("kept", "lost", "abandoned"):
                self.upstream.on(f"{api}-{model}", *begun, Gate("never"))
        named = [{"name": f"own-{number}", "models": [f"*-{number}"], **given} for number, given in own.items()]
        others = {"name": "scripted", "base_url": self.upstream.url, "models": [f"{api}-*" for api in PLAIN]}
        return [*named, {**others, "malformed": "end"}]

    def _fate(self, asked: Asked) -> Fate:
        return Fate(to=int(asked.headers["x-relay"]), without=("x-relay",))

    def _post(self, relay: Relay, api: str, model: str, headers: dict[str, str]) -> RawStream:
        body = {"model": model, "stream": True, "messages": [], "input": ""}
        answer = open_stream(self._relays[relay].url + PATHS[api], headers=headers, body=body)
        assert answer.status == 200, answer.read()
        return answer

    def _prepare(self, api: str) -> dict[str, str]:
        """Streams that have ended by the time that an SDK reads them: their ids, by their models."""
        found = {}
        for model, relay in (("lost", "lost"), ("abandoned", "survivor")):
            answer = self._post(relay, api, f"{api}-{model}", AUTH[api])  # type: ignore[arg-type]
            answer.take(3)
            found[model] = answer.headers["relay-stream-id"]
        return found

    def _wait_ended(self) -> None:
        for api, streams in self._prepared.items():
            for stream in streams.values():
                wait_until(partial(self._is_over, api, stream), 20.0, f"the end of {stream}")

    def _is_over(self, api: str, stream: str) -> bool:
        url = f"{self._relays['survivor'].url}/streams/{stream}"
        with open_stream(url, "GET", {**AUTH[api], "accept": "application/json"}) as status:
            return status.json["outcome"] is not None

    def play(self) -> dict[str, dict[tuple[str, str], Seen]]:
        """All SDKs at once."""
        self._relays["lost"].kill()
        self._wait_ended()
        storeless = self._folder / "storeless"
        with ThreadPoolExecutor(len(SDKS)) as pool:
            playing = {sdk: pool.submit(self._drive, sdk, storeless) for sdk in SDKS}
            try:
                self._lose_store(storeless)
                self.upstream.wait_reached("shutdown", 30.0, connections=len(SDKS) * len(PLAIN))
                self._relays["stopping"].stop()
                with suppress(TimeoutError):  # then the table tells
                    self._proxy.wait_for(self._all_given_up, 20.0)
            finally:
                storeless.touch()
                self.upstream.open("held")
            transcripts = {sdk: done.result() for sdk, done in playing.items()}
        return {sdk: self._seen(sdk, transcripts[sdk]) for sdk in SDKS}

    def _lose_store(self, lost: Path) -> None:
        """Once every key is claimed. Then the generations under them have begun, and cannot be joined."""
        self.upstream.wait_reached("claimed", 30.0, connections=len(SDKS) * len(PLAIN))
        self._lost.kill()
        self.upstream.open("claimed")
        held = [f"{api}-held" for api in PLAIN]
        self._proxy.wait_for(lambda: all(asked.sent for model in held for asked in self._proxy.asked(model)), 30.0)
        lost.touch()

    def _all_given_up(self) -> bool:
        """Has each SDK been answered as often as it asks for what is in flight?"""
        answered = Counter(asked.headers.get("idempotency-key", "") for asked in self._proxy.asked() if asked.sent)
        # The first of these requests is the one that claimed the key.
        return all(answered[f"{sdk}-{api}-held"] > 1 + RETRIES for sdk in SDKS for api in PLAIN)

    def _drive(self, sdk: str, storeless: Path) -> list[Transcript]:
        jobs = []
        for number, ((api, _), case) in enumerate(CASES.items()):
            headers = {**case.options.get("headers", {}), "x-case": f"{sdk}.{number}"}
            headers["x-relay"] = str(self._numbers[case.relay])
            options: dict[str, Any] = {"retries": RETRIES, **case.options, "headers": headers}
            if case.prepared:
                headers["last-event-id"] = f"{self._prepared[api][case.prepared]}.0"
            if case.key:
                headers["idempotency-key"] = f"{sdk}-{api}-{case.key}"
                options["once"] = str(storeless)
            model = case.model or f"{api}-{cases(api).index(case)}"
            jobs.append([api, "/files" if case.get else model, "get" if case.get else "raw", options])
        for api in PLAIN:
            headers = {"idempotency-key": f"{sdk}-{api}-held", "x-relay": str(self._numbers["storeless"])}
            jobs.append([api, f"{api}-held", "raw", {"headers": headers}])
        return drive(sdk, self._proxy.url, jobs)[: len(CASES)]

    def _seen(self, sdk: str, transcripts: list[Transcript]) -> dict[tuple[str, str], Seen]:
        requests = [request for request in self._proxy.asked() if not request.path.startswith("/streams/")]
        asked = [request.headers.get("x-case") for request in requests]
        called = [call.header("x-case") for call in self.upstream.calls]
        return {
            where: Seen(transcript, asked.count(f"{sdk}.{number}"), called.count(f"{sdk}.{number}"))
            for number, (where, transcript) in enumerate(zip(CASES, transcripts, strict=True))
        }


class _Closing:
    """A relay that is started by others, and stopped at the end."""

    def __init__(self, relay: RelayProcess) -> None:
        self._relay = relay

    def __enter__(self) -> RelayProcess:
        return self._relay

    def __exit__(self, *_: object) -> None:
        self._relay.stop()


def drive(sdk: str, url: str, jobs: list[list[Any]]) -> list[Transcript]:
    """What a process of this SDK makes of these jobs."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "ANTHROPIC_"))}
    env = {**keep, "NO_PROXY": "*", "no_proxy": "*"}
    if sdk == "node":
        command, folder = ["node", "driver.mjs", url], NODE
    else:
        # -S: none of the relay's own packages can stand in for one of the SDK's.
        command = [sys.executable, "-S", str(Path(__file__).with_name("driver.py")), url]
        folder = Path(__file__).parent
        env["PYTHONPATH"] = str(python_generation(sdk))
    command.append(json.dumps(jobs))
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[Transcript] = json.loads(done.stdout)
    return found


@contextmanager
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack)


def tables(seen: Mapping[str, Mapping[tuple[str, str], Seen]]) -> str:
    """The documents' tables. APIs of which the SDKs make the same share a row."""
    made: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for _, name in CASES):
        rows: dict[tuple[str, ...], list[str]] = {}
        for api in PLAIN:
            rows.setdefault(tuple(told[api, name].told() for told in seen.values()), []).append(api)
        table = CASES["chat", name].table
        made.setdefault(table, [f"| {table} | API | {' | '.join(seen)} |", "|---" * (2 + len(seen)) + "|"])
        made[table] += [f"| {name} | {', '.join(apis)} | {' | '.join(cells)} |" for cells, apis in rows.items()]
    return "\n\n".join("\n".join(rows) for rows in made.values())


if __name__ == "__main__":
    with bench() as made:
        print(tables(made.play()))
