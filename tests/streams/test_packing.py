"""Appends as they go over the wire are the command that hiredis would pack."""

from __future__ import annotations

import asyncio

import hiredis
import pytest

from relay.config import StoreSettings, StreamSettings
from relay.metrics import Metrics
from relay.protocol.end_mark import End
from relay.protocol.ids import new_stream_id
from relay.protocol.legs import Offsets
from relay.store.link import pack
from relay.store.log import Log
from relay.store.topology import connect
from relay.streams.ahead import Ahead
from relay.streams.commit import Committer, Item
from relay.streams.listener import Nobody
from relay.streams.writer import LogWriter

_LENGTHS = (0, 1, 9, 10, 99, 100, 5000)


class Desk:
    def __init__(self) -> None:
        self.log = Log(connect("redis://127.0.0.1:1", 1.0), StreamSettings(), StoreSettings())
        self.metrics = Metrics()
        self.committer = Committer(self.log, self.metrics)

    def item(self, acked: int, events: int, length: int = 20, fence: str = "1", *, ended: bool = False) -> Item:
        writer = LogWriter(
            new_stream_id(),
            self.log,
            Nobody(),
            submit=lambda _: None,
            meter=self.metrics.meter("chat", "u", "m"),
            ahead=Ahead(1 << 30),
            max_bytes=1 << 30,
            fence=fence,
        )
        for _ in range(acked + events):
            writer.append(b'data: {"content":"%b"}\n\n' % (b"x" * length))
        writer.acked = acked
        if ended:
            writer.finish(End("completed"))
        return writer, acked + events, ended


def packings(*made: tuple[tuple[int, int], dict[str, int | str | bool]], note: bool = False) -> tuple[bytes, bytes]:
    """Of the same appends, the relay's and hiredis' own."""

    async def scene() -> tuple[bytes, bytes]:
        desk = Desk()
        items = [desk.item(*numbers, **options) for numbers, options in made]  # type: ignore[arg-type]
        for writer, _, _ in items:
            writer.offsets = Offsets() if note else None
            if note:
                writer.know_offset(7)
        packed = desk.committer.packed(items)
        for writer, _, _ in items:
            writer.entries.forget()
        return packed, pack(*desk.committer.command(items))

    return asyncio.run(scene())


@pytest.mark.parametrize("length", _LENGTHS)
@pytest.mark.parametrize("acked", [0, 9, 10, 1234])
def test_one_event(acked: int, length: int) -> None:
    ours, theirs = packings(((acked, 1), {"length": length}))
    assert ours == theirs


def test_streams_of_every_kind_together() -> None:
    ours, theirs = packings(
        ((5, 1), {}),
        ((5, 3), {}),
        ((0, 1), {"ended": True}),
        ((5, 0), {"ended": True}),
        ((5, 1), {"fence": "12"}),
        ((6, 1), {}),
    )
    assert ours == theirs
    reader = hiredis.Reader()
    reader.feed(ours)
    assert reader.gets()[2] == b"12"
    assert reader.gets() is False


def test_where_the_upstream_stands_goes_along() -> None:
    ours, theirs = packings(((5, 1), {}), note=True)
    assert ours == theirs
