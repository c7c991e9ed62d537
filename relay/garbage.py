"""Python's collector of garbage, where thousands of streams live.

A full collection looks through all that lives: with a thousand streams it holds the loop for a tenth of a second, and
by Python's own rule it comes whenever a quarter more lives than at the last one, so several times in each burst. But
nothing of a stream or a connection waits for the collector (`tests/streams/test_memory.py`,
`tests/api/test_bursts.py`). So young objects are collected in small portions, and all of them when nothing runs that
would be held up, or after many portions.
"""

from __future__ import annotations

import gc

# New objects until the young ones are looked through, how many of these until those that were left are, and how many of
# these until all are. With Python's own 700 the first comes with every third stream.
_THRESHOLDS = (5_000, 5, 100)


def spare_what_lives() -> None:
    """What lives as long as the process is not looked through again and again for what could be freed."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def collect_while_idle() -> None:
    """To be called when nothing runs: look through all, where there may be something to find."""
    if gc.get_count()[2]:
        gc.collect()
