"""Two relay processes on one store, and the client that comes back after a cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.resume.samples import Sample, masked
from tests.support.processes import RelayProcess
from tests.support.sseclient import RawStream, open_stream


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


def start(relay: RelayProcess, sample: Sample, model: str, token: str = "sk-one") -> RawStream:
    """POST a new stream; its id is `stream_id(...)` of the answer."""
    answer = open_stream(relay.url + sample.path, headers=sample.headers(token), body=sample.body(model))
    assert answer.status == 200, answer.read()
    return answer


def stream_id(answer: RawStream) -> str:
    return answer.headers["relay-stream-id"]


def resume(
    relay: RelayProcess,
    sample: Sample,
    last_event_id: str,
    how: str = "post",
    token: str = "sk-one",
    body: object = None,
) -> RawStream:
    """Come back by the same POST ("post"), by GET /streams/{id} with the header ("get") or the query ("query")."""
    headers = sample.headers(token)
    if how == "post":
        again = sample.body("nothing-may-go-upstream") if body is None else body
        return open_stream(relay.url + sample.path, headers={**headers, "last-event-id": last_event_id}, body=again)
    url = f"{relay.url}/streams/{last_event_id.rpartition('.')[0]}"
    if how == "get":
        return open_stream(url, "GET", {**headers, "last-event-id": last_event_id})
    return open_stream(f"{url}?last_event_id={last_event_id}", "GET", headers)


def rest(answer: RawStream) -> bytes:
    """The events up to the stream's end, heartbeats removed and `masked`; nothing else may be in the body."""
    with answer:
        assert answer.status == 200, answer.read()
        parts = list(answer)
        assert answer.ended == "zero-chunk"
        assert answer.raw_body.endswith(b"".join(part.raw for part in parts))
        return masked(b"".join(part.raw for part in parts if not part.is_heartbeat))
