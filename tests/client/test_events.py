"""Bytes to whole events: whatever TCP or a cut makes of them, an event is handed out whole, once, and unchanged."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.client.events import ANY, Block, EventTooLarge, Splitter, asks_for_stream, error_code, is_terminal
from relay.protocol.ids import EventId, new_stream_id

STREAM = new_stream_id()
FIRST = f"id: {STREAM}.1\nretry: 1200\ndata: {{}}\n\n".encode()
NAMED = f"id: {STREAM}.2\nevent: content_block_delta\ndata: {{\ndata: }}\n\n".encode()
RAW = f'id: {STREAM}.3\ndata: {{"text":"ü\u2028\u0085 \\n\\n"}}\n\n'.encode()
COMMENT = b": hb\n"
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
PIECES = [FIRST, COMMENT, NAMED, PING, COMMENT, COMMENT, RAW]


def split(*chunks: bytes) -> list[Block]:
    splitter = Splitter(1 << 20)
    return [block for chunk in chunks for block in splitter.feed(chunk)]


def test_each_piece_is_a_block_with_its_fields() -> None:
    blocks = split(b"".join(PIECES))
    assert [block.raw for block in blocks] == PIECES
    assert blocks[0] == Block(FIRST, b"{}", b"", EventId(STREAM, 1), 1200)
    assert blocks[2] == Block(NAMED, b"{\n}", b"content_block_delta", EventId(STREAM, 2))
    assert blocks[1] == Block(COMMENT)
    assert blocks[3] == Block(PING, b'{"type":"ping"}', b"ping")


def test_an_event_has_a_bounded_number_of_lines() -> None:
    blocks = Splitter(8 << 20).feed(FIRST + b"data:\n" * 300_000 + b"\n")
    assert next(blocks).raw == FIRST
    with pytest.raises(EventTooLarge):
        next(blocks)


@given(cuts=st.sets(st.integers(0, sum(map(len, PIECES)))))
def test_the_same_blocks_wherever_tcp_cuts(cuts: set[int]) -> None:
    whole = b"".join(PIECES)
    bounds = [0, *sorted(cuts), len(whole)]
    chunks = [whole[a:b] for a, b in pairwise(bounds)]
    assert split(*chunks) == split(whole)


@given(end=st.integers(0, sum(map(len, PIECES))))
def test_what_a_cut_leaves_unfinished_is_never_handed_out(end: int) -> None:
    blocks = [block.raw for block in split(b"".join(PIECES)[:end])]
    assert blocks == PIECES[: len(blocks)]


def test_a_heartbeat_is_handed_out_before_the_next_event_begins() -> None:
    splitter = Splitter(1 << 20)
    assert [block.raw for block in splitter.feed(b": h")] == []
    assert [block.raw for block in splitter.feed(b"b\n")] == [COMMENT]


def test_one_unfinished_event_is_bounded_wherever_it_is_cut() -> None:
    for piece in (FIRST, b": " + b"x" * len(FIRST) + b"\n"):
        for chunks in ((COMMENT + piece,), (COMMENT, *(bytes([byte]) for byte in piece))):
            splitter = Splitter(len(FIRST) - 1)
            assert [block.raw for block in splitter.feed(chunks[0][: len(COMMENT)])] == [COMMENT]
            with pytest.raises(EventTooLarge):
                _ = [block for chunk in (chunks[0][len(COMMENT) :], *chunks[1:]) for block in splitter.feed(chunk)]
    assert [block.raw for block in Splitter(len(FIRST)).feed(FIRST)] == [FIRST]


def test_the_last_event_of_each_api() -> None:
    def terminal(api: str, frame: bytes) -> bool:
        (block,) = split(frame)
        return is_terminal(api, block)

    assert terminal("chat", b"data: [DONE]\n\n")
    at = f"id: {STREAM}.1\n".encode()
    assert terminal("chat", at + b'data: {"error":{"code":"upstream_error"}}\n\n')
    assert terminal("chat", at + b'event: error\ndata: {"message":"x"}\n\n')
    assert not terminal("chat", b'data: {"error":{"code":"producer_lost"}}\n\n')  # a [DONE] with the end's id follows
    assert not terminal("chat", b'data: {"choices":[{"finish_reason":"stop"}],"error":null}\n\n')
    assert not terminal("chat", b'data: {"choices":[{"delta":{"content":"\\"error\\": [DONE]"}}]}\n\n')
    assert terminal("messages", b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert terminal("messages", b'data: {"type":"error","error":{}}\n\n')
    assert not terminal("messages", b'event: message_delta\ndata: {"type":"message_delta"}\n\n')
    for name in ("completed", "failed", "incomplete"):
        assert terminal("responses", b'data: {"type":"response.%b"}\n\n' % name.encode())
    assert terminal("responses", at + b'event: error\ndata: {"type":"error"}\n\n')
    assert not terminal("responses", b'event: error\ndata: {"type":"error"}\n\n')
    assert not terminal("responses", b'data: {"type":"response.output_text.done","text":"response.completed"}\n\n')
    assert not terminal("responses", b"data: [DONE]\n\n")
    assert not terminal("chat", b'data: no JSON, but an "error"\n\n')
    assert not terminal("chat", COMMENT)
    for last in (b"data: [DONE]\n\n", b"event: message_stop\ndata: {}\n\n", b'data: {"type":"response.completed"}\n\n'):
        assert terminal(ANY, last)
    assert not terminal(ANY, b'data: {"type":"response.output_text.delta"}\n\n')


def test_only_what_looks_like_a_code_is_taken_from_a_refusal() -> None:
    assert error_code(b'{"error":{"code":"position_unknown"}}') == "position_unknown"
    assert error_code(b'{"type":"error","error":{"type":"x","code":"stream_expired"}}') == "stream_expired"
    for other in (b"", b"<html>", b"[]", b'{"error":"Bearer sk-1"}', b'{"error":{"code":"key sk-1"}}'):
        assert error_code(other) is None


def test_a_streaming_body() -> None:
    assert asks_for_stream(b'{"model":"m", "stream" : true}')
    for other in (b'{"stream":false}', b'{"stream":1}', b'{"x":{"stream":true}}', b'"stream": true', b"", b"\xff"):
        assert not asks_for_stream(other)
