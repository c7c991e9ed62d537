"""Long streams of each API, as frames of a log: their text differs from event to event as a model's does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

from relay.protocol import sse

STREAM = "st_GjHt7RkIwN5m1yXntbsJBu"
RECORDED = sorted((Path(__file__).parents[1]).rglob("*.sse"))
_WORDS = (
    b" the",
    b" of",
    b" a",
    b"ing",
    b",",
    b".",
    b" \xe2\x80\x94",
    b" caf\xc3\xa9",
    b"\\n\\n",
    b' \\"so\\"',
    b" 12",
    b"",
)
_CHAT = (
    b'data: {"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk","created":1741570283,'
    b'"model":"gpt-4o-2024-08-06","service_tier":"default","system_fingerprint":"fp_fc9f1d7035","choices":[{'
)
_RESPONSE = (
    b'event: response.%b.delta\ndata: {"type":"response.%b.delta","sequence_number":%d,'
    b'"item_id":"msg_67c9fdcf37fc8190ba82116e33fb28c507b8b0ad4e5eb654","output_index":0,'
)

Deltas = Callable[[int, random.Random], bytes]


def frames_of(blocks: Iterable[bytes], stream: str = STREAM) -> list[bytes]:
    """As a writer numbers them."""
    return [
        b"id: %b.%d\n%b%b" % (stream.encode(), n, b"retry: 1700\n" if n == 1 else b"", block)
        for n, block in enumerate(blocks, 1)
    ]


def recorded(path: Path) -> list[bytes]:
    parser = sse.Parser(1 << 20)
    events = [*parser.feed(path.read_bytes())]
    if (rest := parser.rest()) is not None:
        events.append(rest)
    return frames_of(sse.encode(event, None) for event in events)


def _padding(r: random.Random) -> bytes:
    return r.randbytes(8).hex()[: r.randint(1, 16)].encode()


def _chat(_: int, r: random.Random) -> bytes:
    return _CHAT + b'"index":0,"delta":{"content":"%b"},"logprobs":null,"finish_reason":null}]}\n\n' % r.choice(_WORDS)


def _chat_padded(_: int, r: random.Random) -> bytes:
    text = b'"index":0,"delta":{"content":"%b"},"logprobs":null,"finish_reason":null}],"obfuscation":"%b"}\n\n'
    return _CHAT + text % (r.choice(_WORDS), _padding(r))


def _chat_choices(_: int, r: random.Random) -> bytes:
    return _CHAT + b'"index":%d,"delta":{"content":"%b"},"finish_reason":null}]}\n\n' % (
        r.randint(0, 2),
        r.choice(_WORDS),
    )


def _chat_tools(n: int, r: random.Random) -> bytes:
    text = b'"index":0,"delta":{"tool_calls":[{"index":%d,"function":{"arguments":"%b"}}]},"finish_reason":null}]}\n\n'
    return _CHAT + text % (n // 200, r.choice(_WORDS))


def _chat_usage(n: int, r: random.Random) -> bytes:
    usage = b'"usage":{"prompt_tokens":12,"completion_tokens":%d,"total_tokens":%d}' % (n, n + 12)
    return _CHAT + b'"index":0,"delta":{"content":"%b"}}],%b}\n\n' % (r.choice(_WORDS), usage)


def _messages(n: int, r: random.Random) -> bytes:
    text = (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"text_delta",'
        b'"text":"%b"}}\n\n'
    )
    return text % (n // 200, r.choice(_WORDS))


def _responses(n: int, r: random.Random) -> bytes:
    text = b'"content_index":0,"delta":"%b","logprobs":[],"obfuscation":"%b"}\n\n'
    return _RESPONSE % (b"output_text", b"output_text", n) + text % (r.choice(_WORDS), _padding(r))


def _responses_turns(n: int, r: random.Random) -> bytes:
    """Two kinds of events in turns."""
    if n % 2:
        return _responses(n, r)
    kind = b"function_call_arguments"
    return _RESPONSE % (kind, kind, n) + b'"delta":"%b"}\n\n' % r.choice(_WORDS)


def _ui_messages(_: int, r: random.Random) -> bytes:
    return b'data: {"type":"text-delta","id":"msg_68a2f1","delta":"%b"}\n\n' % r.choice(_WORDS)


def _ag_ui(n: int, r: random.Random) -> bytes:
    text = b'data: {"type":"TEXT_MESSAGE_CONTENT","timestamp":%d,"messageId":"1f2b6a1e-09aa-4c1b","delta":"%b"}\n\n'
    return text % (1741570283000 + 7 * n, r.choice(_WORDS))


def _plain(n: int, r: random.Random) -> bytes:
    return b"event: token\ndata: %b %d\n\n" % (r.choice((b"alpha", b"beta", b"gamma delta")), n)


# What their log may hold for each byte of their frames, and where it is encrypted: the bound is 0.35 for chat.
DELTAS: dict[str, tuple[Deltas, float, float]] = {
    "chat": (_chat, 0.12, 0.20),
    "chat-obfuscation": (_chat_padded, 0.15, 0.22),
    "chat-choices": (_chat_choices, 0.14, 0.22),
    "chat-tools": (_chat_tools, 0.14, 0.22),
    "chat-usage": (_chat_usage, 0.17, 0.25),
    "messages": (_messages, 0.30, 0.45),
    "responses": (_responses, 0.22, 0.30),
    "responses-in-turns": (_responses_turns, 0.20, 0.30),
    "ui-messages": (_ui_messages, 0.40, 0.65),
    "ag-ui": (_ag_ui, 0.38, 0.55),
}
PLAIN_EVENTS = _plain


def deltas(name: str, count: int, stream: str = STREAM) -> list[bytes]:
    make, *_ = DELTAS[name]
    r = random.Random(name)
    return frames_of((make(n, r) for n in range(1, count + 1)), stream)
