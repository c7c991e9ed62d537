"""A request goes on to the next upstream only after a refusal, and only where that was asked for."""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from relay.config import UpstreamSettings
from relay.config.upstreams import Refusal
from relay.protocol.errors import ApiError, UpstreamDisconnected, UpstreamTimeout, UpstreamUnreachable
from relay.upstream import failover
from relay.upstream.answer_headers import AnswerHeaders
from relay.upstream.client import Body, Response
from relay.upstream.routing import Route, route_model

ON = [429, 503, 529, "unreachable"]
UNREACHABLE = UpstreamUnreachable("nobody there")
BROKEN = UpstreamDisconnected("gone")
SILENT = UpstreamTimeout("late")


class Held(Body):
    """A body that knows whether it was let go of."""

    def __init__(self) -> None:
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True


def upstreams(*each: dict[str, Any]) -> list[UpstreamSettings]:
    return [UpstreamSettings(name=f"u{n}", base_url=f"http://u{n}", **one) for n, one in enumerate(each)]


def asked(route: Route, *answers: Any) -> tuple[list[str], Any, list[Response]]:
    """Who was asked, what came of it, and the responses that were sent. An answer is a status, (status, headers), or an
    error."""
    sends: list[str] = []
    responses: list[Response] = []
    left = list(answers)

    async def send(at: Route) -> Response:
        sends.append(at.upstream.name)
        answer = left.pop(0)
        if isinstance(answer, ApiError):
            raise answer
        status, headers = answer if isinstance(answer, tuple) else (answer, {})
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        responses.append(Response(status, AnswerHeaders(raw), Held()))
        return responses[-1]

    try:
        at, response = asyncio.run(failover.ask(route, send))
    except ApiError as error:
        return sends, error, responses
    return sends, (at.upstream.name, response.status_code), responses


@pytest.mark.parametrize(
    ("answers", "sends", "outcome"),
    [
        ([200], 1, ("u0", 200)),
        ([429, 200], 2, ("u1", 200)),
        ([503, 529, 200], 3, ("u2", 200)),
        ([UNREACHABLE, 200], 2, ("u1", 200)),
        # Not asked for, or it leaves open whether something was generated: the answer as it is.
        ([400], 1, ("u0", 400)),
        ([500], 1, ("u0", 500)),
        ([504], 1, ("u0", 504)),
        ([302], 1, ("u0", 302)),
        ([BROKEN], 1, BROKEN),
        ([SILENT], 1, SILENT),
        # The further ones may fail in the same ways; where one may have generated, that is the answer.
        ([429, BROKEN], 2, BROKEN),
        ([429, SILENT], 2, SILENT),
        ([429, 500], 2, ("u1", 500)),
        # All refuse: the first refusal that was sent.
        ([429, 503, 529], 3, ("u0", 429)),
        ([503, 401], 2, ("u0", 503)),
        ([503, UNREACHABLE, 429], 3, ("u0", 503)),
        ([UNREACHABLE, 429, UNREACHABLE], 3, ("u1", 429)),
        ([UNREACHABLE, UNREACHABLE, UNREACHABLE], 3, UNREACHABLE),
    ],
)
def test_who_is_asked_and_what_is_answered(answers: list[Any], sends: int, outcome: Any) -> None:
    route = route_model(upstreams({"next_on": ON}, {"next_on": ON}, {}), "chat", "m")
    names, found, responses = asked(route, *answers)
    assert (names, found) == ([f"u{n}" for n in range(sends)], outcome)
    kept = [r for r in responses if not r.stream.closed]  # type: ignore[attr-defined]
    assert [r.status_code for r in kept] == ([outcome[1]] if isinstance(outcome, tuple) else [])


def test_without_being_asked_to_nothing_goes_on() -> None:
    route = route_model(upstreams({}, {}), "chat", "m")
    assert route.next is None
    for refusal in (429, 503):
        assert asked(route, refusal)[:2] == (["u0"], ("u0", refusal))


def test_the_next_one_speaks_the_api_and_serves_the_model() -> None:
    route = route_model(
        upstreams(
            {"next_on": [429]},
            {"apis": ["messages"]},
            {"models": ["other-*"]},
            {"models": ["m-*"], "model": "theirs", "next_on": [503]},
            {"models": ["x/m-1", "*"], "strip_prefix": "m-"},
        ),
        "chat",
        "m-1",
    )
    found = []
    at: Route | None = route
    while at is not None:
        found.append((at.upstream.name, at.model, at.pattern))
        at = at.next
    assert found == [("u0", "m-1", "*"), ("u3", "theirs", "m-*"), ("u4", "1", "*")]


def test_what_names_something_that_one_upstream_keeps_goes_to_no_other() -> None:
    assert route_model(upstreams({"next_on": [429]}, {}), "responses", "m", bound=True).next is None


@pytest.mark.parametrize(
    ("wait", "answers", "sends"),
    [
        (5, [(429, {"retry-after": "0"}), 200], ["u0", "u0"]),
        (5, [(429, {"retry-after": formatdate(0, usegmt=True)}), 200], ["u0", "u0"]),
        (5, [(429, {"retry-after": "6"}), 200], ["u0", "u1"]),
        (5, [429, 200], ["u0", "u1"]),
        (5, [(429, {"retry-after": "soon"}), 200], ["u0", "u1"]),
        (5, [(500, {"retry-after": "0"})], ["u0"]),
        (0, [(429, {"retry-after": "0"}), 200], ["u0", "u1"]),
        # However short each wait is, there is an end to them.
        (2, [(429, {"retry-after": "0"})] * 3 + [200], ["u0", "u0", "u0", "u1"]),
    ],
)
def test_a_short_retry_after_is_waited_out(wait: float, answers: list[Any], sends: list[str]) -> None:
    route = route_model(upstreams({"next_on": [429], "wait": wait}, {}), "chat", "m")
    assert asked(route, *answers)[0] == sends


def test_whoever_is_alone_waits_too() -> None:
    route = route_model(upstreams({"next_on": [429], "wait": "5s"}), "chat", "m")
    assert not route.settled
    assert asked(route, (429, {"retry-after": "0"}), 200)[:2] == (["u0", "u0"], ("u0", 200))


@pytest.mark.parametrize("status", [200, 302, 408, 409, 500, 502, 504, 524])
def test_what_may_have_generated_is_no_refusal(status: int) -> None:
    assert status not in get_args(Refusal)
    with pytest.raises(ValidationError, match="next_on"):
        upstreams({"next_on": [status]})


@pytest.mark.parametrize("refused", [1, 2, 5])
def test_the_last_one_is_looked_for_again_where_it_cannot_be_reached(refused: int, no_pauses: list[float]) -> None:
    route = route_model(upstreams({"next_on": ["unreachable"], "wait": "15m"}), "chat", "m")
    sends, found, _ = asked(route, *[UNREACHABLE] * refused, 200)
    assert sends == ["u0"] * (refused + 1)
    assert found == ("u0", 200)
    assert len(no_pauses) == refused
    assert all(0 < pause <= failover._LONGEST_PAUSE for pause in no_pauses)


def test_but_no_longer_than_its_wait(no_pauses: list[float]) -> None:
    route = route_model(upstreams({"next_on": ["unreachable"], "wait": "20s"}), "chat", "m")
    sends, found, _ = asked(route, *[UNREACHABLE] * 100)
    assert found is UNREACHABLE
    assert 3 < len(sends) < 30
    assert sum(no_pauses) <= 20


@pytest.mark.parametrize("error", [BROKEN, SILENT])
def test_and_never_after_what_may_have_been_generated(error: ApiError, no_pauses: list[float]) -> None:
    route = route_model(upstreams({"next_on": ["unreachable"], "wait": "15m"}), "chat", "m")
    assert asked(route, UNREACHABLE, error)[:2] == (["u0", "u0"], error)


@pytest.mark.parametrize(
    "each",
    [
        [{"next_on": ["unreachable"]}],
        [{"next_on": [429], "wait": "15m"}],
        [{"next_on": ["unreachable"], "wait": "15m"}, {}],
    ],
    ids=["without a wait", "not named", "with a next one"],
)
def test_who_does_not_ask_for_it_is_told_at_once(each: list[dict[str, Any]], no_pauses: list[float]) -> None:
    _, found, _ = asked(route_model(upstreams(*each), "chat", "m"), UNREACHABLE, UNREACHABLE)
    assert found is UNREACHABLE
    assert no_pauses == []


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited, in seconds."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("relay.upstream.failover.asyncio.sleep", sleep)
    return waited
