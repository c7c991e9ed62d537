"""An event that is taken for one like another means what its parser would have said, and goes out as it would have."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.protocol.chat import Chat
from relay.protocol.ends import PART, TOKEN
from relay.protocol.messages import Messages
from relay.protocol.outcomes import StreamFailure
from relay.protocol.sse import Event, Parser, encode
from relay.protocol.text_delta import TextDeltaTemplate

CHAT = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
)
SPACED = CHAT.replace(b'":', b'": ').replace(b",", b", ")
MESSAGES = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%b"}}\n\n'
)
OPENAI = CHAT.replace(b"null}]}", b'null}],"usage":null,"obfuscation":"x9Kq"}')
SHAPES: dict[str, tuple[bytes, type[Chat] | type[Messages]]] = {
    "chat": (CHAT, Chat),
    "spaced": (SPACED, Chat),
    "padded": (OPENAI, Chat),
    "messages": (MESSAGES, Messages),
}
LONGEST = 4096


def events(block: bytes) -> list[Event]:
    return list(Parser(1 << 20).feed(block))


def learned(shape: bytes) -> TextDeltaTemplate:
    alike = TextDeltaTemplate(LONGEST)
    first = shape % b"Hello"
    alike.learn(first, events(first)[0])
    return alike


TEXTS = st.one_of(
    st.binary(max_size=12),
    st.text(max_size=12).map(lambda text: json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from([b'"', b"\\", b"\n", b"\r", b"}", b"\xc3", b"\xa9", b"\xed\xa0\x80", b"u0041", b"a"])).map(
        b"".join
    ),
)


@pytest.mark.parametrize("name", SHAPES)
@given(text=TEXTS)
@example(b" world")
@example(b'\\"')
@example(b"\\")
@example(b'"},"finish_reason":"stop","x":{"y":"')
@example("grüße 世界 🎉".encode())
def test_what_is_alike_means_what_the_parser_says(name: str, text: bytes) -> None:
    shape, dialect = SHAPES[name]
    block = shape % text
    if not learned(shape).matches(block):
        return
    (event,) = events(block)
    watch = dialect().watch()
    assert watch.see(events(shape % b"Hello")[0]) | PART == TOKEN | PART
    before = {k: v for k, v in vars(watch).items() if k != "_last"}
    assert watch.see(event) | PART == TOKEN | PART
    assert {k: v for k, v in vars(watch).items() if k != "_last"} == before
    assert encode(event, None) == block


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("text", [b" world", b"\\n\\n", b'\\"quoted\\"', "grüße 世界 🎉".encode()])
def test_ordinary_text_is_alike(name: str, text: bytes) -> None:
    shape, _ = SHAPES[name]
    assert learned(shape).matches(shape % text)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "text",
    [b"", b'"', b"\\", b"a\\", b"a\n", b"a\r", b"\x00", b"\xff", b"\xed\xa0\x80", b"\\x", b"\\ud83c", b"a" * LONGEST],
    ids=repr,
)
def test_what_only_a_parser_can_judge_is_not(name: str, text: bytes) -> None:
    shape, _ = SHAPES[name]
    assert not learned(shape).matches(shape % text)


@pytest.mark.parametrize("padding", [b"", b"a", b"aB3dE5gH7"])
def test_padding_makes_no_difference(padding: bytes) -> None:
    block = (OPENAI % b"more").replace(b"x9Kq", padding)
    assert learned(OPENAI).matches(block)
    assert not learned(OPENAI).matches(block.replace(b'"obfuscation":"', b'"obfuscation":"\\'))
    assert not learned(OPENAI).matches(block.replace(b'"}\n', b'","usage":{}}\n'))


def test_other_bytes_are_not_alike() -> None:
    alike = learned(CHAT)
    other = CHAT % b"text"
    assert alike.matches(other)
    for changed in (
        other.replace(b'"index":0', b'"index":1'),
        other.replace(b"null", b'"stop"'),
        other.removesuffix(b"\n"),
        other + other,
        other.replace(b"\n\n", b"\r\n\r\n"),
        b"id: 7\n" + other,
    ):
        assert not alike.matches(changed)


@pytest.mark.parametrize(
    "block", [b'data:{"content":"a"}\n\n', b'id: 1\ndata: {"content":"a"}\n\n', b'data: {"x":"a"}\n\n']
)
def test_what_would_not_go_out_as_it_came_is_not_learned(block: bytes) -> None:
    alike = TextDeltaTemplate(LONGEST)
    alike.learn(block, events(block)[0])
    assert not alike.matches(block)


def test_an_upstream_whose_events_never_are_alike_is_given_up() -> None:
    alike = TextDeltaTemplate(LONGEST)
    for n in range(100):
        block = CHAT.replace(b'"created":1', b'"created":%d' % n) % b"a"
        assert not alike.matches(block)
        alike.learn(block, events(block)[0])
    assert not alike.matches(CHAT.replace(b'"created":1', b'"created":99') % b"b")


def test_the_parser_has_the_last_word_on_the_rest() -> None:
    """A control: what is not alike may well be malformed."""
    with pytest.raises(StreamFailure):
        Chat().watch().see(events(CHAT % b"\\x")[0])
