"""What a client of `make cluster` takes for right, and what it finds wrong, event by event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tests.cluster.load import Load, Seen, Wrong
from tests.support.oracle import DONE, PATH, frame

STREAM = "st_one"


def block(number: int | str, data: bytes, stream: str = STREAM) -> bytes:
    return f"id: {stream}.{number}\n".encode() + data


def taken(*blocks: bytes, events: int = 3) -> Seen:
    seen = Seen()
    for each in blocks:
        seen.take(each, events)
    return seen


WHOLE = [block(1, frame(1)), block(2, frame(2)), block(3, frame(3)), block(4, DONE)]
LOST = b'data: {"error": {"code": "producer_lost", "message": "gone"}}\n\n'


def test_a_whole_stream_is_done() -> None:
    seen = taken(*WHOLE)
    assert (seen.end, seen.last, seen.stream) == ("done", 4, STREAM)


def test_a_stream_without_a_log_has_no_ids() -> None:
    seen = Seen("st_one", logged=False)
    for each in (frame(1), frame(2), frame(3), DONE):
        seen.take(each, 3)
    assert seen.end == "done"
    seen = Seen("st_one", logged=False)
    with pytest.raises(Wrong, match="instead of"):
        seen.take(frame(2), 3)
    with pytest.raises(Wrong, match="with an id"):
        seen.take(block(1, frame(1)), 3)


def test_how_soon_to_come_back_is_no_part_of_an_event() -> None:
    assert taken(block(1, b"retry: 1500\n" + frame(1)), *WHOLE[1:]).end == "done"


def test_an_end_that_the_relay_tells_takes_no_number() -> None:
    seen = taken(WHOLE[0], LOST, block("1e", DONE))
    assert (seen.end, seen.position) == ("producer_lost", f"{STREAM}.1")


@pytest.mark.parametrize(
    ("blocks", "word"),
    [
        ([WHOLE[0], WHOLE[2]], "lost"),
        ([WHOLE[1]], "lost"),
        ([WHOLE[0], WHOLE[0]], "doubled"),
        ([WHOLE[0], WHOLE[1], WHOLE[0]], "doubled"),
        ([block(1, frame(2))], "instead of"),
        ([WHOLE[0], block(2, frame(2)[:-1] + b" \n")], "instead of"),
        ([WHOLE[0], block(2, DONE)], "instead of"),
        ([WHOLE[0], block(2, frame(2), "st_two")], "in the stream"),
        ([block(1, b"retry: soon\n" + frame(1))], "instead of"),
        ([frame(1)], "without an id"),
        ([*WHOLE, WHOLE[0]], "after the end"),
        ([*WHOLE, LOST], "after the end"),
        ([WHOLE[0], LOST, WHOLE[1]], "after the end"),
        ([WHOLE[0], LOST, block("2e", DONE)], "after the end"),
    ],
)
def test_what_no_client_may_see_is_found(blocks: list[bytes], word: str) -> None:
    with pytest.raises(Wrong, match=word):
        taken(*blocks)


@asynccontextmanager
async def serving(answers: list[bytes | int], load: Load) -> AsyncIterator[list[str | None]]:
    """The load's relay: each request gets the next answer, a status or a body, and all further ones get the last.
    A body that ends in the middle is cut. No client asks for another stream once each of them has asked for one."""
    asked: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("last-event-id"))
        if len(asked) >= load.at_once:
            load.stop()
        given = answers[min(len(asked), len(answers)) - 1]
        if isinstance(given, int):
            return web.Response(status=given, text="not now")
        response = web.StreamResponse(headers={"relay-stream-id": STREAM, "relay-resumable": "true"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(given)
        if given.endswith(b"cut"):
            assert request.transport is not None
            request.transport.abort()
        return response

    app = web.Application()
    app.router.add_post(PATH, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        load.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield asked
    finally:
        await runner.cleanup()


def seen_by_clients(answers: list[bytes | int], at_once: int) -> tuple[Load, list[str | None]]:
    async def run() -> tuple[Load, list[str | None]]:
        load = Load("", at_once, events=3, millis=1)
        async with serving(answers, load) as asked:
            await asyncio.wait_for(load.run(), 60)
            return load, asked

    return asyncio.run(run())


def test_a_client_that_is_cut_comes_back_by_its_last_event() -> None:
    load, asked = seen_by_clients([WHOLE[0] + b": cut", b"".join(WHOLE[1:])], 1)
    assert (dict(load.ends), load.wrong, load.refused) == ({"done": 1}, [], {True: [], False: []})
    assert asked == [None, f"{STREAM}.1"]
    assert load.streams[0].resumes == 1


def test_what_is_refused_is_counted_by_who_was_refused() -> None:
    load, _ = seen_by_clients([503, b"".join(WHOLE)], 2)
    assert load.ends["done"] == load.begun
    assert sorted(map(len, load.refused.values())) == [0, 1]


def test_a_clean_end_in_mid_stream_is_wrong() -> None:
    load, _ = seen_by_clients([WHOLE[0]], 1)
    assert len(load.wrong) == 1
    assert "a clean end" in load.wrong[0]
