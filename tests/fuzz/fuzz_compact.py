"""Events in the compact form: any events come back, and what no relay has written gives no bytes beyond its own.

The input's first byte says at which number the events begin, and whether an entry is made up; after it blocks follow,
separated by zeros. With `made up` the last of them is an entry's content.
"""

from __future__ import annotations

from relay.protocol.compact import COMPACT, Compactor, Damaged, Restorer

_STREAM = "st_AAAAAAAAAAAAAAAAAAAAAA"
_MADE_UP = 0x80


def one(data: bytes) -> None:
    first = 1 + (data[0] & 0x7F if data else 0)
    blocks = data[1:].split(b"\0")
    frames = [framed(n, block) for n, block in enumerate(blocks, first)]
    compactor, restorer = Compactor(_STREAM), Restorer(_STREAM)
    entries = [compactor.write(n, frame) for n, frame in enumerate(frames, first)]
    for n, (frame, entry) in enumerate(zip(frames, entries, strict=True), first):
        fresh = Restorer(_STREAM)
        if entry != frame:
            assert entry.startswith(COMPACT)
            assert len(entry) < len(frame), "it is not what it is for"
            for reader in (restorer, fresh):
                assert reader.restore(n, entry, lambda base: frames[base - first]) == frame
    if data and data[0] & _MADE_UP:
        content = COMPACT + data[-60:]
        try:
            frame = restorer.restore(200, content, lambda base: framed(base, blocks[0]))
        except Damaged:
            return
        assert frame.startswith(framed(200, b""))
        assert len(frame) <= len(framed(200, b"")) + len(content) + max(map(len, blocks)) * 2


def framed(n: int, block: bytes) -> bytes:
    return b"id: %b.%d\n%b" % (_STREAM.encode(), n, block)
