"""Every client of Python plays the table of scripts: synchronous, on asyncio and on Trio, with both libraries."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio

from relay.client.policy import Moment, Policy
from tests.client.cases import Case, body, load, script
from tests.client.played import DONE, KINDS, STREAM, Answer, Kind, Seen, frame
from tests.support.streams import PATHS

CASES = load()
WAYS = (*KINDS, "httpx-trio", "httpx2-trio")


def played_by(way: str) -> Kind:
    kind = KINDS[way.replace("trio", "async")]()
    if way.endswith("trio"):
        kind.run = trio.run
    return kind


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, way: str) -> None:
    kind = played_by(way)
    told: list[str] = []
    transport = kind.transport(_policy(case, kind, told), base_urls=case.base_urls, headers=_fresh(case, kind))
    if case.known:
        kind.post([Answer(parts=[frame(1, DONE)])], transport)
        kind.requests.clear()
    kind.now = 0.0
    steps = script(case)
    for _ in range(case.requests):
        seen = _ask(kind, case, transport, steps)
    assert steps == [], "not all of the script was asked for"
    _check_error(case, kind, seen)
    assert (seen.status or 0) == case.status
    if case.seen is not None:
        assert seen.body == body(case.seen)
    _check_requests(case, kind)
    if case.told is not None:
        assert told == case.told
    for name, count in (case.counters or {}).items():
        assert getattr(transport.counters, name) == count, name


def _policy(case: Case, kind: Kind, told: list[str]) -> Policy:
    def on(name: str) -> Any:
        def notify(moment: Moment) -> None:
            told.append(f"{name} {moment.last_event_id.rpartition('.')[2]}")

        return notify

    callbacks = {f"on_{name}": on(name) for name in ("cut", "resume", "gave_up")}
    return Policy(**{"random": lambda: 1.0, "clock": lambda: kind.now, **callbacks, **case.policy})


def _fresh(case: Case, kind: Kind) -> Any:
    if not case.fresh:
        return None
    return lambda: {"Authorization": f"Bearer {len(kind.requests)}"}


def _ask(kind: Kind, case: Case, transport: Any, steps: list[Any]) -> Seen:
    headers = {name: value.replace("$", STREAM) for name, value in case.headers.items()}
    if case.get is not None:
        return kind.ask("GET", steps, transport, "http://relay.test" + case.get.replace("$", STREAM), headers=headers)
    return kind.post(steps, transport, "http://relay.test" + PATHS[case.api], headers=headers)


def _check_error(case: Case, kind: Kind, seen: Seen) -> None:
    if case.error is None:
        assert seen.error is None
    elif "own" in case.error:
        names = {"lost": kind.http.ReadError, "slow": kind.http.ReadTimeout}
        assert type(seen.error) is names[case.error["own"]]
    else:
        assert isinstance(seen.error, kind.client.ResumeFailed)
        assert "sk-secret" not in str(seen.error)
        found = {
            "reason": seen.error.reason.value,
            "status": seen.error.status,
            "code": seen.error.code,
            "last": seen.error.last_event_id.rpartition(".")[2],
        }
        assert {name: found[name] for name in case.error} == case.error
        timed_out = case.error["reason"] == "timed_out"
        assert isinstance(seen.error, kind.http.TimeoutException) == timed_out


def _check_requests(case: Case, kind: Kind) -> None:
    ids = [value and value.rpartition(".")[2] for value in kind.headers("last-event-id")]
    if case.asked:
        assert ids == case.asked
    if case.waits is not None:
        assert kind.waits == case.waits
    if case.keys is not None:
        letters: dict[str | None, str] = {None: "-"}
        keys = kind.headers("idempotency-key")
        assert "".join(letters.setdefault(key, chr(96 + len(letters))) for key in keys) == case.keys
    if case.hosts is not None:
        assert [request.url.host for request in kind.requests] == case.hosts
    if case.paths is not None:
        wanted = [path.replace("$", STREAM) for path in case.paths]
        assert [request.url.raw_path.decode() for request in kind.requests] == wanted
    if case.credentials is not None:
        assert kind.headers("authorization") == case.credentials


def test_every_case_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []
