"""JSON looked at as it arrives: bounds told in time, members found in every spelling, bytes that stay as they are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol import json_scan
from relay.protocol.json_edit import TooLong, changes, edited
from relay.protocol.json_glance import is_deep, is_small, layout_of
from relay.protocol.json_scan import Beyond, Layout, Scanner

NAMES = ("model", "stream", "stream_options", "n")


def scan(text: bytes, size: int = 1 << 16, names: tuple[str, ...] = NAMES) -> Layout:
    scanner = Scanner(names)
    for at in range(0, len(text), size):
        scanner.feed(text[at : at + size])
    return scanner.finish()


def found(text: bytes, size: int = 1 << 16) -> list[tuple[str, bytes]]:
    return [(member.name, text[member.start : member.stop].strip()) for member in scan(text, size).members]


# -- members ----------------------------------------------------------------------------------------------------------

ROWS: dict[str, tuple[bytes, list[tuple[str, bytes]]]] = {
    "one": (b'{"model":"m"}', [("model", b'"m"')]),
    "none": (b"{}", []),
    "with space": (b' {\n "model" : "m" ,\t"n":2\r\n} \n', [("model", b'"m"'), ("n", b"2")]),
    "others too": (b'{"a":1,"model":"m","b":[],"n":{"n":3}}', [("model", b'"m"'), ("n", b'{"n":3}')]),
    "escaped key": (rb'{"mod\u0065l":"m"}', [("model", b'"m"')]),
    "all of it escaped": (rb'{"\u006d\u006f\u0064\u0065\u006c":"m"}', [("model", b'"m"')]),
    "upper case": (b'{"MODEL":"m","Stream":true}', [("MODEL", b'"m"'), ("Stream", b"true")]),
    "a letter that folds": ('{"\u017ftream":true}'.encode(), [("\u017ftream", b"true")]),
    "twice": (b'{"model":"a","model":"b"}', [("model", b'"a"'), ("model", b'"b"')]),
    "as a value": (b'{"a":"model","b":"n"}', []),
    "deeper": (b'{"a":{"model":1},"b":[{"model":2}]}', []),
    "in a text": (rb'{"a":"\",\"model\":\"x\"","n":1}', [("n", b"1")]),
    "backslashes before a quote": (rb'{"a":"\\","model":"\\\\\""}', [("model", rb'"\\\\\""')]),
    "colons and commas in a value": (
        b'{"model":"a:b,c}","n":[1,{"x":2}]}',
        [("model", b'"a:b,c}"'), ("n", b'[1,{"x":2}]')],
    ),
    "a long key that ends like it": (b'{"' + b"x" * 2000 + b'model":1,"n":2}', [("n", b"2")]),
    "an array": (b'[{"model":1},"model"]', []),
    "a BOM before": (b'\xef\xbb\xbf{"model":"m"}', [("model", b'"m"')]),
    "no JSON": (b'model":"a"}{"model":"b"', []),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1 << 16])
def test_members_are_found_however_the_text_is_cut(kind: str, size: int) -> None:
    text, expected = ROWS[kind]
    if kind == "no JSON":
        scan(text, size)
    else:
        assert found(text, size) == expected


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.sampled_from(NAMES), inner),
    max_leaves=20,
)
objects = st.dictionaries(st.sampled_from([*NAMES, "N", "Model"]) | st.text(max_size=3), documents, max_size=6)


def spelled(value: object, ascii_only: bool, indent: int | None) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")


def depth_of(value: object) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def count_members(value: object) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(count_members, value.values()))
    return sum(map(count_members, value)) if isinstance(value, list) else 0


@given(objects, st.booleans(), st.sampled_from([None, 1]), st.integers(1, 9))
def test_it_sees_what_the_standard_parser_sees(value: Any, ascii_only: bool, indent: int | None, size: int) -> None:
    text = spelled(value, ascii_only, indent)
    layout = scan(text, size)
    expected = [(name, item) for name, item in value.items() if name.casefold() in NAMES]
    assert [(m.name, json.loads(text[m.start : m.stop])) for m in layout.members] == expected
    assert layout.members_in_all == count_members(value)
    assert layout.end == len(text) - 1
    assert layout.empty == (not value)


@given(documents, st.integers(1, 9))
def test_depth_is_what_it_is(value: object, size: int) -> None:
    text = spelled(value, True, None)
    limit, json_scan.DEPTH = json_scan.DEPTH, depth_of(value)
    try:
        scan(text, size)
        if json_scan.DEPTH:
            json_scan.DEPTH -= 1
            with pytest.raises(Beyond, match="levels deep"):
                scan(text, size)
    finally:
        json_scan.DEPTH = limit


@given(st.binary(max_size=60) | st.text('{}[]",:\\ \n1mn').map(str.encode), st.integers(1, 9))
def test_the_cut_changes_nothing(text: bytes, size: int) -> None:
    """Of no text of any kind, also of none that is JSON."""
    assert scan(text, size) == scan(text)


# -- bounds -----------------------------------------------------------------------------------------------------------

N = 1 << 20
BEYOND: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty arrays": (lambda: b'{"x":[' + b"[]," * N, "arrays and objects"),
    "empty arrays at the top": (lambda: b'{"x":1,' + b"[]," * N, "arrays and objects"),
    "empty objects": (lambda: b'{"x":[' + b"{}," * N, "arrays and objects"),
    "short strings": (lambda: b'{"x":[' + b'"",' * N, "values"),
    "numbers": (lambda: b'{"x":[' + b"1," * N, "values"),
    "members": (lambda: b'{"x":{' + b'"":1,' * N, "members"),
    "members at the top": (lambda: b"{" + b'"":1,' * N, "members"),
    "deep arrays": (lambda: b'{"x":' + b"[" * N, "levels deep"),
    "deep objects": (lambda: b'{"x":' * N, "levels deep"),
    "up and down": (lambda: b'{"x":[' + (b"[" * 128 + b"]" * 128 + b",") * N, "levels deep"),
    "brackets that only close": (lambda: b"[" + b"]" * N + b"[]" * N, "arrays and objects"),
}
# A parser refuses it at once, so it may be small at a glance.
LOOSE: dict[str, tuple[Callable[[], bytes], str]] = {
    "strings one behind the other": (lambda: b'{"x":' + b'""' * N, "strings at its top"),
    "strings before the top": (lambda: b'""' * N, "strings at its top"),
}


@pytest.mark.parametrize("kind", [*BEYOND, *LOOSE])
def test_what_is_beyond_a_bound_is_told_soon(kind: str) -> None:
    make, told = (BEYOND | LOOSE)[kind]
    text = make()
    with pytest.raises(Beyond, match=told):
        scan(text[: len(text) * 3 // 4])


@pytest.mark.parametrize("size", [7, 1 << 14])
def test_as_many_members_as_there_may_be_may_have_strings(size: int) -> None:
    text = b"{" + b",".join([b'"a":"b"'] * json_scan.MEMBERS) + b"}"
    assert scan(text, size).members_in_all == json_scan.MEMBERS


ODD: dict[str, Callable[[], bytes]] = {
    **{kind: text for kind, (text, _) in (BEYOND | LOOSE).items()},
    "one string": lambda: b'{"x":"' + b"a" * 4 * N,
    "escapes": lambda: b'{"x":"' + b"\\n" * 2 * N,
    "escaped quotes": lambda: b'{"x":"' + b'\\"' * 2 * N,
    "quotes": lambda: b'"' * 2 * N,
    "backslashes": lambda: b"\\" * 2 * N,
    "half strings": lambda: b'"\\' * N,
    "spaces": lambda: b"{" + b" " * 4 * N,
    "colons": lambda: b"{" + b":" * N,
    "a number": lambda: b'{"x":' + b"1" * 4 * N,
    "a key without an end": lambda: b'{"' + b"m" * 4 * N,
    "a key of escapes": lambda: b'{"' + b"\\u006d" * N,
}


@pytest.mark.parametrize("kind", ODD)
def test_no_piece_takes_long(kind: str) -> None:
    """Each takes a few milliseconds of CPU; the wide margin is a busy machine's."""
    text = ODD[kind]()
    scanner = Scanner(NAMES)
    slowest = 0.0
    try:
        for at in range(0, len(text), 1 << 14):
            piece = text[at : at + (1 << 14)]
            began = time.thread_time()
            scanner.feed(piece)
            slowest = max(slowest, time.thread_time() - began)
    except Beyond:
        pass
    assert slowest < 0.1


REAL: dict[str, Callable[[], bytes]] = {
    "a million tokens of text": lambda: b'{"model":"m","prompt":"' + b"a word, [and] {so} on: " * 200_000 + b'"}',
    "an image of 30 MiB": lambda: b'{"model":"m","input":[{"image_url":"data:image/png,' + b"A" * 30 * N + b'"}]}',
    "2,048 inputs": lambda: json.dumps({"model": "m", "input": ["some text to embed"] * 2048}).encode(),
    "300,000 tokens": lambda: json.dumps({"model": "m", "input": [[50256] * 150] * 2000}).encode(),
    "a schema of 40 levels": lambda: json.dumps(
        {"model": "m", "tools": json.loads('{"type":"object","properties":{"a":' * 40 + "{}" + "}}" * 40)}
    ).encode(),
    "20,000 blocks": lambda: json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}] * 20_000, "model": "m"}
    ).encode(),
}


@pytest.mark.parametrize("kind", REAL)
def test_real_bodies_are_within_the_bounds(kind: str) -> None:
    assert ("model", b'"m"') in found(REAL[kind]())


# -- edits ------------------------------------------------------------------------------------------------------------

ODDITIES = (
    rb'{ "seed":12345678901234567890123, "a":1.0,"b":1e400,"c":-0,"d":NaN ,"model" :"openai\/x","e":"\ud800",'
    rb'"e":"\u00e9","user":"a", "user":"b"}'
)

EDITS: dict[str, tuple[bytes, dict[str, Any], bytes]] = {
    "nothing": (b'{"model":"m" }', {}, b'{"model":"m" }'),
    "set": (b'{"a":1.0,"model":"x/m","b":[ ]}', {"model": "m"}, b'{"a":1.0,"model":"m","b":[ ]}'),
    "set amid spaces": (b'{"model" :\n "x/m"\t,"a":1}', {"model": "m"}, b'{"model" :\n "m"\t,"a":1}'),
    "set under an escaped key": (rb'{"mod\u0065l":"x"}', {"model": "m"}, rb'{"mod\u0065l":"m"}'),
    "oddities stay": (ODDITIES, {"model": "x"}, ODDITIES.replace(rb'"openai\/x"', b'"x"')),
    "added": (b'{"model":"m" }\n', {"n": 2}, b'{"model":"m" ,"n":2}\n'),
    "added to none": (b"{ }", {"n": 2, "stream": True}, b'{ "n":2,"stream":true}'),
    "two set": (b'{"n":1,"model":"a"}', {"model": "m", "n": 2}, b'{"n":2,"model":"m"}'),
    "in an object": (
        b'{"stream_options": { "x":1.50 } ,"n":1}',
        {"stream_options": {"include_usage": True}},
        b'{"stream_options": { "x":1.50 ,"include_usage":true} ,"n":1}',
    ),
    "set in an object": (
        b'{"stream_options":{"include_usage" : false,"a":[]}}',
        {"stream_options": {"include_usage": True}},
        b'{"stream_options":{"include_usage" : true,"a":[]}}',
    ),
    "an object for none": (
        b'{"stream_options":null}',
        {"stream_options": {"include_usage": True}},
        b'{"stream_options":{"include_usage":true}}',
    ),
    "a lone surrogate": (b'{"model":"x"}', {"model": "\ud800"}, rb'{"model":"\ud800"}'),
}


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("size", [1, 5, 1 << 16])
def test_what_is_not_set_stays_as_it_was_written(kind: str, size: int) -> None:
    text, patch, expected = EDITS[kind]
    assert b"".join(edited(text, scan(text, size), patch)) == expected


@given(objects.filter(lambda value: not scan(json.dumps(value).encode()).repeated()), st.booleans(), st.integers(1, 9))
def test_it_is_what_a_patch_of_what_was_parsed_is(value: Any, ascii_only: bool, size: int) -> None:
    patch = {"model": "m", "n": [1, 2]}
    text = spelled(value, ascii_only, None)
    names = {member.name for member in scan(text).members}
    if names & {"N", "Model"}:
        return
    assert json.loads(b"".join(edited(text, scan(text, size), patch))) == {**value, **patch}


def test_only_what_is_not_the_same_is_a_change() -> None:
    old = {"model": "x", "stream_options": {"a": 1}, "n": 1}
    new = {**old, "stream_options": {**old["stream_options"], "include_usage": True}, "model": "m"}  # type: ignore[dict-item]
    assert changes(old, new) == {"stream_options": {"include_usage": True}, "model": "m"}
    assert changes(old, old) == {}


def test_an_object_that_is_too_long_is_not_changed() -> None:
    text = b'{"stream_options":{"a":"' + b"x" * 100_000 + b'"}}'
    with pytest.raises(TooLong):
        edited(text, scan(text), {"stream_options": {"include_usage": True}})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b'{"model":1,"model":2}', "model"),
        (rb'{"model":1,"mod\u0065l":2}', "model"),
        (b'{"model":1,"Model":2}', None),
        (b'{"model":1,"a":{"model":2},"b":2,"b":3}', None),
    ],
)
def test_repeated_members_are_told(text: bytes, name: str | None) -> None:
    assert scan(text).repeated() == name


# -- at a glance ------------------------------------------------------------------------------------------------------


@given(objects, st.booleans(), st.sampled_from([None, 1]))
def test_a_glance_tells_what_a_scan_does_or_nothing(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = spelled(value, ascii_only, indent)
    told, seen = layout_of(text, value, NAMES, NAMES), scan(text)
    if told is not None:
        exact = {member.name: member for member in seen.members if member.name in NAMES}
        assert {member.name: member for member in told.members} == exact
        assert (told.end, told.empty) == (seen.end, seen.empty)
    assert is_small(text)
    assert is_deep(value) == (depth_of(value) > json_scan.DEPTH)


GLANCES: dict[str, tuple[bytes, bool]] = {
    "a request": (b'{"model":"m","stream":true,"messages":[{"content":"say \\"model\\": 1"}]}', True),
    "twice": (b'{"model":"a","model":"b"}', False),
    "twice, once escaped": (rb'{"model":"a","mod\u0065l":"b"}', False),
    "escaped": (rb'{"mod\u0065l":"b"}', False),
    "deeper too": (b'{"model":"a","x":{"model":"b"}}', False),
    "deeper only": (b'{"x":{"model":"b"}}', True),
    "as a value too": (b'{"x":"model","model":"m"}', False),
    "at a text's end": (rb'{"x":"a \"model","model":"m"}', False),
    "other escapes": (rb'{"x":"\u00e9\u4e2d\n","model":"m"}', True),
    "options": (b'{"stream_options": {"include_usage" : true} ,"model":"m"}', True),
    "deep options": (b'{"stream_options":{"a":{}},"model":"m"}', False),
}


@pytest.mark.parametrize("kind", GLANCES)
def test_a_glance_guesses_nothing(kind: str) -> None:
    text, told = GLANCES[kind]
    layout = layout_of(text, json.loads(text), NAMES, NAMES)
    assert (layout is not None) == told
    if layout is not None:
        assert sorted(layout.members, key=lambda member: member.start) == scan(text).members


@pytest.mark.parametrize("kind", [kind for kind in BEYOND if "deep" not in kind and "down" not in kind])
def test_what_is_beyond_a_bound_is_not_small(kind: str) -> None:
    assert not is_small(BEYOND[kind][0]())


def test_as_much_as_is_small_is_within_the_bounds() -> None:
    for unit in (b"[]," * 64, b'{"":1},', b"1,", b'"",', b"[" * 100 + b"]" * 100 + b","):
        for size in (192 * 1024, 4 << 20):
            text = b'{"x":[' + unit * ((size - 10) // len(unit)) + b"1]}"
            if is_small(text):
                scan(text)


@pytest.mark.parametrize(("levels", "deep"), [(127, False), (128, True), (900, True)])
def test_depth_at_a_glance_is_that_of_a_scan(levels: int, deep: bool) -> None:
    text = b'{"x":' + b"[" * levels + b"]" * levels + b"}"
    assert is_deep(json.loads(text)) == deep
    if deep:
        with pytest.raises(Beyond):
            scan(text)
    else:
        scan(text)
