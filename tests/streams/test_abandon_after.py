"""`Relay-Abandon-After`: how long a generation goes on unread is said by those who read it, on whatever replica."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.asking import ask
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.processes import RelayProcess
from tests.support.replicas import stream_id
from tests.support.scripted import Gate, stream
from tests.support.site import PairSite, pair_of_relays
from tests.support.sseclient import RawStream

pytestmark = pytest.mark.slow

AUTH = {"authorization": "Bearer sk-says-when"}
AT_ONCE = 2.0
"""What `0s` may take on a busy machine; the setting here is ten times that, and so is what the others say."""
LONG = "20s"


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    streams = {"heartbeat": "200ms", "lease": "1s", "abandon_after": LONG, "abandon_limit": "1h", "patience": "300ms"}
    with pair_of_relays(streams) as found:
        yield found


def said(abandon_after: str | None) -> dict[str, str]:
    return AUTH if abandon_after is None else {**AUTH, "relay-abandon-after": abandon_after}


def post(relay: RelayProcess, model: str, abandon_after: str | None, **more: str) -> RawStream:
    body = {"model": model, "stream": True, "messages": []}
    return ask(relay.url + PATH, headers={**said(abandon_after), **more}, body=body)


def resume(relay: RelayProcess, how: str, stream: str, abandon_after: str | None) -> RawStream:
    headers = {**said(abandon_after), "last-event-id": f"{stream}.0"}
    if how == "get":
        return ask(f"{relay.url}/streams/{stream}", "GET", headers)
    return ask(relay.url + PATH, headers=headers, body={})


def begin(site: PairSite, model: str, abandon_after: str | None, **more: str) -> RawStream:
    site.upstream.on(model, *stream(frame(1), frame(2), Gate(model), frame(3), DONE))
    answer = post(site.replicas[0], model, abandon_after, **more)
    assert answer.status == 200, answer.read()
    answer.events(2)
    return answer


def ends(site: PairSite, model: str, within: float = AT_ONCE) -> bool:
    """Does the only call upstream end by itself within so many seconds?"""
    (call,) = site.upstream.calls_of(model)
    return call.ended.wait(within)


def test_zero_is_the_end_of_the_call(site: PairSite) -> None:
    begin(site, "zero", "0s").close()
    assert ends(site, "zero")
    assert site.upstream.calls_of("zero")[0].cancelled


def test_who_says_nothing_has_the_setting(site: PairSite) -> None:
    begin(site, "nothing", None).close()
    assert not ends(site, "nothing")
    site.upstream.open("nothing")


@pytest.mark.parametrize("where", [0, 1], ids=["same replica", "other replica"])
@pytest.mark.parametrize("how", ["get", "post"])
@pytest.mark.parametrize(
    ("first", "second", "goes_on"),
    [("0s", LONG, True), (LONG, "0s", True), (None, "0s", False), ("0s", None, False), ("0s", "0s", False)],
)
def test_of_several_readers_the_longest_time_counts(
    site: PairSite, where: int, how: str, first: str | None, second: str | None, goes_on: bool
) -> None:
    model = f"several-{where}-{how}-{first}-{second}"
    one = begin(site, model, first)
    other = resume(site.replicas[where], how, stream_id(one), second)
    assert other.status == 200
    other.events(2)
    one.close()
    assert not ends(site, model, 0.7), "somebody reads it"
    other.close()
    assert ends(site, model) is not goes_on
    site.upstream.open(model)


@pytest.mark.parametrize("where", [0, 1], ids=["same replica", "other replica"])
@pytest.mark.parametrize("how", ["key", "session"])
def test_who_joins_says_it_too(site: PairSite, where: int, how: str) -> None:
    model = f"joins-{how}-{where}"
    header = {"idempotency-key": model} if how == "key" else {"session-id": model}
    begin(site, model, None, **header).close()
    joined = post(site.replicas[where], model, "0s", **header)
    assert check(joined.take(2)) == (2, None)
    joined.close()
    assert ends(site, model)
    assert len(site.upstream.calls_of(model)) == 1


def test_no_more_than_the_limit() -> None:
    with pair_of_relays({"abandon_after": LONG, "abandon_limit": "300ms", "heartbeat": "200ms"}) as site:
        begin(site, "limit", "24h").close()
        assert ends(site, "limit")


@pytest.mark.parametrize("bad", ["soon", "-1s", "1", "", "off", "1s, 2s"])
def test_what_is_no_duration_is_refused_before_anything_is_paid_for(site: PairSite, bad: str) -> None:
    relay = site.replicas[0]
    for answer in (post(relay, "bad", bad), resume(relay, "get", "st_" + "a" * 22, bad)):
        assert answer.status == 400
        assert b"Relay-Abandon-After" in answer.read()
    assert not site.upstream.calls_of("bad")


def test_a_tickets_holder_has_no_say(site: PairSite) -> None:
    """Else a permission to read would be one to stop, and to spend."""
    one = begin(site, "ticket", None)
    address = site.replicas[1].url + one.headers["relay-stream-url"]
    other = ask(address, "GET", {"relay-abandon-after": "0s"})
    other.events(2)
    one.close()
    other.close()
    assert not ends(site, "ticket")
    site.upstream.open("ticket")


def test_it_does_not_go_upstream(site: PairSite) -> None:
    answer = begin(site, "upstream", "1m")
    site.upstream.open("upstream")
    answer.read()
    assert site.upstream.calls_of("upstream")[0].header("relay-abandon-after") is None
