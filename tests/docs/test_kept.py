"""The table of what a request may name, in `relay/auth/README.md`, is the code's."""

from __future__ import annotations

import re
from pathlib import Path

from relay.protocol.members import KEPT

README = Path(__file__).parents[2] / "relay" / "auth" / "README.md"


def test_the_table_of_members_is_the_code_s() -> None:
    told: dict[str, str] = {}
    for line in README.read_text().splitlines():
        row = re.fullmatch(r"\| ((?:`[a-z_]+`(?:, )?)+) \| `(/v1/[^*]+)\*`.* \|", line)
        if row is not None:
            told |= dict.fromkeys((name.replace("_", "") for name in re.findall(r"`([a-z_]+)`", row[1])), row[2])
    assert told == KEPT
