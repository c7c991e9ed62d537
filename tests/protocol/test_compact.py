"""Events in the compact form: byte for byte what they were, for any bytes, and far fewer for events that are alike."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol import compact
from relay.protocol.compact import COMPACT, LARGEST_BASE, BaseMissing, Compactor, Damaged, Restorer, base_of
from tests.support.deltas import DELTAS, RECORDED, STREAM, deltas, frames_of, recorded

ID = STREAM.encode() + b"."


def written(frames: Sequence[bytes], first: int = 1) -> list[bytes]:
    compactor = Compactor(STREAM)
    return [compactor.write(n, frame) for n, frame in enumerate(frames, first)]


def restored(entries: Sequence[bytes], first: int = 1, restorer: Restorer | None = None) -> list[bytes]:
    restorer = restorer or Restorer(STREAM)
    frames: list[bytes] = []
    for n, entry in enumerate(entries, first):
        is_compact = entry.startswith(COMPACT)
        frames.append(restorer.restore(n, entry, lambda base: frames[base - first]) if is_compact else entry)
    return frames


def together(entries: Sequence[bytes], first: int = 1, room: int = 1 << 30) -> list[bytes]:
    frames: list[bytes] = []
    Restorer(STREAM).restore_all(first - 1, entries, frames, lambda base: frames[base - first], room)
    return frames


def in_full(entries: Sequence[bytes]) -> list[int]:
    return [n for n, entry in enumerate(entries, 1) if not entry.startswith(COMPACT)]


def text(*values: str) -> list[bytes]:
    """Events that differ in one string of JSON each."""
    return frames_of(b'data: {"id":"an id that all of them have","text":"%b"}\n\n' % value.encode() for value in values)


class TestWhatIsWritten:
    @pytest.mark.parametrize("path", RECORDED, ids=lambda path: f"{path.parent.name}-{path.stem}")
    def test_recorded_streams_come_back(self, path: Path) -> None:
        frames = recorded(path)
        entries = written(frames)
        assert restored(entries) == frames
        assert sum(map(len, entries)) <= sum(map(len, frames))

    @pytest.mark.parametrize("name", DELTAS)
    def test_one_event_of_each_kind_is_in_full(self, name: str) -> None:
        frames = deltas(name, 500)
        entries = written(frames)
        assert restored(entries) == frames
        assert len(in_full(entries)) <= 4
        assert sum(map(len, entries)) < DELTAS[name][1] * sum(map(len, frames))

    def test_the_format(self) -> None:
        _, second, third = frames = text("a", "bc", "d")
        entries = written(frames)
        assert entries[:2] == frames[:2]
        block = second.removeprefix(b"id: %b2\n" % ID)
        before, _, after = block.partition(b"bc")
        checksum = zlib.crc32(before + after).to_bytes(4)
        hole = bytes((len(before), len(b"bc")))
        assert entries[2] == b"\x01\0\0\0\0" + (2).to_bytes(4) + checksum + b"\x01" + hole + b"d"
        assert third.endswith(before + b"d" + after)

    def test_the_first_event_is_a_base_for_none(self) -> None:
        """It alone has a pause in front."""
        blocks = (
            b'data: {"text":"%b","id":"what all of them have, and long"}\n\n' % word
            for word in (b"a", b"b", b"c", b"d")
        )
        entries = written(frames_of(blocks))
        assert in_full(entries) == [1, 2]
        assert {base_of(entry) for entry in entries[2:]} == {2}

    def test_it_may_begin_anywhere(self) -> None:
        frames = text(*map(str, range(40)))[20:]
        entries = written(frames, 21)
        assert {base_of(entry) for entry in entries if entry.startswith(COMPACT)} == {21}
        assert restored(entries, 21) == frames

    @pytest.mark.parametrize(
        "values",
        [
            ("", "a", ""),
            ("same", "same", "same"),
            ("a", '\\"', '\\\\\\"', "\\u0022"),
            ("a", '"}\\n\\n', '","text":"', '"text":"'),
            ("a", "b" * 5000, "c" * 300_000, "d"),
            ("é", "\N{SNOWMAN}", "\x00\x01"),
        ],
        ids=["empty", "equal", "escapes", "what-stands-around-it", "long", "no-ascii"],
    )
    def test_any_text(self, values: tuple[str, ...]) -> None:
        frames = text("first", "second", *values)
        entries = written(frames)
        assert restored(entries) == frames
        assert in_full(entries) == [1, 2]

    @pytest.mark.parametrize(
        "frame",
        [
            b"id: %b9\ndata: another number\n\n" % ID,
            b"id: st_another.3\ndata: another stream\n\n",
            b"data: no id\n\n",
            b"",
            b"id: %b3" % ID,
        ],
    )
    def test_what_is_not_numbered_so_is_written_as_it_is(self, frame: bytes) -> None:
        frames = [*text("a", "b"), frame, *text("a", "b", "c", "d")[3:]]
        entries = written(frames)
        assert entries[2] == frame
        assert restored(entries) == frames

    def test_what_stands_around_a_text_does_not_overlap(self) -> None:
        around = b"A A A A A "
        blocks = [around + text + around[::-1] + b"\n\n" for text in (b"w", b"x", b"y", b"z")]
        frames = frames_of([*blocks, around + b"A\n\n"])
        assert restored(written(frames)) == frames

    def test_a_large_event_is_no_base(self) -> None:
        large = text("a", *("b" * LARGEST_BASE + str(n) for n in range(4)))
        assert in_full(written(large)) == [1, 2, 3, 4, 5]

    def test_a_new_kind_takes_one_event_in_full(self) -> None:
        before = text(*"abcdefgh")
        other = frames_of(
            b'event: other\ndata: {"n":%d,"a":[1,2,3],"b":"the same for each"}\n\n' % n for n in range(99)
        )
        frames = [*before, *other[8:20]]
        assert in_full(written(frames)) == [1, 2, 9]

    def test_a_kind_that_another_one_is_part_of_has_its_own_base(self) -> None:
        """What surrounds the text of the first is at both ends of the second, too."""
        short = [b'data: {"t":"%d"}\n\n' % n for n in range(20)]
        long = [b'data: {"t":"%d","more":"%b"}\n\n' % (n, b"the same for each " * 20) for n in range(40)]
        frames = frames_of([*short, *long])
        entries = written(frames)
        assert together(entries) == frames
        assert sum(map(len, entries[22:])) < 40 * 40


class TestBounds:
    def test_events_that_are_never_alike(self) -> None:
        """Each is written in full or costs no more than that, and little time is spent on finding that out."""
        r = random.Random(1)
        looks = looked_at = 0
        find = Compactor._find

        def counted(self: Compactor, block: bytes) -> object:
            nonlocal looks, looked_at
            looks += 1
            looked_at += len(block) + sum(len(frame) for _, frame in self._bases)
            return find(self, block)

        frames = frames_of(r.randbytes(r.randint(1, 3000)).replace(b"\n", b"") + b"\n\n" for _ in range(2000))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Compactor, "_find", counted)
            entries = written(frames)
        assert restored(entries) == frames
        assert sum(map(len, entries)) <= sum(map(len, frames))
        assert looks > 5
        assert looked_at <= 1024 * (2000 / 32 + 64) + 5 * 4096

    def test_memory_is_bounded(self) -> None:
        r = random.Random(2)
        compactor = Compactor(STREAM)
        kinds = [b'data: {"%b":"%%d"}\n\n' % r.randbytes(150).hex().encode() for _ in range(40)]
        frames = frames_of(kind % n for kind in kinds for n in range(32))
        entries = [compactor.write(n, frame) for n, frame in enumerate(frames, 1)]
        assert len({base_of(entry) for entry in entries if entry.startswith(COMPACT)}) > 10
        assert len(compactor._bases) <= 4
        assert len(compactor._templates) <= 8
        restorer = Restorer(STREAM)
        assert restored(entries, restorer=restorer) == frames
        assert len(restorer._known) <= 8
        assert len(restorer.bases) <= 8

    def test_many_differences(self) -> None:
        numbers = [b",".join(b"%d" % random.Random(n * 31 + k).randint(0, 9) for k in range(900)) for n in range(60)]
        frames = frames_of(b"data: [%b]\n\n" % row for row in numbers)
        entries = written(frames)
        assert restored(entries) == frames
        assert sum(map(len, entries)) <= sum(map(len, frames))

    def test_what_quotes_can_do(self) -> None:
        """No text makes the search for borders between what differs take more than a pass."""
        block = b'data: "' + b'\\"' * 1900
        assert len(compact._TOKENS.findall(block)) == 3  # a string that does not end is one, and is gone through once
        frames = frames_of(block + b"%d\n\n" % n for n in range(40))
        assert restored(written(frames)) == frames
        began = time.monotonic()
        for piece in (b'"', b'"\\', b"-", b"1-", b'" ', b"\\", b'"a', b"\\\\", b'\\"', b"{", b"e1"):
            assert b"".join(compact._TOKENS.findall(piece * 2000)) == piece * 2000
        assert time.monotonic() - began < 5


class TestReading:
    def test_from_the_middle(self) -> None:
        frames = deltas("responses-in-turns", 60)
        entries = written(frames)
        for after in range(60):
            restorer = Restorer(STREAM)
            for n in range(after + 1, 61):
                entry = entries[n - 1]
                if entry.startswith(COMPACT):
                    assert restorer.restore(n, entry, lambda base: frames[base - 1]) == frames[n - 1]

    @pytest.mark.parametrize("name", DELTAS)
    def test_all_of_a_page(self, name: str) -> None:
        frames = deltas(name, 200)
        assert together(written(frames)) == frames

    def test_a_page_ends_before_it_is_too_large(self) -> None:
        frames = text(*map(str, range(50)))
        entries = written(frames)
        for count in range(1, 50):
            room = sum(map(len, frames[:count]))
            assert together(entries, room=room) == frames[:count]
            assert together(entries, room=room + 1) == frames[:count]
        assert together(entries, room=0) == frames[:1]

    def test_a_page_goes_on_where_a_base_was_missing(self) -> None:
        frames = deltas("responses-in-turns", 40)
        entries = written(frames)
        bases: dict[int, bytes] = {}
        page: list[bytes] = []

        def frame_of(base: int) -> bytes:
            if base > 20:
                return page[base - 21]
            if base not in bases:
                raise BaseMissing(base)
            return bases[base]

        restorer = Restorer(STREAM)
        while len(page) < 20:
            try:
                restorer.restore_all(20, entries[20:], page, frame_of, 1 << 30)
            except BaseMissing as missing:
                bases[missing.base] = frames[missing.base - 1]
        assert page == frames[20:]
        assert len(bases) >= 2

    def test_a_base_that_is_missing_is_named(self) -> None:
        entries = written(text("a", "b", "c"))

        def missing(base: int) -> bytes:
            raise BaseMissing(base)

        restorer = Restorer(STREAM)
        assert restorer.bases == []
        with pytest.raises(BaseMissing) as error:
            restorer.restore(3, entries[2], missing)
        assert error.value.base == 2
        assert restorer.restore(3, entries[2], lambda _: text("a", "b")[1]) == text("a", "b", "c")[2]
        assert restorer.bases == [2]

    @pytest.mark.parametrize(
        "base", [b"", b"id: %b2\n" % ID, text("a", "b")[1][:-5], text("a", "b")[1].replace(b"all", b"any")]
    )
    def test_another_base_gives_no_bytes(self, base: bytes) -> None:
        with pytest.raises(Damaged):
            Restorer(STREAM).restore(3, written(text("a", "b", "c"))[2], lambda _: base)

    def test_a_base_that_differs_in_its_text_alone_does(self) -> None:
        frames = text("a", "b", "c")
        assert Restorer(STREAM).restore(3, written(frames)[2], lambda _: text("a", "x")[1]) == frames[2]

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda entry: entry[:5],
            lambda entry: entry[:13],
            lambda entry: entry[:14],
            lambda entry: entry[:15],
            lambda entry: entry[:13] + b"\0" + entry[14:],
            lambda entry: entry[:13] + b"\x07" + entry[14:],
            lambda entry: entry[:5] + bytes(4) + entry[9:],
            lambda entry: entry[:5] + (3).to_bytes(4) + entry[9:],
            lambda entry: entry[:5] + b"\xff" * 4 + entry[9:],
            lambda entry: entry[:9] + bytes(4) + entry[13:],
            lambda entry: entry[:14] + b"\xff" * 9,
        ],
    )
    def test_what_no_compactor_has_written(self, spoil: Callable[[bytes], bytes]) -> None:
        frames = text("a", "b", "c")
        with pytest.raises(Damaged):
            Restorer(STREAM).restore(3, spoil(written(frames)[2]), lambda base: frames[base - 1])

    @pytest.mark.parametrize("holes", [0, 7, 255])
    def test_a_number_of_holes_that_no_compactor_writes(self, holes: int) -> None:
        _, base, _ = frames = text("a", "b", "c")
        block = base.partition(b"\n")[2]
        checksum = zlib.crc32(block).to_bytes(4)
        entry = COMPACT + (2).to_bytes(4) + checksum + bytes((holes,)) + b"\0\0" * holes + b"\0" * holes
        with pytest.raises(Damaged):
            Restorer(STREAM).restore(3, entry, lambda base: frames[base - 1])

    def test_pieces_that_are_cut(self) -> None:
        frames = deltas("responses", 4)
        entry = written(frames)[3]
        for length in range(len(COMPACT) + 1, len(entry)):
            try:
                Restorer(STREAM).restore(4, entry[:length], lambda base: frames[base - 1])
            except Damaged:
                continue
            last = frames[3].rsplit(b'"', 2)[1]  # which alone may be any
            assert length >= len(entry) - len(last)


_PIECES = st.sampled_from(
    [
        b'"',
        b"\\",
        b'"a"',
        b'","',
        b":",
        b"{",
        b"}",
        b"1",
        b"-2.5e3",
        b"12345678",
        b" ",
        b"data: ",
        b'"text":"',
        b"same same",
    ]
)
_BLOCKS = st.one_of(
    st.binary(max_size=80),
    st.lists(_PIECES, max_size=25).map(b"".join),
    st.tuples(
        st.sampled_from([b'data: {"kind":"one","text":"', b"event: x\ndata: "]), st.lists(_PIECES, max_size=4)
    ).map(lambda parts: parts[0] + b"".join(parts[1]) + b'","more":"that all of them have"}\n\n'),
)


class TestAnything:
    @given(st.lists(_BLOCKS, max_size=40), st.integers(1, 1 << 31))
    def test_comes_back(self, blocks: list[bytes], first: int) -> None:
        frames = [b"id: %b%d\n%b" % (ID, n, block) for n, block in enumerate(blocks, first)]
        entries = written(frames, first)
        assert restored(entries, first) == frames
        assert together(entries, first) == frames
        for frame, entry in zip(frames, entries, strict=True):
            assert entry == frame or len(entry) < len(frame)
            assert not entry.startswith(COMPACT) or base_of(entry) >= first

    @given(st.binary(max_size=60), st.binary(max_size=60), st.integers(1, 5))
    def test_is_read_or_refused(self, rest: bytes, block: bytes, n: int) -> None:
        try:
            frame = Restorer(STREAM).restore(n, COMPACT + rest, lambda base: b"id: %b%d\n%b" % (ID, base, block))
        except Damaged:
            return
        assert frame.startswith(b"id: %b%d\n" % (ID, n))
        assert len(frame) <= len(rest) + len(block) + 60
