"""Several replicas on one store, and what is to be known about them from outside: their log and their tasks."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.support.clients import TOKEN
from tests.support.entries import entries_in_full
from tests.support.oracle import DONE, PATH, frame
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, Pause, ScriptedUpstream, Step, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import Store
from tests.support.waiting import wait_until

LEASE = 1.0
HEARTBEAT = 0.3
# What a busy machine may add to any of the relay's own times.
SLACK = 6.0


def settings(
    upstream: ScriptedUpstream, store: Store | None, streams: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "upstreams": [{"name": "scripted", "base_url": upstream.url}],
        "streams": {"lease": LEASE, "heartbeat": HEARTBEAT, "abandon_after": "never", **(streams or {})},
        **more,
    }
    if store is not None:
        config["store"] = {"url": store.url}
    return config


@contextmanager
def replicas(
    count: int, config: Mapping[str, Any], env: Mapping[str, str] | None = None
) -> Iterator[list[RelayProcess]]:
    with ExitStack() as stack:
        yield [stack.enter_context(RelayProcess(dict(config), dict(env or {}))) for _ in range(count)]


@dataclass(frozen=True)
class Replicas:
    """The first owns the embedded store, the second reaches it through its socket."""

    first: RelayProcess
    second: RelayProcess

    @property
    def store_url(self) -> str:
        return str(self.second.config["store"]["url"])

    def __getitem__(self, number: int) -> RelayProcess:
        return (self.first, self.second)[number % 2]


@contextmanager
def two_replicas(
    config: Mapping[str, Any], first: Mapping[str, Any] | None = None, second: Mapping[str, Any] | None = None
) -> Iterator[Replicas]:
    """`first` and `second` are `streams` settings of the one and of the other."""
    with RelayProcess({**config, "streams": dict(first or {})}) as owner:
        url = f"unix://{owner.config['store']['data_dir']}/valkey.sock"
        with RelayProcess({**config, "streams": dict(second or {}), "store": {"url": url}}) as other:
            yield Replicas(owner, other)


def stream_id(answer: RawStream) -> str:
    return answer.headers["relay-stream-id"]


def paced(count: int, pause: float, *, gate_after: int | None = None, gate: str = "gate") -> tuple[Step, ...]:
    """A whole stream of `count` events, one each `pause` seconds; at `gate_after` it waits for the test."""
    steps: list[bytes | str | Step] = []
    for n in range(1, count + 1):
        steps.append(frame(n))
        if n == gate_after:
            steps.append(Gate(gate))
        elif pause:
            steps.append(Pause(pause))
    return stream(*steps, DONE)


def post(relay: RelayProcess, model: str, after: str | None = None, timeout: float = 30.0) -> RawStream:
    headers = {"authorization": f"Bearer {TOKEN}"}
    if after is not None:
        headers["last-event-id"] = after
    body = {"model": model, "messages": [], "stream": True}
    return open_stream(relay.url + PATH, headers=headers, body=body, timeout=timeout)


@dataclass(frozen=True)
class LogSeen:
    """A stream as the store holds it: the frames in order, every end mark's outcome, and how its producer tells it."""

    frames: list[bytes]
    ends: list[str]
    closing: bytes

    @property
    def events(self) -> bytes:
        return b"".join(self.frames)

    @property
    def raw(self) -> bytes:
        """All that a client gets, where the producer has written the end itself."""
        return self.events + self.closing


class StoreView:
    """The store, read directly."""

    def __init__(self, store: Store) -> None:
        url = store.url
        self._client = redis.Redis.from_url(url)

    def __enter__(self) -> StoreView:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def log(self, stream_id: str) -> LogSeen:
        entries = entries_in_full(self._client, stream_id)
        written = [next(iter(fields.items())) for _, fields in entries]
        frames = [content for field, content in written if field == "f"]
        marks = [content.partition(b"\n") for field, content in written if field == "end"]
        assert not marks or written[-1][0] == "end", f"something stands after the end of {stream_id}"
        wanted = [f"{n}-0" for n in range(1, len(frames) + 1)] + [f"{len(frames)}-1"] * len(marks)
        assert [entry for entry, _ in entries] == wanted, "an end takes no number"
        return LogSeen(frames, [outcome.decode() for outcome, *_ in marks], b"".join(rest for *_, rest in marks))

    def end(self, stream_id: str) -> str | None:
        value: Any = self._client.hget(f"relay:{{{stream_id}}}:meta", "end")
        return None if value is None else value.decode()

    def lease_left(self, stream_id: str) -> float:
        """Seconds, by the store's clock."""
        lease: Any = self._client.hget(f"relay:{{{stream_id}}}:meta", "lease")
        seconds, micros = self._client.time()
        return float(lease) / 1000 - seconds - micros / 1e6

    def holds(self, text: str) -> bool:
        """Is a text in what it keeps beside the events?"""
        hashes: list[Any] = [self._client.hgetall(key) for key in self._client.scan_iter(_type="hash", count=1000)]
        texts: list[Any] = [self._client.get(key) for key in self._client.scan_iter(_type="string", count=1000)]
        return any(text.encode() in each for found in hashes for pair in found.items() for each in (*pair, *texts))

    def replicas_with_streams(self) -> int:
        return sum(1 for _ in self._client.scan_iter("relay:replica:*", count=1000))


class Probe:
    """Looks into relay processes started with `env`: their clock and their tasks (replicas_probe)."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "probe"
        self.env = {
            "PYTHONPATH": str(Path(__file__).parent / "replicas_probe"),
            "REPLICA_PROBE": str(self._path),
        }

    def ask(self, pid: int, timeout: float = 10.0) -> dict[str, Any]:
        before = self._read(pid).get("serial", 0)
        os.kill(pid, signal.SIGUSR1)
        wait_until(lambda: self._read(pid).get("serial", 0) > before, timeout, f"an answer of process {pid}")
        return self._read(pid)

    def tasks(self, pid: int) -> list[str]:
        found: list[str] = self.ask(pid)["tasks"]
        return found

    def _read(self, pid: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(Path(f"{self._path}.{pid}").read_text())
        except FileNotFoundError:
            return {}
        return found
