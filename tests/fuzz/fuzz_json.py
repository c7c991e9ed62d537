"""What is seen in JSON as it comes against what the standard parser makes of it, for any bytes, cut anywhere.

The first 3 bytes of the input say where the text is cut; the rest is the text.
"""

from __future__ import annotations

import json
from typing import Any

from relay.protocol.json_edit import edited
from relay.protocol.json_scan import Beyond, Layout, Scanner, members_of
from tests.fuzz.fuzz_sse import cut

NAMES = ("model", "n")


def look(pieces: list[bytes]) -> Layout | None:
    """None where there is more of it than is taken."""
    scanner = Scanner(NAMES)
    try:
        for piece in pieces:
            scanner.feed(piece)
        return scanner.finish()
    except Beyond:
        return None


def one(data: bytes) -> None:
    steps, text = data[:3], data[3:]
    layout = look([text])
    assert look(cut(text, steps)) == layout, "the cut decides what is seen"
    if layout is None:
        return
    repeated: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend({name for name, _ in items if [n for n, _ in items].count(name) > 1})
        return dict(items)

    try:
        parsed = json.loads(text.decode(), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return
    if not isinstance(parsed, dict):
        return
    assert (layout.members_in_all != members_of(parsed)) == bool(repeated)
    seen = {member.name: json.loads(text[member.start : member.stop]) for member in layout.members}
    expected = {name: value for name, value in parsed.items() if name.casefold() in NAMES}
    assert repr(seen) == repr(expected) or repeated
    if repeated:
        assert layout.repeated() is None or layout.repeated() in repeated
        return
    assert layout.repeated() is None
    changed = b"".join(edited(text, layout, {"model": "m", "n": 2}))
    assert repr(json.loads(changed)) == repr({**parsed, "model": "m", "n": 2})
