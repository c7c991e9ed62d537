"""What events, and ends of the connection, make of a stream: one table for each API, and nothing else decides.

A `Watch` says what an event is (its name), and the table, by the state that the stream is in, what becomes of the event
and of the stream. The document's tables are printed by `python -m relay.protocol.ends`.
"""

from __future__ import annotations

import functools
from enum import StrEnum
from typing import Final

# What an event is, as bits of Watch.see's answer. The bits above HIDDEN are names, of which the highest counts.
TOKEN: Final = 1  # carries generated text, reasoning, a refusal or a tool call
HIDDEN: Final = 2  # asked for by the relay, not by the client: not forwarded
PART: Final = 4
FINISH: Final = 8
USAGE: Final = 16
KEEP_ALIVE: Final = 32
END: Final = 64
DONE_LINE: Final = 128
FAILURE: Final = 256
ERROR: Final = 512
# The events that leave a stream as it is, once it has begun; all others are looked up.
PLAIN: Final = TOKEN | HIDDEN | PART


class Name(StrEnum):
    """What an event is, or how the body ended."""

    KEEP_ALIVE = "keep-alive"
    OTHER = "other"
    PART = "part"
    FINISH = "finish"
    USAGE = "usage"
    END = "end"
    DONE = "[DONE]"
    FAILURE = "failure"
    ERROR = "error"
    CLEAN_END = "clean end"
    SILENCE = "silence"
    CUT = "cut"


class State(StrEnum):
    """What has come of an answer. In FAILED and OVER its end has come, and something that belongs to it may follow. In
    ERRED an application has told an error, and whether anything follows is its own affair."""

    NOTHING = "nothing"
    BEGUN = "begun"
    FINISHED = "finished"
    COUNTED = "counted"
    FAILED = "failed"
    OVER = "over"
    ERRED = "erred"


class Act(StrEnum):
    """A cell that is no state. Of the events only DROP, CLOSE, CUT_OFF and WHOLE are not forwarded."""

    DROP = "dropped"
    COMPLETE = "completed"
    WHOLE = "completed, its last event missing"
    FAIL = "upstream_error"
    CLOSE = "as its state says"
    CUT_OFF = "upstream_disconnected"
    TIMED_OUT = "upstream_timeout"


Cell = State | Act

_NAMES: Final = (
    (ERROR, Name.ERROR),
    (FAILURE, Name.FAILURE),
    (DONE_LINE, Name.DONE),
    (END, Name.END),
    (KEEP_ALIVE, Name.KEEP_ALIVE),
    (USAGE, Name.USAGE),
    (FINISH, Name.FINISH),
    (TOKEN | PART, Name.PART),
)


@functools.cache
def name_of(bits: int) -> Name:
    """The name of an event with these bits."""
    return next((name for bit, name in _NAMES if bits & bit), Name.OTHER)


_NOTHING, _BEGUN, _FINISHED, _COUNTED, _FAILED, _OVER, _ERRED = State
_DROP, _COMPLETE, _WHOLE, _FAIL, _CLOSE, _CUT, _LATE = Act

# In each row: keep-alive, other, part, finish, usage, end, [DONE], failure, error, clean end, silence, cut.
_AFTER: Final = (_DROP, _CLOSE, _CLOSE, _CLOSE, _CLOSE, _CLOSE)
_ROWS: dict[str, dict[State, tuple[Cell, ...]]] = {
    "chat": {
        # [DONE] alone is no answer. Usage without a finish reason ends the answers of upstreams that give none.
        _NOTHING: (_DROP, _NOTHING, _BEGUN, _FINISHED, _NOTHING, _NOTHING, _CUT, _FAILED, _FAILED, _CUT, _LATE, _CUT),
        _BEGUN: (_DROP, _BEGUN, _BEGUN, _FINISHED, _COUNTED, _BEGUN, _COMPLETE, _FAILED, _FAILED, _CUT, _LATE, _CUT),
        _FINISHED: (
            *(_DROP, _FINISHED, _BEGUN, _FINISHED, _FINISHED, _FINISHED, _COMPLETE, _FAILED, _FAILED),
            *(_WHOLE, _WHOLE, _CUT),
        ),
        _COUNTED: (
            *(_DROP, _COUNTED, _BEGUN, _FINISHED, _COUNTED, _COUNTED, _COMPLETE, _FAILED, _FAILED),
            *(_WHOLE, _LATE, _CUT),
        ),
        _FAILED: (_DROP, _CLOSE, _CLOSE, _CLOSE, _FAILED, _CLOSE, _FAIL, _CLOSE, _CLOSE, _CLOSE, _CLOSE, _CLOSE),
    },
    "messages": {
        _NOTHING: (_DROP, _NOTHING, _BEGUN, _FINISHED, _NOTHING, _CUT, _DROP, _FAILED, _FAIL, _CUT, _LATE, _CUT),
        _BEGUN: (_DROP, _BEGUN, _BEGUN, _FINISHED, _BEGUN, _COMPLETE, _DROP, _FAILED, _FAIL, _CUT, _LATE, _CUT),
        _FINISHED: (
            *(_DROP, _FINISHED, _BEGUN, _FINISHED, _FINISHED, _COMPLETE, _WHOLE, _FAILED, _FAIL),
            *(_WHOLE, _WHOLE, _CUT),
        ),
        _FAILED: (_DROP, _CLOSE, _CLOSE, _CLOSE, _CLOSE, _FAIL, _CLOSE, _CLOSE, _FAIL, _CLOSE, _CLOSE, _CLOSE),
    },
    "responses": {
        # A client that hangs up at [DONE] must not get it before the end that says how the answer ended.
        _NOTHING: (_DROP, _NOTHING, _BEGUN, _BEGUN, _NOTHING, _OVER, _CUT, _FAILED, _FAILED, _CUT, _LATE, _CUT),
        _BEGUN: (_DROP, _BEGUN, _BEGUN, _BEGUN, _BEGUN, _OVER, _CUT, _FAILED, _FAILED, _CUT, _LATE, _CUT),
        _FAILED: (_DROP, _CLOSE, _CLOSE, _CLOSE, _CLOSE, _CLOSE, _FAIL, _FAILED, _FAILED, _CLOSE, _CLOSE, _CLOSE),
        _OVER: (*_AFTER, _COMPLETE, _CLOSE, _CLOSE, _CLOSE, _CLOSE, _CLOSE),
    },
    "events": {
        # Of an application, in no format that says where it ends: every event is forwarded, and a clean end is the end.
        _NOTHING: (_DROP, *[_BEGUN] * 6, _ERRED, _ERRED, _COMPLETE, _LATE, _CUT),
        _BEGUN: (_DROP, *[_BEGUN] * 6, _ERRED, _ERRED, _COMPLETE, _LATE, _CUT),
        _ERRED: (_DROP, *[_ERRED] * 8, _FAIL, _LATE, _CUT),
    },
    "ended events": {
        # … in one that does. What is no part of the answer (other) begins another one.
        _NOTHING: (_DROP, *[_BEGUN] * 4, _FINISHED, _BEGUN, _ERRED, _ERRED, _CUT, _LATE, _CUT),
        _BEGUN: (_DROP, *[_BEGUN] * 4, _FINISHED, _BEGUN, _ERRED, _ERRED, _CUT, _LATE, _CUT),
        _FINISHED: (_DROP, _BEGUN, *[_FINISHED] * 5, _ERRED, _ERRED, _COMPLETE, _COMPLETE, _COMPLETE),
        _ERRED: (_DROP, _BEGUN, *[_ERRED] * 3, _FINISHED, *[_ERRED] * 3, _FAIL, _FAIL, _FAIL),
    },
    "ui messages": {
        # Its own server ends every stream with [DONE], those without an answer and those that failed, too.
        _NOTHING: (_DROP, _BEGUN, _BEGUN, _FINISHED, _BEGUN, _BEGUN, _COMPLETE, _ERRED, _ERRED, _CUT, _LATE, _CUT),
        _BEGUN: (_DROP, _BEGUN, _BEGUN, _FINISHED, _BEGUN, _BEGUN, _COMPLETE, _ERRED, _ERRED, _CUT, _LATE, _CUT),
        _FINISHED: (_DROP, _BEGUN, _BEGUN, *[_FINISHED] * 3, _COMPLETE, _ERRED, _ERRED, _WHOLE, _WHOLE, _CUT),
        _ERRED: (_DROP, *[_ERRED] * 5, _FAIL, _ERRED, _ERRED, _FAIL, _FAIL, _FAIL),
    },
}
ENDS: dict[str, dict[State, dict[Name, Cell]]] = {
    api: {state: dict(zip(Name, cells, strict=True)) for state, cells in rows.items()} for api, rows in _ROWS.items()
}


def reference() -> str:
    """The tables as Markdown."""
    tables = []
    for api, rows in ENDS.items():
        lines = [f"| {api} | {' | '.join(Name)} |", "|---" * (len(Name) + 1) + "|"]
        lines += [f"| **{state}** | {' | '.join(row.values())} |" for state, row in rows.items()]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


if __name__ == "__main__":
    print(reference())
