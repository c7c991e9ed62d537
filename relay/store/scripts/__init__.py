"""The Lua scripts, each stating its keys, arguments and answers at its top."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    text: str
    sha: str


def _read(name: str) -> Script:
    text = (files(__package__) / f"{name}.lua").read_text(encoding="utf-8")
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


CREATE = _read("create")
APPEND = _read("append")
RENEW = _read("renew")
LOOK = _read("look")
SEAL = _read("seal")
CLAIM = _read("claim")
RELEASE = _read("release")
SIGN = _read("sign")

SCRIPTS = (CREATE, APPEND, RENEW, LOOK, SEAL, CLAIM, RELEASE, SIGN)

# Codes that the scripts answer.
OK, FENCED, MISMATCH, GONE, ENDED, ALIVE = 1, 2, 3, 4, 5, 6
