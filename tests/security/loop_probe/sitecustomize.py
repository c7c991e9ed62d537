"""Put on PYTHONPATH of a relay under test: it tells how long its event loop was held up, and with `BODY_DEFENCES=off`
it runs without what bounds a request's body.

The file `$LOOP_PROBE` has two numbers, the most CPU seconds and the most seconds between two turns of a callback that
asks for one every 5 ms; who writes zeros begins anew. CPU seconds of the loop's own thread do not count what other
processes of a busy machine take.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import Any

_EVERY = 0.005


def _watch(loop: Any, path: str) -> None:
    file = os.open(path, os.O_RDWR)
    shown = mmap.mmap(file, 16)
    last = [time.thread_time(), time.monotonic()]

    def tick() -> None:
        now = [time.thread_time(), time.monotonic()]
        most = struct.unpack("dd", shown[:16])
        shown[:16] = struct.pack("dd", *(max(m, n - before) for m, n, before in zip(most, now, last, strict=True)))
        last[:] = now
        loop.call_later(_EVERY, tick)

    loop.call_soon(tick)


def _without_defences() -> None:
    import gc

    from relay.api import bodies, json_body
    from relay.protocol import codings, json_scan

    for bound in ("DEPTH", "VALUES", "CONTAINERS", "MEMBERS"):
        setattr(json_scan, bound, 1 << 60)

    codings._MOST_MEMBERS = 1 << 60

    async def at_once(*_: object) -> None:
        pass

    bodies.Turns.__aenter__ = bodies.Turns.__aexit__ = at_once  # type: ignore[assignment,method-assign]
    bodies.Bodies._make_room = lambda *_: None  # type: ignore[method-assign]
    json_body._STEP = json_body._CODED_STEP = 1 << 60
    json_body.gc = type("Collector", (), {"disable": int, "enable": int, "isenabled": gc.isenabled})  # type: ignore[attr-defined,assignment]


if "LOOP_PROBE" in os.environ:
    import uvloop

    made = uvloop.new_event_loop

    def probed() -> Any:
        loop = made()
        _watch(loop, os.environ["LOOP_PROBE"])
        return loop

    uvloop.new_event_loop = probed
    if os.environ.get("BODY_DEFENCES") == "off":
        _without_defences()
