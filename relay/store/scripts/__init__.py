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
LEARN = _read("learn")
APPEND = _read("append")
RENEW = _read("renew")
OVER = _read("over")
STATUS = _read("status")
READ = _read("read")
LEAVE = _read("leave")
FORCE_END = _read("force_end")
SUCCEED = _read("succeed")
LAPSE = _read("lapse")
CLAIM = _read("claim")
RELEASE = _read("release")
ALIAS = _read("alias")
SIGN = _read("sign")
NOTE = _read("note")
MARK = _read("mark")
ORPHAN = _read("orphan")
ADOPT = _read("adopt")
ENLIST = _read("enlist")
TELL = _read("tell")
RECENT = _read("recent")
TAKE = _read("take")
REMIND = _read("remind")

SCRIPTS = (
    CREATE,
    LEARN,
    APPEND,
    RENEW,
    OVER,
    STATUS,
    READ,
    LEAVE,
    FORCE_END,
    SUCCEED,
    LAPSE,
    CLAIM,
    RELEASE,
    ALIAS,
    SIGN,
    NOTE,
    MARK,
    ORPHAN,
    ADOPT,
    ENLIST,
    TELL,
    RECENT,
    TAKE,
    REMIND,
)

# Codes that the scripts answer.
OK, FENCED, MISMATCH, GONE, ENDED, ALIVE = 1, 2, 3, 4, 5, 6
