"""The parser of event ids against a second one that knows no regular expressions."""

from __future__ import annotations

from relay.protocol.ids import EventId, is_logged, is_stream_id, parse_event_id

_DIGITS = "0123456789"
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-" + _DIGITS)


def one(data: bytes) -> None:
    # A header arrives as latin-1, a query as UTF-8.
    for value in (data.decode("latin-1"), data.decode("utf-8", "replace")):
        parsed = parse_event_id(value)
        assert parsed == by_hand(value)
        assert is_stream_id(value) == stream_by_hand(value)
        if parsed is not None:
            assert str(parsed) == value, "two ids would name one position"
            assert is_stream_id(parsed.stream)
            assert is_logged(parsed.stream) == (len(parsed.stream) == 25)


def by_hand(value: str) -> EventId | None:
    stream, dot, n = value.partition(".")
    end = n[-1:] == "e"
    n = n[:-1] if end else n
    if not (dot and stream_by_hand(stream) and 0 < len(n) <= 15 and all(c in _DIGITS for c in n)):
        return None
    if n[0] == "0" and n != "0":
        return None
    return EventId(stream, int(n), end)


def stream_by_hand(value: str) -> bool:
    if value[:3] != "st_" or not set(value[3:]) <= _LETTERS:
        return False
    return len(value) == 25 or (len(value) == 27 and value.endswith("_u"))
