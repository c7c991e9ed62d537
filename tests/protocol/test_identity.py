"""When two requests are one, and when a conversation has gone on."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol.identity import body_digest, messages_of, prefix_digests

SAME = {
    "order": ('{"a":1,"b":{"c":2,"d":3}}', '{"b":{"d":3,"c":2},"a":1}'),
    "order-in-lists": ('{"a":[{"c":2,"d":3}]}', '{"a":[{"d":3,"c":2}]}'),
    "order-at-depth": ('{"a":{"b":{"c":{"x":1,"y":[]}}}}', '{"a":{"b":{"c":{"y":[],"x":1}}}}'),
    "white-space": ('{"a": [1, 2]}', '{ "a" :[1,2] }\n'),
    "escapes": ('{"a":"\\u0041\\/é"}', '{"a":"A/\\u00e9"}'),
    "escaped-names": ('{"\\u0061":1}', '{"a":1}'),
    "value-of-a-number": ('{"a":1.50}', '{"a":1.5}'),
    "order-beside-a-name-twice": ('{"a":1,"b":2,"a":3}', '{"b":2,"a":1,"a":3}'),
    "order-beside-a-big-number": (
        '{"a":123456789012345678901,"b":{"d":1,"c":2}}',
        '{"b":{"c":2,"d":1},"a":123456789012345678901}',
    ),
}
OTHER = {
    "order-of-a-list": ('{"a":[1,2]}', '{"a":[2,1]}'),
    "big-numbers": ('{"a":12345678901234567890}', '{"a":12345678901234567891}'),
    "bigger-than-64-bits": ('{"a":123456789012345678901}', '{"a":123456789012345678902}'),
    "big-numbers-swapped": (
        '{"a":9007199254740992,"b":9007199254740993}',
        '{"a":9007199254740993,"b":9007199254740992}',
    ),
    "fractions": ('{"a":0.1}', '{"a":0.10000000000000000001}'),
    "fractions-of-a-big-number": ('{"a":12345678.123456789}', '{"a":12345678.123456790}'),
    "exponents": ('{"a":1e-400}', '{"a":1e-500}'),
    "infinite": ('{"a":1e400}', '{"a":2e400}'),
    "a-number-and-its-text": ('{"a":12345678901234567890}', '{"a":"12345678901234567890"}'),
    "a-name-twice": ('{"a":1,"a":2}', '{"a":2,"a":1}'),
    "a-name-twice-or-once": ('{"a":1,"a":2}', '{"a":2}'),
    "a-name-twice-at-depth": ('{"a":[{"b":1,"b":2}]}', '{"a":[{"b":2}]}'),
    "names-and-values": ('{"a":"b"}', '{"b":"a"}'),
    "case": ('{"a":1}', '{"A":1}'),
    "null-or-nothing": ('{"a":null}', "{}"),
    "true-or-one": ('{"a":true}', '{"a":1}'),
    "list-or-not": ('{"a":[1]}', '{"a":1}'),
    "two-lists": ('{"a":[1],"b":[2]}', '{"a":[1,2],"b":[]}'),
    "items": ('{"a":["b","c"]}', '{"a":["b\\",\\"c"]}'),
    "nested": ('{"a":[[1],2]}', '{"a":[[1,2]]}'),
}


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME.keys())
def test_two_spellings_of_one_body(pair: tuple[str, str]) -> None:
    one, two = (body_digest(text.encode()) for text in pair)
    assert one == two


@pytest.mark.parametrize("pair", OTHER.values(), ids=OTHER.keys())
def test_two_bodies(pair: tuple[str, str]) -> None:
    one, two = (body_digest(text.encode()) for text in pair)
    assert one != two


_NUMBERS = st.one_of(st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False))
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, st.text(st.characters(codec="utf-8"), max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), inner, max_size=4),
    ),
    max_leaves=15,
)
_BODIES = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), _VALUES, max_size=5)


def _shuffled(value: Any, seed: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(name, _shuffled(item, seed)) for name, item in value.items()]
        seed.shuffle(items)
        return dict(items)
    return [_shuffled(item, seed) for item in value] if isinstance(value, list) else value


@given(_BODIES, st.randoms(), st.booleans())
def test_any_order_and_any_spelling_are_one(body: Any, seed: random.Random, ascii_only: bool) -> None:
    again = json.dumps(_shuffled(body, seed), ensure_ascii=ascii_only, indent=seed.choice([None, 1]))
    assert body_digest(json.dumps(body).encode()) == body_digest(again.encode())


@given(_BODIES, _BODIES)
def test_two_values_are_two(one: Any, two: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (body_digest(json.dumps(one).encode()) == body_digest(json.dumps(two).encode())) == same


@pytest.mark.parametrize("raw", [b"", b"{", b"[" * 100_000, b"\xff", b'{"a":' + b"9" * 5000 + b"}"])
def test_whatever_it_is_it_stands_for_something(raw: bytes) -> None:
    assert len(body_digest(raw)) == 32
    assert body_digest(raw) != body_digest(raw + b" x")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one-string", "many-texts", "many-numbers"])
def test_the_largest_body_does_not_stop_the_loop(kind: str) -> None:
    """In a thread, 32 MiB: measured, 12 to 24 ms on a machine with nothing else to do."""
    size = 32 << 20
    raw = {
        "one-string": b'{"model":"m","x":"%b"}' % (b"QUJD" * (size // 4)),
        "many-texts": b'{"model":"m","messages":[%b]}'
        % b",".join([b'{"role":"user","content":"%b"}' % (b"word " * 2800)] * 2350),
        "many-numbers": b'{"model":"m","input":[%b]}' % b",".join([b"[0.0123456789,0.123,12345,1]"] * 25_000),
    }[kind]

    async def longest_gap() -> float:
        worst, last = 0.0, time.perf_counter()
        task = asyncio.create_task(asyncio.to_thread(body_digest, raw))
        while not task.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            worst, last = max(worst, now - last), now
        return worst

    assert min(asyncio.run(longest_gap()) for _ in range(5)) < 0.25


HI = {"role": "user", "content": "hi"}
MARK = {"cache_control": {"type": "ephemeral", "ttl": "5m"}}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (HI, {"content": "hi", "role": "user"}),
        (HI, {**HI, **MARK}),
        (HI, {"role": "user", "content": [{"type": "text", "text": "hi"}]}),
        (HI, {"role": "user", "content": [{"type": "text", "text": "hi", **MARK}]}),
        (HI, {"role": "user", "content": [{**MARK, "type": "text", "text": "hi"}]}),
        ({"role": "user", "content": 'a"b'}, {"role": "user", "content": [{"type": "text", "text": 'a"b'}]}),
        ({"content": [{"type": "tool_result", "id": "1"}]}, {"content": [{"type": "tool_result", "id": "1", **MARK}]}),
    ],
)
def test_one_message_in_two_spellings(one: Any, two: Any) -> None:
    assert prefix_digests([one]) == prefix_digests([two])


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (HI, {"role": "user", "content": "ho"}),
        (HI, {"role": "assistant", "content": "hi"}),
        (HI, {"role": "user", "content": ["hi"]}),
        (HI, {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": ""}]}),
        ({"content": '"cache_control":null'}, {"content": ""}),
        ({"content": "{,"}, {"content": "{"}),
    ],
)
def test_two_messages(one: Any, two: Any) -> None:
    assert prefix_digests([one]) != prefix_digests([two])


def test_each_beginning_of_a_conversation_has_its_own() -> None:
    whole = prefix_digests([HI, HI, {"role": "user"}])
    assert whole[:2] == prefix_digests([HI, HI])
    assert len(set(whole)) == 3


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"messages": [HI]}, [HI]),
        ({"input": [HI]}, [HI]),
        ({"input": "hi"}, []),
        ({"messages": {"a": 1}}, []),
        ({}, []),
        ({"messages": None, "input": [HI]}, []),
    ],
)
def test_where_a_conversation_stands(body: Any, found: Any) -> None:
    assert messages_of(body) == found
