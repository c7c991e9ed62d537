"""What the store's faults share: relays on a store, generations whose events say their numbers, and clients
that read in the background and are judged by the oracle at any time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from tests.conftest import Relays
from tests.support.entries import raw_entries
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, Head, Pause, ScriptedUpstream, Send, Step
from tests.support.sseclient import RawEvent, RawStream, open_stream
from tests.support.stores import Server
from tests.support.waiting import wait_until

HEADERS = {"authorization": "Bearer sk-faults"}
LEASE = 1.0
# How long the stores of these tests are waited for, and what a busy machine may add to any of the relay's own times.
HOLD = 1.0
SLACK = 3.0


def config(
    store_url: str, upstream: ScriptedUpstream, *, store: Mapping[str, Any] | None = None, **streams: Any
) -> dict[str, Any]:
    """Settings of a replica; `store` are more of its store, `streams` those of its streams."""
    return {
        "store": {"url": store_url, "hold": f"{HOLD}s", **(store or {})},
        "upstreams": [{"name": "scripted", "base_url": upstream.url}],
        "streams": {"heartbeat": "300ms", "lease": f"{LEASE}s", "abandon_after": "60s", **streams},
    }


def two(relays: Relays, upstream: ScriptedUpstream, first: str, second: str, **kwargs: Any) -> list[RelayProcess]:
    """A producing replica and another; their stores' addresses may go through proxies of their own."""
    return [relays.start(config(url, upstream, **kwargs)) for url in (first, second)]


def paced(events: int, every: float, *, gate: str | None = None, gate_after: int = 0) -> tuple[Step, ...]:
    """A generation of so many events and [DONE], one every so many seconds; a gate may stand after one of them."""
    steps: list[Step] = [Head(200, {"content-type": "text/event-stream"})]
    for n in range(1, events + 1):
        steps += [Send(frame(n)), Pause(every)]
        if gate is not None and n == gate_after:
            steps.append(Gate(gate))
    return (*steps, Send(DONE))


@dataclass(frozen=True)
class Seen:
    """What a client has got by now: its events, how many are payload, how its stream ended, how its body did."""

    events: list[RawEvent]
    payload: int
    end: str | None
    ended: str | None

    @property
    def with_ids(self) -> int:
        return sum(1 for event in self.events if event.id)


class Client:
    """One response, read in the background. `seen` judges it by the oracle."""

    def __init__(self, answer: RawStream, *, first: int = 1) -> None:
        assert answer.status == 200, answer.read()
        self.answer = answer
        self.stream = answer.headers["relay-stream-id"]
        self._first = first
        self._events: list[RawEvent] = []
        self._arrived: list[float] = []
        self._ended: str | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self.answer:
                if not event.is_heartbeat:
                    self._arrived.append(time.monotonic())
                    self._events.append(event)
            self._ended = self.answer.ended
        except OSError as error:
            self._ended = f"{type(error).__name__}: {error}"

    @property
    def count(self) -> int:
        return len(self._events)

    @property
    def longest_stall(self) -> float:
        """The longest time between two of its events."""
        return max((b - a for a, b in zip(self._arrived, self._arrived[1:], strict=False)), default=0.0)

    @property
    def last_id(self) -> str:
        return next((event.id for event in reversed(self._events) if event.id), f"{self.stream}.0")

    def seen(self) -> Seen:
        events = list(self._events)
        payload, end = check(events, first=self._first)
        return Seen(events, payload, end, self._ended)

    def wait_events(self, count: int, timeout: float = 15.0) -> None:
        wait_until(lambda: self.count >= count or self._ended is not None, timeout, f"{count} events")
        assert self.count >= count, f"{self.count} of {count} events, then {self._ended}"

    def finish(self, timeout: float = 30.0) -> Seen:
        """Wait for the end of the body, then judge."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"no end within {timeout} s; {self.count} events"
        return self.seen()

    def finish_stopped(self, timeout: float = 30.0) -> str | None:
        """Wait for the end of the body of a stream that is stopped; how it ended."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"no end within {timeout} s; {self.count} events"
        *events, mark, done = self._events
        check(events, first=self._first)
        assert mark.json["relay"] == "stopped"
        assert (mark.id, done.data, done.id) == (None, "[DONE]", f"{self.stream}.{self._first + len(events) - 1}e")
        return self._ended

    def close(self) -> None:
        self.answer.close()


def ask(relay: RelayProcess, model: str, headers: Mapping[str, str] | None = None) -> RawStream:
    body = {"model": model, "stream": True, "messages": []}
    return open_stream(relay.url + PATH, headers={**HEADERS, **(headers or {})}, body=body)


def start(relay: RelayProcess, model: str, headers: Mapping[str, str] | None = None) -> Client:
    return Client(ask(relay, model, headers))


def unlogged(answer: RawStream, events: int) -> Client:
    """A new stream that has no log gets all of it without ids, and says so."""
    assert answer.status == 200, answer.read()
    assert answer.headers["relay-resumable"] == "false"
    client = Client(answer)
    seen = client.finish()
    assert (seen.payload, seen.end, seen.with_ids) == (events, "done", 0)
    return client


def ask_again(relay: RelayProcess, last_id: str) -> RawStream:
    return open_stream(relay.url + PATH, headers={**HEADERS, "last-event-id": last_id}, body={})


def resume(relay: RelayProcess, last_id: str) -> Client:
    return Client(ask_again(relay, last_id), first=int(last_id.rpartition(".")[2]) + 1)


def resume_soon(relay: RelayProcess, last_id: str, timeout: float = 10.0) -> Client:
    """As a client comes back: as long as it is told to come again later, and by nothing else."""
    deadline = time.monotonic() + timeout
    while True:
        answer = ask_again(relay, last_id)
        if answer.status == 200:
            return Client(answer, first=int(last_id.rpartition(".")[2]) + 1)
        assert "retry-after" in answer.headers, answer.read()
        status, code = refusal(answer)
        assert (status, code) in ((503, "store_unavailable"), (503, "store_behind")), (status, code)
        assert time.monotonic() < deadline, f"still {code} after {timeout} s"
        time.sleep(0.05)


def whole(client: Client, events: int) -> None:
    """The client gets the whole generation, all of it with ids, and its end."""
    seen = client.finish()
    assert (seen.payload, seen.end, seen.ended) == (events, "done", "zero-chunk")
    assert seen.with_ids == len(seen.events)


def refusal(answer: RawStream) -> tuple[int, str]:
    """Status and code of an answer that is no stream."""
    with answer:
        if answer.status in (200, 204):
            return answer.status, ""
        return answer.status, str(answer.json["error"]["code"])


def refused_again(relay: RelayProcess, last_id: str) -> tuple[int, str]:
    return refusal(ask_again(relay, last_id))


def log_end(server: Server, stream: str) -> str | None:
    return check_log(server.client(), stream)[1]


def check_log(client: redis.Redis, stream: str) -> tuple[int, str | None]:
    """Assert that the log is contiguous from 1 with at most one end, which is last: (top, outcome)."""
    top = 0
    outcome: str | None = None
    for entry_id, fields in raw_entries(client, stream):
        assert outcome is None, f"an entry after the end: {entry_id}"
        number, _, kind = entry_id.partition("-")
        if kind == "1":
            assert int(number) == top, "an end takes no number"
            outcome = fields["end"].partition(b"\n")[0].decode()
        else:
            top += 1
            assert int(number) == top
    return top, outcome


def eventually(wanted: object, ask: Callable[..., object], *args: object, timeout: float = 10.0) -> None:
    """Return once the answer is the wanted one."""
    last: list[object] = [None]

    def fits() -> bool:
        last[0] = ask(*args)
        return last[0] == wanted

    try:
        wait_until(fits, timeout)
    except TimeoutError:
        raise AssertionError(f"wanted {wanted!r}, the last answer was {last[0]!r}") from None
