"""Which streams of lost producers are gone on with here, which wait for somebody, and which end: row by row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, cast

import pytest

from relay.config import Settings
from relay.metrics import Metrics
from relay.protocol.end_mark import End
from relay.protocol.errors import Unavailable
from relay.protocol.legs import RELAY, RESPONSES, UNKNOWN, Leg, Shown
from relay.store.log import Log, Page, Status
from relay.streams.context import ProducerContext
from relay.streams.successor import Successor
from relay.streams.takeover import Takeovers
from relay.upstream.client import UpstreamClient
from tests.support.oracle import DONE, frame

LEG = Leg(RELAY, "u", "st_far")
SHOWN = Shown([(b"authorization", b"Bearer sk-1")])
STATUS = Status(
    stream="st_1",
    top=3,
    outcome="",
    lease_left=-1.0,
    kept=True,
    born=time.time(),
    ended=0.0,
    fence="1",
    api="chat",
    owner="o",
    upstream="u",
    model="*",
    replica="r1",
    usage="",
    headers=[],
    end_mark=b"",
    joinable=False,
    leg=LEG.encode(),
)


class Taker:
    """A replica. What it would take over it notes."""

    def __init__(self, *, room: bool = True, runs: bool = False) -> None:
        self.room = room
        self.is_running = runs
        self.begun = 0

    def check_room(self, owner: str) -> None:
        if not self.room:
            raise Unavailable("full")

    def runs(self, stream: str) -> bool:
        return self.is_running

    def succeed(self, successor: Successor, said: float | None, lost: str) -> None:
        raise AssertionError

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.begun += 1
        work.close()
        return asyncio.create_task(asyncio.sleep(0))


class FakeLog:
    def __init__(self, last: bytes = b"", page: Page | None = None) -> None:
        self._last = last
        self._page = page

    async def frame(self, *_: object) -> bytes:
        return self._last

    async def read(self, *_: object, **__: object) -> Page:
        assert self._page is not None
        return self._page


TAKEN, WAITS, ENDS = "taken", "waits", "ends"
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "with a key of its upstream's": ({}, TAKEN),
    "whoever reads it": ({"shown": SHOWN}, TAKEN),
    "a response in the background": (
        {"upstream": {"resume": "responses"}, "status": {"leg": Leg(RESPONSES, "u").encode()}},
        TAKEN,
    ),
    "with clients' credentials, and its owner is here": ({"key": False, "shown": SHOWN}, TAKEN),
    "with clients' credentials, and nobody is": ({"key": False}, WAITS),
    "no room": ({"taker": {"room": False}}, WAITS),
    "it runs here by now": ({"taker": {"runs": True}}, WAITS),
    "just lapsed": ({"key": False, "status": {"lease_left": -0.01}}, WAITS),
    "nobody came in time": ({"key": False, "status": {"lease_left": -61.0}}, ENDS),
    "no room in time": ({"taker": {"room": False}, "status": {"lease_left": -61.0}}, ENDS),
    "its owner comes too late": ({"key": False, "shown": SHOWN, "status": {"lease_left": -61.0}}, ENDS),
    "its reader wants it for longer": ({"key": False, "status": {"lease_left": -61.0, "abandon_after": 90.0}}, WAITS),
    "it has run for as long as it may": ({"key": False, "status": {"born": time.time() - 4000}}, ENDS),
    "nothing is kept of its upstream": ({"status": {"leg": b""}}, ENDS),
    "what is kept is unreadable": ({"status": {"leg": b"{}"}}, ENDS),
    "it is not known where the upstream stands": ({"status": {"at": UNKNOWN.encode()}}, ENDS),
    "it is known where the upstream stands": ({"status": {"at": b"2:3"}}, TAKEN),
    "the upstream is in the settings no more": ({"status": {"upstream": "v"}}, ENDS),
    "it was another upstream's": ({"status": {"leg": replace(LEG, upstream="v").encode()}}, ENDS),
    "nobody comes back to the upstream any more": ({"upstream": {"resume": "off"}}, ENDS),
    "the upstream is come back to otherwise": ({"upstream": {"resume": "responses"}}, ENDS),
    "for no time": ({"upstream": {"upstream_resume": "0s"}}, ENDS),
    "a later version's API": ({"status": {"api": "telepathy"}}, ENDS),
    "its upstream has ended it": ({"last": b"id: st_1.3\n" + DONE}, ENDS),
    "its upstream has failed": ({"last": b'id: st_1.3\ndata: {"error":{"message":"no","code":"x"}}\n\n'}, ENDS),
}


def of_upstream(*, key: bool, **more: Any) -> Settings:
    own = {"api_key_env": "KEY"} if key else {}
    return Settings.model_validate({"upstreams": [{"name": "u", "base_url": "http://127.0.0.1:9", **own, **more}]})


@pytest.mark.parametrize("row", ROWS)
def test_a_stream_whose_lease_has_lapsed(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, wanted = ROWS[row]
    monkeypatch.setenv("KEY", "sk-own")
    settings = of_upstream(key=given.get("key", True), **given.get("upstream", {}))
    status = replace(STATUS, **given.get("status", {}))

    async def story() -> None:
        taker, metrics = Taker(**given.get("taker", {})), Metrics()
        log = cast(Log, FakeLog(given.get("last", b"id: st_1.3\n" + frame(3))))
        takeovers = Takeovers(settings, log, "r2", metrics, taker, cast(ProducerContext, None))
        assert not takeovers.possible(status), "there is no way to an upstream yet"
        takeovers.upstreams = UpstreamClient()
        goes_on = await takeovers.goes_on(status, given.get("shown"))
        assert (goes_on, taker.begun) == {TAKEN: (True, 1), WAITS: (True, 0), ENDS: (False, 0)}[wanted]
        await takeovers.upstreams.close()

    asyncio.run(story())


FRAMES = [b"id: st_1.%d\n%b" % (n, frame(n)) for n in range(1, 6)]


@pytest.mark.parametrize(
    ("page", "found", "hopeless"),
    [
        (Page(FRAMES[:3], None, False, False), 3, False),
        # Who is lost may have woken, and written on: what says where the upstream stands was asked for before.
        (Page(FRAMES, None, False, False), 3, False),
        (Page(FRAMES[:2], None, True, False), None, True),
        (Page([], None, True, False), None, True),
        (Page([], None, False, False), None, False),
        (Page(FRAMES[:3], End("completed"), False, False), None, False),
    ],
    ids=["all", "more by now", "a hole", "nothing", "less than there was", "ended meanwhile"],
)
def test_what_the_log_has_is_read_before_anything_is_taken(
    page: Page, found: int | None, hopeless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "sk-own")

    async def story() -> None:
        log = cast(Log, FakeLog(FRAMES[2], page))
        takeovers = Takeovers(of_upstream(key=True), log, "r2", Metrics(), Taker(), cast(ProducerContext, None))
        takeovers.upstreams = UpstreamClient()
        frames: list[bytes] = []
        assert await takeovers._read(STATUS, frames) == (found is not None)
        if found is not None:
            assert frames == FRAMES[:found]
        assert await takeovers.goes_on(STATUS, None) == (not hopeless)
        await takeovers.upstreams.close()

    asyncio.run(story())
