"""Bodies whose long texts the parser does not get: they are taken and refused as before."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest

from relay.api import json_body
from relay.api.bodies import Bodies
from relay.api.json_body import READ_WHOLE, JsonBody
from relay.config import LimitSettings
from relay.protocol.errors import BadRequest
from relay.protocol.json_scan import Layout
from tests.support.waiting import until

LONG = "aé語😀 " * 20_000


@pytest.fixture
def short_of_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a body need not have megabytes."""
    monkeypatch.setattr(json_body, "READ_WHOLE", 20_000)
    monkeypatch.setattr(json_body, "_STANDARD", 0)


def read(text: bytes, size: int = 1 << 16, *, first: int = 0, counted: bool = False) -> tuple[bytes, Any, Layout]:
    """In pieces of so many bytes, of which the first one has others where that is said."""

    async def fed() -> tuple[bytes, Any, Layout]:
        bodies = Bodies(LimitSettings())
        body = JsonBody(bodies, bodies.open(b"", 0), [], counted=counted)
        if first:
            await body.feed(text[:first])
        for at in range(first, len(text), size):
            await body.feed(text[at : at + size])
        return await body.finish(empty=False)

    return asyncio.run(fed())


def test_a_picture_of_megabytes_is_not_parsed() -> None:
    said = {"model": "m", "messages": [{"role": "user", "content": "A" * (READ_WHOLE + 1)}], "stream": True}
    text = json.dumps(said).encode()
    raw, parsed, layout = read(text)
    assert raw == text
    assert [member.name for member in layout.members] == ["model", "stream"]
    assert len(parsed["messages"][0]["content"]) < READ_WHOLE // 100
    parsed["messages"] = said["messages"]
    assert parsed == said


def test_with_a_key_all_is_read() -> None:
    said = {"model": "m", "file_id": " " * READ_WHOLE + "file-1"}
    assert read(json.dumps(said).encode(), counted=True)[1] == said


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("size", [1_000, 16_383, 16_384, 70_000])
@pytest.mark.usefixtures("short_of_whole")
def test_what_is_left_out_leaves_the_rest_as_it_is(size: int, ascii_only: bool) -> None:
    said = {"a": [LONG, 1, {LONG[:40_000]: None}], "model": "m", "z": LONG + '"\\\n', "n": 2}
    text = json.dumps(said, ensure_ascii=ascii_only).encode()
    raw, parsed, _ = read(text, size)
    assert raw == text
    assert (parsed["model"], parsed["n"], parsed["a"][1]) == ("m", 2, 1)
    assert list(parsed) == list(said)
    whole, short = said["z"], parsed["z"]
    assert isinstance(whole, str)
    assert ascii_only or len(short) < len(whole) // 2
    assert (whole[:8], whole[-8:]) == (short[:8], short[-8:])


@pytest.mark.usefixtures("short_of_whole")
def test_what_is_no_json_is_refused_wherever_it_is() -> None:
    random.seed(1)
    begun = b'{"model":"m","x":"'
    fill = [b"a" * 60_000, LONG.encode()[:60_000], b"a" * 20_000 + rb"\u00e9" * 4_000]
    broken = [b"\n", b"\x00", b"\x80", b"\xff", b"\xed\xa0\x80", b"\xc3", b"\xf0\x9f\x98", rb"\ud83d", rb"\x", rb"\u12"]
    taken = [b"", "é".encode(), "😀".encode(), rb"\n", rb"\u00e9", rb"\ud83d\ude00", b"\x7f"]
    found = set()
    for each in broken + taken:
        for _ in range(30):
            text = random.choice(fill)
            at = random.choice([random.randrange(len(text)), 16_384 * random.randrange(1, 4) - random.randrange(40)])
            text = begun + text[:at] + each + text[at:] + b'"}'
            try:
                orjson.loads(text)
                valid = True
            except orjson.JSONDecodeError:
                valid = False
            found.add(valid)
            try:
                read(text, random.choice([1_000, 16_384, 50_000]))
            except BadRequest:
                assert not valid, (each, at)
            else:
                assert valid, (each, at)
    assert found == {True, False}


@pytest.mark.parametrize("size", [10, 12, 14, 18])
@pytest.mark.usefixtures("short_of_whole")
def test_what_is_short_is_whole_wherever_the_body_was_cut(size: int) -> None:
    """The last part of a piece may be a few bytes within a name."""
    said = {"messages": ["A" * 30_000], "model": "a-model-with-a-name-20261127", "previous_response_id": "response-17"}
    text = json.dumps(said).encode()
    for at in range(30_000, len(text)):
        assert read(text, 16_384 + size, first=at % (16_384 + size))[1] | {"messages": []} == said | {"messages": []}


@pytest.mark.usefixtures("short_of_whole")
def test_what_decides_is_read_whole_however_long_it_is() -> None:
    said = {"model": "m/" + LONG, "messages": [LONG]}
    assert read(json.dumps(said, ensure_ascii=False).encode())[1]["model"] == said["model"]


def test_what_only_the_standard_library_takes_is_taken_around_long_texts() -> None:
    text = b'{"model":"m","temperature":NaN,"x":"' + b"A" * (READ_WHOLE + 1) + b'"}'
    raw, parsed, _ = read(text)
    assert raw == text
    assert parsed["model"] == "m"


def test_no_body_waits_for_the_threads_that_a_larger_one_waits_for() -> None:
    done = threading.Event()

    async def fed(bodies: Bodies, text: bytes) -> Any:
        body = JsonBody(bodies, bodies.open(b"", 0), [], counted=False)
        await body.feed(text)
        return (await body.finish(empty=False))[1]["model"]

    async def together() -> None:
        bodies = Bodies(LimitSettings())
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        busy = asyncio.create_task(asyncio.to_thread(done.wait))
        large = asyncio.create_task(fed(bodies, b'{"model":"large","x":"' + b"A" * (17 << 20) + b'"}'))
        try:
            await until(bodies.joining.locked, 10)
            async with asyncio.timeout(10):
                assert await fed(bodies, b'{"model":"small","x":"' + b"A" * 40_000 + b'"}') == "small"
            assert not large.done()
        finally:
            done.set()
        assert await large == "large"
        await busy

    asyncio.run(together())
