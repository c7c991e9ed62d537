"""What is said of names is asked once for each, and strangers who make names up fill no memory."""

from __future__ import annotations

from relay.protocol.name_cache import LONGEST_NAME, NameCache


def test_each_name_is_asked_for_once() -> None:
    asked: list[bytes] = []

    def length(name: bytes) -> int:
        asked.append(name)
        return len(name)

    lengths = NameCache(length)
    assert [lengths[name] for name in (b"a", b"bc", b"a", b"bc")] == [1, 2, 1, 2]
    assert asked == [b"a", b"bc"]


def test_made_up_names_fill_no_memory() -> None:
    lengths = NameCache(len)
    for n in range(10_000):
        name = b"x-%d" % n
        assert lengths[name] == len(name)
    assert len(lengths) <= 1024
    long = b"x" * (LONGEST_NAME + 1)
    assert lengths[long] == len(long)
    assert long not in lengths
