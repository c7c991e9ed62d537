"""Content codings: each of them, however its bytes are cut, what is no text of it, and bombs."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from backports import zstd

from relay.protocol import codings
from relay.protocol.codings import Broken, Decoder, Layers, TooLarge, Unknown, of_header, sniffed

TEXT = b'{"model":"m","input":"' + bytes(range(32, 127)) * 3000 + b'"}'
LIMIT = 1 << 20


def decode(body: bytes, codings: list[str], limit: int) -> bytes:
    layers = Layers(codings, limit)
    text = b"".join(piece for at in range(0, len(body), 4096) for piece in layers.feed(body[at : at + 4096]))
    layers.finish()
    return text


def raw_deflate(text: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(text) + packer.flush()


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without a head": ("deflate", raw_deflate),
    "zstd": ("zstd", zstd.compress),
    "two members": ("gzip", lambda text: gzip.compress(text[:100]) + gzip.compress(text[100:])),
    "two frames": ("zstd", lambda text: zstd.compress(text[:100]) + zstd.compress(text[100:])),
}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("text", [TEXT, b"{}", b"x" * (codings.PIECE * 3)], ids=["long", "short", "pieces"])
def test_a_text_is_what_was_packed_however_it_is_cut(kind: str, size: int, text: bytes) -> None:
    coding, pack = PACKED[kind]
    packed = pack(text)
    decoder = Decoder(coding)
    pieces = [piece for at in range(0, len(packed), size) for piece in decoder.feed(packed[at : at + size])]
    assert b"".join(pieces) == text
    assert decoder.whole
    assert max(map(len, pieces)) <= codings.PIECE


@pytest.mark.parametrize("kind", PACKED)
def test_one_that_ends_too_soon_or_is_damaged_is_broken(kind: str) -> None:
    coding, pack = PACKED[kind]
    packed = pack(TEXT)
    for cut in (1, 5, len(packed) // 2, len(packed) - 1):
        with pytest.raises(Broken):
            decode(packed[:cut], [coding], LIMIT)
    with pytest.raises(Broken):
        decode(b"not packed at all", [coding], LIMIT)
    with pytest.raises(Broken):
        decode(b"", [coding], LIMIT)


def test_codings_are_taken_off_from_the_last() -> None:
    assert of_header(" gzip , Identity,, ZSTD") == ["zstd", "gzip"]
    assert of_header(None) == of_header("identity") == []
    assert decode(zstd.compress(gzip.compress(TEXT)), ["zstd", "gzip"], LIMIT) == TEXT
    assert decode(TEXT, [], 1) == TEXT


@pytest.mark.parametrize("listed", [["br"], ["zstd", "compress"], ["gzip"] * 4])
def test_others_and_too_many_are_unknown(listed: list[str]) -> None:
    with pytest.raises(Unknown):
        decode(b"", listed, LIMIT)


@pytest.mark.parametrize("kind", ["gzip", "deflate", "zstd"])
def test_a_bomb_is_given_up_at_the_limit(kind: str) -> None:
    coding, pack = PACKED[kind]
    bomb = pack(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            decode(bomb, [coding], LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_in_a_bomb_is_given_up_at_the_limit_too() -> None:
    with pytest.raises(TooLarge):
        decode(gzip.compress(gzip.compress(bytes(64 << 20))), ["gzip", "gzip"], LIMIT)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("around", [1, 2])
def test_a_body_of_nothing_but_empty_parts_is_given_up(kind: str, around: int) -> None:
    """Each of a few bytes costs a decoder, and none makes a piece that would be counted."""
    coding, pack = PACKED[kind]
    empty = pack(b"") * 200_000
    with pytest.raises(Broken, match="too many parts"):
        decode(empty if around == 1 else pack(empty), [coding] * around, 32 << 20)


def test_a_window_that_is_too_large_is_refused() -> None:
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    with pytest.raises(Broken):
        decode(packer.compress(TEXT) + packer.flush(), ["zstd"], LIMIT)


@pytest.mark.parametrize(
    ("start", "coding"),
    [
        (gzip.compress(b"x", mtime=0), "gzip"),
        (zstd.compress(b"x"), "zstd"),
        (b"data: {}", ""),
        (b": hello", ""),
        (b"(event", ""),
        (b"\x1f", None),
        (b"\x28\xb5", None),
        (b"", None),
    ],
)
def test_bytes_that_no_text_begins_with_tell_their_coding(start: bytes, coding: str | None) -> None:
    assert sniffed(start) == coding
