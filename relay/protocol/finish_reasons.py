"""What a reason to finish says: chat's `finish_reason`, messages' `stop_reason`.

Upstreams spell them as they like (`ERROR`, `network_error`, `InternalServerError`, `{"type": "abort"}`), and there are
more than any list holds. A reason is a failure where one of its words is, and none at all where it says so.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

FINISHED: Final = 0
UNFINISHED: Final = 1
FAILED: Final = 2

# The longest that is looked at; what is longer is a reason like any other.
_LONGEST = 100
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NONE = frozenset(
    ("", "null", "none", "nil", "undefined", "not finished", "unfinished", "in progress", "running",
     "finish reason unspecified", "unspecified")
)  # fmt: skip
_FAILING = frozenset(
    ("error", "errored", "errors", "err", "exception", "abort", "aborted", "aborting", "fail", "failed", "failure",
     "timeout", "cancel", "cancelled", "canceled", "cancellation", "crash", "crashed", "fault", "panic", "killed",
     "insufficient", "overloaded", "unavailable", "interrupted", "disconnect", "disconnected", "preempted", "oom")
)  # fmt: skip
# In one word without a sign of where its parts begin: `networkerror`, `servererror`, `timedout`.
_FAILING_END = re.compile(r"(?:error|exception|aborted|cancelled|timedout)\Z|timed out\Z")


def judge(reason: object) -> int:
    """FINISHED, UNFINISHED or FAILED."""
    if isinstance(reason, dict):
        reason = reason.get("type")  # as some servers have it: `{"type": "stop", "matched": 2}`
    if isinstance(reason, str):
        return _judge(reason) if len(reason) <= _LONGEST else FINISHED
    return FINISHED if reason else UNFINISHED


def text_of(reason: object) -> str:
    """The reason in words, where it has some."""
    told = reason.get("type") if isinstance(reason, dict) else reason
    return told[:_LONGEST] if isinstance(told, str) else ""


@lru_cache(256)
def _judge(reason: str) -> int:
    words = [word.lower() for word in _WORDS.findall(reason)]
    spelled = " ".join(words)
    if spelled in _NONE:
        return UNFINISHED
    return FAILED if not _FAILING.isdisjoint(words) or _FAILING_END.search(spelled) else FINISHED
