"""Unmodified SDKs with only `fetch` swapped read one seamless answer, wherever and however often they are cut.

Every SDK reads the same answer once uncut, as it ships, and then through cuts; what a user sees must be identical,
event for event, and the upstream must have been asked once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.client_js.conftest import Bench, finish, node, replicas, start
from tests.client_js.scripts import SDKS, script
from tests.support.cutting_http import BEFORE_HEAD, Asked, CuttingProxy, Fate, Way

pytestmark = pytest.mark.slow

Transcript = dict[str, Any]
Round = dict[tuple[str, str], Transcript]
Choice = Callable[[random.Random, int], Fate]
WARM = "warm"
WAYS: tuple[Way, ...] = ("fin", "rst", "clean", "close")


def often(rng: random.Random, nth: int) -> Fate:
    """At any byte of the first few events, in any way, on either replica."""
    return Fate(rng.randrange(0, 1500), rng.choice(WAYS), to=rng.randrange(2))


def once(at: int, *ways: Way) -> dict[str, Choice]:
    """The first connection of each stream; the second goes to the other replica and is left alone."""

    def first(fate: Fate) -> Choice:
        return lambda rng, nth: Fate(to=1) if nth else fate

    return {f"{at}-{how}": first(Fate(at, how)) for how in ways}


ROUNDS: dict[str, dict[str, Choice]] = {
    "often": {f"often-{number}": often for number in range(4)},
    "before-the-head": once(BEFORE_HEAD, "fin", "rst"),
    "before-the-first-event": once(0, *WAYS),
    "in-the-first-event": once(40, *WAYS),
    "in-a-later-event": once(700, *WAYS),
}


@pytest.fixture(scope="module")
def uncut(bench: Bench) -> Round:
    """As the SDKs ship, straight at a relay."""
    return play(bench, bench.urls[0], "uncut", resume=False)["uncut"]


def models(*rounds: str) -> list[tuple[str, str, str]]:
    return [(sdk, api, f"{sdk}-{api}_{round_}") for round_ in rounds for sdk, api in SDKS]


def play(bench: Bench, url: str, *rounds: str, resume: bool) -> dict[str, Round]:
    """All streams of these rounds at once, in one Node.js process."""
    seen = iter(node("driver.mjs", prepare(bench, url, *rounds, resume=resume), quiet=resume))
    return {round_: dict(zip(SDKS, islice(seen, len(SDKS)), strict=True)) for round_ in rounds}


def prepare(
    bench: Bench, url: str, *rounds: str, resume: bool, gate: str | None = None, leave_after: int | None = None
) -> dict[str, Any]:
    jobs = models(*rounds)
    for _, api, model in jobs:
        bench.upstream.on(model, *script(api, gate))
    bench.upstream.on(WARM, *script("chat"))
    return {"baseURL": url, "resume": resume, "warm": WARM, "jobs": jobs, "leaveAfter": leave_after}


def cutting(rounds: dict[str, Choice]) -> Callable[[Asked], Fate]:
    """Each model has dice of its own, so that a round is the same however its streams interleave."""
    dice = cache(random.Random)
    times: Counter[str] = Counter()

    def fate(asked: Asked) -> Fate:
        times[asked.model] += 1
        if asked.model == WARM:
            return Fate()
        return rounds[asked.model.partition("_")[2]](dice(asked.model), times[asked.model] - 1)

    return fate


@pytest.mark.parametrize("where", ROUNDS)
def test_one_seamless_answer(bench: Bench, uncut: Round, where: str) -> None:
    rounds = ROUNDS[where]
    with CuttingProxy(*bench.urls, fate=cutting(rounds)) as proxy:
        played = play(bench, proxy.url, *rounds, resume=True)
        for round_, seen in played.items():
            for sdk, api, model in models(round_):
                connections = len(proxy.asked(model))
                assert connections > 1, f"{model} was never cut"
                assert seen[sdk, api] == uncut[sdk, api], f"{model} over {connections} connections"
                assert len(bench.upstream.calls_of(model)) == 1


def test_without_the_wrapper_the_same_cuts_are_seen(bench: Bench, uncut: Round) -> None:
    with CuttingProxy(*bench.urls, fate=cutting({"shipped": lambda rng, nth: Fate(700)})) as proxy:
        seen = play(bench, proxy.url, "shipped", resume=False)["shipped"]
    for key, transcript in seen.items():
        assert transcript["error"] is not None, key
        assert len(transcript["events"]) < len(uncut[key]["events"])


def test_without_the_wrapper_a_clean_cut_is_a_silent_truncation(bench: Bench, uncut: Round) -> None:
    """Why an end without the API's last event is asked about."""
    with CuttingProxy(*bench.urls, fate=cutting({"clean": lambda rng, nth: Fate(700, "clean")})) as proxy:
        seen = play(bench, proxy.url, "clean", resume=False)["clean"]
    assert all(seen[key]["events"] != uncut[key]["events"] for key in SDKS)
    assert [key for key in SDKS if seen[key]["error"] is None]


def test_what_is_read_is_worth_reading(uncut: Round) -> None:
    """Text, tool calls and usage are in every transcript, so equal transcripts are equal in these."""
    for key, transcript in uncut.items():
        assert transcript["error"] is None, key
        text = str(transcript["events"])
        assert "wörld" in text
        assert "get_weather" in text
        assert "usage" in text.lower()


def test_the_readers_replica_is_killed(uncut: Round, tmp_path: Path) -> None:
    """The producer's replica gets the POST, every reader comes back on the other one, which then dies."""
    round_ = "killed"
    with replicas(tmp_path) as bench:
        reader = bench.replicas[1]

        def fate(asked: Asked) -> Fate:
            if asked.model == WARM or (reader.returncode is None and "last-event-id" not in asked.headers):
                return Fate() if asked.model == WARM else Fate(600)
            return Fate(to=1 if reader.returncode is None else 0)

        with CuttingProxy(*bench.urls, fate=fate) as proxy:
            process = start("driver.mjs", prepare(bench, proxy.url, round_, resume=True, gate=round_))
            names = [model for _, _, model in models(round_)]

            def all_on_the_reader() -> bool:
                return all(any("last-event-id" in a.headers and a.sent for a in proxy.asked(name)) for name in names)

            try:
                proxy.wait_for(all_on_the_reader, 30)
                reader.kill()
                bench.upstream.open(round_)
            finally:
                seen = dict(zip(SDKS, finish(process), strict=True))
            assert all(len(proxy.asked(name)) > 2 for name in names)
        assert seen == uncut
        assert all(len(bench.upstream.calls_of(name)) == 1 for name in names)


def test_the_producers_replica_is_killed(uncut: Round, tmp_path: Path) -> None:
    """What was written is read to its end on the other replica, and the end is an error that every SDK raises."""
    round_ = "producer-killed"
    with replicas(tmp_path) as bench:
        producer = bench.replicas[0]

        def fate(asked: Asked) -> Fate:
            return Fate(to=0 if producer.returncode is None else 1)

        with CuttingProxy(*bench.urls, fate=fate) as proxy:
            names = [model for _, _, model in models(round_)]
            process = start("driver.mjs", prepare(bench, proxy.url, round_, resume=True, gate=round_))
            try:
                proxy.wait_for(lambda: all(any(a.sent > 600 for a in proxy.asked(name)) for name in names), 30)
                producer.kill()
                bench.upstream.open(round_)
            finally:
                seen = dict(zip(SDKS, finish(process), strict=True))
        for key, transcript in seen.items():
            assert "The relay process that read the upstream is gone." in transcript["error"], key
            assert transcript["events"] == uncut[key]["events"][: len(transcript["events"])], key
        assert all(len(bench.upstream.calls_of(name)) == 1 for name in names)


def test_a_refused_resume_reaches_the_user(bench: Bench, uncut: Round) -> None:
    round_ = "refused"
    body = b'{"error": {"code": "stream_expired"}}'
    gone = Fate(instead=b"HTTP/1.1 410 Gone\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    with CuttingProxy(*bench.urls, fate=cutting({round_: lambda rng, nth: gone if nth else Fate(700)})) as proxy:
        seen = play(bench, proxy.url, round_, resume=True)[round_]
    for key, transcript in seen.items():
        assert "could not be resumed after event st_" in transcript["error"], key
        assert "(410 stream_expired)" in transcript["error"]
        assert transcript["events"] == uncut[key]["events"][: len(transcript["events"])]
    assert all(len(bench.upstream.calls_of(model)) == 1 for _, _, model in models(round_))


def test_the_sdks_own_abort_hangs_up_and_asks_no_more(bench: Bench) -> None:
    round_ = "left"
    with CuttingProxy(*bench.urls) as proxy:
        argument = prepare(bench, proxy.url, round_, resume=True, gate=round_, leave_after=2)
        try:
            seen = node("driver.mjs", argument)
            for _, _, model in models(round_):
                (asked,) = proxy.asked(model)
                assert asked.gone.wait(10), model
        finally:
            bench.upstream.open(round_)
    assert not any("could not be resumed" in (transcript["error"] or "") for transcript in seen)
