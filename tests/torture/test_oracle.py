"""The witness: what it lets through, and that it sees each way in which the promise can be broken."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.torture.generation import DONE, PATHS, Api, Generation, Spec
from tests.torture.oracle import Event, Violation, Witness

STREAM = "st_" + "a" * 22
CALL = 5
APIS: list[Api] = list(PATHS)


def events(api: Api, *, call: int = CALL, stream: str = STREAM, ending: str = "complete") -> list[Event]:
    """What a client gets of a whole stream of ten deltas."""
    generation = Generation(Spec(api, 10, 0.0, ending=ending), call)  # type: ignore[arg-type]
    frames = [generation.frame(n) for n in range(1, generation.total + 1)]
    return [Event(f"{stream}.{n}", frame.type, frame.data) for n, frame in enumerate(frames, 1)]


def error(api: Api, after: int, code: str = "producer_lost") -> list[Event]:
    """An end of the relay's own, behind event `after`."""
    last = f"{STREAM}.{after}e"
    if api == "chat":
        return [Event(None, None, json.dumps({"error": {"code": code}})), Event(last, None, DONE)]
    if api == "messages":
        return [Event(last, "error", json.dumps({"type": "error", "error": {"code": code}}))]
    failed = {"type": "response.failed", "response": {"status": "failed", "error": {"code": code}}}
    return [
        Event(None, "error", json.dumps({"type": "error", "code": code})),
        Event(last, "response.failed", json.dumps(failed)),
    ]


def witness(api: Api = "chat", *, ending: str = "complete", calls: dict[str, int] | None = None) -> Witness:
    found = Witness(Spec(api, 10, 0.0, ending=ending), {} if calls is None else calls)  # type: ignore[arg-type]
    found.answered(STREAM, resumable=True)
    return found


def take(seen: Witness, given: list[Event]) -> None:
    for event in given:
        seen.take(event)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(("ending", "end"), [("complete", "complete"), ("error", "upstream_error")])
def test_a_whole_stream(api: Api, ending: str, end: str) -> None:
    seen = witness(api, ending=ending)
    take(seen, events(api, ending=ending))
    seen.ended_cleanly()
    seen.nothing_missing()
    assert seen.end == end
    assert seen.last_id == f"{STREAM}.{seen.n}"


def test_an_upstreams_error_is_an_end_without_its_done() -> None:
    for ending, told in (("error", True), ("complete", False)):
        seen = witness(ending=ending)
        take(seen, events("chat", ending=ending)[:-1])
        if told:
            seen.ended_cleanly()
            assert seen.end == "upstream_error"
        else:
            with pytest.raises(Violation, match="truncation"):
                seen.ended_cleanly()


@pytest.mark.parametrize("api", APIS)
def test_cut_and_gone_on_with_and_an_end_that_the_relay_tells(api: Api) -> None:
    seen = witness(api)
    given = events(api)
    take(seen, given[:4])
    seen.answered(STREAM, resumable=True)
    take(seen, given[4:7])
    take(seen, error(api, 7))
    seen.ended_cleanly()
    assert (seen.end, seen.last_id) == ("producer_lost", f"{STREAM}.7e")


def test_cut_inside_an_end_that_is_told_again() -> None:
    seen = witness()
    take(seen, events("chat")[:3])
    take(seen, error("chat", 3)[:1])
    assert seen.end is None
    seen.answered(STREAM, resumable=True)
    take(seen, error("chat", 3))
    assert seen.end == "producer_lost"


@pytest.mark.parametrize("api", APIS)
def test_a_stop_is_an_end(api: Api) -> None:
    seen = witness(api)
    take(seen, events(api)[:5])
    last, cancelled = f"{STREAM}.5e", {"status": "cancelled"}
    stop = {
        "chat": [
            Event(None, None, json.dumps({"choices": [{"index": 0, "finish_reason": "length"}], "relay": "stopped"})),
            Event(last, None, DONE),
        ],
        "messages": [
            Event(None, kind, json.dumps({"type": kind})) for kind in ("content_block_stop", "message_delta")
        ] + [Event(last, "message_stop", json.dumps({"type": "message_stop"}))],
        "responses": [
            Event(last, "response.completed", json.dumps({"type": "response.completed", "response": cancelled}))
        ],
    }  # fmt: skip
    take(seen, stop[api])
    seen.ended_cleanly()
    assert seen.end == "stopped"


def test_a_stop_behind_the_last_chunk() -> None:
    seen = witness()
    given = events("chat")
    take(seen, given[:-1])
    seen.take(Event(f"{STREAM}.{len(given) - 1}e", None, DONE))
    assert seen.end == "stopped"


def _hole(given: list[Event]) -> Iterator[Event]:
    yield from (event for n, event in enumerate(given) if n != 4)


def _renumbered_hole(given: list[Event]) -> Iterator[Event]:
    for n, event in enumerate(_hole(given), 1):
        yield event._replace(id=f"{STREAM}.{n}")


def _double(given: list[Event]) -> Iterator[Event]:
    yield from given[:4]
    yield from given[3:]


def _renumbered_double(given: list[Event]) -> Iterator[Event]:
    for n, event in enumerate(_double(given), 1):
        yield event._replace(id=f"{STREAM}.{n}")


def _splice(given: list[Event]) -> Iterator[Event]:
    yield from given[:4]
    yield from events("messages", call=CALL + 1)[4:]


def _changed(given: list[Event]) -> Iterator[Event]:
    yield from given[:4]
    yield given[4]._replace(data=given[4].data.replace("c5-n5-", "c5-n5-0"))


def _without_ids(given: list[Event]) -> Iterator[Event]:
    yield from (event._replace(id=None) if n == 4 else event for n, event in enumerate(given))


def _shifted_ids(given: list[Event]) -> Iterator[Event]:
    yield from (event._replace(id=f"{STREAM}.{n}") for n, event in enumerate(given))


def _behind_the_end(given: list[Event]) -> Iterator[Event]:
    yield from given
    yield from error("messages", len(given))


def _behind_a_told_end(given: list[Event]) -> Iterator[Event]:
    yield from given[:4]
    yield from error("messages", 4)
    yield given[4]


def _two_ends(given: list[Event]) -> Iterator[Event]:
    yield from given[:4]
    yield from error("messages", 4)
    yield from error("messages", 4, "shutdown")


def _numbered_end(given: list[Event]) -> Iterator[Event]:
    yield from given[:4]
    yield from (event._replace(id=f"{STREAM}.5") for event in error("messages", 4))


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (_hole, "hole"),
        (_renumbered_hole, "hole"),
        (_double, "double"),
        (_renumbered_double, "double"),
        (_splice, "splice"),
        (_changed, "payload"),
        (_without_ids, "no_id"),
        (_shifted_ids, "wrong_id"),
        (_behind_the_end, "after_end"),
        (_behind_a_told_end, "after_end"),
        (_two_ends, "two_ends"),
        (_numbered_end, "wrong_id"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_planted_violation_is_seen(plant: Callable[[list[Event]], Iterator[Event]], kind: str) -> None:
    with pytest.raises(Violation) as seen:
        take(witness("messages"), list(plant(events("messages"))))
    assert seen.value.kind == kind


def test_a_clean_end_without_a_last_event_is_a_truncation() -> None:
    seen = witness()
    take(seen, events("chat")[:6])
    for end in (seen.ended_cleanly, seen.nothing_missing):
        with pytest.raises(Violation, match="truncation"):
            end()


def test_a_done_that_is_not_the_last_event_is_a_truncation() -> None:
    seen = witness()
    take(seen, events("chat")[:6])
    with pytest.raises(Violation, match="truncation"):
        seen.take(Event(f"{STREAM}.7", None, DONE))


def test_another_stream_than_asked_for() -> None:
    seen = witness()
    take(seen, events("chat")[:6])
    with pytest.raises(Violation, match="splice"):
        seen.answered("st_" + "b" * 22, resumable=True)


def test_two_clients_of_a_stream_read_one_generation() -> None:
    calls: dict[str, int] = {}
    take(witness(calls=calls), events("chat")[:2])
    with pytest.raises(Violation, match="splice"):
        take(witness(calls=calls), events("chat", call=CALL + 1))


def test_one_who_comes_in_the_middle() -> None:
    seen = Witness(Spec("chat", 10, 0.0), {})
    seen.watch(STREAM, 5)
    seen.answered(STREAM, resumable=True)
    take(seen, events("chat")[5:])
    assert seen.end == "complete"
    late = Witness(Spec("chat", 10, 0.0), {})
    late.watch(STREAM, 5)
    late.answered(STREAM, resumable=True)
    with pytest.raises(Violation, match="double"):
        take(late, events("chat")[4:])
