"""The lines of the log are written together, in their order, and none is lost."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay import access, logs
from relay.config import LogSettings

logger = logging.getLogger("relay.test")
ROOT = Path(__file__).parents[2]


class Stream(io.StringIO):
    """Keeps what each write brought."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return len(text)

    @property
    def messages(self) -> list[list[str]]:
        return [[line.split(" ")[4] for line in text.splitlines()] for text in self.writes]


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    handlers, level = list(logging.root.handlers), logging.root.level
    found = Stream()
    monkeypatch.setattr(sys, "stderr", found)
    logs.configure(LogSettings(level="info", format="text"))
    yield found
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.getLogger("relay").setLevel(logging.NOTSET)


def test_those_of_one_turn_of_the_loop_are_one_write(stream: Stream) -> None:
    async def scene() -> None:
        for n in range(3):
            logger.info("a%d", n)
        assert stream.writes == []
        await asyncio.sleep(0)
        logger.info("b0")
        await asyncio.sleep(0)

    asyncio.run(scene())
    assert stream.messages == [["a0", "a1", "a2"], ["b0"]]


def test_a_warning_and_all_before_it_are_written_at_once(stream: Stream) -> None:
    async def scene() -> None:
        logger.info("before")
        logger.warning("now")
        assert stream.messages == [["before", "now"]]
        logger.info("after")
        await asyncio.sleep(0)

    asyncio.run(scene())
    assert stream.messages[1:] == [["after"]]


def test_outside_a_loop_each_is_written_at_once(stream: Stream) -> None:
    logger.info("one")
    assert stream.messages == [["one"]]


def test_what_a_loop_has_left_is_written_with_the_next_line_or_at_the_end(stream: Stream) -> None:
    async def scene(message: str) -> None:
        logger.info(message)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(scene("one"))
    loop.close()
    asyncio.run(scene("two"))
    logging.root.handlers[0].close()
    assert [message for write in stream.messages for message in write] == ["one", "two"]


def test_none_is_lost_or_out_of_order_between_threads(stream: Stream) -> None:
    def talk(name: str) -> None:
        for n in range(300):
            logger.info("%s-%d", name, n)

    async def scene() -> None:
        threads = [threading.Thread(target=talk, args=(f"t{i}",)) for i in range(3)]
        for thread in threads:
            thread.start()
        for n in range(300):
            logger.info("loop-%d", n)
            await asyncio.sleep(0)
        for thread in threads:
            await asyncio.to_thread(thread.join)

    asyncio.run(scene())
    logging.root.handlers[0].close()
    said = [message for write in stream.messages for message in write]
    for name in ("t0", "t1", "t2", "loop"):
        assert [one for one in said if one.startswith(name)] == [f"{name}-{n}" for n in range(300)]


def test_a_reader_that_is_gone_stops_nothing(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(text: str) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(stream, "write", gone)
    access.of_stream("one", {})


ENDS = """
import asyncio, logging, os, sys
from relay import logs
from relay.config import LogSettings
logs.configure(LogSettings(level="info"))
async def scene():
    logging.getLogger("relay.test").info("the last")
    {how}
asyncio.run(scene())
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pass", "sys.exit(3)", "raise ValueError", "logging.shutdown(); os._exit(1)"])
def test_the_last_line_of_a_process_is_written(how: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDS.format(how=how)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the last" in ended.stderr


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("st_x-1.2/a", "st_x-1.2/a"),
        ("", ""),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('a"b', r'"a\"b"'),
        ("a\nb", r'"a\nb"'),
        ("\x7f", r'"\u007f"'),
        ("é", r'"\u00e9"'),
        (True, "True"),
        (0.5, "0.5"),
    ],
)
def test_how_a_value_is_spelled(stream: Stream, value: object, shown: str) -> None:
    access.of_stream("said", {"value": value})
    (line,) = stream.writes
    assert line.endswith(f" said value={shown}\n")


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        ("plain", "plain"),
        ("", ""),
        (True, "True"),
        (0.25, "0.25"),
        (None, "None"),
        ("two words", '"two words"'),
        ("x second=forged", '"x second=forged"'),
        ("a=b", '"a=b"'),
        ('"', '"\\""'),
        ("a\nb", '"a\\nb"'),
        ("\x7f", '"\\u007f"'),
        ("é", '"\\u00e9"'),
    ],
)
def test_no_value_of_a_field_looks_like_another_field(stream: Stream, value: object, spelled: str) -> None:
    access.of_stream("told", {"first": value, "second": "b"}, failed=True)
    access.of_stream("told", {"first": "a", "second": value}, failed=True)
    ends = [text.split(" told ", 1)[1] for text in stream.writes]
    assert ends == [f"first={spelled} second=b\n", f"first=a second={spelled}\n"]
    assert sum(text.count("\n") for text in stream.writes) == 2
